"""A smooth environment: a small network of the direction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import ministudio
from ministudio.models.background.base import BaseBackground
from ministudio.models.networks import get_encoding, get_mlp
from ministudio.utils.config import ConfigError
from ministudio.utils.ops import get_activation


@ministudio.register("neural-environment-map-background")
class NeuralEnvironmentMapBackground(BaseBackground):
    @dataclass
    class Config(BaseBackground.Config):
        color_activation: str = "sigmoid"
        dir_encoding_config: dict = field(default_factory=lambda: {"otype": "SphericalHarmonics", "degree": 3})
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "VanillaMLP",
                "activation": "ReLU",
                "output_activation": "none",
                "n_neurons": 16,
                "n_hidden_layers": 2,
            }
        )
        eval_color: Any = None  # n_output_dims values, shown instead outside training

    cfg: Config

    def configure(self) -> None:
        self.encoding = get_encoding(3, self.cfg.dir_encoding_config)
        self.network = get_mlp(self.encoding.n_output_dims, self.cfg.n_output_dims, self.cfg.mlp_network_config)
        self.activation = get_activation(self.cfg.color_activation)
        if self.cfg.eval_color is not None and len(self.cfg.eval_color) != self.cfg.n_output_dims:
            raise ConfigError("eval_color", f"has {len(self.cfg.eval_color)} values, n_output_dims is {self.cfg.n_output_dims}")

    def forward(self, dirs: Tensor) -> Tensor:
        """Unit directions (B, H, W, 3) to colours (B, H, W, n_output_dims)."""
        if not self.training and self.cfg.eval_color is not None:
            color = torch.tensor(list(self.cfg.eval_color), dtype=torch.float32, device=dirs.device)
            return color.expand(*dirs.shape[:-1], -1)
        rows = (dirs.reshape(-1, 3) + 1.0) / 2.0  # encodings take [0, 1]
        color = self.activation(self.network(self.encoding(rows)))
        return self.augment(color.reshape(*dirs.shape[:-1], -1))
