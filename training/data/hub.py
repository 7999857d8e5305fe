"""Hugging Face data sets: local or fetched, with random access or streamed. Needs the optional package `datasets`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Iterable, Iterator

import fsspec
import torch
from PIL import Image
from torch import Tensor

from lmc_guidance.errors import UserError
from lmc_guidance.folder import first_line

from .images import ATTEMPTS, BrokenImage, Cropping, Item, Record, decode, missing
from .order import random_numbers

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
CAPTIONS = ("text", "caption", "prompt", "txt")
SHUFFLED = 1000  # records from which a stream's next one is drawn


def load(name: str, stream: bool) -> Any:
    """The data set 'owner/name[:split]' or a local folder; split `train` if none is named."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"reading '{name}' needs the package datasets: pip install datasets") from error
    path, _, split = name.partition(":")
    try:
        if (Path(path) / "state.json").is_file() or (Path(path) / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(path)
            data = data[split or "train"] if isinstance(data, datasets.DatasetDict) else data
            return data.to_iterable_dataset() if stream else data
        return datasets.load_dataset(path, split=split or "train", streaming=stream)
    except Exception as error:  # network, credentials, unknown names, damaged files: one line from the library
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot open data set '{name}': {reason}") from error


class Columns:
    """Which columns hold the image and the caption, and how a row is read."""

    def __init__(self, data: Any, name: str) -> None:
        features = list(data.features or _first(data, name))
        self.name = name
        self.image = next((column for column in IMAGES if column in features), None)
        self.caption = next((column for column in CAPTIONS if column in features), None)
        if self.image is None:
            raise UserError(f"data set '{name}' has no image column: it has {', '.join(features)}, "
                            f"looked for {', '.join(IMAGES)}")

    def undecoded(self, data: Any) -> Any:
        """The data set with image files as bytes, so that a broken one costs itself only; `UserError` if the column holds
        no images."""
        import datasets

        if data.features is None:  # a stream that does not tell: it decodes nothing
            return data
        feature = data.features[self.image]
        if isinstance(feature, datasets.Value) and not feature.dtype.endswith(("string", "binary")):
            raise self._no_images(feature.dtype)  # a stream would find it out in its rows
        try:
            return data.cast_column(self.image, datasets.Image(decode=False))
        except Exception as error:  # arrow and datasets have their own types
            raise self._no_images(first_line(error)) from error

    def _no_images(self, found: str) -> UserError:
        return UserError(f"column '{self.image}' of data set '{self.name}' holds no images, their files or addresses ({found}); "
                         "name another data set, or rename its columns")

    def record(self, row: dict, name: str) -> Record:
        import datasets

        try:
            value = row[self.image]
            if not isinstance(value, dict):  # of a stream that does not tell its columns: a path, bytes, or an image
                value = datasets.Image().encode_example(value)
            content = value["bytes"]
            if content is None:
                with fsspec.open(value["path"], "rb") as file:  # a path, or zip://a.png::b.zip, or hf://…
                    content = file.read()
        except Exception as error:  # each file system has its own types; whichever it is, this record is at fault
            raise BrokenImage(f"{name}: {error}") from error
        return Record(name, content, str(row[self.caption] or "") if self.caption else "")


def _first(data: Any, name: str) -> dict:
    """The first row of a stream; `UserError` if it is empty."""
    row = next(iter(data), None)
    if row is None:
        raise UserError(f"data set '{name}' has no records; name another one, or another split of it (hf:NAME:SPLIT)")
    return row


class HubTable:
    """A data set with random access, as an `images.Source`."""

    def __init__(self, name: str) -> None:
        data = load(name, stream=False)
        self.name, self.columns = name, Columns(data, name)
        self.captioned = self.columns.caption is not None
        self.data = self.columns.undecoded(data)

    def __len__(self) -> int:
        return len(self.data)

    def record(self, index: int) -> Record:
        return self.columns.record(self.data[index], f"{self.name}[{index}]")


class HubStream(torch.utils.data.IterableDataset):
    """The items of one process, in order of position, from a data set that can only be read from its start.

    Every process reads the whole stream and decodes its own positions; a resumed run reads past what was seen.
    A broken image is replaced by the next good one of the stream.
    """

    def __init__(self, name: str, batches: Iterable[list[int]], cropping: Cropping, seed: int, held_out: int,
                 shuffle: bool) -> None:
        """batches: positions wanted, rising. held_out: records at the start of the stream that are kept for evaluation:
        all that `shuffle=False` sees."""
        data = load(name, stream=True)
        self.name, self.columns = name, Columns(data, name)
        self.captioned = self.columns.caption is not None
        data = self.columns.undecoded(data)
        self.data = data.skip(held_out).shuffle(seed=seed, buffer_size=SHUFFLED) if shuffle else data.take(held_out)
        self.batches, self.cropping, self.seed, self.shuffle = batches, cropping, seed, shuffle

    def __iter__(self) -> Iterator[Item]:
        wanted = itertools.chain.from_iterable(self.batches)
        position, waiting = next(wanted, None), {}
        for at, row in self._rows():
            if position is None and not waiting:
                return
            if at == position:
                waiting[at], position = [], next(wanted, None)
            if waiting:
                yield from self._serve(waiting, row, f"{self.name}[{at}]")

    def _rows(self) -> Iterator[tuple[int, dict]]:
        position = 0
        for epoch in itertools.count():
            if self.shuffle:
                self.data.set_epoch(epoch)
            before = position
            for row in self._epoch():
                yield position, row
                position += 1
            if position == before:
                raise UserError(f"data set '{self.name}' has no records beyond those kept for evaluation")

    def _epoch(self) -> Iterator[dict]:
        """The rows of one epoch; `UserError` where the stream breaks off."""
        try:
            yield from self.data
        except Exception as error:  # network, and what each file format raises
            raise UserError(f"data set '{self.name}' broke off: {first_line(error)}; the same command goes on") from error

    def _serve(self, waiting: dict[int, list[str]], row: dict, name: str) -> Iterator[Item]:
        """The items of the positions that wait, with what was broken on the way to each, as far as `row` is an image."""
        try:
            record = self.columns.record(row, name)
            image = decode(name, record.content)
        except BrokenImage as error:
            for position, broken in list(waiting.items()):
                broken.append(str(error))
                if len(broken) >= ATTEMPTS:
                    yield missing(self.cropping, position, waiting.pop(position))
            return
        for position in list(waiting):
            yield Item(self._crop(image, position), record.caption, position, waiting.pop(position))

    def _crop(self, image: Image.Image, position: int) -> Tensor:
        if self.shuffle:
            return self.cropping.random(image, random_numbers(self.seed, "crop", position))
        return self.cropping.central(image)
