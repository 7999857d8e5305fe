"""Image statistics against images whose answers are known in closed form."""

import math

import pytest
import torch

from imaging import statistics
from imaging.statistics import radial_spectrum

SIDE = 32


def sinusoid(cycles: int, amplitude: float, horizontal: bool = True) -> torch.Tensor:
    """A grey image with `cycles` over its side, (1, 3, N, N)."""
    wave = 0.5 + amplitude * torch.cos(2 * math.pi * cycles * torch.arange(SIDE) / SIDE)
    plane = wave.expand(SIDE, SIDE) if horizontal else wave[:, None].expand(SIDE, SIDE)
    return plane.expand(1, 3, SIDE, SIDE)


@pytest.mark.parametrize("horizontal", [True, False])
def test_spectrum_of_a_sinusoid_is_one_line_of_its_power(horizontal):
    spectrum = radial_spectrum(sinusoid(5, 0.2, horizontal).mean(1).double() - 0.5)[0]
    f = torch.fft.fftfreq(SIDE) * SIDE
    ring = int(((f[:, None] ** 2 + f[None] ** 2).sqrt().round() == 5).sum())
    assert spectrum[5].item() * ring == pytest.approx(0.2**2 / 2 * SIDE**2, rel=1e-5)  # Parseval
    assert spectrum[torch.arange(len(spectrum)) != 5].abs().max() < 1e-9


def test_spectrum_of_white_noise_is_its_variance_everywhere():
    noise = 0.3 * torch.randn(400, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    spectrum = radial_spectrum(noise).mean(0)
    assert spectrum.shape == (SIDE // 2 + 1,)
    assert spectrum[1:].numpy() == pytest.approx(0.09, rel=0.1)


def test_detail_counts_only_what_is_above_an_eighth_of_a_cycle_per_pixel():
    assert statistics.detail(sinusoid(8, 0.2)).item() == pytest.approx(0.2 / math.sqrt(2), rel=1e-4)
    assert statistics.detail(sinusoid(2, 0.2)).item() == pytest.approx(0, abs=1e-6)


def test_contrast_saturation_and_clipping():
    assert statistics.contrast(sinusoid(4, 0.2)).item() == pytest.approx(0.2 / math.sqrt(2), rel=1e-4)
    color = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert statistics.saturation(color).item() == pytest.approx(0.75)
    assert statistics.saturation(sinusoid(4, 0.2)).item() == pytest.approx(0, abs=1e-6)
    half = torch.full((1, 3, 4, 4), 0.5)
    half[:, 0, :2] = 1.0
    assert statistics.clipped(half).item() == 0.5
    assert statistics.contrast(color).item() == pytest.approx(0, abs=1e-6)


def test_luma_weights_sum_to_one():
    assert statistics.luma(torch.ones(2, 3, 2, 2)).numpy() == pytest.approx(1.0)
