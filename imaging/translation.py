"""Training a translation network by score distillation: from L2 to its input, along a cosine, to the method's gradient.

The engine is Lightning's. What a step sees (images, classes, t, ε) follows from the seed and the step alone, so a run
that is resumed ends in the same weights, bit by bit.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lmc_guidance import NoiseSource, TextPair, UserError, reparametrised_loss
from lmc_guidance.distillation import Distillation

from . import console, files, pictures
from .sources import Sources
from .synthesis import embed
from .translator import Translator, translate

CHECKPOINT = "last.ckpt"
LARGEST_NORM = 1.0  # of the gradient of all weights: single draws of ε throw the network out of all bounds otherwise


@dataclass(frozen=True)
class TranslationRecipe:
    """How a translator is trained."""

    omega: float = 10.0  # ω
    steps: int = 10_000  # Adam steps
    batch_size: int = 16
    learning_rate: float = 3e-4
    t_range: tuple[float, float] = (0.02, 0.98)  # of the model's timesteps; t is uniform in it
    seed: int = 0
    fixed_noise: str = "none"  # none | lmc | all
    noise_mix: float = 0.0
    noise_centered: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:  # nor is NaN
                raise UserError(f"{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.omega < math.inf:
            raise UserError(f"omega is {self.omega}; it must be 0 or more")
        if not 0 <= self.seed < 2**62:
            raise UserError(f"seed is {self.seed}; it must be 0 or more and below 2^62")
        self.noise()  # refuses what it does not know

    def noise(self) -> NoiseSource:
        return NoiseSource(self.seed, self.fixed_noise, self.noise_mix, centered=self.noise_centered)


def reconstruction_share(step: int, steps: int) -> float:
    """Weight of L2 at a step: half a cosine from 1 to 0. The method's gradient has the rest."""
    return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


class Translation(pl.LightningModule):
    """A translator under training; the frozen diffusion model is no part of its weights."""

    def __init__(
        self, network: Translator, distillation: Distillation, sources: Sources, recipe: TranslationRecipe,
        source_prompt: str | None = None,
    ) -> None:
        """source_prompt: what the images show, for DDS; may name what is known of each, as targets may."""
        super().__init__()
        self.network, self.recipe = network, recipe
        self._distillation, self._sources = distillation, sources
        self._noise = recipe.noise()
        self._prompts = sources.prompts(network.spec.targets)
        self._text = embed(distillation.model, self._prompts)
        is_dds = source_prompt is not None and hasattr(distillation, "source")
        shown = [sources.prompt(i, source_prompt) for i in range(len(sources.training))] if is_dds else []
        embeddings = {prompt: distillation.model.embed([prompt]) for prompt in set(shown)}
        self._shown = [embeddings[prompt] for prompt in shown]  # (1, Nt, D) for each training image

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # The gradient starts near zero and grows along the cosine: against a long memory of small ones Adam's steps would be huge.
        return torch.optim.Adam(self.network.parameters(), self.recipe.learning_rate, betas=(0.9, 0.99))

    def train_dataloader(self) -> DataLoader:
        """Lightning wants to be fed; the batch itself comes from the step's number."""
        return DataLoader(range(self.recipe.steps + 1), batch_size=None)

    def training_step(self, _: Any, __: int) -> Tensor:
        step = self.global_step
        images, classes, text = self._batch(step)
        x = self._distillation.model.encode(self.network(images, classes))
        with torch.no_grad():
            original = self._distillation.model.encode(images)
        share = reconstruction_share(step, self.recipe.steps)
        l2 = 0.5 * (x - original).square().sum() / len(x)
        gradient = self._gradient(x, original, text, step)
        loss = share * l2 + (1 - share) * reparametrised_loss(x, gradient)
        self.log_dict({"l2": l2.detach(), "grad_norm": gradient.norm(), "l2_share": share})
        return loss

    def _batch(self, step: int) -> tuple[Tensor, Tensor, TextPair]:
        """Training images, target classes and the text of both, drawn for this step."""
        generator = torch.Generator().manual_seed(self.recipe.seed + 7919 * step)
        size, targets = (self.recipe.batch_size,), self.network.spec.targets
        index = torch.randint(len(self._sources.training), size, generator=generator)
        classes = torch.randint(len(targets), size, generator=generator)
        prompts = [self._sources.prompt(int(i), targets[c]) for i, c in zip(index, classes)]
        rows = torch.tensor([self._prompts.index(prompt) for prompt in prompts], device=self._text.cond.device)
        text = TextPair(self._text.cond[rows], self._text.uncond[rows])
        if self._shown:  # DDS
            self._distillation.source = torch.cat([self._shown[i] for i in index])
        return self._sources.training[index].to(self.device), classes.to(self.device), text

    def _gradient(self, x: Tensor, original: Tensor, text: TextPair, step: int) -> Tensor:
        model, recipe = self._distillation.model, self.recipe
        low, high = (min(int(share * model.num_timesteps), model.num_timesteps - 1) for share in recipe.t_range)
        t = self._noise.timesteps(low, high, len(x), step, x.device)
        if hasattr(self._distillation, "reference"):  # DDS
            self._distillation.reference = original
        return self._distillation(x, text, t, self._noise.draw(x.shape, step, x.device), recipe.omega).gradient


