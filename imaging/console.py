"""What every tool does at its edges: one line per user error, Ctrl-C as a flag, a progress bar, the record of a run."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable

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
        print(f"error: {_told(error)}", file=sys.stderr)
        sys.exit(1)


def _told(error: Exception) -> str:
    """Its message; of an error that torch brings over from a loader's process, what that process said."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].partition(": ")[2] if lines[0].startswith("Caught ") else str(error)


class StopSignal:
    """A context that turns SIGINT and SIGTERM into the flag `raised`, so that a step always ends whole.

    A second signal is handled as it was before: it stops at once.
    """

    def __init__(self) -> None:
        self.raised = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        self.listen()
        return self

    def listen(self) -> None:
        """Take the signals; again, after another library has taken them."""
        before = {s: signal.signal(s, self._raise) for s in (signal.SIGINT, signal.SIGTERM)}
        self._old = self._old or before

    def _raise(self, *_: Any) -> None:
        self.raised = True
        self.release()

    def release(self) -> None:
        """Give the signals back to what handled them first."""
        for s, handler in self._old.items():
            signal.signal(s, handler)

    def __exit__(self, *_: Any) -> None:
        self.release()


def progress_bar() -> Progress:
    """Description, bar, m/n and the time that remains; on stderr, so that stdout stays for results."""
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON object in `folder`/run.json; `UserError` if it is damaged."""
    return read_json(folder / "run.json")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that a tool wrote; `UserError` if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is damaged ({error}); delete it, or name another folder") from error


def slug(text: str, length: int = 40) -> str:
    """A prompt as part of a file name."""
    return "".join(c if c.isalnum() or c == "-" else "_" for c in text)[:length].strip("_") or "empty"
