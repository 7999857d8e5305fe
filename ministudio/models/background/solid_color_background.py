"""One colour everywhere, fixed or learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import ministudio
from ministudio.models.background.base import BaseBackground
from ministudio.utils.config import ConfigError


@ministudio.register("solid-color-background")
class SolidColorBackground(BaseBackground):
    @dataclass
    class Config(BaseBackground.Config):
        color: Any = (1.0, 1.0, 1.0)  # n_output_dims values in [0, 1]
        learned: bool = False

    cfg: Config

    def configure(self) -> None:
        try:
            color = torch.tensor(list(self.cfg.color), dtype=torch.float32)
        except (TypeError, ValueError):
            raise ConfigError("color", f"must be a list of numbers in [0, 1], not {self.cfg.color}") from None
        if color.shape != (self.cfg.n_output_dims,):
            raise ConfigError("color", f"has {len(color)} values, n_output_dims is {self.cfg.n_output_dims}")
        if self.cfg.learned:
            self.env_color = nn.Parameter(color)
        else:
            self.register_buffer("env_color", color)

    def forward(self, dirs: Tensor) -> Tensor:
        """Directions (B, H, W, 3) to colours (B, H, W, n_output_dims)."""
        return self.augment(self.env_color.expand(*dirs.shape[:-1], -1))