class Keeper(pl.Callback):
    """Saves the run every so many steps and when the user stops it, with a picture of held-out translations."""

    def __init__(self, folder: Path, every: int, stop: console.StopSignal, sources: Sources, advance=lambda n: None) -> None:
        self.folder, self.every, self.stop, self.sources, self.advance = folder, every, stop, sources, advance

    def on_train_start(self, trainer: pl.Trainer, module: Translation) -> None:
        self.stop.listen()  # Lightning has just set handlers of its own, which end the process unsaved

    def on_train_batch_end(self, trainer: pl.Trainer, module: Translation, *_: Any) -> None:
        step = trainer.global_step
        self.advance(step)
        if self.stop.raised:
            trainer.should_stop = True
        if self.stop.raised or step % self.every == 0 or step == module.recipe.steps:
            files.write_atomically(self.folder / CHECKPOINT, lambda file: trainer.save_checkpoint(file.name))
            picture = held_out_picture(module.network, self.sources.held_out[:8])
            pictures.write_image(self.folder / "previews" / f"{step:07d}.png", picture)


def open_run(folder: Path, settings: dict[str, Any]) -> None:
    """Write the run's settings, or check that the folder's run has the same ones."""
    if (folder / "run.json").is_file() and console.read_record(folder) != json.loads(json.dumps(settings)):
        raise UserError(f"'{folder}' holds a training with other settings; choose another --out")
    files.write_json(folder / "run.json", settings)


def held_out_picture(network: Translator, images: Tensor) -> Tensor:
    """Inputs in the first column, then a column per target: (3, H, W)."""
    columns = [images, *(translate(network, images, c) for c in range(len(network.spec.targets)))]
    tiles = torch.stack(columns, dim=1).flatten(0, 1)
    return pictures.grid(tiles, len(columns), (), ["input", *(t[:16] for t in network.spec.targets)])


def train(module: Translation, folder: Path, every: int = 500, device: str | torch.device = "cpu") -> bool:
    """Train to the recipe's end, going on from `folder`/last.ckpt if it is there; False if the user stopped it."""
    from pytorch_lightning.loggers import CSVLogger

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / CHECKPOINT
    device = torch.device(device)
    with console.progress_bar() as bar, console.StopSignal() as stop:
        task = bar.add_task("training the translator", total=module.recipe.steps)
        keeper = Keeper(folder, every, stop, module._sources, lambda step: bar.update(task, completed=step))
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=[device.index or 0] if device.type == "cuda" else 1,
            max_steps=module.recipe.steps, max_epochs=-1, callbacks=[keeper], logger=CSVLogger(folder, "log"),
            gradient_clip_val=LARGEST_NORM, log_every_n_steps=20,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, ckpt_path=str(checkpoint) if checkpoint.is_file() else None)
    return trainer.global_step >= module.recipe.steps


def quiet_engine() -> None:
    """Lightning's notices about devices and workers say nothing about this training."""
    import logging
    import warnings

    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
