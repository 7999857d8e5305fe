"""The occupancy grid: which cells of space hold something, so that rays skip the others.

State is that of nerfacc's OccGridEstimator with one level, so that checkpoints fit both. The rule forgets faster: there
a cell is measured at one point and fades by 0.95 an update, so that most of what it holds occupied has long been empty.
Here the neighbours of what is occupied are looked at, too, so that no surface is cut where a measurement missed it.
"""

from __future__ import annotations

from typing import Callable

import torch
from scipy.ndimage import binary_dilation
from torch import Tensor, nn

from ministudio.models.renderers.compositing import ray_bounds, transmittance
from ministudio.models.renderers.marching import Samples, march

Density = Callable[[Tensor], Tensor]  # points (N, 3) -> density (N,)

_POINTS = 4  # at which a cell is measured at each update
_DECAY = 0.3  # of what was measured before: from solid, a cell is empty after four updates
_WARM_UP = 256  # steps in which all cells are updated
_INTERVAL = 16  # steps between updates
_THRESHOLD = 0.01  # a cell is occupied above this opacity of one step, or above the mean if that is less
_MIN_TRANSMITTANCE = 1e-4  # what lies behind this is not seen
_ROUND = 16  # samples of a ray that are looked at before it is asked whether the ray has ended


class OccupancyGrid(nn.Module):
    """`resolution`^3 cells over a box."""

    def __init__(self, aabb: Tensor, resolution: int = 32) -> None:
        super().__init__()
        self.register_buffer("resolution", torch.full((3,), resolution, dtype=torch.int32))
        self.register_buffer("aabbs", aabb.reshape(1, 6).clone())
        self.register_buffer("occs", torch.zeros(resolution**3))
        self.register_buffer("binaries", torch.zeros(1, resolution, resolution, resolution, dtype=torch.bool))
        self._updated_at = -1

    def fill(self) -> None:
        """All cells are occupied, for rendering without pruning."""
        self.occs.fill_(1.0)
        self.binaries.fill_(True)

    @torch.no_grad()
    def update(self, global_step: int, density: Density, step_size: float) -> None:
        """Every 16 steps: measure each cell (later a sample of them), and let what was measured before fade.

        Repeated calls at one step do nothing more, and the points depend on the step alone.
        """
        if global_step % _INTERVAL or global_step == self._updated_at:
            return
        self._updated_at = global_step
        generator = torch.Generator().manual_seed(global_step)
        cells = self._cells(global_step, generator)
        points = self._points(cells.repeat(_POINTS), generator)
        opacity = (density(points).float() * step_size).clamp_max(1.0).view(_POINTS, -1).amax(0)
        self.occs[cells] = torch.maximum(self.occs[cells] * _DECAY, opacity)
        occupied = (self.occs > self.occs.mean().clamp_max(_THRESHOLD)).view_as(self.binaries[0])
        self.binaries[0] = torch.from_numpy(binary_dilation(occupied.cpu().numpy()))  # across the six faces of a cell

    def _cells(self, global_step: int, generator: torch.Generator) -> Tensor:
        """All cells at first, then a random quarter and as many of the occupied ones."""
        n, device = len(self.occs), self.occs.device
        if global_step < _WARM_UP:
            return torch.arange(n, device=device)
        anywhere = torch.randint(n, (n // 4,), generator=generator).to(device)
        occupied = self.binaries.flatten().nonzero()[:, 0]
        if len(occupied) > n // 4:
            occupied = occupied[torch.randint(len(occupied), (n // 4,), generator=generator).to(device)]
        return torch.cat([anywhere, occupied]).unique()

    def _points(self, cells: Tensor, generator: torch.Generator) -> Tensor:
        """A random point in each cell, (N, 3) world units."""
        r = int(self.resolution[0])
        corner = torch.stack([cells // r**2, cells // r % r, cells % r], dim=-1)
        inside = torch.rand(len(cells), 3, generator=generator).to(cells.device)
        low, high = self.aabbs[0, :3], self.aabbs[0, 3:]
        return low + (corner + inside) / r * (high - low)

    @torch.no_grad()
    def sample(
        self,
        rays_o: Tensor,  # (R, 3)
        rays_d: Tensor,  # (R, 3) unit length
        step_size: float,
        near: float = 0.0,
        far: float = 1e10,
        stratified: bool = False,
        density: Density | None = None,
    ) -> Samples:
        """Samples of rays in occupied cells; with a density, only those that can be seen."""
        jitter = torch.rand(len(rays_o), device=rays_o.device) if stratified else None
        samples = march(rays_o, rays_d, self.binaries[0], self.aabbs[0], step_size, near, far, jitter)
        if density is None:
            return samples
        min_alpha = min(_THRESHOLD, float(self.occs.mean()))
        return visible(samples, rays_o, rays_d, density, min_alpha)


@torch.no_grad()
def visible(samples: Samples, rays_o: Tensor, rays_d: Tensor, density: Density, min_alpha: float) -> Samples:
    """The samples of at least min_alpha opacity that have a transmittance of 1e-4 or more before them.

    Rays are followed in rounds, front to back: densities behind an opaque surface are never computed.
    """
    ray, n_rays = samples.ray_indices, len(rays_o)
    rank = torch.arange(len(ray), device=ray.device) - ray_bounds(ray, n_rays)[ray]
    n_rounds = int(rank.max()) // _ROUND + 1 if len(ray) else 0
    through = torch.ones(n_rays, device=ray.device)  # transmittance after the rounds so far
    waiting, kept = torch.arange(len(ray), device=ray.device), [ray[:0]]
    for number in range(n_rounds):
        waiting = waiting[through[ray[waiting]] >= _MIN_TRANSMITTANCE]
        now = rank[waiting] < (number + 1) * _ROUND
        index, waiting = waiting[now], waiting[~now]
        part = samples.select(index)
        sigma = density(part.middles(rays_o, rays_d))
        before = through[part.ray_indices] * transmittance(sigma, *part, n_rays)
        alpha = -torch.expm1(-sigma * (part.t_ends - part.t_starts))
        kept.append(index[(before >= _MIN_TRANSMITTANCE) & (alpha >= min_alpha)])
        through = through.scatter_reduce(0, part.ray_indices, before * (1.0 - alpha), "amin")
    return samples.select(torch.cat(kept).sort().values)
