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
    levels = [_encode_level(x, table, layout, level) for level in range(n_levels)]
    rest = x.new_zeros(x.shape[0], layout.n_output_dims - n_levels * layout.n_features_per_level)
    return torch.cat([*levels, rest], dim=-1)


def _encode_level(x: Tensor, table: Tensor, layout: GridLayout, level: int) -> Tensor:
    """Trilinear interpolation at one level, (N, F)."""
    position = x * float(layout.scales[level]) + 0.5
    low = position.detach().floor()
    fraction, features = position - low, torch.zeros((), device=x.device)
    for corner in range(8):
        up = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1], device=x.device)
        weight = torch.where(up.bool(), fraction, 1.0 - fraction).prod(dim=-1, keepdim=True)
        features = features + weight * table[_entry(low.long() + up, layout, level)]
    return features


def _entry(vertex: Tensor, layout: GridLayout, level: int) -> Tensor:
    """Row of the table that holds a vertex, (N, 3) int64 -> (N,) int64."""
    x, y, z = vertex.unbind(-1)
    resolution, size = int(layout.resolutions[level]), int(layout.sizes[level])
    if layout.hashed[level]:
        index = (x * PRIMES[0]) ^ (y * PRIMES[1]) ^ (z * PRIMES[2])
    else:
        index = x + y * resolution + z * resolution**2
    return (index & 0xFFFFFFFF) % size + int(layout.offsets[level])
