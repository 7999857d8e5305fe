"""Where rays are sampled: at equal steps through the occupied cells of a grid.

A ray is cut into intervals of one step from where it enters the box; an interval is a sample if the
cell around its middle is occupied. CPU: a numba kernel that jumps over empty cells. CUDA: nerfacc's kernel where it
has been built, else the plain-torch reference, which tests every interval.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from ministudio.models.renderers import marching_nerfacc

_JIT = dict(cache=True, nogil=True, error_model="numpy")
_CHUNK = 2**22  # intervals the reference tests at once


class Samples(NamedTuple):
    """Intervals along rays, packed: ordered by ray, then by distance."""

    t_starts: Tensor  # (N,) float32
    t_ends: Tensor  # (N,) float32
    ray_indices: Tensor  # (N,) int64, non-decreasing

    def select(self, kept: Tensor) -> Samples:
        """The samples that a mask (N,) or their indices name."""
        return Samples(*(tensor[kept] for tensor in self))

    def middles(self, rays_o: Tensor, rays_d: Tensor) -> Tensor:
        """Points (N, 3) in the middle of the intervals, for rays (R, 3)."""
        t = (self.t_starts + self.t_ends)[:, None] / 2.0
        return torch.addcmul(rays_o[self.ray_indices], t, rays_d[self.ray_indices])


@torch.no_grad()
def march(
    rays_o: Tensor,  # (R, 3)
    rays_d: Tensor,  # (R, 3) unit length
    occupied: Tensor,  # (X, Y, Z) bool
    aabb: Tensor,  # (6,) lower and upper corner
    step: float,
    near: float = 0.0,
    far: float = 1e10,
    jitter: Tensor | None = None,  # (R,) in [0, 1): shifts a ray's samples by that share of a step
) -> Samples:
    """Samples of rays inside occupied cells; not differentiable."""
    t_min, t_max = box_interval(rays_o, rays_d, aabb, near, far)
    t_min = t_min if jitter is None else t_min + jitter * step
    if rays_o.device.type == "cuda" and marching_nerfacc.is_built():
        return Samples(*marching_nerfacc.march(rays_o, rays_d, occupied, aabb, step, t_min, t_max))
    if rays_o.device.type != "cpu":
        return march_reference(rays_o, rays_d, occupied, aabb, step, t_min, t_max)
    arrays = [tensor.contiguous().numpy() for tensor in (rays_o, rays_d, t_min, t_max)]
    counts = np.empty(len(rays_o), np.int64)
    starts = np.empty((len(rays_o), _most(t_min, t_max, step)), np.float32)  # a row for each ray
    _walk(*arrays, occupied.contiguous().numpy(), aabb.numpy(), np.float32(step), counts, starts)
    t_starts = torch.from_numpy(starts[np.arange(starts.shape[1]) < counts[:, None]])
    return Samples(t_starts, t_starts + step, torch.from_numpy(np.repeat(np.arange(len(counts)), counts)))


def _most(t_min: Tensor, t_max: Tensor, step: float) -> int:
    """No ray has more intervals than this; one of NaN has none."""
    return int(float((t_max - t_min).nan_to_num(0.0).max().clamp_min(0.0)) / step) + 2 if len(t_min) else 1


def box_interval(
    rays_o: Tensor, rays_d: Tensor, aabb: Tensor, near: float, far: float
) -> tuple[Tensor, Tensor]:
    """Distances (R,) at which rays enter and leave a box; enter >= leave for those that miss it."""
    inverse = 1.0 / torch.where(rays_d.abs() < 1e-9, torch.full_like(rays_d, 1e-9), rays_d)
    one, other = (aabb[:3] - rays_o) * inverse, (aabb[3:] - rays_o) * inverse
    t_min = torch.minimum(one, other).amax(-1).clamp(near, far)
    t_max = torch.maximum(one, other).amin(-1).clamp(near, far)
    return t_min, t_max


@njit(parallel=True, **_JIT)
def _walk(rays_o, rays_d, t_min, t_max, occupied, aabb, step, counts, starts):
    """The starts of each ray's samples, from the left of its row on, and how many there are."""
    for ray in prange(rays_o.shape[0]):
        counts[ray] = _walk_ray(rays_o[ray], rays_d[ray], t_min[ray], t_max[ray], occupied, aabb, step, starts[ray])


