"""The interface of a renderer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ministudio.utils.base import BaseModule


@dataclass
class Scene:
    """A plain holder: the three stay out of the renderer's parameters, checkpoint and updates."""

    geometry: BaseModule
    material: BaseModule
    background: BaseModule


class Renderer(BaseModule):
    """Draws a geometry with its material before a background."""

    @dataclass
    class Config(BaseModule.Config):
        radius: float = 1.0  # accepted for threestudio's YAML files: the geometry's box counts

    cfg: Config

    def configure(self, geometry: BaseModule, material: BaseModule, background: BaseModule) -> None:
        self.scene = Scene(geometry, material, background)
        self.register_buffer("bbox", geometry.bbox.detach().clone(), persistent=False)

    def forward(self, rays_o: Tensor, rays_d: Tensor, light_positions: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """Rays (B, H, W, 3) to images."""
        raise NotImplementedError
