"""Ray marching by nerfacc's CUDA kernel, where it has been built.

The wheel of nerfacc on the package index holds sources only, which it compiles at its first use; a run must not wait for
a compiler, nor fail without one. So it is used where the compiled part, `nerfacc.csrc`, is installed (nerfacc's
wheels for one version of torch, or `pip install --no-build-isolation` from its sources), and never built here.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor


@functools.cache
def is_built() -> bool:
    """Whether nerfacc with compiled kernels is installed; imports the package, compiles nothing."""
    return importlib.util.find_spec("nerfacc") is not None and importlib.util.find_spec("nerfacc.csrc") is not None


@torch.no_grad()
def march(
    rays_o: Tensor, rays_d: Tensor, occupied: Tensor, aabb: Tensor, step: float, t_min: Tensor, t_max: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `marching.march_reference`: starts and ends (N,) of the samples, and their rays (N,) int64.

    Both cut a ray into steps from t_min and keep those whose middle lies in an occupied cell before t_max. nerfacc adds
    up its steps where the reference multiplies: positions agree to rounding, and a middle on a wall may fall either way.
    """
    from nerfacc import traverse_grids

    intervals, samples, _ = traverse_grids(
        rays_o, rays_d, occupied[None], aabb[None], near_planes=t_min, far_planes=t_max, step_size=step)
    return intervals.vals[intervals.is_left], intervals.vals[intervals.is_right], samples.ray_indices
