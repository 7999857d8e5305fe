"""The interface of a background, and the random colours that keep objects from hiding in it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ministudio.utils.base import BaseModule
from ministudio.utils.misc import C


class BaseBackground(BaseModule):
    """Colours directions: forward(dirs (B, H, W, 3)) -> (B, H, W, Nc)."""

    @dataclass
    class Config(BaseModule.Config):
        n_output_dims: int = 3
        random_aug: bool = False  # in training, replace by one random colour per image
        random_aug_prob: Any = 0.5  # or a schedule
        random_aug_max: Any = 1.0  # of each channel, or a schedule; objects get brighter before dark backgrounds

    cfg: Config
    now = (0, 0)  # epoch and step

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.now = epoch, global_step

    def forward(self, dirs: Tensor) -> Tensor:
        raise NotImplementedError

    def augment(self, color: Tensor) -> Tensor:
        """With probability random_aug_prob, in training: one random colour per image instead, below random_aug_max."""
        if not (self.training and self.cfg.random_aug and random.random() < C(self.cfg.random_aug_prob, *self.now)):
            return color
        b, h, w, c = color.shape
        flat = C(self.cfg.random_aug_max, *self.now) * torch.rand(b, 1, 1, c).to(color)
        return color * 0 + flat  # keeps the parameters in the graph, which DDP wants
