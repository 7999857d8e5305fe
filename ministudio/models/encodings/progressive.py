"""Coarse to fine: encodings whose fine bands are switched on as training goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ministudio.models.encodings.hash_grid import HashGrid
from ministudio.utils.base import Updateable
from ministudio.utils.config import ConfigError, check_keys, whole


class ProgressiveBandHashGrid(HashGrid, Updateable):
    """A hash grid that starts with `start_level` levels and from `start_step` on gains one every
    `update_steps`. All levels are off until the first update; a level once on stays on. Levels that
    are off are not computed.
    """

    def __init__(self, n_input_dims: int, config: dict[str, Any]) -> None:
        band = {"start_level": 0, "start_step": 0, "update_steps": 1}  # each with its least value
        for key, least in band.items():
            if key not in config:
                raise ConfigError(key, "is missing: ProgressiveBandHashGrid needs it")
            band[key] = whole(key, config[key], least)
        super().__init__(n_input_dims, {key: value for key, value in config.items() if key not in band})
        self.start_level, self.start_step, self.update_steps = band.values()
        self.current_level = 0

    @property
    def active_levels(self) -> int:
        return self.current_level

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        level = self.start_level + max(global_step - self.start_step, 0) // self.update_steps
        self.current_level = max(self.current_level, min(level, self.layout.n_levels))


class ProgressiveBandFrequency(nn.Module, Updateable):
    """sin(2^k x) and cos(2^k x); band k fades in along a cosine until step `n_masking_step`."""

    def __init__(self, n_input_dims: int, config: dict[str, Any]) -> None:
        super().__init__()
        check_keys(config, ("otype", "include_xyz", "n_frequencies", "n_masking_step"))
        self.n_frequencies = whole("n_frequencies", config.get("n_frequencies", 12))
        self.n_masking_step = whole("n_masking_step", config.get("n_masking_step", 0), at_least=0)
        self.n_input_dims, self.n_output_dims = n_input_dims, n_input_dims * 2 * self.n_frequencies
        weights = torch.ones(self.n_frequencies) if self.n_masking_step <= 0 else torch.zeros(self.n_frequencies)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, D) -> (N, 2 D K), sine and cosine of each frequency in turn."""
        angles = x.unsqueeze(-2) * 2.0 ** torch.arange(self.n_frequencies, device=x.device).unsqueeze(-1)
        waves = torch.stack([angles.sin(), angles.cos()], dim=-2)  # (N, K, 2, D)
        return (waves * self.weights[:, None, None]).flatten(-3)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        if self.n_masking_step <= 0:
            return
        k = torch.arange(self.n_frequencies, device=self.weights.device)
        progress = (global_step / self.n_masking_step * self.n_frequencies - k).clamp(0.0, 1.0)
        self.weights = (1.0 - torch.cos(torch.pi * progress)) / 2.0
