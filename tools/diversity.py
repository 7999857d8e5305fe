"""Does a fixed ε keep seeds apart? Ten seeds of a prompt, with fresh and with fixed ε, side by side.

    python tools/diversity.py "a red striped cube"
    python tools/diversity.py "a red cube" "a green bear" --fixed-noise lmc --noise-mix 0.5
    python tools/diversity.py "a red cube" --method sds --fixed-noise all

Score distillation averages ε over hundreds of steps, so that seeds end alike. Measured as in the paper, nine seeds
against the first, and over all pairs; the interval of the difference tells whether it holds. Ctrl-C loses nothing.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal, Sequence

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "custom")]

import torch  # noqa: E402
import tyro  # noqa: E402
from torch import Tensor  # noqa: E402

from imaging import bootstrap, methods, perceptual, pictures, tables  # noqa: E402
from imaging.console import run_tool  # noqa: E402
from imaging.judge import Judge  # noqa: E402
from imaging.options import TOYBOX, OptimisationOptions, pick_device, settings, warn_of_unknown_words  # noqa: E402
from imaging.session import Session  # noqa: E402
from imaging.synthesis import GREY, Job, Optimisation  # noqa: E402
from lmc_guidance import UserError  # noqa: E402


@dataclasses.dataclass
class Options(OptimisationOptions):
    """Which prompts, how many seeds, measured with what."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """One or more prompts, each in quotes."""
    method: Literal["sds", "lmc", "cond", "nfsd", "ms-sds"] = "lmc"
    """Gradient; only lmc can hold ε fixed in its LMC term alone."""
    seeds: tuple[int, ...] = tuple(range(10))
    """The paper's ten."""
    fixed_noise: Literal["lmc", "all"] | None = None
    """Terms whose ε is held fixed in the second set; none: lmc with --method lmc, all with the others."""
    judge: str = str(TOYBOX / "judge")
    """CLIP whose features give the distance, unless --lpips."""
    lpips: str = "auto"
    """AlexNet's weights for LPIPS, torchvision's file; auto: the judge's features; cache: torchvision's cache."""


def estimates(between: Sequence[Tensor]) -> dict[str, bootstrap.Estimate]:
    """From the distances of a prompt's seeds, (S, S) for each prompt: of the others to the first, and of all pairs.

    Intervals are over prompts; over seeds where there is one prompt.
    """
    to_first = [matrix[0, 1:].double() for matrix in between]
    if len(between) == 1:
        return {"to the first": bootstrap.mean(to_first[0].tolist()), "all pairs": bootstrap.pairs(between[0].double().numpy())}
    return {"to the first": bootstrap.mean([row.mean().item() for row in to_first]),
            "all pairs": bootstrap.mean([perceptual.mean_of_pairs(matrix) for matrix in between])}


def rows_of(sets: dict[str, Tensor], prompts: int, distance: perceptual.Distance) -> list[tables.Row]:
    """A row per set, and one of their differences, pair of seeds by pair of seeds. images: (P · S, 3, H, W)."""
    between = {name: [perceptual.pairwise(distance, mine) for mine in images.chunk(prompts)] for name, images in sets.items()}
    fresh, fixed = between.values()
    between["fixed − fresh"] = [b - a for a, b in zip(fresh, fixed)]
    return [{"ε": name, "measure": distance.name, **estimates(matrices)} for name, matrices in between.items()]


def make_set(options: Options, model, distillation, fixed: str, folder: Path) -> Tensor:
    """All prompts and seeds with ε fixed in the terms `fixed`."""
    if fixed == "none":  # there is nothing to mix or to centre
        options = dataclasses.replace(options, noise_mix=0.0, noise_centered=False)
    options = dataclasses.replace(options, fixed_noise=fixed)
    recipe, side = options.recipe(options.method), options.side(model)
    jobs = [Job(prompt, seed) for prompt in options.prompts for seed in options.seeds]
    described = settings(distillation, recipe, options.method, size=side)
    session = Session(folder, described, jobs, options.batch_size)
    session.open(options.overwrite)
    return session.run(lambda batch: Optimisation(distillation, recipe, batch, torch.full((len(batch), 3, side, side), GREY)))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if not options.prompts:
        raise SystemExit("give at least one prompt in quotes; --help shows examples")
    methods.check_inputs(options.method, options.corrective)
    if len(options.seeds) < 2:
        raise UserError("diversity needs at least two seeds")
    if options.fixed_noise is None:
        options = dataclasses.replace(options, fixed_noise="lmc" if options.method == "lmc" else "all")
    judge = Judge(options.judge, pick_device(options.device))
    cache = None if options.lpips == "cache" else Path(options.lpips).expanduser()
    distance = perceptual.JudgeDistance(judge) if options.lpips == "auto" else perceptual.LPIPS.load(cache, judge.device)
    model = options.load_model()
    warn_of_unknown_words(model, options.prompts)
    distillation = methods.build(options.method, model, options.corrective)
    recipe, side = options.recipe(options.method), options.side(model)
    described = settings(distillation, recipe, options.method, size=side, prompts=options.prompts, seeds=options.seeds)
    folder = options.folder("diversity", options.method, described, options.prompts[0])
    kinds = {"fresh": "none", f"fixed ({options.fixed_noise})": options.fixed_noise}
    sets = {name: make_set(options, model, distillation, fixed, folder / fixed) for name, fixed in kinds.items()}
    rows = rows_of(sets, len(options.prompts), distance)
    tables.write(folder, "diversity", rows)
    pairs = torch.cat([torch.cat(parts) for parts in zip(*(images.chunk(len(options.prompts)) for images in sets.values()))])
    labels = [f"{prompt[:32]}, {name}" for prompt in options.prompts for name in sets]
    pictures.write_image(folder / "grid.png", pictures.grid(pairs, len(options.seeds), labels))
    print(tables.text(rows))
    print(f"{len(options.seeds)} seeds of {len(options.prompts)} prompts, intervals over {'prompts' if len(options.prompts) > 1 else 'seeds'}: {folder}")


if __name__ == "__main__":
    run_tool(main)
