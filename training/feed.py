"""Rendered images for a trainer that is faster than the renderer: worker processes ahead of it, a store behind.

A CPU renders a batch in a fraction of the time of a training step, so there the trainers call
`toybox.dataset.batch` and need nothing of this. A GPU trains on several thousand images a second, more than all
cores render: each batch is then a share of new images and, for the rest, images seen before under other noise.
"""

from __future__ import annotations

import itertools
from typing import Iterator, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toybox import dataset, render


class Chunk(NamedTuple):
    """n captioned images as a worker hands them over: compact, on the CPU."""

    images: Tensor  # (n, 3, S, S) uint8
    surfaces: Tensor  # (n, 7, S/2, S/2) float16, see toybox.render.surface
    captions: list[str]


def pixels(images: np.ndarray) -> Tensor:
    """(n, H, W, C) as the renderer gives it -> (n, C, H, W)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


class _Chunks(Dataset):
    """Chunk `index` of a stream, a function of (seed, index, size) alone."""

    def __init__(self, seed: int, size: int, pixels_wide: int) -> None:
        self.seed, self.size, self.pixels_wide = seed, size, pixels_wide

    def __getitem__(self, index: int) -> Chunk:
        batch = dataset.batch(self.seed, index, self.size, self.pixels_wide)
        surfaces = pixels(render.surface(batch.scenes, self.pixels_wide // 2))
        return Chunk((pixels(batch.images) * 255).round().byte().contiguous(), surfaces.half().contiguous(),
                     batch.captions)


def one_thread(_worker: int) -> None:
    """Start of a process that renders beside others."""
    numba.set_num_threads(1)
    torch.set_num_threads(1)


def chunks(seed: int, first: int, size: int, pixels_wide: int, workers: int, device: torch.device) -> Iterator[Chunk]:
    """Chunks first, first + 1, … of `size` images each, rendered by `workers` processes of one thread, in this order."""
    loader = DataLoader(_Chunks(seed, size, pixels_wide), sampler=itertools.count(first), batch_size=None,
                        num_workers=workers, prefetch_factor=4, multiprocessing_context="spawn",
                        worker_init_fn=one_thread, pin_memory=device.type == "cuda")
    return iter(loader)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it: a copy from memory that is not pinned first waits for all work queued there
    (which left a GPU idle for half of each step)."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Store:
    """The newest `capacity` images with what belongs to each, held on the training device."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.device, self.columns = capacity, device, None
        self.filled = self._next = 0

    def add(self, *rows: Tensor) -> None:
        """Put in n rows, one tensor (n, …) a column, on the device; the oldest make room."""
        if self.columns is None:
            self.columns = [torch.empty(self.capacity, *r.shape[1:], dtype=r.dtype, device=r.device) for r in rows]
        n = len(rows[0])
        places = (self._next + torch.arange(n, device=self.device)) % self.capacity
        for column, new in zip(self.columns, rows):
            column[places] = new
        self._next = (self._next + n) % self.capacity
        self.filled = min(self.filled + n, self.capacity)

    def draw(self, count: int, newest: int, seed: int) -> list[Tensor]:
        """`count` rows of each column: the `newest` ones, the others at random from all."""
        fresh = (self._next - 1 - torch.arange(newest, device=self.device)) % self.capacity
        generator = torch.Generator(self.device).manual_seed(seed)
        others = torch.randint(self.filled, (count - newest,), generator=generator, device=self.device)
        index = torch.cat([fresh, others])
        return [column[index] for column in self.columns]
