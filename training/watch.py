"""What happens around the steps of a training: averages over processes, log, curves, pictures, state, a clean stop."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Optional

import pytorch_lightning as pl
import torch
from torch import Tensor

from imaging.console import StopSignal
from lmc_guidance.errors import UserError

from .checkpoints import Log, save_state
from .engine import Training
from .pictures import Pictures

COLUMNS = ("images", "loss", "penalty", "gradient_norm", "learning_rate")
SUMMED = ("loss", "penalty", "gradient_norm")


class Watch(pl.Callback):
    """One for each process; files are written by the first process alone."""

    def __init__(self, folder: Path, pictures: Optional[Pictures] = None, quiet: bool = False,
                 stop_at: Optional[int] = None) -> None:
        """folder: for state.pt, log.csv, curves/ and pictures/. stop_at: stop, saved, after so many images."""
        self.folder, self.pictures, self.quiet, self.stop_at = folder, pictures, quiet, stop_at
        self.stopping, self._signal = False, StopSignal()
        self._sums, self._steps = torch.zeros(len(SUMMED), dtype=torch.float64), 0

    def on_train_start(self, trainer: pl.Trainer, training: Training) -> None:
        if trainer.is_global_zero:
            from torch.utils.tensorboard import SummaryWriter

            self.log = Log(self.folder / "log.csv", COLUMNS, training.images_seen)
            self.curves = SummaryWriter(str(self.folder / "curves"), purge_step=training.images_seen)
        # Not earlier: Lightning sets its own handlers just before, and later restores what it found.
        self._signal.listen()
        self._first, self._began = training.images_seen, time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, training: Training, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        images, recipe = training.images_seen, training.recipe
        counted = bool(training.step_values)  # a step that is left out has no loss
        values = (torch.stack([training.step_values[name].double().cpu() for name in SUMMED]) if counted
                  else torch.zeros_like(self._sums))
        self.stopping |= self._signal.raised or (self.stop_at is not None and images >= self.stop_at)
        values, self.stopping = _over_processes(trainer, values, self.stopping)
        self._sums, self._steps = self._sums + values, self._steps + counted
        self._note_broken(training, batch)
        if _crosses(images, recipe.batch, recipe.log_images):
            self._write_row(trainer, training)
        if _crosses(images, recipe.batch, recipe.save_images) and trainer.is_global_zero and not self.stopping:
            self._save(training)
        trainer.should_stop |= self.stopping

    def on_train_end(self, trainer: pl.Trainer, training: Training) -> None:
        self._signal.release()
        if trainer.is_global_zero:
            self._save(training)
            with _expendable("curve"):
                self.curves.close()

    def on_exception(self, trainer: pl.Trainer, training: Training, exception: BaseException) -> None:
        self._signal.release()

    def _save(self, training: Training) -> None:
        state = {**training.state(), "sums": self._sums, "steps": self._steps}
        save_state(self.folder / "state.pt", state)
        if self.pictures is not None:
            with _expendable("picture"):
                self.pictures.write(training.ema, self.folder, self.curves, training.images_seen)

    def _write_row(self, trainer: pl.Trainer, training: Training) -> None:
        images = training.images_seen
        means = dict(zip(SUMMED, (self._sums / self._steps).tolist()))
        self._sums, self._steps = torch.zeros_like(self._sums), 0
        if not trainer.is_global_zero:
            return
        row = {"images": images, **means, "learning_rate": training.recipe.rate_at(images - training.recipe.batch)}
        self.log.append(row)
        speed = (images - self._first) / (time.perf_counter() - self._began)
        share = training.teacher_seconds / (time.perf_counter() - self._began)
        with _expendable("curve"):
            for name, value in {**row, "images_per_second": speed, "teacher_share_of_time": share}.items():
                self.curves.add_scalar(name, value, images)
        if not self.quiet:
            print(progress_line(images, training.recipe.images, means["loss"], speed, share), flush=True)

    def _note_broken(self, training: Training, batch: Any) -> None:
        broken = getattr(batch, "broken", None)  # cached pairs have none
        if broken is not None:
            for name in training.broken.add(broken):
                print(f"skipped {name}", file=sys.stderr)

    def load(self, state: dict[str, Any]) -> None:
        """The sums of the row in progress."""
        self._sums, self._steps = state["sums"], state["steps"]


@contextmanager
def _expendable(what: str) -> Iterator[None]:
    """What is only for looking at costs a line where it cannot be written, not the training."""
    try:
        yield
    except (OSError, UserError) as error:
        print(f"left out a {what}: {error}", file=sys.stderr)


def progress_line(images: int, goal: int, loss: float, speed: float, share: float) -> str:
    left = max(goal - images, 0) / speed
    clock = f"{left / 3600:.1f} h" if left > 5400 else f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
    return (f"{images:>10,} / {goal:,} images   loss {loss:.5f}   {speed:,.1f} images/s, {share:.0%} of the time "
            f"in the frozen model   {clock} left")


def _crosses(images: int, batch: int, every: int) -> bool:
    """Whether the step that ends at `images` reaches a multiple of `every`."""
    return images // every > (images - batch) // every


def _over_processes(trainer: pl.Trainer, values: Tensor, stop: bool) -> tuple[Tensor, bool]:
    """Mean of `values`, and whether any process wants to stop, the same on all."""
    if trainer.world_size == 1:
        return values, stop
    device = trainer.strategy.root_device
    both = torch.cat([values / trainer.world_size, torch.tensor([float(stop)], dtype=torch.float64)]).to(device)
    torch.distributed.all_reduce(both)
    return both[:-1].cpu(), bool(both[-1] > 0)
