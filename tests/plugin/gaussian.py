"""A world in which everything has a closed form: images x ~ N(μ, Σ), Σ stationary, under an exact denoiser.

Σ is diagonal in the Fourier basis with a radial power spectrum P(f). Then x̂(z_t) = μ + G ∗ (z_t - α μ) with the
Wiener gain G = α P / (α² P + σ²), and its mean over ε is μ + α G ∗ (x - μ): the exact corrective.
"""
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from lmc_guidance.diffusion import DiffusionModel
from lmc_guidance.schedule import NoiseSchedule
from lmc_guidance.spectral import radial_frequency

SIZE, CHANNELS, WIDTH = 16, 3, 4
MEAN = {True: 0.3, False: -0.1}  # μ with the prompt, and without


def alphas_cumprod(steps: int = 1000) -> Tensor:
    return torch.cos(torch.linspace(0.03, 0.97, steps) * torch.pi / 2).square()


def power(scale: float = 1.0) -> Tensor:
    """P(f) ~ 1 / (1 + (12 f)²), per coefficient of an orthonormal `rfft2`."""
    return scale / (1 + (12 * radial_frequency((SIZE, SIZE))).square())


def filter_by(gain: Tensor, x: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * gain, s=x.shape[-2:])


def sample(count: int, seed: int = 0, prompted: bool = True) -> Tensor:
    """Draws from the world, (count, C, N, N)."""
    white = torch.randn(count, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return MEAN[prompted] + filter_by(power().sqrt(), white)


class ExactUNet(nn.Module):
    """The exact denoiser in the shape of a U-Net; counts its calls and the items it saw."""

    def __init__(self, prediction_type: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            in_channels=CHANNELS, out_channels=CHANNELS, sample_size=SIZE, cross_attention_dim=WIDTH
        )
        self.schedule = NoiseSchedule(alphas_cumprod(), prediction_type)
        self.conv_in = self.conv_out = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.calls = self.items = 0

    def forward(self, z: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> SimpleNamespace:
        self.calls, self.items = self.calls + 1, self.items + len(z)
        prompted = encoder_hidden_states[:, 0, 0] > 0
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        x_hat = exact_x_hat(z, alpha, sigma, prompted)
        eps = (z - alpha * x_hat) / sigma
        output = {"epsilon": eps, "sample": x_hat, "v_prediction": alpha * eps - sigma * x_hat}
        return SimpleNamespace(sample=output[self.schedule.prediction_type])


def mean_of(prompted: Tensor) -> Tensor:
    return torch.where(prompted, MEAN[True], MEAN[False]).reshape(-1, 1, 1, 1)


def wiener(alpha: Tensor, sigma: Tensor) -> Tensor:
    return alpha * power() / (alpha**2 * power() + sigma**2)


def exact_x_hat(z: Tensor, alpha: Tensor, sigma: Tensor, prompted: Tensor) -> Tensor:
    mean = mean_of(prompted)
    return mean + filter_by(wiener(alpha, sigma), z - alpha * mean)


def exact_b(x: Tensor, alpha: Tensor, sigma: Tensor, prompted: bool = True) -> Tensor:
    """E over ε of x̂ at z_t = α x + σ ε."""
    mean = MEAN[prompted]
    return mean + filter_by(alpha * wiener(alpha, sigma), x - mean)


def world_model(prediction_type: str = "epsilon") -> DiffusionModel:
    unet = ExactUNet(prediction_type)
    return DiffusionModel(unet, unet.schedule, name="gaussian world")


def text(batch: int):
    """Embeddings of the prompt and of the empty prompt, (B, 1, D) each."""
    from lmc_guidance.distillation import TextPair

    prompt = torch.ones(batch, 1, WIDTH)
    return TextPair(prompt, -prompt)
