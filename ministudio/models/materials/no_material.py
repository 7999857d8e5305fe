"""The features are the colour, after an activation and, if asked, a small network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from torch import Tensor

import ministudio
from ministudio.models.materials.base import BaseMaterial
from ministudio.models.networks import get_mlp
from ministudio.utils.base import BaseModule
from ministudio.utils.config import ConfigError
from ministudio.utils.ops import get_activation


@ministudio.register("no-material")
class NoMaterial(BaseMaterial):
    """Unlit colours (..., n_output_dims)."""

    @dataclass
    class Config(BaseModule.Config):
        n_output_dims: int = 3
        color_activation: str = "sigmoid"
        input_feature_dims: Optional[int] = None  # with mlp_network_config: what the network takes
        mlp_network_config: Optional[dict] = None
        requires_normal: bool = False

    cfg: Config

    def configure(self) -> None:
        self.requires_normal = self.cfg.requires_normal
        self.activation = get_activation(self.cfg.color_activation)
        self.network = None
        if self.cfg.mlp_network_config is not None:
            if self.cfg.input_feature_dims is None:
                raise ConfigError("input_feature_dims", "is missing: mlp_network_config needs it")
            self.network = get_mlp(self.cfg.input_feature_dims, self.cfg.n_output_dims, self.cfg.mlp_network_config)

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Features (..., Nf) to colours (..., n_output_dims)."""
        if self.network is not None:
            rows = self.network(features.reshape(-1, features.shape[-1]))
            features = rows.reshape(*features.shape[:-1], -1)
        elif features.shape[-1] != self.cfg.n_output_dims:
            raise ConfigError(
                "n_output_dims", f"is {self.cfg.n_output_dims}, but system.geometry.n_feature_dims is {features.shape[-1]}"
            )
        return self.activation(features)

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        return {"albedo": self(features)[..., :3].clamp(0.0, 1.0)}
