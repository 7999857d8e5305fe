"""A resumable training loop: run to a goal or a deadline, save often, lose nothing.

A trainee is one object that knows how to take step i. Because data and noise are functions of
(seed, i), continuing a run gives what an uninterrupted run would have given.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

import torch

from imaging.console import Interrupted, StopSignal, progress_bar
from imaging.files import save_state
from lmc_guidance.diffusion import half_dtype

from .checkpoints import read_state


class Trainee(Protocol):
    """What the loop trains. Progress is counted in images."""

    images_seen: int
    step_index: int
    goal: int  # images in all; the learning rate falls towards it

    def step(self) -> float: ...  # one update; returns the loss
    def state_dict(self) -> dict: ...
    def load_state_dict(self, state: dict) -> None: ...
    def sample(self, path: Path) -> None: ...  # a picture of what has been learnt


def fast_autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device computes in it; on other CPUs float32, since emulating it takes three times as long."""
    return torch.autocast(device.type, torch.bfloat16,
                          enabled=device.type == "cuda" or half_dtype(device.type) == torch.bfloat16)


def run(trainee: Trainee, folder: Path, name: str, minutes: float | None = None, within: float | None = None,
        save_every: float = 600.0) -> bool:
    """Train until the trainee's goal; True if it was reached. `Interrupted` by a signal, once everything is saved.

    folder: holds `<name>.pt` (continued from if it is there) and sample pictures. minutes: stop
    after so long, with everything saved. within: move the goal to what can be reached in so many
    minutes, by the speed of the first twentieth of them. save_every: seconds between checkpoints.
    """
    state_file = folder / f"{name}.pt"
    if state_file.exists():
        trainee.load_state_dict(read_state(state_file, "delete it to start anew"))
    clock = _Clock(trainee, minutes, within)
    saved, logged, average = time.monotonic(), time.monotonic(), None
    with progress_bar() as progress, StopSignal() as stop:
        bar = progress.add_task(name, total=trainee.goal, completed=trainee.images_seen)
        while trainee.images_seen < trainee.goal and not clock.over() and not stop.raised:
            loss = trainee.step()
            clock.plan()
            average = loss if average is None else 0.98 * average + 0.02 * loss
            progress.update(bar, completed=trainee.images_seen, total=trainee.goal,
                            description=f"{name} loss {average:.4f}")
            if time.monotonic() - logged > 30:
                logged = time.monotonic()
                with open(folder / f"{name}.csv", "a") as log:
                    log.write(f"{trainee.images_seen},{average:.5f},{time.time():.0f}\n")
            if time.monotonic() - saved > save_every:
                save_state(state_file, trainee.state_dict())
                trainee.sample(folder / f"{name}-{trainee.images_seen:08d}.png")
                saved = time.monotonic()
    save_state(state_file, trainee.state_dict())
    trainee.sample(folder / f"{name}-{trainee.images_seen:08d}.png")
    if stop.raised and trainee.images_seen < trainee.goal:
        raise Interrupted(f"stopped after {trainee.images_seen:,} images, saved in {state_file}; the same command goes on")
    return trainee.images_seen >= trainee.goal


class _Clock:
    """Deadline and goal: `minutes` stop a run, `within` fits its goal to the speed that it shows at first."""

    def __init__(self, trainee: Trainee, minutes: float | None, within: float | None) -> None:
        self.trainee, self.start = trainee, time.monotonic()
        self.minutes, self.within = minutes, within
        self.mark: tuple[float, int] | None = None  # seconds since the start and images, when measuring began
        if within is not None:
            trainee.goal = 10**12  # until the speed is known

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def over(self) -> bool:
        return self.minutes is not None and self.elapsed() >= 60 * self.minutes

    def plan(self) -> None:
        """Once, after a twentieth of the time from the first step on: set the goal."""
        if self.within is None:
            return
        now, seen = self.elapsed(), self.trainee.images_seen
        if self.mark is None:
            self.mark = (now, seen)
        elif now - self.mark[0] >= 60 * self.within / 20:
            speed = (seen - self.mark[1]) / (now - self.mark[0])
            self.trainee.goal = seen + max(0, int(speed * (60 * self.within - now)))
            self.within = None
