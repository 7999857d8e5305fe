"""The gain margin of a corrective: its response to a small pattern minus the frozen model's own.

LMC-SDS moves x by -η (b(x, t) - x̂(x, t)). Add a small pattern p to x: it then grows by the factor
1 - η (R_b - R_x̂), with R_f = <f(x + δp) - f(x - δp), p> / (2δ <p, p>). Where the margin R_b - R_x̂, averaged over
the t that a run draws, is negative, the update amplifies the pattern without bound, however small the error of b.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lmc_guidance import Corrective
from lmc_guidance.spectral import radial_frequency

from .data.order import torch_generator
from .triplets import Teacher, Triplets

STEP = 0.05  # δ, as a share of the contrast of x


def patterns(positions: list[int], shape: tuple[int, ...], limits: list[tuple[float, float]], seed: int) -> Tensor:
    """Random patterns (B, *shape) of root mean square 1; limits: for each, low ≤ |f| < high in cycles per pixel."""
    white = torch.stack([torch.randn(shape, generator=torch_generator(seed, "pattern", p)) for p in positions])
    f = radial_frequency(shape[-2:])
    passed = torch.stack([(f >= low) & (f < high) for low, high in limits])[:, None]
    band = torch.fft.irfft2(torch.fft.rfft2(white) * passed, s=shape[-2:])
    return band / band.square().mean((1, 2, 3), keepdim=True).sqrt()


def bands(size: int, count: int) -> list[tuple[float, float]]:
    """`count` bands of frequency for a side of `size` pixels: the mean, then evenly in log f up to the corner."""
    first, last = 0.5 / size, 0.5 * 2**0.5 + 1e-6
    edges = torch.logspace(torch.log10(torch.tensor(first)).item(), torch.log10(torch.tensor(last)).item(), count)
    edges = [0.0, *edges.tolist()]
    return [(low, high) for low, high in zip(edges, edges[1:]) if has_frequencies(size, low, high)]


def has_frequencies(size: int, low: float, high: float) -> bool:
    f = radial_frequency((size, size))
    return bool(((f >= low) & (f < high)).any())


def step_size(x: Tensor) -> Tensor:
    """δ for each image, (B, 1, 1, 1)."""
    return STEP * x.std((1, 2, 3), keepdim=True).clamp(min=0.02)


def responses(corrective: Corrective, teacher: Teacher, examples: Triplets, p: Tensor) -> tuple[Tensor, Tensor]:
    """(R_b, R_x̂), each (B,), along patterns p like x; the gradient flows through R_b only.

    b is fed the x̂ at the same point, as in Eq. 9: normalisations `target` and `own` take its statistics.
    """
    x, t, _, eps, text = examples
    delta = step_size(x)
    sides = [x + delta * p, x - delta * p]
    x_hat = [teacher.x_hat(side, t, eps, text) for side in sides]
    b = [corrective(side, t, target) for side, target in zip(sides, x_hat)]
    return tuple(_along(plus - minus, p, delta) for plus, minus in (b, x_hat))


def _along(difference: Tensor, p: Tensor, delta: Tensor) -> Tensor:
    return ((difference / (2 * delta)) * p).mean((1, 2, 3)) / p.square().mean((1, 2, 3))


def margin_penalty(corrective: Corrective, teacher: Teacher, examples: Triplets, positions: list[int]) -> Tensor:
    """Mean over images of max(R_x̂ - R_b, 0)² along one random pattern each: nought where every margin holds.

    Consecutive positions take the bands of frequency in turn; two more evaluations of the frozen model.
    """
    choices = bands(min(examples.x.shape[-2:]), 8)
    limits = [choices[position % len(choices)] for position in positions]
    p = patterns(positions, tuple(examples.x.shape[1:]), limits, teacher.seed).to(examples.x.device)
    r_b, r_x_hat = responses(corrective, teacher, examples, p)
    return (r_x_hat - r_b).clamp(min=0).square().mean()
