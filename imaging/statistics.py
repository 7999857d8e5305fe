"""Statistics of images: colour saturation, contrast, and how much detail there is at which frequency."""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709, on sRGB values as they are
DETAIL = 1 / 8  # cycles per pixel; content above it counts as detail


def luma(images: Tensor) -> Tensor:
    """Luma (B, H, W) of images (B, 3, H, W) in [0, 1]."""
    return torch.einsum("bchw,c->bhw", images, torch.tensor(LUMA, dtype=images.dtype, device=images.device))


def saturation_of_pixels(images: Tensor) -> Tensor:
    """Saturation (max - min) / max of HSV, (B, H, W) in [0, 1]; 0 for grey."""
    high, low = images.amax(1), images.amin(1)
    return (high - low) / high.clamp(min=1e-6)


def clipped_pixels(images: Tensor) -> Tensor:
    """Whether a pixel has a channel at either end of the range, (B, H, W) bool."""
    return ((images < 0.02) | (images > 0.98)).any(1)


def saturation(images: Tensor) -> Tensor:
    """Mean saturation, (B,) in [0, 1]; 0 for grey images."""
    return saturation_of_pixels(images).mean((1, 2))


def contrast(images: Tensor) -> Tensor:
    """RMS contrast: standard deviation of the luma, (B,)."""
    return luma(images).flatten(1).std(1, correction=0)


def clipped(images: Tensor) -> Tensor:
    """Share of `clipped_pixels`, (B,); rises when an optimisation over-saturates."""
    return clipped_pixels(images).float().mean((1, 2))


def detail(images: Tensor) -> Tensor:
    """RMS of the luma's content above 1/8 cycle per pixel, (B,). A sinusoid of amplitude A there gives A / sqrt(2)."""
    power = _power(luma(images))
    above = _frequency(images.shape[-2:]).to(images.device) > DETAIL
    return ((power * above).sum((1, 2)) / power[0].numel()).sqrt()


def radial_spectrum(planes: Tensor) -> Tensor:
    """Mean power per coefficient of the orthonormal DFT at each integer radial frequency, (B, N // 2 + 1).

    planes: (B, N, N), or (B, C, N, N), whose channels are averaged. Frequency k is k cycles in N pixels; white noise
    of variance s² gives s² everywhere.
    """
    power = _power(planes)
    power = power.mean(1) if power.dim() == 4 else power
    side = power.shape[-1]
    ring = (_frequency(power.shape[-2:]) * side).round().long().flatten().to(power.device)
    count = torch.bincount(ring).to(power)
    total = torch.zeros(len(power), len(count), dtype=power.dtype, device=power.device)
    total.index_add_(1, ring, power.flatten(1))
    return (total / count)[:, : side // 2 + 1]


def all_statistics(images: Tensor) -> dict[str, Tensor]:
    """Name → (B,), of images (B, 3, H, W) in [0, 1]."""
    return {f.__name__: f(images) for f in (saturation, contrast, detail, clipped)}


def _power(planes: Tensor) -> Tensor:
    """|DFT|² with orthonormal scaling, so that its sum is the sum of squares (Parseval)."""
    return torch.fft.fft2(planes, norm="ortho").abs().square()


def _frequency(size: tuple[int, int]) -> Tensor:
    """|f| in cycles per pixel on the grid of `fft2`, (H, W)."""
    fy, fx = (torch.fft.fftfreq(n) for n in size)
    return torch.sqrt(fy[:, None].square() + fx[None].square())
