"""From what the user named as data to batches: which kind of source it is, what is held out, and the loaders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Iterable, NamedTuple, Union

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lmc_guidance.errors import UserError

from ..feed import one_thread
from .hub import HubStream, HubTable
from .images import Cropping, Folder, ImageItems, Item
from .order import Batches
from .tar import TarShards, shard_paths
from .toy import ToyboxItems

MOST_HELD_OUT = 512  # images kept for evaluation, or a tenth of the data where that is less


class Batch(NamedTuple):
    """B items, and what was skipped to get them."""

    images: Tensor  # (B, 3, S, S) in [0, 1]
    captions: list[str]
    positions: list[int]
    broken: list[list[str]]  # for each item


def collate(items: list[Item]) -> Batch:
    return Batch(torch.stack([item.image for item in items]), [item.caption for item in items],
                 [item.position for item in items], [item.broken for item in items])


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What to read, and how."""

    name: str  # toybox | folder | tar shards | hf:NAME
    cropping: Cropping
    seed: int = 0
    stream: bool = False  # hf: only


class Data:
    """An opened data set, split into images to train on and images to judge on."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.damaged: list[str] = []
        if spec.name == "toybox":
            self.source, self.captioned, self.size = None, True, None
        elif spec.stream:
            self.source, self.size = None, None
            self.captioned = self._stream([], shuffle=False).captioned
        else:
            self.source = open_source(spec.name)
            self.captioned, self.size = self.source.captioned, len(self.source)
            self.damaged = getattr(self.source, "damaged", [])
            self._split = split(self.size, spec.name)

    def training(self, batches: Batches, workers: int = 0) -> DataLoader:
        """The batches of one process. workers: processes that read and crop; 0: the training process itself."""
        if self.spec.stream:
            return DataLoader(self._stream(batches, True), batch_size=batches.local, collate_fn=collate,
                              num_workers=min(workers, 1))
        # Once this process has rendered, a fork of it cannot: numba's threads are not there.
        fresh = {"multiprocessing_context": "spawn", "worker_init_fn": one_thread} if workers and self.source is None else {}
        return DataLoader(self._items(True), batch_sampler=batches, collate_fn=collate, num_workers=workers, **fresh)

    def held_out(self, images: int, batch: int) -> DataLoader:
        """At most so many images that training never sees, uncropped but for the square, in a fixed order."""
        images = self.count_held_out(images)
        positions = [[p for p in group if p < images] for group in Batches(0, images, batch)]
        if self.spec.stream:
            return DataLoader(self._stream(positions, False), batch_size=batch, collate_fn=collate)
        return DataLoader(self._items(False), batch_sampler=positions, collate_fn=collate)

    def count_held_out(self, images: int) -> int:
        """How many of `images` there are to judge on."""
        return min(images, MOST_HELD_OUT if self.size is None else len(self._split[1]))

    @property
    def division(self) -> dict[str, Any]:
        """What decides which images are kept for judging: trained on one division and judged on another, they mix."""
        return {"stream": self.spec.stream, "records": self.size}

    def _items(self, shuffle: bool) -> Union[ToyboxItems, ImageItems]:
        if self.source is None:
            return ToyboxItems(self.spec.seed + (0 if shuffle else 1_000_003), self.spec.cropping.size)
        return ImageItems(self.source, self._split[0 if shuffle else 1], self.spec.cropping, self.spec.seed, shuffle)

    def _stream(self, batches: Iterable[list[int]], shuffle: bool) -> HubStream:
        name = self.spec.name.removeprefix("hf:")
        return HubStream(name, batches, self.spec.cropping, self.spec.seed, MOST_HELD_OUT, shuffle)


def open_source(name: str) -> Union[Folder, TarShards, HubTable]:
    """The source with random access that a name stands for; `UserError` if it is none."""
    path = Path(name).expanduser()
    if name.startswith("hf:"):
        return HubTable(name.removeprefix("hf:"))
    if name.endswith(".tar"):
        return TarShards(shard_paths(str(path)))
    if not path.is_dir():
        raise UserError(f"no data at '{name}'; give a folder of images, tar shards ('shards/{{000..011}}.tar'), "
                        "hf:OWNER/NAME, or toybox")
    return TarShards(shard_paths(str(path))) if any(path.glob("*.tar")) else Folder(path)


def split(count: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and to judge on; the same in every run, whatever its seed."""
    held_out = min(MOST_HELD_OUT, count // 10)
    if held_out < 1:
        raise UserError(f"'{name}' has {count} images; at least 10 are needed, a tenth of them to judge on")
    order = np.random.default_rng([count]).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
