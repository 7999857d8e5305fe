"""How long the 2D tools take: a synthesis of 500 steps, what batches save, and an image through a translator.

    python benchmarks/imaging_speed.py                       the embedded model, LMC-SDS
    python benchmarks/imaging_speed.py --method sds --batch 16 --device cuda

A round times a few steps of one image and of a batch in turn, so that a busy machine slows both alike; the ratio is the
median of the rounds', with its quartiles. A translator's time does not depend on its weights, so they are random. Writes
Markdown to --out.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402
from rich.progress import track  # noqa: E402

from imaging import methods  # noqa: E402
from imaging.console import run_tool  # noqa: E402
from imaging.files import write_text  # noqa: E402
from imaging.options import ModelOptions  # noqa: E402
from imaging.synthesis import GREY, Job, Optimisation, Recipe  # noqa: E402
from imaging.translator import Translator, TranslatorSpec, translate  # noqa: E402
from lmc_guidance import UserError  # noqa: E402

STEPS = 500  # of a whole synthesis
PROMPT = "a red striped cube"


@dataclasses.dataclass
class Options(ModelOptions):
    """What to time, and how often."""

    method: Literal["sds", "lmc", "cond", "nfsd", "ms-sds"] = "lmc"
    """Gradient."""
    batch: int = 8
    """Images of the batch that one image is compared with."""
    rounds: int = 9
    """Timed rounds, after one that is not."""
    steps: int = 4
    """Steps of each in a round."""
    out: Path = ROOT / "outputs" / "benchmark" / "imaging_speed.md"
    """The table."""


def optimisation(options: Options, model, batch: int) -> Callable[[], None]:
    """A function that takes one step of `batch` images."""
    methods.check_inputs(options.method, options.corrective)
    recipe, side = Recipe(methods.CUSTOMARY_OMEGA[options.method], steps=10**9), model.image_size
    distillation = methods.build(options.method, model, options.corrective)
    run = Optimisation(distillation, recipe, [Job(PROMPT, seed) for seed in range(batch)], torch.full((batch, 3, side, side), GREY))
    return run.step


def seconds(work: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Of one call, the mean of so many in a row."""
    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = clock()
    for _ in range(times):
        work()
    return (clock() - start) / times


def measure(options: Options) -> dict[str, list[float]]:
    """Seconds, a value a round: a step of one image, a step of the batch per image, a translation."""
    model = options.load_model()
    one, many = optimisation(options, model, 1), optimisation(options, model, options.batch)
    network = Translator(TranslatorSpec(("a target",), model.image_size)).to(model.device).eval()
    images = torch.rand(16, 3, model.image_size, model.image_size)
    found: dict[str, list[float]] = {"one": [], "many": [], "translated": []}
    for number in track(range(options.rounds + 1), "rounds"):
        times = {"one": seconds(one, model.device, options.steps),
                 "many": seconds(many, model.device, options.steps) / options.batch,
                 "translated": seconds(lambda: translate(network, images, 0, len(images)), model.device) / len(images)}
        for name, value in times.items() if number else ():
            found[name].append(value)
    return found


def table(options: Options, found: dict[str, list[float]]) -> str:
    """Markdown."""
    ratios = [many / one for one, many in zip(found["one"], found["many"])]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    rows = {f"a synthesis of {STEPS} steps, one image": f"{STEPS * statistics.median(found['one']):.0f} s",
            f"the same in a batch of {options.batch}, each image": f"{STEPS * statistics.median(found['many']):.0f} s",
            f"time per image, batch of {options.batch} / one": f"{ratio:.2f} [{low:.2f}, {high:.2f}]",
            "an image through a translator, batch of 16": f"{1000 * statistics.median(found['translated']):.1f} ms"}
    return "\n".join(["| | " + options.method + " |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows.items())])


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    for name, least in (("batch", 2), ("rounds", 2), ("steps", 1)):
        if getattr(options, name) < least:
            raise UserError(f"{name} is {getattr(options, name)}; it must be {least} or more")
    text = table(options, measure(options))
    write_text(options.out, text + "\n")
    print(text)


if __name__ == "__main__":
    run_tool(main)
