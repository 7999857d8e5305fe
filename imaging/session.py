"""A folder in which a list of images is optimised, batch by batch; stopped at any time, it goes on exactly.

    run.json            settings, jobs, and how far it is
    images/             NNN-prompt-seedS.png, with -omegaW where an image has an ω of its own
    grid.png            rows are prompts, columns are seeds
    progress.mp4        the grid over the steps, unless it is not wanted
    state/              one file a batch: pixels, Adam's moments, frames of the film
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

from lmc_guidance import UserError
from lmc_guidance.diffusion import resize

from . import console, files, pictures
from .synthesis import Job, Optimisation, scalars

SAVE_EVERY = 30.0  # seconds
FILM_FRAMES = 50
FILM_SIDE = 256  # pixels, at most
FILM_IMAGES = 64  # at most, and so many columns; a larger grid's film shows the first rows and columns only

Make = Callable[[Sequence[Job]], Optimisation]


@dataclass
class Session:
    """Jobs to optimise in a folder. `settings` is everything that decides the result; it names the run."""

    folder: Path
    settings: dict[str, Any]
    jobs: Sequence[Job]
    batch_size: int = 8
    film: bool = True  # whether frames are kept and the film is written
    seconds: float = field(default=0.0, init=False)
    log: list[dict[str, float]] = field(default_factory=list, init=False)

    def open(self, overwrite: bool = False) -> None:
        """Make the folder, or check that what is in it is this run; `UserError` if it holds another."""
        if self.batch_size < 1:
            raise UserError(f"batch-size is {self.batch_size}; it must be 1 or more")
        if not self.jobs:
            raise UserError("there is nothing to make: give at least one prompt and one seed")
        if double := [job for job in self.jobs if self.jobs.count(job) > 1]:
            raise UserError(f"\"{double[0].prompt}\" with seed {double[0].seed} is asked for twice: it would be the same image")
        record = self.folder / "run.json"
        if overwrite and record.is_file():
            for part in ("images", "state"):
                shutil.rmtree(self.folder / part, ignore_errors=True)
            for part in ("grid.png", "progress.mp4", "run.json"):
                (self.folder / part).unlink(missing_ok=True)
        if record.is_file():
            before = console.read_record(self.folder)
            if before.get("settings") != json.loads(json.dumps(self._identity())):
                raise UserError(f"'{self.folder}' holds a run with other settings; choose another --out, or --overwrite")
            self.seconds, self.log = before["seconds"], before["log"]
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise UserError(f"'{self.folder}' is not empty and holds no run; choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not record.is_file():
            self._write_record("not begun")  # from here on the folder is known as this run's

    def run(self, make: Make) -> Tensor:
        """Optimise what is not done yet, write everything, return the images (N, 3, H, W) on the CPU."""
        with console.progress_bar() as bar, console.StopSignal() as stop:
            task = bar.add_task("optimising", total=len(self.jobs) * self.settings["steps"])
            for number, jobs in enumerate(self._batches()):
                self._finish_batch(make, number, jobs, stop, lambda n: bar.advance(task, n))
        states = [torch.load(self._state(n), weights_only=True) for n in range(len(list(self._batches())))]
        images = torch.cat([state["rgb"] for state in states])
        self._write_results(images, states)
        return images

    def _identity(self) -> dict[str, Any]:
        return {**self.settings, "batch_size": self.batch_size, "jobs": [job.record for job in self.jobs]}

    def _batches(self) -> Iterator[Sequence[Job]]:
        for start in range(0, len(self.jobs), self.batch_size):
            yield self.jobs[start : start + self.batch_size]

    def _state(self, number: int) -> Path:
        return self.folder / "state" / f"batch-{number:03d}.pt"

    def _finish_batch(self, make: Make, number: int, jobs: Sequence[Job], stop, advance) -> None:
        """Optimise one batch to its end, or to where the user stops it."""
        state = None
        if self._state(number).is_file():  # onto the CPU: where it goes on need not be where it was stopped
            state = torch.load(self._state(number), map_location="cpu", weights_only=True)
        if state is not None and "optimizer" not in state:  # finished earlier
            return advance(len(jobs) * self.settings["steps"])
        optimisation = make(jobs)
        frames = [_frame(optimisation.images)]
        if state is not None:
            optimisation.load_state_dict(state)
            frames = list(state["frames"])
            advance(len(jobs) * optimisation.index)
        self._optimise(optimisation, number, frames, stop, advance)
        for offset, (image, job) in enumerate(zip(optimisation.images, jobs)):
            pictures.write_image(self._image_path(number * self.batch_size + offset, job), image)
        self._save(number, {"rgb": optimisation.images, "frames": torch.stack(frames)}, optimisation.index)

    def _optimise(self, optimisation: Optimisation, number: int, frames: list[Tensor], stop, advance) -> None:
        every = max(1, self.settings["steps"] // FILM_FRAMES)
        started = saved = time.monotonic()
        before = self.seconds
        while not optimisation.done:
            result = optimisation.step()
            advance(len(optimisation.jobs))
            self.seconds = before + time.monotonic() - started
            if optimisation.index % every == 0 or optimisation.done:
                frames += [_frame(optimisation.images)] if self.film else []
                self.log.append({"batch": number, "step": optimisation.index, **scalars(result)})
            if stop.raised or time.monotonic() - saved > SAVE_EVERY:
                self._save(number, {**optimisation.state_dict(), "frames": torch.stack(frames)}, optimisation.index)
                saved = time.monotonic()
            if stop.raised and not optimisation.done:
                raise console.Interrupted(
                    f"stopped at step {optimisation.index} of batch {number + 1}; the same command goes on from there"
                )

    def _save(self, number: int, state: dict, index: int) -> None:
        files.save_state(self._state(number), state)
        self._write_record(f"batch {number + 1}, step {index}")

    def _write_record(self, progress: str) -> None:
        images = [str(self._image_path(i, job).relative_to(self.folder)) for i, job in enumerate(self.jobs)]
        content = {
            "settings": self._identity(), "progress": progress, "seconds": round(self.seconds, 2),
            "images": images, "log": self.log,
        }
        files.write_json(self.folder / "run.json", content)

    def _image_path(self, number: int, job: Job) -> Path:
        own = "" if job.omega is None else f"-omega{job.omega:g}"
        return self.folder / "images" / f"{number:03d}-{console.slug(job.prompt)}-seed{job.seed}{own}.png"

    def _write_results(self, images: Tensor, states: Sequence[dict]) -> None:
        prompts = list(dict.fromkeys(job.prompt for job in self.jobs))
        seeds = list(dict.fromkeys(job.seed for job in self.jobs))
        heads = [f"seed {seed}" for seed in seeds]
        omegas = dict.fromkeys(job.omega for job in self.jobs)
        rows = [prompt if omega is None else f"{prompt}, ω = {omega:g}" for omega in omegas for prompt in prompts]
        pictures.write_image(self.folder / "grid.png", pictures.grid(images, len(seeds), rows, heads))
        self._write_record("done")
        if self.film:
            self._write_film(states, prompts, seeds)

    def _write_film(self, states: Sequence[dict], prompts: list[str], seeds: list[int]) -> None:
        columns = min(len(seeds), FILM_IMAGES)  # wider films are more than H.264 takes
        rows, heads = FILM_IMAGES // columns, [f"seed {seed}" for seed in seeds[:columns]]
        shown = [row * len(seeds) + column for row in range(min(rows, len(prompts))) for column in range(columns)]
        count = min(len(state["frames"]) for state in states)
        frames = (torch.cat([state["frames"][i] for state in states])[shown] for i in range(count))
        film = [pictures.grid(f.movedim(-1, -3).float() / 255, columns, prompts[:rows], heads) for f in frames]
        pictures.write_film(self.folder / "progress.mp4", film)


def _frame(images: Tensor) -> Tensor:
    """A picture of the images for the film, uint8 (B, H, W, 3)."""
    height, width = images.shape[-2:]
    return pictures.to_bytes(resize(images, FILM_SIDE) if max(height, width) > FILM_SIDE else images)
