"""The closed-form corrective: the frequency bias of one-step denoising as a radial filter H(f, t).

The best linear, rotation-invariant answer to "what does the frozen model make of a natural image x" is
    H(f, t) = Re E[X̂ X*] / E[|X|²]
over natural images, X and X̂ the spectra of x and x̂. It is fitted in one pass without training, commutes
with scaling, passes the mean unchanged, and knows no image size: f is in cycles per pixel.
"""
import math
from typing import Tuple

import torch
from torch import Tensor, nn

from .errors import UserError


class SpectralFilter(nn.Module):
    """x ↦ H(f, t) ∗ x, linear in x; H is interpolated linearly in t and f."""

    def __init__(self, bins: int, channels: int, resolution: int) -> None:
        """bins: knots in t, at the centres of equal parts of the range; channels: 1 (one filter for all) or C;
        resolution: the size N at which H was fitted, one value per integer number of cycles in N pixels."""
        super().__init__()
        self.resolution = resolution
        self.register_buffer("gain", torch.ones(bins, channels, frequency_count(resolution)))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """x (B, C, H, W) float32, s (B,) in (0, 1), the position in the range of t → like x."""
        spectrum = torch.fft.rfft2(x)
        return torch.fft.irfft2(spectrum * self.response(s, x.shape[-2:]), s=x.shape[-2:])

    def response(self, s: Tensor, size: Tuple[int, int]) -> Tensor:
        """H on the grid of `rfft2` for images of `size`: (B, C or 1, H, W // 2 + 1)."""
        gain = _lerp(self.gain, 0, s * len(self.gain) - 0.5)  # (B, C or 1, K)
        f = radial_frequency(size, gain.device) * self.resolution
        return _lerp(gain, 2, f.flatten()).unflatten(2, f.shape)


class SpectrumStatistics:
    """Streaming E[Re X̂ X*] and E[|X|²] per bin of t, channel and integer radial frequency."""

    def __init__(self, bins: int, channels: int, size: int, device: torch.device = "cpu") -> None:
        self.bins, self.size = bins, size
        f = radial_frequency((size, size), device) * size
        self._ring = f.round().long().flatten()  # index of each coefficient's frequency
        self._mirrored = _half_plane_weights(size, device)  # rfft2 leaves out the conjugate half
        self.cross = torch.zeros(bins, channels, frequency_count(size), dtype=torch.float64, device=device)
        self.power = torch.zeros_like(self.cross)
        self.count = torch.zeros(bins, dtype=torch.long, device=device)

    def update(self, x: Tensor, x_hat: Tensor, s: Tensor) -> None:
        """Add pairs x, x̂ (B, C, N, N) at s (B,) in (0, 1)."""
        spectrum, denoised = torch.fft.rfft2(x), torch.fft.rfft2(x_hat)
        bin_of = (s * self.bins).long()
        self._add(self.cross, bin_of, (denoised * spectrum.conj()).real)
        self._add(self.power, bin_of, spectrum.abs().square())
        self.count += torch.bincount(bin_of, minlength=self.bins)

    def gain(self, per_channel: bool) -> Tensor:
        """H (bins, C or 1, K) float32; the mean's is 1."""
        if (self.count == 0).any():
            raise UserError(f"no image fell into {int((self.count == 0).sum())} of {self.bins} bins of t; fit on more images")
        cross, power = (m if per_channel else m.sum(1, keepdim=True) for m in (self.cross, self.power))
        gain = (cross / power.clamp(min=torch.finfo(torch.float64).tiny)).clamp(min=0)  # below 0 is estimation noise
        gain[..., 0] = 1.0
        if bad := int((~gain.isfinite()).flatten(1).any(1).sum()):
            raise UserError(f"x̂ is not finite in {bad} of {self.bins} bins of t: fit with the model in bfloat16 or float32")
        return gain.float()

    def _add(self, total: Tensor, bin_of: Tensor, values: Tensor) -> None:
        values = (values * self._mirrored).flatten(2).double()  # (B, C, coefficients)
        rings = torch.zeros(*values.shape[:2], total.shape[-1], dtype=total.dtype, device=total.device)
        total.index_add_(0, bin_of, rings.index_add_(2, self._ring, values))


def radial_frequency(size: Tuple[int, int], device: torch.device = "cpu") -> Tensor:
    """|f| in cycles per pixel on the grid of `rfft2`, (H, W // 2 + 1)."""
    height, width = size
    fy = torch.fft.fftfreq(height, device=device)[:, None]
    fx = torch.fft.rfftfreq(width, device=device)[None]
    return torch.sqrt(fx.square() + fy.square())


def frequency_count(resolution: int) -> int:
    """Integer radial frequencies of an N × N image: 0 … N / sqrt(2), the corner of its spectrum."""
    return round(resolution / math.sqrt(2)) + 1


def _lerp(values: Tensor, dim: int, position: Tensor) -> Tensor:
    """`values` at fractional indices (P,) along `dim`, linear between neighbours, constant beyond the ends."""
    last = values.shape[dim] - 1
    position = position.clamp(0, last)
    low = position.floor().long()
    shape = [1] * values.dim()
    shape[dim] = -1
    share = (position - low).reshape(shape)
    return torch.lerp(values.index_select(dim, low), values.index_select(dim, (low + 1).clamp(max=last)), share)


def _half_plane_weights(size: int, device: torch.device) -> Tensor:
    """2 for coefficients whose conjugate `rfft2` leaves out, 1 for the others, (N // 2 + 1,)."""
    weights = torch.full((size // 2 + 1,), 2.0, device=device)
    weights[0] = 1.0
    if size % 2 == 0:
        weights[-1] = 1.0
    return weights
