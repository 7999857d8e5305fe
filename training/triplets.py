"""Training triplets of a corrective: natural x, a timestep t, and what the frozen model makes of x, the target x̂."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from lmc_guidance import DiffusionModel

from .data.feed import Batch
from .data.order import even_spread, torch_generator


class Triplets(NamedTuple):
    """B training examples with what made them."""

    x: Tensor  # (B, C, H, W) natural images or latents
    t: Tensor  # (B,) int64
    x_hat: Tensor  # (B, C, H, W) one-step denoised prediction at α_t x + σ_t ε
    eps: Tensor  # (B, C, H, W)
    text: Tensor  # (B, Nt, D) that x̂ was conditioned on


@dataclasses.dataclass
class Teacher:
    """The frozen model as a source of triplets. ε and t are functions of (seed, position)."""

    model: DiffusionModel
    conditioning: str  # captions | none
    clip_x_hat: bool  # clip x̂ to [-1, 1]; pixel models only
    seed: int = 0

    def __post_init__(self) -> None:
        self.clip_x_hat = self.clip_x_hat and self.model.space == "pixel"
        self._empty: Tensor | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Triplets:
        """Triplets for a batch of images (B, 3, H, W) in [0, 1], on the model's device."""
        x, t, eps, text = self.questions(batch)
        return Triplets(x, t, self.x_hat(x, t, eps, text), eps, text)

    @torch.no_grad()
    def questions(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What x̂ is asked for: x (B, C, H, W), t (B,), ε like x, text embeddings (B, Nt, D)."""
        x = self.model.encode(batch.images.to(self.model.device))
        return x, self.timesteps(batch.positions), self.noise(batch.positions, x.shape[1:]), self.embed(batch.captions)

    @torch.no_grad()
    def x_hat(self, x: Tensor, t: Tensor, eps: Tensor, text: Tensor) -> Tensor:
        """The model's x̂ (B, C, H, W) for x, noise like x, t (B,) and text embeddings (B, Nt, D)."""
        x_hat = self.model.predict(self.model.schedule.add_noise(x, eps, t), t, text).x_hat
        return x_hat.clamp(-1, 1) if self.clip_x_hat else x_hat

    def timesteps(self, positions: Sequence[int]) -> Tensor:
        """t (B,), uniform over the whole schedule; neighbouring positions cover the range evenly."""
        steps = self.model.num_timesteps
        t = [int(even_spread(self.seed, "t", position) * steps) for position in positions]
        return torch.tensor(t, device=self.model.device)

    def noise(self, positions: Sequence[int], shape: Sequence[int]) -> Tensor:
        """ε (B, *shape)."""
        draws = [torch.randn(tuple(shape), generator=torch_generator(self.seed, "eps", p)) for p in positions]
        return torch.stack(draws).to(self.model.device)

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Text embeddings (B, Nt, D): of the captions, or of the empty prompt for each."""
        if self.conditioning == "captions":
            return self.model.embed(captions)
        if self._empty is None:
            self._empty = self.model.embed([""])
        return self._empty.expand(len(captions), -1, -1)
