"""The interface of a background, and the random colours that keep objects from hiding in it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ministudio.utils.base import BaseModule


class BaseBackground(BaseModule):
    """Colours directions: forward(dirs (B, H, W, 3)) -> (B, H, W, Nc)."""

    @dataclass
    class Config(BaseModule.Config):
        n_output_dims: int = 3
        random_aug: bool = False  # in training, replace by one random colour per image
        random_aug_prob: float = 0.5

    cfg: Config

    def forward(self, dirs: Tensor) -> Tensor:
        raise NotImplementedError

    def augment(self, color: Tensor) -> Tensor:
        """With probability random_aug_prob, in training: one random colour per image instead."""
        if not (self.training and self.cfg.random_aug and random.random() < self.cfg.random_aug_prob):
            return color
        b, h, w, c = color.shape
        flat = torch.rand(b, 1, 1, c).to(color)
        return color * 0 + flat  # keeps the parameters in the graph, which DDP wants
