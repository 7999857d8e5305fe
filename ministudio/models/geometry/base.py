"""What every implicit geometry is: a field in a box, and a mesh of its level set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

import ministudio
from ministudio.models.isosurface import extract_mesh
from ministudio.models.mesh import Mesh
from ministudio.utils.base import BaseModule
from ministudio.utils.config import ConfigError, whole


class BaseImplicitGeometry(BaseModule):
    """A field over the box ±radius. A subclass brings the field."""

    @dataclass
    class Config(BaseModule.Config):
        radius: float = 1.0  # half the side of the box, world units
        isosurface: bool = True  # false: no mesh can be made of it
        isosurface_method: str = "mt"  # mt | mc-cpu, both served by marching cubes
        isosurface_resolution: int = 128  # samples along each side
        isosurface_threshold: Any = 0.0  # a level of the field, or "auto": the mean of its values above 1e-5
        isosurface_chunk: int = 0  # points a call, 0 for a default that bounds memory
        isosurface_coarse_to_fine: bool = True  # spend the samples in the tight box of the object
        isosurface_deformable_grid: bool = False  # accepted for threestudio's YAML files; only false works
        isosurface_remove_outliers: bool = True  # drop small loose parts
        isosurface_outlier_n_faces_threshold: Any = 0.01  # int: faces, float: share of the largest part

    cfg: Config

    def configure(self) -> None:
        if not self.cfg.radius > 0:
            raise ConfigError("radius", f"must be positive, not {self.cfg.radius}")
        if self.cfg.isosurface_method not in ("mt", "mc-cpu"):
            raise ConfigError("isosurface_method", f'is mt or mc-cpu, not "{self.cfg.isosurface_method}"')
        if self.cfg.isosurface_deformable_grid:
            raise ConfigError("isosurface_deformable_grid", "is not supported here yet: set it to false")
        whole("isosurface_resolution", self.cfg.isosurface_resolution, at_least=2)
        self._check_number("isosurface_threshold", "auto")
        self._check_number("isosurface_outlier_n_faces_threshold")
        r = float(self.cfg.radius)
        self.register_buffer("bbox", torch.tensor([[-r, -r, -r], [r, r, r]]))

    def _check_number(self, key: str, *words: str) -> None:
        value = self.cfg[key]
        if value not in words and (isinstance(value, bool) or not isinstance(value, (int, float))):
            also = "".join(f' or "{word}"' for word in words)
            raise ConfigError(key, f"is a number{also}, not {value!r}")

    def forward_field(self, points: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        """Values of the field (..., 1), larger inside, and a deformation of the grid, None here."""
        raise NotImplementedError

    def forward_level(self, field: Tensor, threshold: float) -> Tensor:
        """Level set function of a field: negative inside."""
        raise NotImplementedError

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """What a material needs of surface points (..., 3) to colour them."""
        return {}

    def isosurface(self) -> Mesh:
        """The mesh where the field equals isosurface_threshold.

        Raises:
            UserError: isosurface is false, or the field is empty, solid or not finite.
        """
        if not self.cfg.isosurface:
            raise ministudio.UserError("system.geometry.isosurface is false: set it to true to export a mesh")
        return extract_mesh(
            lambda points: self.forward_field(points)[0],
            self.bbox,
            self.cfg.isosurface_resolution,
            self.cfg.isosurface_threshold,
            chunk=self.cfg.isosurface_chunk,
            coarse_to_fine=self.cfg.isosurface_coarse_to_fine,
            outlier_faces=self.cfg.isosurface_outlier_n_faces_threshold if self.cfg.isosurface_remove_outliers else 0,
        )
