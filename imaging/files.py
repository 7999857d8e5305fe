"""Files that are written whole or not at all, whatever happens meanwhile: a kill, a full disk, a read-only folder."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import IO, Any, Callable

import torch
from lmc_guidance import UserError


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any],
                     check: Callable[[Path], Any] = lambda _: None) -> None:
    """Let `write` fill a neighbour of `path`, flush it to disk, `check` it, then move it into place.

    `UserError` if the disk is full or the folder read-only; what was at `path` is then still there.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            check(partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        kept = "; the one written before is intact" if path.exists() else ""
        raise UserError(f"cannot write '{path}': {error.strerror}{kept}") from error


def write_text(path: Path, text: str) -> None:
    """UTF-8, `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, content: Any) -> None:
    """Indented, `write_atomically`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def save_state(path: Path, state: dict[str, Any], check: Callable[[Path], Any] = lambda _: None) -> None:
    """`torch.save`, `write_atomically`."""
    content = io.BytesIO()  # torch reports a full disk in its own way, a file in the system's
    torch.save(state, content)
    write_atomically(path, lambda file: file.write(content.getbuffer()), check)
