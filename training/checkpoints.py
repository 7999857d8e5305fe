"""The state of a training, and its log, that a resumed one goes on from."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from imaging import files
from lmc_guidance.errors import UserError

VERSION = 3  # 1 did not name model, crops, precision, nor keep the record; 2 balanced by arithmetic means


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state and read it back before it replaces the last one."""
    files.save_state(path, {"version": VERSION, **state}, check=load_state)


def load_state(path: Path) -> dict[str, Any]:
    """The state of a corrective's training in `path`; `UserError` if it is damaged or of another version."""
    state = read_state(path, "start anew with --restart")
    if state.get("version") != VERSION:
        raise UserError(f"training state '{path}' has version {state.get('version')}, this program reads {VERSION}; "
                        "start anew with --restart, or name another --out")
    return state


def read_state(path: Path, mend: str) -> dict[str, Any]:
    """What `path` holds, on the CPU; nothing but tensors and plain values is ever unpickled. `UserError` with the `mend` if
    it is damaged."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except MemoryError:
        raise
    except Exception as error:  # the reader has its own types; whichever it is, the file is at fault
        raise UserError(f"cannot read training state '{path}': it is damaged; {mend}") from error


class Log:
    """Rows of numbers as CSV, one after each few steps; a resumed run goes on where its state was saved."""

    def __init__(self, path: Path, columns: tuple[str, ...], last: int) -> None:
        """columns: the first is the number of images seen; last: rows beyond it are dropped (a run that was killed)."""
        self.path, self.columns = path, columns
        rows = [row for row in read_log(path) if int(row[columns[0]]) <= last] if path.exists() else []
        lines = [",".join(columns)] + [",".join(row.get(c, "") for c in columns) for row in rows]
        files.write_text(path, "\n".join(lines) + "\n")

    def append(self, row: dict[str, float]) -> None:
        try:
            images, *values = (row[c] for c in self.columns)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(",".join([f"{images:d}", *(f"{value:.9g}" for value in values)]) + "\n")
        except OSError as error:
            raise UserError(f"cannot write '{self.path}': {error.strerror}") from error


def read_log(path: Path) -> list[dict[str, str]]:
    """The complete rows of a log."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file)]
    return [row for row in rows if None not in row and None not in row.values() and next(iter(row.values())).isdigit()]
