"""Which way score distillation moves the brightness of an object, before backgrounds of several brightnesses.

    python benchmarks/brightness.py                                       LMC-SDS at ω = 10, four objects
    python benchmarks/brightness.py --omega 0 --prompts benchmarks/prompts_3d.txt

Renders of true objects, unlit and dimmed to some share of their brightness. Each number is the brightness, as a share of
the true one, that a step along the negative gradient of unit size adds to the object: greater than zero, and it gets
brighter; a mean over the range of t and over prompts, with a 95% bootstrap interval over these.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.trials_3d import read_prompts  # noqa: E402
from imaging import bootstrap, tables  # noqa: E402
from imaging.analysis import Level, analyse  # noqa: E402
from imaging.console import run_tool  # noqa: E402
from imaging.methods import find_corrective  # noqa: E402
from imaging.options import ModelOptions  # noqa: E402
from lmc_guidance import Corrective, DiffusionModel, UserError  # noqa: E402
from toybox import cameras, render  # noqa: E402
from toybox.captions import BY_CAPTION, Thing  # noqa: E402

TIMES = (0.1, 0.3, 0.5, 0.7, 0.85, 0.95)  # positions in the range of t


@dataclasses.dataclass
class Options(ModelOptions):
    """What to look at."""

    prompts: Path = ROOT / "tests" / "data" / "prompts_dark.txt"
    """Text file, one toybox caption a line; lines that start with # are passed over."""
    omega: float = 10.0
    """Guidance weight ω, under w(t) = σ²."""
    backgrounds: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Grey levels behind the object, 0 to 1."""
    brightness: tuple[float, ...] = (0.2, 0.4, 0.7, 1.0)
    """Shares of the object's true brightness."""
    elevation: float = 15.0
    """Of the camera, degrees; it looks at the front."""
    draws: int = 3
    """ε per timestep."""


def dimmed(thing: Thing, brightness: float, background: float, elevation: float, size: int) -> tuple[Tensor, Tensor]:
    """A render (3, size, size) in [0, 1], and its derivative by the brightness."""
    camera = cameras.place(elevation, [0.0], 1.6, 50.0)
    images, coverage = render.render(render.studio(*thing, camera, background=(0.0, 0.0, 0.0), ambient=1.0), size)
    own = torch.from_numpy(images[0]).permute(2, 0, 1)
    return brightness * own + background * (1 - torch.from_numpy(coverage[0])), own


def pull(levels: list[Level], schedule, omega: float, along: Tensor) -> float:
    """Of minus the gradient, Eq. 9 with ω w(t) cond, averaged over the levels: the part along a change of the render."""
    sigma = schedule.sigma(torch.tensor([level.t for level in levels])).flatten().tolist()
    steps = [omega * s**2 * level.terms["cond"] + level.terms["lmc"] for s, level in zip(sigma, levels)]
    change = 2 * along  # of x, whose range is [-1, 1]
    return -float((torch.stack(steps).mean(0) * change).sum() / change.square().sum())


def row(options: Options, model: DiffusionModel, corrective: Corrective, things: list[Thing], background: float) -> tables.Row:
    """The pull before one background, by brightness."""
    found: tables.Row = {"background": background}
    for brightness in options.brightness:
        pulls = []
        for thing in things:
            image, along = dimmed(thing, brightness, background, options.elevation, model.resolution)
            levels = analyse(model, image, f"{thing.caption}, front view", TIMES, corrective, options.draws)
            pulls.append(pull(levels, model.schedule, options.omega, along))
        found[f"at {brightness:g}"] = bootstrap.mean(pulls)
    return found


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    model = options.load_model()
    if model.space != "pixel":
        raise UserError(f"{options.model}: pixel models only")
    corrective = find_corrective(model, options.corrective)
    things = [BY_CAPTION[prompt] for prompt in read_prompts(options.prompts)]
    print(tables.text([row(options, model, corrective, things, background) for background in options.backgrounds]))


if __name__ == "__main__":
    run_tool(main)
