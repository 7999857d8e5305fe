"""Apply a trained translation network to a folder of images.

    python tools/translate.py RUN/translator.safetensors RUN/held_out
    python tools/translate.py translator.safetensors PHOTOS --targets "a bear" --size 128

Writes OUT/NN-TARGET/NAME.png for every image and target, NN the target's number in the network, with captions.json, from
which tools/evaluate.py knows what the images ought to show; and prints what one image took.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Sequence

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402

from imaging import pictures, sources  # noqa: E402
from imaging.console import read_json, run_tool, slug  # noqa: E402
from imaging.files import write_json  # noqa: E402
from imaging.options import check_side, pick_device  # noqa: E402
from imaging.translator import load_translator, translate  # noqa: E402
from lmc_guidance import UserError  # noqa: E402


@dataclasses.dataclass
class Options:
    """What to apply to what."""

    translator: tyro.conf.Positional[Path]
    """File written by tools/train_translator.py."""
    folder: tyro.conf.Positional[Path]
    """Folder of images; the centred square of each is taken."""
    targets: tuple[str, ...] = ()
    """Which of the network's targets; none: all."""
    size: int | None = None
    """Side in pixels; none: what the network was trained at."""
    batch_size: int = 16
    """Images at once."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""
    out: Path | None = None
    """Where to write; none: translated/ beside the translator."""


def pick_targets(known: tuple[str, ...], wanted: tuple[str, ...]) -> list[int]:
    """Indices of the wanted targets, all of them if none is named."""
    for target in wanted:
        if target not in known:
            raise UserError(f"the network has no target '{target}'; it has {', '.join(map(repr, known))}")
    return [known.index(target) for target in wanted or known]


def list_distinct(folder: Path) -> list[Path]:
    """The images of a folder; `UserError` if two results would have one name."""
    paths = pictures.list_images(folder)
    stems = [path.stem for path in paths]
    double = [path for path in paths if stems.count(path.stem) > 1]
    if double:
        raise UserError(f"'{double[0].name}' and '{double[1].name}' would both become {double[0].stem}.png; rename one of them")
    return paths


def captions(target: str, paths: Sequence[Path], known: dict[str, dict[str, str]]) -> dict[str, str]:
    """What each result ought to show; left out where the target asks for what is not known of an image."""
    shown = {}
    for path in paths:
        try:
            shown[f"{path.stem}.png"] = sources.fill(target, known.get(path.name, {}))
        except UserError:
            continue
    return shown


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.batch_size < 1:
        raise UserError(f"batch-size is {options.batch_size}; it must be 1 or more")
    if options.size is not None:
        check_side(options.size)
    network, _ = load_translator(options.translator, pick_device(options.device))
    targets = pick_targets(network.spec.targets, options.targets)
    paths = list_distinct(options.folder)
    known = read_json(options.folder / sources.ATTRIBUTES) if (options.folder / sources.ATTRIBUTES).is_file() else {}
    images = torch.stack([pictures.read_image(path, options.size or network.spec.size) for path in paths])
    out = options.out or options.translator.parent / "translated"
    seconds = 0.0
    for target in targets:
        started = time.perf_counter()
        results = translate(network, images, target, options.batch_size)
        seconds += time.perf_counter() - started
        folder = out / f"{target:02d}-{slug(network.spec.targets[target])}"
        for path, result in zip(paths, results):
            pictures.write_image(folder / f"{path.stem}.png", result)
        write_json(folder / sources.CAPTIONS, captions(network.spec.targets[target], paths, known))
    each = 1000 * seconds / (len(paths) * len(targets))
    print(f"{len(paths)} images to {len(targets)} targets, {each:.1f} ms each at {images.shape[-1]} pixels: {out}")


if __name__ == "__main__":
    run_tool(main)
