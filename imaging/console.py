"""What every tool does at its edges: one line per user error, Ctrl-C as a flag, files written whole."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable

import torch
import transformers
from lmc_guidance import UserError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Interrupted(Exception):
    """The user stopped the run; the message says how to go on."""


def run_tool(main: Callable[[], None]) -> None:
    """Call a tool's main: errors of the user and of the disk are one line and exit code 1, an interruption is 130."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    transformers.utils.logging.disable_progress_bar()  # "Loading weights" says nothing about the work
    try:
        main()
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # a full disk, a folder that is none or may not be written to
        if error.filename is None and error.errno is None:
            raise
        print(f"error: {error.strerror}: {error.filename or 'while writing'}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:
        if not getattr(error, "is_user_error", False):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


class StopSignal:
    """A context that turns SIGINT and SIGTERM into the flag `raised`, so that a step always ends whole."""

    def __enter__(self) -> "StopSignal":
        self.raised = False
        self._old = self.listen()
        return self

    def listen(self) -> dict[int, Any]:
        """Take the signals (again, after another library has); returns what handled them before."""
        return {s: signal.signal(s, self._raise) for s in (signal.SIGINT, signal.SIGTERM)}

    def _raise(self, *_: Any) -> None:
        self.raised = True

    def __exit__(self, *_: Any) -> None:
        for s, handler in self._old.items():
            signal.signal(s, handler)


def progress_bar() -> Progress:
    """Description, bar, m/n and the time that remains; on stderr, so that stdout stays for results."""
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def replace_file(path: Path, write: Callable[[Any], None]) -> None:
    """Let `write` fill a neighbour file (open in binary), flush it to disk, move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_state(path: Path, state: dict) -> None:
    """`torch.save`, whole or not at all."""
    replace_file(path, lambda file: torch.save(state, file))


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, whole or not at all."""
    replace_file(path, lambda file: file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()))


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON object in `folder`/run.json; `UserError` if it is damaged."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{folder / 'run.json'}' is damaged ({error}); delete it, or name another folder") from error


def slug(text: str, length: int = 40) -> str:
    """A prompt as part of a file name."""
    return "".join(c if c.isalnum() or c == "-" else "_" for c in text)[:length].strip("_") or "empty"
