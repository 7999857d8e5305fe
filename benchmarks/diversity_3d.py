"""How much the seeds of a prompt differ in 3D, from the pictures that are kept of the runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

from benchmarks.trials_3d import turntables
from imaging import bootstrap
from imaging.bootstrap import Estimate
from imaging.perceptual import Distance, mean_of_pairs


def between(views: Tensor, distance: Distance) -> Tensor:
    """Distances (S, S) of the turntables of S seeds, (S, V, 3, H, H): the mean over the views, at the best of their V turns.

    Which way an object faces is no difference between assets.
    """
    seeds, count = views.shape[:2]
    features = distance.embed(views.flatten(0, 1)).unflatten(0, (seeds, count))
    turned = torch.stack([features.roll(k, 1) for k in range(count)])  # (V turns, S, V, D)
    apart = [(turned - one).square().sum(-1).mean(-1).amin(0) for one in features]
    return torch.stack(apart)


def diversity(out: Path, found: Sequence[dict[str, Any]], distance: Distance) -> Estimate:
    """Mean distance of two seeds over the prompts of one method's runs, of which at least one has two."""
    prompts: dict[str, list[Tensor]] = {}
    for result in found:
        prompts.setdefault(result["prompt"], []).append(turntables(out / result["folder"])[1])
    several = [torch.stack(views) for views in prompts.values() if len(views) > 1]
    return bootstrap.mean([mean_of_pairs(between(views, distance)) for views in several])
