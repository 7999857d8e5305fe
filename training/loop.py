"""A resumable training loop: run to a goal or a deadline, save often, lose nothing.

A trainee is one object that knows how to take step i. Because data and noise are functions of
(seed, i), continuing a run gives what an uninterrupted run would have given.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lmc_guidance.diffusion import half_dtype


class Trainee(Protocol):
    """What the loop trains. Progress is counted in images."""

    images_seen: int
    step_index: int

    def step(self) -> float: ...  # one update; returns the loss
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...
    def sample(self, path: Path) -> None: ...  # a picture of what has been learnt


def save_atomically(state: dict, path: Path) -> None:
    """torch.save to a neighbour file, flushed to disk, then moved into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def fast_autocast() -> torch.autocast:
    """bfloat16 where the CPU computes in it; elsewhere float32, where emulating it would take three times as long."""
    return torch.autocast("cpu", torch.bfloat16, enabled=half_dtype("cpu") == torch.bfloat16)


class _StopSignal:
    """Turns SIGINT and SIGTERM into a flag, so that a step always ends whole."""

    def __enter__(self) -> "_StopSignal":
        self.raised = False
        self._old = {s: signal.signal(s, self._raise) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _raise(self, *_) -> None:
        self.raised = True

    def __exit__(self, *_) -> None:
        for s, handler in self._old.items():
            signal.signal(s, handler)


def run(trainee: Trainee, folder: Path, name: str, images: int, minutes: float | None = None,
        save_every: float = 600.0) -> bool:
    """Train until `images` have been seen; True if the goal was reached.

    folder: holds `<name>.pt` (continued from if it is there) and sample pictures. minutes: stop
    after so long, with everything saved. save_every: seconds between checkpoints.
    """
    state_file = folder / f"{name}.pt"
    if state_file.exists():
        trainee.load_state_dict(torch.load(state_file, weights_only=True))
    deadline = time.monotonic() + 60 * (minutes if minutes is not None else 1e9)
    saved, logged, average = time.monotonic(), time.monotonic(), None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, _StopSignal() as stop:
        bar = progress.add_task(name, total=images, completed=trainee.images_seen)
        while trainee.images_seen < images and time.monotonic() < deadline and not stop.raised:
            loss = trainee.step()
            average = loss if average is None else 0.98 * average + 0.02 * loss
            progress.update(bar, completed=trainee.images_seen, description=f"{name} loss {average:.4f}")
            if time.monotonic() - logged > 30:
                logged = time.monotonic()
                with open(folder / f"{name}.csv", "a") as log:
                    log.write(f"{trainee.images_seen},{average:.5f},{time.time():.0f}\n")
            if time.monotonic() - saved > save_every:
                save_atomically(trainee.state_dict(), state_file)
                trainee.sample(folder / f"{name}-{trainee.images_seen:08d}.png")
                saved = time.monotonic()
    save_atomically(trainee.state_dict(), state_file)
    trainee.sample(folder / f"{name}-{trainee.images_seen:08d}.png")
    return trainee.images_seen >= images
