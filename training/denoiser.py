"""The embedded diffusion model: a 64 x 64 pixel-space U-Net that reads the tiny CLIP's text states.

v-prediction (Salimans and Ho 2022) on the squared-cosine schedule, captions dropped one time in
ten for classifier-free guidance. Training starts at 32 x 32 pixels, where an image costs a third
and the words are learnt, and goes on at 64 x 64. Batches are small: in 150 s from nothing at 32 x 32 on two
cores, the error on fresh images was 0.238 at batch 32 and rate 4e-4, 0.206 at 16 and 4e-4, 0.177 at 16 and
1e-3 (one run each). The last is too high later on: on the model of 153,000 images it undid what was learnt.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from imaging import samples
from imaging.synthesis import Job
from lmc_guidance import DiffusionModel, TextPair
from lmc_guidance.schedule import NoiseSchedule
from toybox import dataset, render
from toybox.captions import HELD_OUT, THINGS

from . import feed
from .geometry import GeometryHeads
from .loop import fast_autocast

SAMPLE_SIZE = 64


@dataclasses.dataclass(frozen=True)
class DenoiserRecipe:
    """Architecture and training of the U-Net."""

    channels: tuple[int, ...] = (32, 64, 128, 256)
    layers_per_block: int = 1
    seed: int = 2
    images: int = 300_000  # in all
    small_images: int = 45_000  # of these, the first so many at half the resolution
    decay_share: float = 0.13  # of the images of a run, the last ones at a falling learning rate
    batch_size: int = 16  # twice that at half the resolution
    learning_rate: float = 4e-4
    caption_dropout: float = 0.1
    ema_decay: float = 0.999
    geometry_weight: float = 0.05  # of the supervision by the known scene, see `training.geometry`
    workers: int = 0  # processes that render ahead; none: each batch is rendered when it is needed, all of it new
    new_share: float = 0.25  # of a batch, where workers render; the others have been seen under other noise
    stored_images: int = 250_000  # kept for that, 26 kB each


def on_gpu(recipe: DenoiserRecipe, workers: int) -> DenoiserRecipe:
    """The recipe for a device that trains faster than `workers` processes render."""
    return dataclasses.replace(recipe, batch_size=256, learning_rate=1e-3, decay_share=0.4, workers=workers)


def build_unet(recipe: DenoiserRecipe, text_width: int) -> UNet2DConditionModel:
    """A fresh U-Net, attention at the two coarsest levels, initialised from the recipe's seed.

    The text reaches every level besides, pooled and added to the time embedding, as in DeepFloyd IF.
    """
    torch.manual_seed(recipe.seed)
    plain, cross = "DownBlock2D", "CrossAttnDownBlock2D"
    return UNet2DConditionModel(
        sample_size=SAMPLE_SIZE, in_channels=3, out_channels=3, norm_num_groups=16,
        block_out_channels=recipe.channels, layers_per_block=recipe.layers_per_block,
        down_block_types=(plain, plain, cross, cross),
        up_block_types=tuple(b.replace("Down", "Up") for b in (cross, cross, plain, plain)),
        cross_attention_dim=text_width, attention_head_dim=8,
        addition_embed_type="text", addition_embed_type_num_heads=4)


def build_scheduler() -> DDPMScheduler:
    """The noise schedule of the embedded model."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2",
                         prediction_type="v_prediction", clip_sample=True)


@torch.no_grad()
def encode_text(captions: list[str], tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> Tensor:
    """Last hidden states (B, tokens, width) of the captions, padded as a prompt processor pads."""
    return encoder(token_ids(captions, tokenizer).to(encoder.device))[0]


def token_ids(captions: list[str], tokenizer: CLIPTokenizer) -> Tensor:
    """(B, tokens) int64, padded to the tokenizer's length."""
    return tokenizer(captions, padding="max_length", truncation=True,
                     max_length=tokenizer.model_max_length, return_tensors="pt").input_ids


def draw_levels(batch: int, generator: torch.Generator) -> Tensor:
    """t / T in [0, 1) for a batch, one from each of B equal parts of its distribution.

    Three in four are logit-normal (1.4, 1.0), in the manner of Esser et al. 2024: half of them lie above 0.8, where
    sampling decides the shape, and where naming another one costs most. From 233,000 to 252,000 images with these
    draws that cost rose from 7.6% to 12.8% of the error at 0.95, from 2.0% to 2.7% at 0.5, and the share of 64
    (then 32) samples that show the caption's object from 0.30 to 0.56; 6,000 images before them, with draws around
    0.6, had left the cost as it was (one run).
    """
    share = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    share = share[torch.randperm(batch, generator=generator)]
    middle = torch.sigmoid(1.4 + torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6)))
    return torch.where(torch.arange(batch) % 4 == 0, share, middle).clamp(max=1 - 1e-6)


