"""How samples become pixels: absorption along a ray (NeRF, eq. 3; Max 1995).

    alpha_i = 1 - exp(-sigma_i delta_i),   T_i = exp(-sum_{j<i} sigma_j delta_j),   w_i = T_i alpha_i

Samples are packed, ordered by ray and distance. CPU: numba kernels. Otherwise: the plain-torch reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

_JIT = dict(parallel=True, cache=True, nogil=True, error_model="numpy")


def render_weights(
    density: Tensor,  # (N,) per unit of length
    t_starts: Tensor,  # (N,)
    t_ends: Tensor,  # (N,)
    ray_indices: Tensor,  # (N,) int64, non-decreasing
    n_rays: int,
) -> Tensor:
    """Share w (N,) of each sample in its pixel; differentiable with respect to density."""
    if density.device.type == "cpu":
        return _Weights.apply(density.float(), t_ends - t_starts, ray_bounds(ray_indices, n_rays))
    return render_weights_reference(density, t_starts, t_ends, ray_indices, n_rays)


def accumulate(
    weights: Tensor,  # (N,)
    values: Tensor,  # (N, C)
    ray_indices: Tensor,  # (N,) int64, non-decreasing
    n_rays: int,
) -> Tensor:
    """Sums sum_i w_i v_i over each ray, (R, C); differentiable with respect to weights and values."""
    if weights.device.type == "cpu":
        return _Accumulate.apply(weights, values.float(), ray_bounds(ray_indices, n_rays))
    return accumulate_reference(weights, values, ray_indices, n_rays)


def ray_bounds(ray_indices: Tensor, n_rays: int) -> Tensor:
    """Row of the first sample of each ray, and N at the end, (R + 1,) int64."""
    edges = torch.arange(n_rays + 1, device=ray_indices.device)
    return torch.searchsorted(ray_indices, edges)


def transmittance(density: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """Share T (N,) of the light that passes everything before a sample, in plain torch."""
    if not len(density):
        return torch.ones_like(density)
    depth = (density * (t_ends - t_starts)).double()  # the running sum runs over all rays
    before = torch.cumsum(depth, 0) - depth
    first = ray_bounds(ray_indices, n_rays)[ray_indices]
    return torch.exp(before[first] - before).to(density.dtype)


def render_weights_reference(
    density: Tensor, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor, n_rays: int
) -> Tensor:
    """render_weights in plain torch."""
    alpha = -torch.expm1(-density * (t_ends - t_starts))
    return transmittance(density, t_starts, t_ends, ray_indices, n_rays) * alpha


def accumulate_reference(weights: Tensor, values: Tensor, ray_indices: Tensor, n_rays: int) -> Tensor:
    """accumulate in plain torch."""
    sums = torch.zeros(n_rays, values.shape[-1], dtype=values.dtype, device=values.device)
    return sums.index_add(0, ray_indices, weights[:, None] * values)


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: Tensor, delta: Tensor, bounds: Tensor) -> Tensor:
        weights, after = torch.empty_like(density), torch.empty_like(density)
        _weights_forward(*_arrays(density, delta, bounds, weights, after))
        ctx.save_for_backward(delta, bounds, weights, after)
        return weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple:
        delta, bounds, weights, after = ctx.saved_tensors
        out = torch.empty_like(weights)
        _weights_backward(*_arrays(g, delta, bounds, weights, after, out))
        return out, None, None


class _Accumulate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor, bounds: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values, bounds)
        out = torch.zeros(len(bounds) - 1, values.shape[-1])
        _accumulate_forward(*_arrays(weights, values, bounds, out))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple:
        weights, values, bounds = ctx.saved_tensors
        d_weights, d_values = torch.empty_like(weights), torch.empty_like(values)
        _accumulate_backward(*_arrays(weights, values, bounds, g, d_weights, d_values))
        return d_weights, d_values, None


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


@njit(**_JIT)
def _weights_forward(density, delta, bounds, weights, after):
    """w_i, and the transmittance T_{i+1} behind each sample."""
    for ray in prange(bounds.shape[0] - 1):
        depth = 0.0
        for i in range(bounds[ray], bounds[ray + 1]):
            own = density[i] * delta[i]
            weights[i] = np.exp(-depth) * -np.expm1(-own)
            depth += own
            after[i] = np.exp(-depth)


@njit(**_JIT)
def _weights_backward(g, delta, bounds, weights, after, out):
    """dL/dsigma_i = delta_i (T_{i+1} g_i - sum_{j>i} w_j g_j)."""
    for ray in prange(bounds.shape[0] - 1):
        behind = 0.0
        for i in range(bounds[ray + 1] - 1, bounds[ray] - 1, -1):
            out[i] = delta[i] * (after[i] * g[i] - behind)
            behind += weights[i] * g[i]


@njit(**_JIT)
def _accumulate_forward(weights, values, bounds, out):
    for ray in prange(bounds.shape[0] - 1):
        for i in range(bounds[ray], bounds[ray + 1]):
            for c in range(values.shape[1]):
                out[ray, c] += weights[i] * values[i, c]


@njit(**_JIT)
def _accumulate_backward(weights, values, bounds, g, d_weights, d_values):
    for ray in prange(bounds.shape[0] - 1):
        for i in range(bounds[ray], bounds[ray + 1]):
            total = np.float32(0.0)
            for c in range(values.shape[1]):
                total += g[ray, c] * values[i, c]
                d_values[i, c] = weights[i] * g[ray, c]
            d_weights[i] = total
