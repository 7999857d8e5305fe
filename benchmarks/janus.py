"""The Janus problem, counted: views of an object that show a front where the true object has none.

What a view shows is told by a logistic regression on the judge's features, fitted to true renders of the objects that
have a front. Its own error on further renders is `front_classifier(judge).error`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imaging.judge import Judge
from toybox import cameras, dataset, render, shapes
from toybox.captions import THINGS

VIEWS = 24  # frames of a turntable
SEEN, HIDDEN = 60.0, 105.0  # degrees of azimuth: a face is seen up to the one, hidden from the other on
FITTED, TESTED = 6000, 1000  # renders
PENALTY = 3e-4  # of the squared weights
FACELESS = 0.3  # an object that shows a front in fewer of the seen views has no front to repeat


class Fronts(NamedTuple):
    """Where a turntable shows a front, once it is turned as suits it best."""

    seen: float  # share of the views in which the true object shows its front that do
    hidden: float  # share of the views in which it shows none that do: the Janus rate


class FrontClassifier(NamedTuple):
    """A linear function of standardised features."""

    judge: Judge
    centre: Tensor  # (D,)
    spread: Tensor  # (D,)
    weight: Tensor  # (D + 1,), the bias last
    error: float  # share of fresh renders that are taken for the wrong side

    def __call__(self, images: Tensor) -> Tensor:
        """Whether images (B, 3, H, W) in [0, 1] show a front: (B,) bool."""
        rows = (features(self.judge, images) - self.centre) / self.spread
        return F.pad(rows, (0, 1), value=1.0) @ self.weight > 0


def features(judge: Judge, images: Tensor) -> Tensor:
    """The judge's hidden states of images (B, 3, H, W) in [0, 1], averaged over each quarter of the image: (B, D)."""
    quarters = lambda part: [F.adaptive_avg_pool2d(state, 2).flatten(1) for state in judge.feature_maps(part)]  # noqa: E731
    return torch.cat([torch.cat(quarters(part), 1) for part in images.split(500)])


def true_views(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Renders (count, 3, 64, 64) of objects with a front, as a turntable shows them, and whether it is seen (count,)."""
    rng = np.random.default_rng([seed, 4])
    fronted = [thing for thing in THINGS if thing.shape in shapes.FRONTED]
    scenes = dataset.scenes_of(rng, [fronted[i] for i in rng.integers(len(fronted), size=count)])
    side = rng.random(count) < 0.5
    azimuth = np.where(side, rng.uniform(-SEEN, SEEN, count), rng.uniform(HIDDEN, 360.0 - HIDDEN, count))
    scenes.cameras = cameras.place(rng.uniform(0.0, 30.0, count), azimuth, rng.uniform(1.4, 1.8, count),
                                   rng.uniform(42.0, 58.0, count))
    scenes.light = scenes.cameras.origin.copy()
    images, _ = render.render(scenes, 64)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(side)


@functools.lru_cache(maxsize=1)
def front_classifier(judge: Judge) -> FrontClassifier:
    """Fit by L-BFGS; the same judge gives the same classifier."""
    images, seen = true_views(0, FITTED)
    rows = features(judge, images)
    centre, spread = rows.mean(0), rows.std(0).clamp(min=1e-6)
    rows, target = F.pad((rows - centre) / spread, (0, 1), value=1.0), seen.float()
    weight = torch.zeros(rows.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(rows @ weight, target) + PENALTY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    classifier = FrontClassifier(judge, centre, spread, weight.detach(), float("nan"))
    images, seen = true_views(1, TESTED)
    return classifier._replace(error=(classifier(images) != seen).float().mean().item())


def fronts(frames: np.ndarray, judge: Judge) -> Fronts:
    """Of the views of a turntable (V, H, W, 3) in [0, 1]."""
    return count(front_classifier(judge)(torch.from_numpy(frames).permute(0, 3, 1, 2)).numpy())


def count(shown: np.ndarray) -> Fronts:
    """From V flags once around, at the turn that suits the flags best.

    The turn is free because a front may lie anywhere; views between seen and hidden count neither way.
    """
    off = np.abs((np.arange(len(shown)) * 360.0 / len(shown) + 180.0) % 360.0 - 180.0)
    seen, hidden = off <= SEEN, off >= HIDDEN
    turned = np.stack([np.roll(shown, k) for k in range(len(shown))])
    best = turned[((turned & seen).sum(1) - (turned & hidden).sum(1)).argmax()]
    return Fronts(float(best[seen].mean()), float(best[hidden].mean()))
