"""The procedural world as a data set without end: position p is always the same image and caption."""

from __future__ import annotations

from functools import lru_cache

import torch

from toybox import dataset

from .images import Item

BLOCK = 16  # images are drawn in blocks, since a block balances its cameras


class ToyboxItems(torch.utils.data.Dataset):
    """Position → `Item`; another seed is another world of images."""

    captioned = True

    def __init__(self, seed: int, size: int) -> None:
        self.seed, self.size = seed, size

    def __getitem__(self, position: int) -> Item:
        block, place = divmod(position, BLOCK)
        batch = _block(self.seed, block, self.size)
        return Item(torch.from_numpy(batch.images[place]).permute(2, 0, 1), batch.captions[place], position, [])


@lru_cache(maxsize=8)
def _block(seed: int, block: int, size: int) -> dataset.Batch:
    return dataset.batch(seed, block, BLOCK, size)
