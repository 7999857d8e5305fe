"""How much the seeds of a prompt differ in 3D, as a number and as a picture, from the pictures that are kept of the runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.methods_3d import heading
from benchmarks.trials_3d import turntables
from imaging import bootstrap, pictures
from imaging.bootstrap import Estimate
from imaging.perceptual import Distance, mean_of_pairs

CELLS = 16  # along an edge of a view; one in each corner is background
NEAR = 0.12  # distance in any channel up to which a pixel is background
GREY = 0.5


def between(views: Tensor, distance: Distance) -> Tensor:
    """Distances (S, S) of the turntables of S seeds, (S, V, 3, H, H): the mean over the views, at the best of their V turns.

    Which way an object faces is no difference between assets.
    """
    seeds, count = views.shape[:2]
    features = distance.embed(views.flatten(0, 1)).unflatten(0, (seeds, count))
    turned = torch.stack([features.roll(k, 1) for k in range(count)])  # (V turns, S, V, D)
    apart = [(turned - one).square().sum(-1).mean(-1).amin(0) for one in features]
    return torch.stack(apart)


def cut_out(views: Tensor) -> Tensor:
    """Views (V, 3, H, H) in [0, 1] before one grey: what is near the background, laid between their four corners, is made grey."""
    side = views.shape[-1]
    cells = F.adaptive_avg_pool2d(views, CELLS)[..., [0, 0, -1, -1], [0, -1, 0, -1]].unflatten(-1, (2, 2))
    behind = F.interpolate(cells, size=(side, side), mode="bilinear", align_corners=True)
    return torch.where((views - behind).abs().amax(1, keepdim=True) > NEAR, views, GREY)


def diversity(out: Path, found: Sequence[dict[str, Any]], distance: Distance, alone: bool = False) -> Estimate:
    """Mean distance of two seeds over the prompts of one method's runs, of which at least one has two.

    alone: of the objects, without their backgrounds.
    """
    prompts: dict[str, list[Tensor]] = {}
    for result in found:
        views = turntables(out / result["folder"])[1]
        prompts.setdefault(result["prompt"], []).append(cut_out(views) if alone else views)
    several = [torch.stack(views) for views in prompts.values() if len(views) > 1]
    return bootstrap.mean([mean_of_pairs(between(views, distance)) for views in several])


def figure(out: Path, groups: Mapping[str, Sequence[dict[str, Any]]]) -> Tensor | None:
    """Every seed from the front, prompts below and methods beside each other, (3, H, W); None without a prompt of three seeds.

    groups: method → its runs. Of two seeds the number says as much.
    """
    fronts = {(run["prompt"], method, run["seed"]): run["folder"] for method, runs in groups.items() for run in runs}
    several = Counter((prompt, method) for prompt, method, _ in fronts)
    fronts = {key: turntables(out / folder)[1, 0] for key, folder in fronts.items() if several[key[:2]] > 2}
    if not fronts:
        return None
    seeds = {method: sorted({seed for _, m, seed in fronts if m == method}) for method in groups}
    columns = [(method, seed) for method in sorted(groups) for seed in seeds[method]]
    prompts = list(dict.fromkeys(prompt for prompt, *_ in fronts))
    blank = torch.ones_like(next(iter(fronts.values())))
    tiles = [fronts.get((prompt, *column), blank) for prompt in prompts for column in columns]
    heads = [heading(method) if seed == seeds[method][0] else "" for method, seed in columns]
    return pictures.grid(torch.stack(tiles), len(columns), prompts, heads)
