"""The choices that the paper leaves open, by experiment: the error of each corrective, and what it does to images.

    python benchmarks/ablate_corrective.py --images 50000                 every choice, one at a time from the base
    python benchmarks/ablate_corrective.py --only spectral unet           some of them
    python benchmarks/ablate_corrective.py --pairs outputs/pairs          the frozen model asked once for all of them
    python benchmarks/ablate_corrective.py --dry-run                      print the commands

Each row is tools/train_corrective.py, tools/synthesize.py and tools/evaluate.py in processes of their own. What is
done is not repeated: the same command goes on where it was cut off, and one with other arguments is refused, since its
table would join rows that cannot be compared. The table is printed and written to --out, with a picture of the images.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402

from benchmarks.trials_3d import prompts_of  # noqa: E402
from training.trust import margin_state  # noqa: E402

VARIANTS: dict[str, list[str]] = {
    "base": [],  # preconditioned, no normalisation, captions, x̂ clipped, width 32, balanced over t
    "spectral": ["--kind", "spectral"],
    "unet": ["--kind", "unet"],
    "unet, margin penalty 1": ["--kind", "unet", "--margin-penalty", "1"],
    "margin penalty 1": ["--margin-penalty", "1"],
    "not balanced": ["--no-balance"],
    "own/image, not balanced": ["--normalisation", "own/image", "--no-balance"],
    "unet, own/image": ["--kind", "unet", "--normalisation", "own/image"],
    "unet, own/image, not balanced": ["--kind", "unet", "--normalisation", "own/image", "--no-balance"],
    "normalisation input/image": ["--normalisation", "input/image"],
    "normalisation input/channel": ["--normalisation", "input/channel"],
    "normalisation target/image": ["--normalisation", "target/image"],
    "normalisation target/channel": ["--normalisation", "target/channel"],
    "normalisation own/image": ["--normalisation", "own/image"],
    "normalisation own/channel": ["--normalisation", "own/channel"],
    "conditioning none": ["--conditioning", "none"],
    "x̂ not clipped": ["--no-clip-x-hat"],
    "seed 1": ["--seed", "1"],  # of the held-out images, too
    "unet, seed 1": ["--kind", "unet", "--seed", "1"],
    "unet, width 32": ["--kind", "unet", "--width", "32"],
    "width 8": ["--width", "8"],
    "width 16": ["--width", "16"],
    "width 32": ["--width", "32"],
    "width 64": ["--width", "64"],
}


@dataclasses.dataclass
class Options:
    """What to compare, and how thoroughly."""

    model: str = str(ROOT / "models" / "toybox")
    """Diffusion model."""
    data: str = "toybox"
    """Training images, as tools/train_corrective.py takes them."""
    pairs: Path | None = None
    """Cached pairs of --data (tools/train_corrective.py --write-pairs), for the variants that they can serve: not the
    filter, and not those that change x̂ or ask the frozen model anew."""
    images: int = 50_000
    """Training images of each U-Net."""
    width: int = 32
    """Filters of each U-Net's first level, but where the variant says otherwise."""
    workers: int = 0
    """Processes that draw and read images for each training that takes them from --data."""
    report_images: int = 256
    """Held-out images that each corrective is judged on."""
    prompts: Path = ROOT / "tests" / "data" / "prompts_core.txt"
    """Text file, one prompt a line; lines that start with # are passed over."""
    seeds: int = 4
    """Images for every prompt."""
    omega: float = 1.0
    """Guidance weight ω of the synthesis."""
    steps: int = 500
    """Adam steps of the synthesis."""
    samples: int = 4
    """Samples of the diffusion model per prompt, which the results are compared with."""
    only: tuple[str, ...] = ()
    """Names of variants; none: all of them."""
    out: Path = ROOT / "outputs" / "ablation"
    """Folder for correctives, images and the table."""
    dry_run: bool = False
    """Print the commands and stop."""


def folder_of(options: Options, name: str) -> Path:
    return options.out / name.replace("/", "-").replace(" ", "-").replace(",", "")


def train_words(options: Options, name: str) -> list[str]:
    """Arguments of tools/train_corrective.py."""
    variant = VARIANTS[name]
    common = {"--model": options.model, "--data": data_of(options, variant), "--out": corrective_of(options, name),
              "--report-images": options.report_images, "--kind": "preconditioned"}
    network = {} if "spectral" in variant else {"--images": options.images, "--width": options.width}
    defaults = [str(word) for pair in {**common, **network}.items() if pair[0] not in variant for word in pair]
    return defaults + variant


def data_of(options: Options, variant: list[str]) -> str:
    """The cached pairs where they can serve, else the images."""
    asks_anew = {"spectral", "--conditioning", "--no-clip-x-hat", "--margin-penalty"} & set(variant)
    return options.data if options.pairs is None or asks_anew else str(options.pairs)


def corrective_of(options: Options, name: str) -> Path:
    return folder_of(options, name) / "corrective.safetensors"


