"""The hash grid in plain torch: slow, differentiable to any order, on any device.

Tests compare the kernels with it; a CUDA machine without tinycudann uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ministudio.models.encodings.layout import PRIMES, GridLayout


def hash_encode_reference(x: Tensor, params: Tensor, layout: GridLayout, n_levels: int | None = None) -> Tensor:
    """Features of points x (N, 3) in [0, 1] -> (N, L F); levels from n_levels on are zero."""
    n_levels = layout.n_levels if n_levels is None else n_levels
    table = params.view(-1, layout.n_features_per_level)
    # all eight at once, and made once: on CUDA the launches and copies cost more than the arithmetic
    corners = torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)], device=x.device)  # x fastest
    levels = [_encode_level(x, table, layout, level, corners) for level in range(n_levels)]
    rest = x.new_zeros(x.shape[0], layout.n_output_dims - n_levels * layout.n_features_per_level)
    return torch.cat([*levels, rest], dim=-1)


def _encode_level(x: Tensor, table: Tensor, layout: GridLayout, level: int, corners: Tensor) -> Tensor:
    """Trilinear interpolation at one level between the corners (8, 3) of a cell, (N, F)."""
    position = x * float(layout.scales[level]) + 0.5
    low = position.detach().floor()
    fraction = (position - low)[:, None]
    u, v, w = torch.where(corners.bool(), fraction, 1.0 - fraction).unbind(-1)  # (N, 8) each
    features = table[_entry(low.long()[:, None] + corners, layout, level)]  # (N, 8, F)
    return ((u * v * w)[..., None] * features).sum(1)


def _entry(vertex: Tensor, layout: GridLayout, level: int) -> Tensor:
    """Row of the table that holds a vertex, (..., 3) int64 -> (...) int64."""
    x, y, z = vertex.unbind(-1)
    resolution, size = int(layout.resolutions[level]), int(layout.sizes[level])
    if layout.hashed[level]:
        index = (x * PRIMES[0]) ^ (y * PRIMES[1]) ^ (z * PRIMES[2])
    else:
        index = x + y * resolution + z * resolution**2
    return (index & 0xFFFFFFFF) % size + int(layout.offsets[level])
