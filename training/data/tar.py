"""WebDataset shards: tar files whose members `key.jpg`, `key.txt`, `key.json` make up one sample.

The headers are read once, at the start; then every sample is read where it lies, so that the order may be
random, no process owns a shard, and shards of unequal size keep nobody waiting. Local files only.
"""

from __future__ import annotations

import glob
import itertools
import json
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from lmc_guidance.errors import UserError

from .images import SUFFIXES, BrokenImage, Record

CAPTIONS = ("txt", "caption", "json")


class _Part(NamedTuple):
    offset: int  # bytes
    size: int


class _Sample(NamedTuple):
    shard: int
    key: str
    image: _Part
    caption: _Part | None
    is_json: bool


class TarShards:
    """Samples of many shards, by number."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.samples = paths, []
        self.damaged: list[str] = []  # shards that end early; what could be read of them is used
        for number, path in enumerate(paths):
            self.samples += self._index(number, path)
        if not self.samples:
            raise UserError(f"no images in {len(paths)} tar shards, first '{paths[0]}'")
        self.captioned = any(sample.caption for sample in self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def record(self, index: int) -> Record:
        sample = self.samples[index]
        name = f"{self.paths[sample.shard].name}/{sample.key}"
        try:
            with open(self.paths[sample.shard], "rb") as file:
                image = _read(file, sample.image)
                caption = _read(file, sample.caption) if sample.caption else b""
            return Record(name, image, _caption(caption, sample.is_json))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise BrokenImage(f"{name}: {error}") from error

    def _index(self, number: int, path: Path) -> list[_Sample]:
        members: dict[str, dict[str, _Part]] = {}
        try:
            with tarfile.open(path, "r:") as shard:  # no compression: samples are read in place
                for member in shard:
                    if member.isfile() and (match := re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", member.name)):
                        members.setdefault(match[1], {})[match[2].lower()] = _Part(member.offset_data, member.size)
        except tarfile.TarError as error:
            if not members:
                raise UserError(f"cannot read shard '{path}': {error}; it must be an uncompressed tar file") from error
            self.damaged.append(f"{path.name}: {error}")
        except OSError as error:
            raise UserError(f"cannot read shard '{path}': {error.strerror}") from error
        samples = (_sample(number, key, parts) for key, parts in members.items())
        return [sample for sample in samples if sample is not None]


def shard_paths(pattern: str) -> list[Path]:
    """Files that 'shards/{000..011}.tar', 'shards/*.tar' or a folder of tar files stand for."""
    if Path(pattern).is_dir():
        return sorted(Path(pattern).glob("*.tar"))
    paths = [Path(p) for expanded in _expand_braces(pattern) for p in sorted(glob.glob(expanded)) or [expanded]]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"no shard '{missing[0]}' ({len(missing)} of {len(paths)} named by '{pattern}' are missing)")
    return paths


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        return [pattern]
    width = len(match[1])
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise UserError(f"'{match[0]}' in '{pattern}' counts backwards; write the lower number first")
    numbers = (f"{n:0{width}d}" for n in range(first, last + 1))
    rest = _expand_braces(pattern[match.end():])
    return [pattern[: match.start()] + n + r for n, r in itertools.product(numbers, rest)]


def _sample(shard: int, key: str, parts: dict[str, _Part]) -> _Sample | None:
    image = next((part for ending, part in parts.items() if f".{ending.rpartition('.')[2]}" in SUFFIXES), None)
    ending = next((ending for ending in CAPTIONS if ending in parts), "")
    return None if image is None else _Sample(shard, key, image, parts.get(ending), ending == "json")


def _read(file, part: _Part) -> bytes:
    file.seek(part.offset)
    content = file.read(part.size)
    if len(content) < part.size:
        raise ValueError("the shard ends within it")
    return content


def _caption(content: bytes, is_json: bool) -> str:
    text = content.decode("utf-8")
    if not is_json:
        return text.strip()
    fields = json.loads(text)
    return str(fields.get("caption") or fields.get("text") or fields.get("prompt") or "")
