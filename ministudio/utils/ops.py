"""Tensor functions shared by models: activations and small vector algebra."""

from __future__ import annotations

from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ministudio.utils.errors import UserError


class _TruncExp(torch.autograd.Function):
    """exp whose gradient is that of exp(min(x, 15)): one bad density cannot destroy a step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.exp(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.exp(torch.clamp(x, max=15))


trunc_exp: Callable[[Tensor], Tensor] = _TruncExp.apply


def lin2srgb(linear: Tensor) -> Tensor:
    """Linear light in [0, 1] to sRGB values in [0, 1]."""
    safe = linear.clamp_min(0.0031308)
    return torch.where(linear > 0.0031308, 1.055 * safe.pow(1.0 / 2.4) - 0.055, 12.92 * linear).clamp(0.0, 1.0)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "lin2srgb": lin2srgb,
    "exp": torch.exp,
    "shifted_exp": lambda x: torch.exp(x - 1.0),
    "trunc_exp": trunc_exp,
    "shifted_trunc_exp": lambda x: trunc_exp(x - 1.0),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "shifted_softplus": lambda x: F.softplus(x - 1.0),
    "scale_-11_01": lambda x: x * 0.5 + 0.5,
}


def get_activation(name: str | None) -> Callable[[Tensor], Tensor]:
    """The elementwise function of that name: one of the list above or of torch.nn.functional.

    Raises:
        UserError: no such function.
    """
    if name is None:
        return _ACTIVATIONS["none"]
    name = name.lower()
    activation = _ACTIVATIONS.get(name) or getattr(F, name, None)
    if not callable(activation):
        raise UserError(f'there is no activation "{name}"; known: {", ".join(_ACTIVATIONS)}, or any of torch.nn.functional')
    return activation


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product over the last axis, (..., D) x (..., D) -> (..., 1)."""
    return (x * y).sum(-1, keepdim=True)


def perpendicular_component(x: Tensor, y: Tensor) -> Tensor:
    """The part of each x that is perpendicular to its y; both (B, C, H, W), one vector per item."""
    along = (x * y).sum(dim=(1, 2, 3), keepdim=True)
    return x - along / (y * y).sum(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6) * y


def binary_cross_entropy(p: Tensor, target: Tensor) -> Tensor:
    """Mean of -(target log p + (1 - target) log(1 - p)); gradients flow through both arguments."""
    return -(target * torch.log(p) + (1 - target) * torch.log(1 - p)).mean()


def chunk_batch(function: Callable[..., Any], chunk_size: int, *tensors: Tensor) -> Any:
    """Call function on slices of at most chunk_size rows and join what it returns (tensor or dict)."""
    if chunk_size <= 0 or tensors[0].shape[0] <= chunk_size:
        return function(*tensors)
    starts = range(0, tensors[0].shape[0], chunk_size)
    parts = [function(*(t[i : i + chunk_size] for t in tensors)) for i in starts]
    if isinstance(parts[0], dict):
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return torch.cat(parts)
