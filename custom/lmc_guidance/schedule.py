"""The noise schedule of a diffusion model, and the exchange between its ε, v and x0 predictions."""
from dataclasses import dataclass
from typing import List, NamedTuple, Sequence

import torch
from torch import Tensor

from .errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class Prediction(NamedTuple):
    """What the frozen model says about z_t, whatever it was trained to predict; both like z_t, float32."""

    eps: Tensor  # (B, C, H, W) predicted noise
    x_hat: Tensor  # (B, C, H, W) one-step denoised prediction (z_t - σ_t ε) / α_t


@dataclass(frozen=True)
class NoiseSchedule:
    """z_t = α_t x + σ_t ε with α_t = sqrt(ᾱ_t), σ_t = sqrt(1 - ᾱ_t)."""

    alphas_cumprod: Tensor  # (T,) ᾱ_t, float32
    prediction_type: str  # epsilon | v_prediction | sample

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise UserError(
                f"the model's scheduler has prediction_type '{self.prediction_type}'; "
                f"known are {', '.join(PREDICTION_TYPES)}"
            )

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def alpha(self, t: Tensor) -> Tensor:
        """α_t for timesteps (B,) as (B, 1, 1, 1)."""
        return self.alphas_cumprod[t].sqrt().reshape(-1, 1, 1, 1)

    def sigma(self, t: Tensor) -> Tensor:
        """σ_t for timesteps (B,) as (B, 1, 1, 1)."""
        return (1 - self.alphas_cumprod[t]).sqrt().reshape(-1, 1, 1, 1)

    def add_noise(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = α_t x + σ_t ε."""
        return self.alpha(t) * x + self.sigma(t) * eps

    def convert(self, output: Tensor, z: Tensor, t: Tensor) -> Prediction:
        """The network's raw output at z_t as (ε, x̂).

        v = α ε - σ x gives x̂ = α z - σ v and ε = α v + σ z: no division, so no loss of precision near t = T.
        """
        alpha, sigma = self.alpha(t), self.sigma(t)
        if self.prediction_type == "v_prediction":
            return Prediction(alpha * output + sigma * z, alpha * z - sigma * output)
        if self.prediction_type == "sample":
            return Prediction((z - alpha * output) / sigma, output)
        return Prediction(output, (z - sigma * output) / alpha)

    def fingerprint(self) -> List[float]:
        """T and nine samples of ᾱ_t: what names the schedule in a checkpoint (see `matches`)."""
        samples = torch.linspace(0, len(self) - 1, 9).round().long()
        return [float(len(self))] + [round(float(a), 5) for a in self.alphas_cumprod.cpu()[samples]]

    def matches(self, fingerprint: Sequence[float]) -> bool:
        """Whether a fingerprint is this schedule's, up to the rounding of other machines (1e-3 in ᾱ)."""
        mine = self.fingerprint()
        return len(mine) == len(fingerprint) and all(abs(a - b) < 1e-3 for a, b in zip(mine, fingerprint))
