"""Where ε and t come from: private generators keyed by (seed, step, item), never the global random stream.

Everything follows from the seed and the step number. So a resumed run needs no saved state, a batch of n
draws for its first item what a batch of one draws, and cameras and materials that use the global stream are
not disturbed by the guidance.
"""
import hashlib
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from .errors import UserError

FIXED_NOISE = ("none", "lmc", "all")


@dataclass(frozen=True)
class Noise:
    """The ε of one step, (B, C, H, W) each; one and the same tensor unless the LMC term has its own."""

    cond: Tensor  # for the cond term (and for proj)
    lmc: Tensor  # for the LMC term

    @property
    def shared(self) -> bool:
        """Whether one noisy input serves both terms."""
        return self.cond is self.lmc


@dataclass(frozen=True)
class NoiseSource:
    """ε and t for every step of an optimisation.

    fixed: `none` draws fresh ε each step; `lmc` holds ε fixed in the LMC term only; `all` in every term.
    mix: the share m of fresh noise in a fixed one, ε = sqrt(1 - m) ε_fixed + sqrt(m) ε_fresh, in [0, 1].
    stream: separates workers that share a seed (the rank); the fixed ε is the same in every stream.
    centered: the fixed ε has mean zero in each channel. A mean of 1/sqrt(HW), which is usual, is nothing in one step and
        a colour that all steps pull towards when it is fixed.
    """

    seed: int = 0
    fixed: str = "none"
    mix: float = 0.0
    stream: int = 0
    centered: bool = False

    def __post_init__(self) -> None:
        if self.fixed not in FIXED_NOISE:
            raise UserError(f"fixed_noise is '{self.fixed}'; choose one of {', '.join(FIXED_NOISE)}")
        if not 0.0 <= self.mix <= 1.0:
            raise UserError(f"noise_mix is {self.mix}; it is the share of fresh noise, from 0 to 1")

    def draw(self, shape: Sequence[int], step: int, device: torch.device = "cpu", call: int = 0) -> Noise:
        """ε for a batch of `shape` (B, C, H, W) at `step`; `call` tells apart several draws within a step."""
        fresh = self._items("fresh", shape, step, call).to(device)
        if self.fixed == "none":
            return Noise(fresh, fresh)
        fixed = self._blend(shape, step, call).to(device)
        return Noise(fixed, fixed) if self.fixed == "all" else Noise(fresh, fixed)

    def timesteps(
        self, low: int, high: int, batch: int, step: int, device: torch.device = "cpu", call: int = 0
    ) -> Tensor:
        """t (B,) int64, uniform in [low, high], both ends included, one draw per item."""
        draws = [
            torch.randint(low, high + 1, (1,), generator=self._generator("t", self.stream, step, call, item))
            for item in range(batch)
        ]
        return torch.cat(draws).to(device)

    def _blend(self, shape: Sequence[int], step: int, call: int) -> Tensor:
        fixed = torch.randn((1, *shape[1:]), generator=self._generator("fixed"))
        if self.centered:
            fixed = fixed - fixed.mean(dim=(2, 3), keepdim=True)
        if self.mix == 0:
            return fixed.expand(*shape).clone()
        fresh = self._items("mixed in", shape, step, call)
        return (1 - self.mix) ** 0.5 * fixed + self.mix**0.5 * fresh

    def _items(self, role: str, shape: Sequence[int], step: int, call: int) -> Tensor:
        generators = (self._generator(role, self.stream, step, call, item) for item in range(shape[0]))
        return torch.stack([torch.randn(tuple(shape[1:]), generator=g) for g in generators])

    def _generator(self, *key) -> torch.Generator:
        """A CPU generator for this key: the same numbers whatever the device."""
        digest = hashlib.blake2b(repr((self.seed, *key)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def default_seed(rank: int = 0) -> int:
    """The seed the run was started with, as `seed_everything(seed + rank)` left it; draws nothing."""
    return torch.initial_seed() - rank