def arguments_of(options: Options, name: str) -> Path:
    """Note of what a corrective is trained with."""
    return folder_of(options, name) / "arguments.json"


def noted_words(options: Options, name: str) -> list[str]:
    """`train_words` but for --out, which may be spelled in several ways."""
    words = train_words(options, name)
    at = words.index("--out")
    return words[:at] + words[at + 2:]


def is_trained(options: Options, name: str) -> bool:
    """Whether a variant's corrective is finished; one line if it was made with other arguments.

    An unfinished one is left to tools/train_corrective.py, which compares settings with its own state.
    """
    note = arguments_of(options, name)
    if not corrective_of(options, name).with_suffix(".md").exists():  # the card is written last
        return False
    told = json.loads(note.read_text(encoding="utf-8")) if note.exists() else ["unknown arguments"]
    if told != noted_words(options, name):
        raise SystemExit(f"'{note.parent}' was made with {shlex.join(told)}, not with "
                         f"{shlex.join(noted_words(options, name))}; remove it, or name another --out")
    return True


def train(options: Options, name: str) -> None:
    if not options.dry_run:
        note = arguments_of(options, name)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(noted_words(options, name)) + "\n", encoding="utf-8")
    words = train_words(options, name)
    readers = ["--workers", str(options.workers)] if options.workers and data_of(options, VARIANTS[name]) == options.data else []
    run("train_corrective.py", words + readers, options.dry_run)


def synthesis_words(options: Options, name: str) -> list[str]:
    """Arguments of tools/synthesize.py."""
    seeds = [str(seed) for seed in range(options.seeds)]
    return [*prompts_of(options.prompts), "--model", options.model, "--corrective", str(corrective_of(options, name)),
            "--omega", str(options.omega), "--steps", str(options.steps), "--seeds", *seeds,
            "--out", str(folder_of(options, name) / "images")]


def evaluation_words(options: Options, names: list[str]) -> list[str]:
    """Arguments of tools/evaluate.py."""
    folders = [str(folder_of(options, name) / "images") for name in names]
    return [*folders, "--model", options.model, "--samples", str(options.samples), "--out", str(options.out)]


def run(tool: str, words: list[str], dry: bool) -> None:
    command = [sys.executable, str(ROOT / "tools" / tool), *words]
    print("$", shlex.join(["python", f"tools/{tool}", *words]), flush=True)
    if not dry and (code := subprocess.run(command).returncode):
        raise SystemExit(f"tools/{tool} failed with exit status {code}; mend that, and the same command goes on")


def table(options: Options, names: list[str]) -> str:
    """Markdown: a row for each variant, its own errors first, then what tools/evaluate.py found."""
    with open(options.out / "evaluation.csv", newline="", encoding="utf-8") as file:
        downstream = list(csv.DictReader(file))  # rows in the order of the folders
    numbers = [key for key in downstream[0] if not key.endswith((" low", " high")) and _is_number(downstream[0][key])]
    head = ["variant", "worst × floor", "mean error", "least margin", "margin", *numbers]
    lines = [head, ["---"] * len(head)]
    for name, row in zip(names, downstream):
        report = json.loads((folder_of(options, name) / "corrective.report.json").read_text())
        bins = report["bins"]
        margin = margin_state(*(torch.tensor(report["margin"][key]) for key in ("over_t", "over_t_standard_error")))
        lines.append([name, f"{max(b['over_floor'] for b in bins):.2f}",
                      f"{sum(b['error'] for b in bins) / len(bins):.4f}", f"{min(report['margin']['over_t']):+.3f}",
                      margin, *(f"{float(row[key]):.3f}" for key in numbers)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(options: Options, names: list[str]) -> None:
    """A row for each variant, its images of the first seed: ablation.png in the output folder."""
    from imaging import pictures

    folders = [folder_of(options, name) / "images" / "images" for name in names]
    rows = [pictures.list_images(folder)[:: options.seeds] for folder in folders]
    tiles = torch.stack([pictures.read_image(path) for row in rows for path in row])
    pictures.write_image(options.out / "ablation.png", pictures.grid(tiles, len(rows[0]), names))


def _is_number(value: str) -> bool:
    try:
        return bool(value) and float(value) == float(value)
    except ValueError:
        return False


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    unknown = [name for name in options.only if name not in VARIANTS]
    if unknown:
        raise SystemExit(f"no variant '{unknown[0]}'; known are {', '.join(VARIANTS)}")
    names = list(options.only or VARIANTS)
    trained = [] if options.dry_run else [name for name in names if is_trained(options, name)]
    for name in names:
        if name not in trained:
            train(options, name)
        run("synthesize.py", synthesis_words(options, name), options.dry_run)  # repeats nothing that is done
    run("evaluate.py", evaluation_words(options, names), options.dry_run)
    if not options.dry_run:
        text = table(options, names)
        (options.out / "ablation.md").write_text(text + "\n", encoding="utf-8")
        figure(options, names)
        print(text)


if __name__ == "__main__":
    main()
