"""Images of any size as training items: reading, cropping, and what to do with broken ones."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from imaging.pictures import upright_rgb
from lmc_guidance.errors import UserError

from .order import index_at, random_numbers

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ATTEMPTS = 50  # so many broken images in a row, and the data set is at fault


class BrokenImage(Exception):
    """An image that cannot be read; the message says which and why."""


class Record(NamedTuple):
    """One image as it lies in its source."""

    name: str
    content: bytes  # of an image file
    caption: str  # empty if it has none


class Source(Protocol):
    """A data set with random access."""

    captioned: bool

    def __len__(self) -> int: ...
    def record(self, index: int) -> Record: ...  # raises BrokenImage


class Item(NamedTuple):
    """What a training step sees of one image."""

    image: Tensor  # (3, size, size) in [0, 1]
    caption: str
    position: int
    broken: list[str]  # what was skipped to get here


def missing(cropping: "Cropping", position: int, broken: list[str]) -> Item:
    """A black stand-in where all `ATTEMPTS` were broken, upon which `BrokenCount` ends the run."""
    return Item(torch.zeros(3, cropping.size, cropping.size), "", position, broken)


@dataclasses.dataclass(frozen=True)
class Cropping:
    """How an image becomes a square of `size` pixels."""

    size: int  # pixels
    least: float = 0.8  # side of the smallest random crop, as a share of the image's shorter side
    flip: bool = True  # mirror every second image

    def random(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        side = min(image.size) * rng.uniform(self.least, 1.0)
        left, top = (rng.uniform(0, extent - side) for extent in image.size)
        if self.flip and rng.random() < 0.5:
            image, left = ImageOps.mirror(image), image.width - side - left
        return self._cut(image, left, top, side)

    def central(self, image: Image.Image) -> Tensor:
        side = min(image.size)
        return self._cut(image, (image.width - side) / 2, (image.height - side) / 2, side)

    def _cut(self, image: Image.Image, left: float, top: float, side: float) -> Tensor:
        box = (max(left, 0.0), max(top, 0.0), min(left + side, image.width), min(top + side, image.height))
        small = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def decode(name: str, content: bytes) -> Image.Image:
    """An image file as upright RGB, transparency on white; `BrokenImage` if it cannot be read."""
    try:
        with Image.open(io.BytesIO(content)) as file:
            return upright_rgb(file)
    except UnidentifiedImageError as error:
        raise BrokenImage(f"{name}: not an image of a known format") from error
    except Exception as error:  # decoders raise a dozen types; whichever it is, the file is at fault
        raise BrokenImage(f"{name}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


class ImageItems(torch.utils.data.Dataset):
    """Position → `Item` for a source with random access."""

    def __init__(self, source: Source, indices: np.ndarray, cropping: Cropping, seed: int, shuffle: bool) -> None:
        """indices: which records to use; shuffle: random order, crops and flips, else in order and central."""
        self.source, self.indices, self.cropping, self.seed, self.shuffle = source, indices, cropping, seed, shuffle

    def __getitem__(self, position: int) -> Item:
        broken: list[str] = []
        for attempt in range(ATTEMPTS):
            try:
                record = self.source.record(self._index(position, attempt))
                image = decode(record.name, record.content)
            except BrokenImage as error:
                broken.append(str(error))
                continue
            return Item(self._crop(image, position), record.caption, position, broken)
        return missing(self.cropping, position, broken)

    def _index(self, position: int, attempt: int) -> int:
        if self.shuffle:
            return int(self.indices[index_at(position, len(self.indices), self.seed, attempt)])
        return int(self.indices[(position + attempt) % len(self.indices)])

    def _crop(self, image: Image.Image, position: int) -> Tensor:
        if self.shuffle:
            return self.cropping.random(image, random_numbers(self.seed, "crop", position))
        return self.cropping.central(image)


class BrokenCount:
    """Counts and lists broken images; too many are an error."""

    def __init__(self, most: float) -> None:
        """most: the largest share of broken images that is put up with."""
        self.most, self.read, self.names = most, 0, {}

    def add(self, broken: list[list[str]]) -> list[str]:
        """Take account of a batch, of what was skipped for each item; returns those that were not known yet.

        `UserError` when it is too much: a large share of all, or so many for one item that it got no image.
        """
        names = [name for skipped in broken for name in skipped]
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        self.read += len(broken) + len(names)
        for name in names:
            self.names[name] = self.names.get(name, 0) + 1
        failed, last = sum(self.names.values()), names[-1] if names else next(reversed(self.names), "")
        if any(len(skipped) >= ATTEMPTS for skipped in broken):
            raise UserError(f"{ATTEMPTS} images in a row were broken; the last: {last}")
        if failed >= 10 and failed > self.most * self.read:
            raise UserError(f"{failed} of {self.read} images read were broken, more than --broken {self.most:g} allows"
                            f"; the last: {last}")
        return new


class Folder:
    """All images below a folder; captions from `name.txt` beside them or metadata.jsonl (file_name, text)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not self.files:
            raise UserError(f"no images in '{folder}' (looked for {', '.join(SUFFIXES)}, in folders below it too)")
        self._captions = _read_metadata(folder / "metadata.jsonl")
        self.captioned = bool(self._captions) or any(path.with_suffix(".txt").is_file() for path in self.files)

    def __len__(self) -> int:
        return len(self.files)

    def record(self, index: int) -> Record:
        path = self.files[index]
        name = path.relative_to(self.folder).as_posix()
        try:
            return Record(name, path.read_bytes(), self._caption(path, name))
        except (OSError, UnicodeDecodeError) as error:
            raise BrokenImage(f"{name}: {error}") from error

    def _caption(self, path: Path, name: str) -> str:
        text = path.with_suffix(".txt")
        return text.read_text(encoding="utf-8").strip() if text.is_file() else self._captions.get(name, "")


def _read_metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {row["file_name"]: str(row.get("text") or row.get("caption") or "") for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); every line must be JSON with file_name and text") from error
