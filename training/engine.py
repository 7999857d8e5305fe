"""Training of the U-Net kinds of corrective on PyTorch Lightning's Trainer: one CPU, several GPUs, several nodes.

Everything random is a function of (seed, position), the learning rate of the images seen; so the state of a
training is its weights, their moving average, the optimiser and a count, and going on from it is exact.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Optional, Union

import pytorch_lightning as pl
import torch
import torch.distributed
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lmc_guidance import Corrective, corrective_loss
from lmc_guidance.checkpoint import model_identity
from lmc_guidance.corrective import squared_errors
from lmc_guidance.errors import UserError
from lmc_guidance.folder import first_line

from .balance import Balance
from .checkpoints import load_state
from .data.feed import Batch, Data
from .data.images import BrokenCount
from .data.order import Batches
from .margin import margin_penalty
from .pairs import PairBatch, Pairs
from .triplets import Teacher, Triplets


MOST_SPOILT = 10  # steps in a row without a finite gradient, and the run ends


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a U-Net kind is trained; all of it but `images` must stay the same when a run goes on."""

    images: int = 200_000  # in all
    batch: int = 32  # images per step, over all processes
    learning_rate: float = 5e-4
    decay_images: int = 50_000  # every so many images the rate is multiplied by `decay`
    decay: float = 0.5
    ema: float = 0.999  # per step; shorter while young
    clip: float = 1.0  # largest L2 norm of the gradient
    penalty: float = 0.0  # weight of the penalty on a negative gain margin
    seed: int = 0
    log_images: int = 3_200  # a row of the log every so many images
    save_images: int = 32_000  # state and pictures every so many images
    broken: float = 0.02  # largest share of broken images
    data: str = ""  # the name of what it is trained on
    stream: bool = False  # it is read from its start, in an order of its own
    records: Optional[int] = None  # in it, where they can be counted; they decide which images are kept for judging
    crop: float = 0.8  # side of the smallest random crop, as a share of the shorter side
    flip: bool = True  # every second image is mirrored
    half: bool = True  # the frozen model runs in half precision where the machine has it
    pairs: Optional[int] = None  # cached ones that it draws from; their number decides the order
    balance: bool = True  # the loss at each t is divided by what the identity costs there

    def rate_at(self, images: int) -> float:
        """Stepwise decayed learning rate after so many images."""
        return self.learning_rate * self.decay ** (images // self.decay_images)


class Training(pl.LightningModule):
    """The corrective, its moving average, and one step of both."""

    def __init__(self, corrective: Corrective, teacher: Teacher, recipe: Recipe,
                 record: Optional[dict[str, Any]] = None, broken: Optional[BrokenCount] = None) -> None:
        """record, broken: how the corrective came to be before the training, and what was broken then; kept, since a resumed
        run cannot know it."""
        super().__init__()
        if teacher.model.device.type == "cpu":  # convolutions of few channels are up to 1.6 times as fast so
            corrective = corrective.to(memory_format=torch.channels_last)
        self.corrective = corrective.requires_grad_(True)
        self.ema = copy.deepcopy(corrective).requires_grad_(False)
        self.teacher, self.recipe, self.record = teacher, recipe, record or {}
        self.images_seen = 0
        self.broken = broken or BrokenCount(recipe.broken)
        self.balance = Balance(corrective.spec.num_timesteps)
        self.step_values: dict[str, Tensor] = {}  # loss, penalty, gradient norm of the last step; empty if it was left out
        self.teacher_seconds = 0.0  # in the one forward that each image's x̂ takes
        self._optimizer_state: Optional[dict[str, Any]] = None
        self._spoilt_in_a_row = 0  # steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.corrective.parameters(), self.recipe.learning_rate)

    def on_train_start(self) -> None:
        if self._optimizer_state is not None:
            self.optimizers().optimizer.load_state_dict(self._optimizer_state)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for group in self.optimizers().optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(self.images_seen)

    def training_step(self, batch: Union[Batch, PairBatch], batch_idx: int) -> Tensor:
        examples = self._examples(batch)
        error = corrective_loss(self.corrective, examples.x, examples.t, examples.x_hat, self._weights(examples))
        penalty = torch.zeros_like(error)
        if self.recipe.penalty > 0:
            penalty = margin_penalty(self.corrective, self.teacher, examples, batch.positions)
        self.step_values = {"loss": error.detach(), "penalty": penalty.detach()}
        return error + self.recipe.penalty * penalty

    def _weights(self, examples: Triplets) -> Optional[Tensor]:
        """Of the error of each image, (B,), if the recipe balances over t."""
        if not self.recipe.balance:
            return None
        return self.balance.weights(examples.t, squared_errors(self.corrective.spec, examples.x, examples.x, examples.x_hat))

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None,
                                    gradient_clip_algorithm: Any = None) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.corrective.parameters(), self.recipe.clip).detach()
        self.step_values["gradient_norm"] = norm
        self._spoilt_in_a_row = 0 if norm.isfinite() else self._spoilt_in_a_row + 1
        if self._spoilt_in_a_row:
            self._leave_out_step()

    def _leave_out_step(self) -> None:
        """One x̂ that is not finite costs its step, not the run; the gradient's norm is the same on all processes."""
        if self._spoilt_in_a_row >= MOST_SPOILT:
            raise UserError(f"{MOST_SPOILT} steps in a row, up to image {self.images_seen:,}, had a loss or gradient that is not "
                            "finite; the frozen model may overflow in half precision: try --no-half, or a lower --learning-rate")
        for p in self.corrective.parameters():
            p.grad = None
        self.step_values = {}
        print(f"left out the step at image {self.images_seen:,}: its loss or gradient is not finite", file=sys.stderr)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._average()
        self.images_seen += self.recipe.batch

    @torch.no_grad()
    def _average(self) -> None:
        """Moving average of the weights, short while young."""
        step = self.images_seen // self.recipe.batch
        decay = min(self.recipe.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.corrective.parameters()), 1 - decay)

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        return {"recipe": _fixed(self.recipe), "spec": self.corrective.spec.to_dict(),
                "model": model_identity(self.teacher.model), "record": self.record, "images": self.images_seen,
                "corrective": self.corrective.state_dict(), "ema": self.ema.state_dict(),
                "optimizer": self.optimizers().optimizer.state_dict(), "broken": self.broken.names,
                "read": self.broken.read, "balance": self.balance.sums}

    def load(self, path: Path) -> dict[str, Any]:
        """Go on from the state in `path`, and return it; `UserError` if it belongs to other settings."""
        state = load_state(path)
        mine = _settings(_fixed(self.recipe), self.corrective.spec.to_dict(), model_identity(self.teacher.model))
        theirs = _settings(state["recipe"], state["spec"], state["model"])
        differing = [name for name in mine if mine[name] != theirs.get(name)]
        if differing:
            name = differing[0]
            raise UserError(f"'{path}' was trained with {name} = {theirs.get(name)}, not {mine[name]}; "
                            "give the same options, another --out, or --restart")
        self.corrective.load_state_dict(state["corrective"])
        self.ema.load_state_dict(state["ema"])
        self.images_seen, self._optimizer_state, self.record = state["images"], state["optimizer"], state["record"]
        self.broken.names, self.broken.read = state["broken"], state["read"]
        self.balance.sums = state["balance"]
        return state

    def _examples(self, batch: Union[Batch, PairBatch]) -> Triplets:
        if isinstance(batch, PairBatch):
            x, t, x_hat = (value.to(self.device) for value in (batch.x, batch.t, batch.x_hat))
            return Triplets(x, t, x_hat, None, None)
        x, t, eps, text = self.teacher.questions(batch)
        start = self._clock()
        x_hat = self.teacher.x_hat(x, t, eps, text)
        self.teacher_seconds += self._clock() - start
        return Triplets(x, t, x_hat, eps, text)

    def _clock(self) -> float:
        """Seconds, once all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _fixed(recipe: Recipe) -> dict[str, Any]:
    """What must not change when a run goes on."""
    free = ("images", "log_images", "save_images", "broken")
    return {name: value for name, value in dataclasses.asdict(recipe).items() if name not in free}


def _settings(recipe: dict[str, Any], spec: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """All that a run is bound to, under the names that a refusal tells."""
    outside = {name: value for name, value in spec.items() if name != "architecture"}
    return {**recipe, **outside, **spec["architecture"], **{f"model {name}": value for name, value in model.items()}}


@dataclasses.dataclass(frozen=True)
class Machines:
    """Where to run. Under torchrun or SLURM each process finds its place in the environment."""

    accelerator: str = "auto"  # auto | cpu | gpu
    devices: int = 1  # processes on each node
    nodes: int = 1
    workers: int = 0  # reading processes for each training process

    @classmethod
    def found(cls, accelerator: str, devices: Optional[int], nodes: Optional[int], workers: int) -> "Machines":
        """What torchrun or SLURM has set up, where the user names no numbers."""
        here = devices or _environment("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")
        everywhere = nodes or _environment("GROUP_WORLD_SIZE", "SLURM_NNODES")
        return cls(accelerator, here or 1, everywhere or 1, workers)

    @property
    def device(self) -> torch.device:
        """Where the frozen model of this process works."""
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise UserError("--accelerator gpu, but torch finds no CUDA device here")
        if self.accelerator == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", _environment("LOCAL_RANK", "SLURM_LOCALID") or 0)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return not (_environment("RANK", "SLURM_PROCID") or _environment("LOCAL_RANK") or _environment("NODE_RANK"))

    @property
    def place(self) -> tuple[int, int]:
        """Rank of this process, and how many there are, before the Trainer has joined them."""
        rank, world = _environment("RANK", "SLURM_PROCID"), self.devices * self.nodes
        if rank is None and world > 1:
            raise UserError(f"{world} processes share this work, and nothing has started them: run the command under "
                            f"torchrun --nproc-per-node {self.devices} or srun")
        return rank or 0, world

    def trainer(self, steps: int, callbacks: list[pl.Callback]) -> pl.Trainer:
        """A Trainer that runs so many steps, and leaves files, logs and pictures to the callbacks."""
        strategy = "ddp" if self.devices * self.nodes > 1 else "auto"
        try:
            return pl.Trainer(accelerator="gpu" if self.device.type == "cuda" else "cpu", devices=self.devices,
                              num_nodes=self.nodes, strategy=strategy, max_epochs=1, limit_train_batches=steps,
                              callbacks=callbacks, use_distributed_sampler=False, logger=False,
                              enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        except MisconfigurationException as error:  # more devices than there are, a launcher with other numbers
            raise UserError(f"cannot run on {self.nodes} × {self.devices} devices: {first_line(error)}") from error


def _environment(*names: str) -> Optional[int]:
    """The first of these variables that is set to a number."""
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdigit()), None)


class Feed(pl.LightningDataModule):
    """Opens the loader of each process once its rank is known."""

    def __init__(self, data: Union[Data, Pairs], training: Training, workers: int) -> None:
        super().__init__()
        self.data, self.training, self.workers = data, training, workers

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        recipe = self.training.recipe
        batches = Batches(self.training.images_seen, recipe.images, recipe.batch, self.trainer.global_rank,
                          self.trainer.world_size)
        load = self.data.loader if isinstance(self.data, Pairs) else self.data.training
        return load(batches, self.workers)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # the teacher moves what it needs, and works where the corrective does


def run(training: Training, data: Union[Data, Pairs], machines: Machines, callbacks: list[pl.Callback]) -> bool:
    """Train until the recipe's images have been seen; True if they were, False if the run was stopped before."""
    steps = len(Batches(training.images_seen, training.recipe.images, training.recipe.batch))
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # what it found on the machine
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the default suits small images
    if steps:
        machines.trainer(steps, callbacks).fit(training, datamodule=Feed(data, training, machines.workers))
    return training.images_seen >= training.recipe.images
