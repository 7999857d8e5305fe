"""The interface of a material."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ministudio.utils.base import BaseModule


class BaseMaterial(BaseModule):
    """Colours the points of a surface; `requires_normal` tells the renderer what to bring."""

    requires_normal: bool = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Features (..., Nf), and what else the renderer knows of the points, to colours (..., Nc)."""
        raise NotImplementedError

    def export(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What a mesh file stores of features (..., Nf): `albedo` (..., 3) in [0, 1]."""
        return {}
