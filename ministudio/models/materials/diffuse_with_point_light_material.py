"""Lambert's law under one point light: colour = albedo (ambient + diffuse max(n . l, 0))."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

import ministudio
from ministudio.models.materials.base import BaseMaterial
from ministudio.utils.base import BaseModule
from ministudio.utils.errors import UserError
from ministudio.utils.ops import dot, get_activation

SHADINGS = ("albedo", "textureless", "diffuse")


@ministudio.register("diffuse-with-point-light-material")
class DiffuseWithPointLightMaterial(BaseMaterial):
    """In training it alternates between albedo, shape alone and the shaded colour, batch by batch."""

    @dataclass
    class Config(BaseModule.Config):
        ambient_light_color: Tuple[float, float, float] = (0.1, 0.1, 0.1)
        diffuse_light_color: Tuple[float, float, float] = (0.9, 0.9, 0.9)
        ambient_only_steps: int = 1000  # albedo only, before this step
        diffuse_prob: float = 0.75  # of shading at all, afterwards
        textureless_prob: float = 0.5  # of those: shape without colour
        albedo_activation: str = "sigmoid"
        soft_shading: bool = False  # draw the ambient share anew for each batch
        ambient_only_on_test: bool = False
        normals_when_unlit: bool = True  # false: no normals in albedo-only training, where only regularisers use them

    cfg: Config
    requires_normal = True

    def configure(self) -> None:
        self.register_buffer("ambient", torch.tensor(list(self.cfg.ambient_light_color)), persistent=False)
        self.register_buffer("diffuse", torch.tensor(list(self.cfg.diffuse_light_color)), persistent=False)
        self.activation = get_activation(self.cfg.albedo_activation)
        self.ambient_only = False

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        early = global_step < self.cfg.ambient_only_steps
        self.ambient_only = early if self.training else self.cfg.ambient_only_on_test
        self.requires_normal = self.cfg.normals_when_unlit or not (self.training and self.ambient_only)

    def forward(
        self,
        features: Tensor,  # [..., Nf >= 3]
        positions: Tensor,  # [..., 3]
        shading_normal: Optional[Tensor] = None,  # [..., 3] unit length, not needed for albedo
        light_positions: Optional[Tensor] = None,  # [..., 3] likewise
        ambient_ratio: Optional[float] = None,  # of the light, instead of the configured colours
        shading: Optional[str] = None,  # one of SHADINGS, instead of chance
        **kwargs: Any,
    ) -> Tensor:  # [..., 3]
        albedo = self.activation(features[..., :3])
        shading = shading or self._choose_shading()
        if shading == "albedo":
            return albedo
        ambient, diffuse = self._light(ambient_ratio)
        to_light = F.normalize(light_positions - positions, dim=-1)
        irradiance = ambient + diffuse * dot(shading_normal, to_light).clamp_min(0.0)
        if shading == "textureless":
            return irradiance + albedo * 0  # keeps every parameter in the graph, which DDP wants
        if shading == "diffuse":
            return albedo.clamp(0.0, 1.0) * irradiance
        raise UserError(f'there is no shading "{shading}": use one of {", ".join(SHADINGS)}')

    def _choose_shading(self) -> str:
        if self.ambient_only:
            return "albedo"
        if not self.training:
            return "diffuse"
        if random.random() > self.cfg.diffuse_prob:
            return "albedo"
        return "textureless" if random.random() < self.cfg.textureless_prob else "diffuse"

    def _light(self, ambient_ratio: Optional[float]) -> tuple[Tensor, Tensor]:  # [3] each
        if ambient_ratio is None and not (self.training and self.cfg.soft_shading):
            return self.ambient, self.diffuse
        ratio = random.random() if ambient_ratio is None else ambient_ratio
        one = torch.ones_like(self.ambient)
        return ratio * one, (1 - ratio) * one

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        return {"albedo": self.activation(features[..., :3]).clamp(0.0, 1.0)}
