"""What makes a run safe to stop and to continue: checkpoints, random state, signals, NaN checks."""

from __future__ import annotations

import io
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

import ministudio
from ministudio.utils.errors import Interrupted, NotFinite
from ministudio.utils.misc import first_line
from ministudio.utils.saving import write_atomically
from ministudio.utils.weights import load_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are whole or absent, read without running code from them.

    `steps` knows the step of every file that this run has written or read, the latest last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[str, int] = {}

    def _note(self, path: Any, checkpoint: dict[str, Any]) -> None:
        key = os.path.realpath(path)
        self.steps.pop(key, None)
        self.steps[key] = checkpoint["global_step"]

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getbuffer())
        self._note(path, checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", **kwargs: Any) -> dict[str, Any]:
        checkpoint = load_checkpoint(str(path), map_location or "cpu")
        self._note(path, checkpoint)
        return checkpoint


class RandomState(Callback):
    """Carries the global random streams in the checkpoint: a resumed run sees the same cameras."""

    def __init__(self) -> None:
        self.loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        if self.loaded is not None:  # stopped before the first step of a resumed run
            return self.loaded
        kind, keys, *rest = np.random.get_state()
        return {
            "python": random.getstate(),
            "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Only now: building the guidance may have drawn numbers."""
        if self.loaded is None:
            return
        version, state, gauss = self.loaded["python"]
        random.setstate((version, tuple(state), gauss))
        kind, keys, *rest = self.loaded["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(self.loaded["torch"].cpu())
        if len(self.loaded["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in self.loaded["cuda"]])
        self.loaded = None


class FiniteGradients(Callback):
    """Stops before a NaN or infinite gradient reaches the weights."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # float16 overflows now and then by design; its scaler skips such steps
        gradients = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        if gradients and not torch.isfinite(sum(g.sum() for g in gradients.values())):
            bad = [name for name, g in gradients.items() if not torch.isfinite(g).all()]
            if bad:
                raise NotFinite(f"step {trainer.global_step}: the gradient of {bad[0]} is not finite")


class LastCheckpoint(Callback):
    """Keeps `last.ckpt` the newest good state, also when a run ends early, by whatever cause."""

    def __init__(self, folder: str, io: AtomicCheckpointIO) -> None:
        self.path = os.path.join(folder, "last.ckpt")
        self.io = io
        self.fitting = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.fitting = True

    def _is_current(self, trainer: pl.Trainer) -> bool:
        return self.io.steps.get(os.path.realpath(self.path)) == trainer.global_step and os.path.exists(self.path)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.strategy.broadcast(self._is_current(trainer)):  # all processes save, or none
            trainer.save_checkpoint(self.path)
        self.fitting = False

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not self.fitting or trainer.global_step == 0:
            return
        if isinstance(exception, OSError) or getattr(exception, "halfway", False):
            self._point_to_older()  # the disk is what failed, or the state is between two steps
        elif all(torch.isfinite(p).all() for p in pl_module.parameters()):
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        try:
            if not self._is_current(trainer):
                trainer.save_checkpoint(self.path)
            ministudio.warn("step %d is saved: continue with resume=%s", trainer.global_step, self.path)
        except Exception as error:  # must not hide the exception that is being handled
            ministudio.warn("could not save %s: %s", self.path, first_line(error))

    def _point_to_older(self) -> None:
        """The checkpoint that this run wrote last, or began with."""
        for path, step in list(self.io.steps.items())[-1:]:
            ministudio.warn("what came after step %d is lost: continue with resume=%s", step, path)


class StopOnSignal(Callback):
    """Ctrl-C and SIGTERM end the run between two training steps; inside one only when asked twice."""

    def __init__(self) -> None:
        self.in_step = False
        self.received: int | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle both signals inside the block."""
        before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.in_step and self.received is None:
            self.received = number
        else:  # between steps, or asked twice
            self._stop(number)

    def _stop(self, number: int) -> None:
        raise Interrupted(f"stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}", halfway=self.in_step)

    def on_train_batch_start(self, *args: Any) -> None:
        self.in_step = True

    def on_train_batch_end(self, *args: Any) -> None:
        self.in_step = False
        if self.received is not None:
            self._stop(self.received)