@njit(inline="always")
def _axis(o, d, low, high, cells):
    """Position and speed along one axis in units of cells, and the inverse of the speed, which is never 0."""
    scale = cells / (high - low)
    speed = scale * (d if abs(d) > 1e-9 else 1e-9)
    return (o - low) * scale, speed, 1.0 / speed


@njit(inline="always")
def _cell(position, speed, inverse, t, cells):
    """The cell at distance t along one axis, and the distance at which the ray leaves it."""
    cell = min(max(int(np.floor(position + t * speed)), 0), cells - 1)
    return cell, (cell + (1 if speed > 0 else 0) - position) * inverse


@njit(**_JIT)
def _walk_ray(o, d, t_min, t_max, occupied, aabb, step, starts):
    count, k = 0, 0
    nx, ny, nz = occupied.shape
    px, vx, ix = _axis(o[0], d[0], aabb[0], aabb[3], nx)
    py, vy, iy = _axis(o[1], d[1], aabb[1], aabb[4], ny)
    pz, vz, iz = _axis(o[2], d[2], aabb[2], aabb[5], nz)
    while True:
        start = t_min + k * step
        middle = start + np.float32(0.5) * step
        if not middle < t_max:  # also ends a ray of NaN
            return count
        x, leave_x = _cell(px, vx, ix, middle, nx)
        y, leave_y = _cell(py, vy, iy, middle, ny)
        z, leave_z = _cell(pz, vz, iz, middle, nz)
        if occupied[x, y, z]:
            starts[count] = start
            count += 1
            k += 1
        else:  # the first interval whose middle lies beyond this cell, at least the next
            leave = min(leave_x, leave_y, leave_z)
            k = max(k + 1, int(np.ceil((leave - t_min) / step - 0.5)))


def march_reference(
    rays_o: Tensor, rays_d: Tensor, occupied: Tensor, aabb: Tensor, step: float, t_min: Tensor, t_max: Tensor
) -> Samples:
    """The same by testing every interval of every ray, in plain torch on any device."""
    n_steps = _most(t_min, t_max, step)
    rays_per_chunk = max(_CHUNK // n_steps, 1)
    parts = [
        _march_dense(rays_o[i:j], rays_d[i:j], occupied, aabb, step, t_min[i:j], t_max[i:j], n_steps, i)
        for i, j in ((i, i + rays_per_chunk) for i in range(0, max(len(t_min), 1), rays_per_chunk))
    ]
    return Samples(*(torch.cat(tensors) for tensors in zip(*parts)))


def _march_dense(
    rays_o: Tensor, rays_d: Tensor, occupied: Tensor, aabb: Tensor, step: float,
    t_min: Tensor, t_max: Tensor, n_steps: int, first_ray: int,
) -> Samples:  # fmt: skip
    starts = t_min[:, None] + torch.arange(n_steps, device=t_min.device) * step  # (R, K)
    middles = starts + 0.5 * step
    points = rays_o[:, None] + middles[..., None] * rays_d[:, None]
    cells = torch.tensor(occupied.shape, device=points.device)
    cell = ((points - aabb[:3]) / (aabb[3:] - aabb[:3]) * cells).floor().long().clamp_min(0)
    x, y, z = torch.minimum(cell, cells - 1).unbind(-1)
    hit = occupied[x, y, z] & (middles < t_max[:, None])
    ray = hit.nonzero()[:, 0] + first_ray
    return Samples(starts[hit], starts[hit] + step, ray)
