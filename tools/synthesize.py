"""Make images by score distillation: pixels, from grey, under any method of the family.

    python tools/synthesize.py "a red striped cube"
    python tools/synthesize.py "a red cube" "a green bear" --seeds 0 1 2 --method sds --omega 20
    python tools/synthesize.py "a red cube" --size 128            larger than the model: patches add the detail
    python tools/synthesize.py "a red cube" --seeds 0 1 2 3 --fixed-noise lmc --noise-mix 0.5

The folder that is printed at the end holds the images, a grid, a film of the progress, and run.json with every
setting. Ctrl-C loses nothing: the same command goes on, and a finished run is not repeated.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402

from imaging import methods  # noqa: E402
from imaging.console import run_tool  # noqa: E402
from imaging.options import OptimisationOptions, settings, warn_of_unknown_words  # noqa: E402
from imaging.session import Session  # noqa: E402
from imaging.synthesis import GREY, Job, Optimisation  # noqa: E402


@dataclasses.dataclass
class Options(OptimisationOptions):
    """What to make, and how."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """One or more prompts, each in quotes."""
    method: Literal["sds", "lmc", "cond", "nfsd", "ms-sds"] = "lmc"
    """Gradient: lmc (the paper's), sds, cond (its first term alone), nfsd, ms-sds."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if not options.prompts:
        raise SystemExit("give at least one prompt in quotes; --help shows examples")
    methods.check_inputs(options.method, options.corrective)
    recipe = options.recipe(options.method)
    model = options.load_model()
    warn_of_unknown_words(model, options.prompts)
    distillation = methods.build(options.method, model, options.corrective)
    jobs = [Job(prompt, seed) for prompt in options.prompts for seed in options.seeds]
    side = options.side(model)
    described = settings(distillation, recipe, options.method, size=side)
    folder = options.folder("synthesize", options.method, {**described, "jobs": jobs}, options.prompts[0])
    session = Session(folder, described, jobs, options.batch_size)
    session.open(options.overwrite)
    session.run(lambda batch: Optimisation(distillation, recipe, batch, torch.full((len(batch), 3, side, side), GREY)))
    print(f"{len(jobs)} images by {methods.LABELS[options.method]} at ω = {recipe.omega:g}, {session.seconds:.1f} s: {folder}")


if __name__ == "__main__":
    run_tool(main)
