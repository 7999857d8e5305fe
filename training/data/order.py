"""Positions: image p of a run, counted over all processes, and what is drawn for it.

A run sees positions 0, 1, 2, … Step k of a global batch of G takes positions kG … kG + G - 1, and process r of W
takes the r-th of W equal parts of them. Data, crops, noise and t are functions of (seed, position), so that a
resumed run, and a run on another number of processes, sees what it would have seen.
"""

from __future__ import annotations

import dataclasses
import hashlib
from functools import lru_cache
from typing import Iterator

import numpy as np
import torch

from lmc_guidance.errors import UserError

GOLDEN = 0.6180339887498949  # fractional part of the golden ratio: its multiples fill [0, 1) evenly


@lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, count]).permutation(count)


def index_at(position: int, count: int, seed: int, attempt: int = 0) -> int:
    """Which of `count` images stands at a position: each once an epoch, in an order of the epoch's own.

    attempt: the a-th substitute, where an image turned out to be broken: the a-th after it in the same order.
    """
    epoch, place = divmod(position, count)
    return int(_shuffled(seed, epoch, count)[(place + attempt) % count])


def random_numbers(seed: int, role: str, position: int) -> np.random.Generator:
    """A generator for one purpose at one position."""
    return np.random.default_rng(_key(seed, role, position))


def torch_generator(seed: int, role: str, position: int) -> torch.Generator:
    """As `random_numbers`, for tensors; always on the CPU, so that every device draws the same."""
    return torch.Generator().manual_seed(_key(seed, role, position))


def even_spread(seed: int, role: str, position: int) -> float:
    """A number in [0, 1) such that any run of consecutive positions covers the range evenly."""
    shift = _key(seed, role, -1) / 2**63
    return (shift + position * GOLDEN) % 1.0


def _key(seed: int, role: str, position: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{role}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclasses.dataclass(frozen=True)
class Batches:
    """The positions of each step of one process: a batch sampler for `torch.utils.data.DataLoader`."""

    first: int  # position at which to start, a multiple of `batch`
    goal: int  # run until so many images have been seen
    batch: int  # images per step over all processes
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch % self.world:
            raise UserError(f"a global batch of {self.batch} images cannot be shared by {self.world} processes; "
                            "make --batch a multiple of their number")

    @property
    def local(self) -> int:
        """Images per step of this process."""
        return self.batch // self.world

    def __len__(self) -> int:
        return -(-max(self.goal - self.first, 0) // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(len(self)):
            start = self.first + step * self.batch + self.rank * self.local
            yield list(range(start, start + self.local))
