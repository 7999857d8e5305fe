"""Which words belong to which camera: the four views, and Perp-Neg's mixture of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

VIEWS = ("side", "front", "back", "overhead")  # in this order of embeddings; later ones win
SIDE, FRONT, BACK, OVERHEAD = range(4)
_PREFIX = {"side": "side", "front": "front", "back": "backside", "overhead": "overhead"}


def view_prompts(prompt: str, in_front: bool = False) -> list[str]:
    """The prompt as seen from each of VIEWS: "p, side view", or in front: "side view of p"."""
    if in_front:
        return [f"{_PREFIX[view]} view of {prompt}" for view in VIEWS]
    return [f"{prompt}, {view} view" for view in VIEWS]


def wrap(azimuth: Tensor) -> Tensor:
    """Degrees to the range [-180, 180)."""
    return (azimuth + 180.0) % 360.0 - 180.0


@dataclass(frozen=True)
class Thresholds:
    """Where the views begin, degrees."""

    overhead: float = 60.0  # elevation above which a view is overhead
    front: float = 45.0  # azimuth within +- this is the front
    back: float = 45.0  # within +- this of 180 is the back

    def view_index(self, elevation: Tensor, azimuth: Tensor) -> Tensor:  # [B] each, degrees -> [B] long
        """Index into VIEWS for each camera."""
        turn = wrap(azimuth).abs()
        index = torch.full(azimuth.shape, SIDE, dtype=torch.long, device=azimuth.device)
        index[turn < self.front] = FRONT
        index[turn > 180.0 - self.back] = BACK
        index[elevation > self.overhead] = OVERHEAD
        return index


@dataclass(frozen=True)
class PerpNeg:
    """Perp-Neg (Armandpour et al. 2023): weights f(r) = a exp(-b r) + c, one (a, b, c) per pair of views.

    `sb` and `fsb` weigh side and front against a view between side and back, `fs` and `sf` weigh front
    and side against a view between front and side.
    """

    sb: tuple[float, float, float] = (1, 0.5, -0.606)
    fsb: tuple[float, float, float] = (1, 0.5, 0.967)
    fs: tuple[float, float, float] = (4, 0.5, -2.426)
    sf: tuple[float, float, float] = (4, 0.5, -2.426)

    def mix(
        self,
        azimuth: float,  # degrees
        views: Tensor,  # [4, Nt, D] embeddings of VIEWS
    ) -> tuple[Tensor, Tensor, tuple[float, float]]:
        """Positive embedding (Nt, D), two negatives (2, Nt, D) and their weights (<= 0) for one camera."""
        turn = abs((azimuth + 180.0) % 360.0 - 180.0) / 90.0
        if turn < 1.0:
            r = 1.0 - turn  # 1 at the front, 0 at the side
            positive = r * views[FRONT] + (1 - r) * views[SIDE]
            return positive, views[[FRONT, SIDE]], (-_decay(self.fs, r), -_decay(self.sf, 1 - r))
        r = 2.0 - turn  # 1 at the side, 0 at the back
        positive = r * views[SIDE] + (1 - r) * views[BACK]
        return positive, views[[SIDE, FRONT]], (-_decay(self.sb, r), -_decay(self.fsb, r))


def _decay(coefficients: tuple[float, float, float], r: float) -> float:
    a, b, c = coefficients
    return max(a * math.exp(-b * r) + c, 0.0)