class DenoiserTrainee:
    """Denoising training of the U-Net and its moving average (see `training.loop.Trainee`)."""

    def __init__(self, recipe: DenoiserRecipe, tokenizer: CLIPTokenizer, encoder: CLIPTextModel,
                 device: torch.device = torch.device("cpu")) -> None:
        self.recipe, self.tokenizer, self.device = recipe, tokenizer, device
        self.encoder = encoder.eval().requires_grad_(False).to(self.device)
        # A step of 16 images takes 0.84 of the time that channels first and unfused attention take (medians of 5).
        self.unet = build_unet(recipe, encoder.config.hidden_size).to(self.device, memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.unet).requires_grad_(False)
        self.scheduler, self.empty = build_scheduler(), token_ids([""], tokenizer).to(self.device)
        self.geometry = GeometryHeads(self.unet, seed=recipe.seed).to(self.device)
        self.optimizer = torch.optim.AdamW([*self.unet.parameters(), *self.geometry.parameters()],
                                           recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
        self.images_seen = self.step_index = self.first_step = self.first_image = 0
        self.goal, self.loss = recipe.images, 0.0
        if self.device.type == "cuda":
            self._denoise = torch.compile(self._denoise)
        self._feed = Feed(recipe, tokenizer, self.device) if recipe.workers else None

    def start_from(self, unet: UNet2DConditionModel, images_seen: int) -> None:
        """Take over weights whose optimiser state is lost: the rate warms up anew, the data go on."""
        self.unet.load_state_dict(unet.state_dict())
        self.ema.load_state_dict(unet.state_dict())
        self.images_seen = self.first_image = images_seen
        self.step_index = self.first_step = images_seen // self.recipe.batch_size

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S) in [-1, 1]; text states, some of them of the empty caption; what is shown, (B, 7, s, s)."""
        r = self.recipe
        if self._feed is not None:
            images, ids, surface = self._feed.batch(self.step_index)
        else:
            small = self.images_seen < r.small_images
            size = SAMPLE_SIZE // 2 if small else SAMPLE_SIZE
            batch = dataset.batch(r.seed, self.step_index, r.batch_size * (2 if small else 1), size)
            images, ids = feed.pixels(batch.images) * 2 - 1, token_ids(batch.captions, self.tokenizer)
            surface = feed.pixels(render.surface(batch.scenes, size // 2))
        images, ids, surface = (x.to(self.device) for x in (images, ids, surface))
        drop = np.random.default_rng([r.seed, self.step_index, 1]).random((len(images), 1)) < r.caption_dropout
        ids = torch.where(feed.send(torch.from_numpy(drop), self.device), self.empty, ids)
        with torch.no_grad():
            text = self.encoder(ids)[0]
        return images, text, surface

    def _denoise(self, z: Tensor, t: Tensor, text: Tensor) -> tuple[Tensor, list[Tensor]]:
        """v and the features that the geometry heads read."""
        return self.unet(z, t, text).sample, list(self.geometry.features)

    def _loss(self, x: Tensor, text: Tensor, surface: Tensor) -> tuple[Tensor, Tensor]:
        """Denoising loss and geometry loss."""
        generator = torch.Generator().manual_seed(self.recipe.seed + 7919 * self.step_index)
        steps = self.scheduler.config.num_train_timesteps
        t = feed.send((draw_levels(len(x), generator) * steps).long(), self.device)
        noise = self._noise(x.shape, generator)
        z = self.scheduler.add_noise(x, noise, t).contiguous(memory_format=torch.channels_last)
        with fast_autocast(self.device):
            v, features = self._denoise(z, t, text)
        loss = (v.float() - self.scheduler.get_velocity(x, noise, t)).square().mean()
        return loss, self.geometry.loss(features, surface)

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """From the generator; on a GPU from one of its own, so that the CPU is not what a step waits for."""
        if self.device.type == "cuda":
            generator = torch.Generator(self.device).manual_seed(generator.initial_seed())
        return torch.randn(shape, generator=generator, device=self.device)

    def _learning_rate(self) -> float:
        """Linear warm-up over 200 steps, constant, then linear decay to a hundredth at the goal."""
        left = (self.goal - self.images_seen) / (self.recipe.decay_share * max(1, self.goal - self.first_image))
        return self.recipe.learning_rate * min(1.0, (self.step_index - self.first_step + 1) / 200, max(left, 0.01))

    def step(self) -> float:
        images, text, surface = self._batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        loss, geometry = self._loss(images, text, surface)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + self.recipe.geometry_weight * geometry).backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.images_seen += len(images)
        self.step_index += 1
        self._average()
        if self.device.type == "cpu" or self.step_index % 20 == 0:  # reading it makes the CPU wait for the GPU
            self.loss = loss.item()
        return self.loss

    @torch.no_grad()
    def _average(self) -> None:
        """Moving average of the weights, short while young."""
        age = self.step_index - self.first_step
        decay = min(self.recipe.ema_decay, (1 + age) / (10 + age))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.unet.parameters()), 1 - decay)

    def state_dict(self) -> dict:
        return {"unet": self.unet.state_dict(), "ema": self.ema.state_dict(), "geometry": self.geometry.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "images_seen": self.images_seen, "step_index": self.step_index,
                "first_step": self.first_step, "first_image": self.first_image}

    def load_state_dict(self, state: dict) -> None:
        self.unet.load_state_dict(state["unet"])
        self.ema.load_state_dict(state["ema"])
        self.geometry.load_state_dict(state["geometry"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.images_seen, self.step_index = state["images_seen"], state["step_index"]
        self.first_step, self.first_image = state["first_step"], state.get("first_image", 0)

    def sample(self, path: Path) -> None:
        """A sheet of samples: a row of training combinations, a row of held-out ones."""
        things = [*THINGS[1::61][:8], *HELD_OUT[::6][:8]]
        jobs = [Job(thing.caption, seed) for seed, thing in enumerate(things)]
        both = [job.prompt for job in jobs], [""] * len(jobs)
        text = TextPair(*(encode_text(words, self.tokenizer, self.encoder) for words in both))
        schedule = NoiseSchedule(self.scheduler.alphas_cumprod.to(self.device), self.scheduler.config.prediction_type)
        images = samples.ddim(DiffusionModel(self.ema, schedule), jobs, steps=25, text=text)
        write_sheet(images, path, columns=8)


class Feed:
    """Batches from worker processes and a store of earlier images; step i takes chunk i."""

    def __init__(self, recipe: DenoiserRecipe, tokenizer: CLIPTokenizer, device: torch.device) -> None:
        self.recipe, self.tokenizer, self.device = recipe, tokenizer, device
        self.store, self.chunks = feed.Store(recipe.stored_images, device), None

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, S, S) in [-1, 1], token ids, surfaces (B, 7, S/2, S/2)."""
        r = self.recipe
        new = round(r.new_share * r.batch_size)
        if self.chunks is None:
            self.chunks = feed.chunks(r.seed + 1, step, new, SAMPLE_SIZE, r.workers, self.device)
        chunk = next(self.chunks)
        ids = token_ids(chunk.captions, self.tokenizer)
        self.store.add(*(feed.send(c, self.device) for c in (chunk.images, ids, chunk.surfaces)))
        images, ids, surfaces = self.store.draw(r.batch_size, new, seed=r.seed + 104_729 * step)
        return images.float() / 127.5 - 1, ids, surfaces.float()


def write_sheet(images: Tensor, path: Path, columns: int) -> None:
    """Write images (B, 3, H, W) in [0, 1] as one PNG, `columns` to a row."""
    b, _, h, w = images.shape
    rows = images.reshape(b // columns, columns, 3, h, w).permute(0, 3, 1, 4, 2)
    iio.imwrite(path, (rows.reshape(b // columns * h, columns * w, 3) * 255).round().byte().numpy())
