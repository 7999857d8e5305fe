"""The multiresolution hash grid of Instant-NGP as a differentiable function and as a module.

CPU: numba kernels. CUDA: tinycudann where it is installed, otherwise the plain-torch reference, which
is correct but many times slower (a fused kernel without tinycudann does not exist here yet).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ministudio
from ministudio.models.encodings import hash_kernels as kernels
from ministudio.models.encodings.layout import GridLayout
from ministudio.models.encodings.reference import hash_encode_reference
from ministudio.utils.config import ConfigError
from ministudio.utils.misc import get_device


def hash_encode(x: Tensor, params: Tensor, layout: GridLayout, n_levels: int | None = None) -> Tensor:
    """Features of points by trilinear interpolation at every level.

    Differentiable twice with respect to both x and params.

    Args:
        x: (N, 3) float32 in the unit cube; points outside wrap around.
        params: (layout.n_params,) float32.
        n_levels: how many levels to evaluate; the features of the rest are zero and cost nothing.

    Returns:
        (N, layout.n_output_dims) float32.
    """
    n_levels = layout.n_levels if n_levels is None else n_levels
    if x.device.type != "cpu":
        return hash_encode_reference(x, params, layout, n_levels)
    return _Encode.apply(x, params, layout, n_levels)


def _array(tensor: Tensor, columns: int) -> np.ndarray:
    return tensor.detach().contiguous().view(-1, columns).numpy()


def _shape(layout: GridLayout, n_levels: int) -> tuple:
    return n_levels, layout.scales, layout.resolutions, layout.offsets, layout.sizes, layout.hashed


def _gather(x: Tensor, v: Tensor | None, params: Tensor, layout: GridLayout, n_levels: int) -> Tensor:
    """Features (N, L F), or their derivative along v (N, 3)."""
    points, along = _array(x, 3), _array(x[:0] if v is None else v, 3)
    allocate = torch.empty if n_levels == layout.n_levels else torch.zeros
    out = allocate(x.shape[0], layout.n_output_dims)
    kernels.gather(points, along, _array(params, layout.n_features_per_level), out.numpy(), *_shape(layout, n_levels))
    return out


def _scatter(x: Tensor, v: Tensor | None, g: Tensor, layout: GridLayout, n_levels: int) -> Tensor:
    """The transpose of _gather: what g (N, L F) adds to each parameter."""
    points, along = _array(x, 3), _array(x[:0] if v is None else v, 3)
    out = torch.zeros(layout.n_params)
    table = _array(out, layout.n_features_per_level)  # shares memory with out
    kernels.scatter(points, along, _array(g, layout.n_output_dims), table, *_shape(layout, n_levels))
    return out


def _slope(x: Tensor, v: Tensor | None, g: Tensor, params: Tensor, layout: GridLayout, n_levels: int) -> Tensor:
    """Gradient (N, 3) of g . y with respect to x, or its derivative along v."""
    points, along = _array(x, 3), _array(x[:0] if v is None else v, 3)
    out = torch.zeros(x.shape[0], 3)
    rows, table = _array(g, layout.n_output_dims), _array(params, layout.n_features_per_level)
    kernels.position_gradient(points, along, rows, table, out.numpy(), *_shape(layout, n_levels))
    return out


class _Encode(torch.autograd.Function):
    """y(x, T). Its two gradients are functions that can be differentiated once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, params: Tensor, layout: GridLayout, n_levels: int) -> Tensor:
        ctx.save_for_backward(x, params)
        ctx.grid = layout, n_levels
        return _gather(x, None, params, *ctx.grid)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        x, params = ctx.saved_tensors
        dx = _PositionGradient.apply(x, g, params, *ctx.grid) if ctx.needs_input_grad[0] else None
        dt = _TableGradient.apply(x, g, *ctx.grid) if ctx.needs_input_grad[1] else None
        return dx, dt, None, None


class _PositionGradient(torch.autograd.Function):
    """dx(x, g, T) = sum_c dw_c/dx (T_c . g)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, params: Tensor, layout: GridLayout, n_levels: int) -> Tensor:
        ctx.save_for_backward(x, g, params)
        ctx.grid = layout, n_levels
        return _slope(x, None, g, params, *ctx.grid)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple:
        x, g, params = ctx.saved_tensors
        needs_x, needs_g, needs_table = ctx.needs_input_grad[:3]
        dx = _slope(x, v, g, params, *ctx.grid) if needs_x else None
        dg = _gather(x, v, params, *ctx.grid) if needs_g else None
        dt = _scatter(x, v, g, *ctx.grid) if needs_table else None
        return dx, dg, dt, None, None


class _TableGradient(torch.autograd.Function):
    """dT(x, g) with dT_c = sum over points of w_c g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, layout: GridLayout, n_levels: int) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.grid = layout, n_levels
        return _scatter(x, None, g, *ctx.grid)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple:
        x, g = ctx.saved_tensors
        dx = _slope(x, None, g, v, *ctx.grid) if ctx.needs_input_grad[0] else None
        dg = _gather(x, None, v, *ctx.grid) if ctx.needs_input_grad[1] else None
        return dx, dg, None, None


class HashTable(nn.Module):
    """The features of a grid as one flat parameter, initialised uniformly in ±1e-4."""

    def __init__(self, layout: GridLayout) -> None:
        super().__init__()
        self.layout = layout
        self.params = nn.Parameter(torch.empty(layout.n_params).uniform_(-1e-4, 1e-4))

    def forward(self, x: Tensor, n_levels: int) -> Tensor:
        return hash_encode(x, self.params, self.layout, n_levels)


class HashGrid(nn.Module):
    """otype HashGrid: points (N, 3) in [0, 1] to features (N, n_output_dims), always float32."""

    def __init__(self, n_input_dims: int, config: dict[str, Any]) -> None:
        super().__init__()
        if n_input_dims != 3:
            raise ConfigError("otype", f"a hash grid encodes positions in space, not {n_input_dims} inputs")
        self.layout = GridLayout.from_config(config)
        self.n_input_dims, self.n_output_dims = n_input_dims, self.layout.n_output_dims
        self.encoding = self._table()

    def _table(self) -> nn.Module:
        if get_device().type == "cuda":
            if importlib.util.find_spec("tinycudann") is not None:
                return _tinycudann_table(self.layout)
            ministudio.info("tinycudann is not installed: the hash grid runs in plain torch, which is slow")
        elif not kernels.are_compiled():
            ministudio.info("first run here: compiling the kernels takes some twenty seconds, once")
        return HashTable(self.layout)

    @property
    def active_levels(self) -> int:
        return self.layout.n_levels

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            if isinstance(self.encoding, HashTable):
                return self.encoding(x.float(), self.active_levels)
            active = torch.arange(self.n_output_dims, device=x.device) < self.active_levels * self.layout.n_features_per_level
            return self.encoding(x.float()) * active


def _tinycudann_table(layout: GridLayout) -> nn.Module:
    """The same parameter vector under the same name, evaluated by tinycudann: checkpoints fit both."""
    import tinycudann

    keys = ("n_levels", "n_features_per_level", "log2_hashmap_size", "base_resolution", "per_level_scale")
    config = {"otype": "HashGrid", **{key: getattr(layout, key) for key in keys}}
    return tinycudann.Encoding(3, config, dtype=torch.float32)
