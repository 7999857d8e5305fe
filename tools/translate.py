"""Apply a trained translation network to a folder of images.

    python tools/translate.py RUN/translator.safetensors RUN/held_out
    python tools/translate.py translator.safetensors PHOTOS --targets "a bear" --size 128

Writes OUT/TARGET/NAME.png for every image and target, and prints what one image took.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402

from imaging import pictures  # noqa: E402
from imaging.console import run_tool, slug  # noqa: E402
from imaging.options import pick_device  # noqa: E402
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


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    network, _ = load_translator(options.translator, pick_device(options.device))
    targets = pick_targets(network.spec.targets, options.targets)
    paths = pictures.list_images(options.folder)
    images = torch.stack([pictures.read_image(path, options.size or network.spec.size) for path in paths])
    out = options.out or options.translator.parent / "translated"
    seconds = 0.0
    for target in targets:
        started = time.perf_counter()
        results = translate(network, images, target, options.batch_size)
        seconds += time.perf_counter() - started
        for path, result in zip(paths, results):
            pictures.write_image(out / slug(network.spec.targets[target]) / f"{path.stem}.png", result)
    each = 1000 * seconds / (len(paths) * len(targets))
    print(f"{len(paths)} images to {len(targets)} targets, {each:.1f} ms each at {images.shape[-1]} pixels: {out}")


if __name__ == "__main__":
    run_tool(main)
