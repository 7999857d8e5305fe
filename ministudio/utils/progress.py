"""How far a run is: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressReport(ProgressBar):
    """A bar with loss and steps per second in a terminal, a line now and then in a file."""

    def __init__(self, seconds_between_lines: float = 10.0) -> None:
        super().__init__()
        self.interval = seconds_between_lines
        self.bar: Progress | None = None

    def disable(self) -> None:
        self._finish()

    def _begin(self, title: str, total: int, done: int = 0) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[note]}"))
        if self.bar.console.is_terminal:
            self.bar.start()
        self.task = self.bar.add_task(title, total=total, completed=done, note="")
        self.title, self.total, self.first = title, total, done
        self.began = self.printed = time.monotonic()

    def _show(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        rate = (done - self.first) / max(now - self.began, 1e-9)
        note = f"{note}{rate:.2f}/s"
        self.bar.update(self.task, completed=done, note=note)
        if not self.bar.console.is_terminal and (now - self.printed > self.interval or done == self.total):
            self.printed = now
            print(f"{self.title} {done}/{self.total}  {note}", flush=True)

    def _finish(self) -> None:
        if self.bar is not None:
            if self.bar.console.is_terminal:
                self.bar.stop()
            self.bar = None

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._begin("training", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        loss = f"loss {float(outputs['loss']):.4g}  " if isinstance(outputs, dict) and "loss" in outputs else ""
        self._show(trainer.global_step, loss)

    def on_train_end(self, *args: Any) -> None:
        self._finish()

    def on_test_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._begin("turntable", int(sum(trainer.num_test_batches)))

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *args: Any) -> None:
        self._show(batch_idx + 1)

    def on_test_end(self, *args: Any) -> None:
        self._finish()

    def on_exception(self, *args: Any) -> None:
        self._finish()
