"""The teacher's answers, computed once: shards of (x, t, x̂) from which any number of correctives can be trained.

A shard is one safetensors file of tensors x, x_hat (n, C, H, W) and t (n,); x and x̂ in half precision, which
rounds by at most 5e-4 of a value. Its header names the model and the settings, and another model is refused.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Iterable

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader

from imaging.console import Interrupted, StopSignal
from imaging.files import write_atomically
from lmc_guidance import DiffusionModel
from lmc_guidance.checkpoint import is_same_model, model_identity
from lmc_guidance.errors import UserError

from .data.feed import Batch, Data
from .data.images import BrokenCount
from .data.order import Batches, index_at
from .triplets import Teacher

FORMAT = "lmc-pairs"


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards that one of `world` processes writes, and everything that decides what is in them."""

    folder: Path
    settings: dict[str, Any]
    rank: int = 0
    world: int = 1

    @classmethod
    def of(cls, folder: Path, teacher: Teacher, data: Data, batch: int, rank: int = 0, world: int = 1) -> "Shards":
        """batch: images a step over all processes; it decides which of them each process sees."""
        crops = dataclasses.asdict(data.spec.cropping)
        settings = {"model": model_identity(teacher.model), "conditioning": teacher.conditioning,
                    "clip_x_hat": teacher.clip_x_hat, "seed": teacher.seed, "data": data.spec.name, **data.division,
                    "crops": crops, "batch": batch, "processes": world}
        return cls(folder, json.loads(json.dumps(settings)), rank, world)

    def written(self) -> int:
        """How many pairs this process has written; `UserError` if the folder holds other pairs than these."""
        files = sorted(self.folder.glob("pairs-*.safetensors"))
        for path in files:
            if _header(path) != self.settings:
                raise UserError(f"'{self.folder}' holds pairs of other settings, such as '{path.name}'; name another folder")
        return sum(_count(path) for path in files if path.name.startswith(self._name("")))

    def write(self, first: int, held: list[tuple[Tensor, Tensor, Tensor]]) -> int:
        x, x_hat, t = (torch.cat(parts) for parts in zip(*held))
        header = {"format": FORMAT, "settings": json.dumps(self.settings)}
        content = save({"x": x, "x_hat": x_hat, "t": t}, metadata=header)
        write_atomically(self.folder / f"{self._name(f'{first:09d}')}.safetensors", lambda file: file.write(content))
        return len(t)

    def _name(self, first: str) -> str:
        return f"pairs-{self.rank:03d}-{first}"


def write_pairs(shards: Shards, teacher: Teacher, batches: Iterable[Batch], per_shard: int, broken: BrokenCount) -> int:
    """Write shards of at least `per_shard` pairs; returns how many there are now. `Interrupted` by a signal, when all that
    there are have been written in a smaller one.

    batches: those of this process, from the first that it has not written yet.
    """
    written, held = shards.written(), []
    with StopSignal() as stop:
        for batch in batches:
            broken.add(batch.broken)
            x, t, x_hat, _, _ = teacher(batch)
            held.append((x.half().cpu(), x_hat.half().cpu(), t.cpu()))
            if stop.raised or sum(len(part[2]) for part in held) >= per_shard:
                written += shards.write(written, held)
                held = []
            if stop.raised:
                raise Interrupted(f"stopped, {written:,} pairs are in {shards.folder}; the same command goes on")
    return written + (shards.write(written, held) if held else 0)


def _header(path: Path) -> dict[str, Any]:
    """The settings of a shard; `UserError` if it is none."""
    try:
        with safe_open(str(path), "pt") as shard:
            found = json.loads((shard.metadata() or {})["settings"])
            found["model"]["weights"]  # a header without them is damaged, too
            return found
    except Exception as error:  # the reader has its own types; whichever it is, the file is at fault
        raise UserError(f"'{path}' is no shard of cached pairs, or damaged; write the pairs again") from error


def _count(path: Path) -> int:
    with safe_open(str(path), "pt") as shard:
        return shard.get_slice("t").get_shape()[0]


@dataclasses.dataclass(frozen=True)
class PairBatch:
    """B cached pairs."""

    x: Tensor  # (B, C, H, W) float32
    t: Tensor  # (B,) int64
    x_hat: Tensor  # (B, C, H, W) float32
    positions: list[int]


class Pairs(torch.utils.data.Dataset):
    """Position → (x, t, x̂, position) from shards in a folder, in an order of each epoch's own."""

    def __init__(self, folder: Path, model: DiffusionModel, seed: int) -> None:
        self.seed, self.files = seed, sorted(folder.glob("pairs-*.safetensors"))
        if not self.files:
            raise UserError(f"no cached pairs in '{folder}'; write them with --write-pairs {folder}")
        self.settings, counts = self._read_headers(model)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._open: dict[int, Any] = {}  # one handle per shard and process

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor, int]:
        index = index_at(position, len(self), self.seed)
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[shard])
        if shard not in self._open:
            self._open[shard] = safe_open(str(self.files[shard]), "pt")
        x, t, x_hat = (self._open[shard].get_slice(name)[row:row + 1][0] for name in ("x", "t", "x_hat"))
        return x.float(), t, x_hat.float(), position

    @property
    def division(self) -> dict[str, Any]:
        """See `Data.division`, of the images that the pairs were made from."""
        return {"stream": self.settings.get("stream", False), "records": self.settings.get("records")}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # handles do not travel to worker processes

    def loader(self, batches: Batches, workers: int = 0) -> DataLoader:
        return DataLoader(self, batch_sampler=batches, collate_fn=_collate, num_workers=workers)

    def _read_headers(self, model: DiffusionModel) -> tuple[dict[str, Any], list[int]]:
        settings = _header(self.files[0])
        for path in self.files[1:]:
            if _header(path) != settings:
                raise UserError(f"'{path}' was made with other settings than '{self.files[0].name}'; keep them apart")
        if not is_same_model(settings["model"], model_identity(model)):
            raise UserError(f"cached pairs in '{self.files[0].parent}' are of model '{settings['model'].get('name')}' "
                            f"or other weights of it, not of '{model.name}'; write them again with --write-pairs")
        return settings, [_count(path) for path in self.files]


def _collate(items: list[tuple[Tensor, Tensor, Tensor, int]]) -> PairBatch:
    x, t, x_hat, positions = zip(*items)
    return PairBatch(torch.stack(x), torch.stack(t), torch.stack(x_hat), list(positions))
