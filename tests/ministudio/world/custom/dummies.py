"""A plugin with the smallest scene that trains: a coloured ball, and a guidance that knows its colour."""

import os
import signal
from dataclasses import dataclass, field
from typing import Any

import ministudio
import torch
from ministudio.models.exporters.base import Exporter, ExporterOutput
from ministudio.utils.base import BaseModule, BaseObject
from torch import nn


@ministudio.register("ball")
class Ball(BaseModule):
    @dataclass
    class Config(BaseModule.Config):
        radius: float = 0.5
        n_colors: int = 3

    def configure(self) -> None:
        self.color = nn.Parameter(torch.zeros(self.cfg.n_colors))
        self.soft = nn.Linear(self.cfg.n_colors, 3)


@ministudio.register("ball-renderer")
class BallRenderer(BaseModule):
    """Draws the silhouette of a ball; jitters its rays by the global random stream while training."""

    def configure(self, geometry, material, background) -> None:
        self.parts = (geometry, background)  # a tuple: not submodules

    def forward(self, rays_o, rays_d, light_positions, bg_color=None, **kwargs):
        geometry, background = self.parts
        jitter = 0.01 * torch.randn_like(rays_d) if self.training else 0.0
        closest = torch.linalg.cross(rays_o, rays_d + jitter, dim=-1).norm(dim=-1, keepdim=True)
        opacity = torch.sigmoid(20 * (geometry.cfg.radius - closest))
        color = torch.sigmoid(geometry.color + geometry.soft(geometry.color))
        rgb = opacity * color + (1 - opacity) * background(rays_d)
        return {"comp_rgb": rgb, "opacity": opacity, "z_variance": torch.zeros_like(opacity)}


@ministudio.register("colour-guidance")
class ColourGuidance(BaseObject):
    @dataclass
    class Config:
        target: Any = field(default_factory=lambda: [0.8, 0.1, 0.2])
        extra: bool = False  # return a loss that the configuration does not weigh
        nan_at: int = -1  # step at which the loss becomes NaN
        bad_gradient_at: int = -1
        signal_at: int = -1  # step at which the process sends itself `signal_name`
        signal_name: str = "SIGINT"
        signals: int = 1  # how many

    def update_step(self, epoch, global_step, on_load_weights=False) -> None:
        self.step = global_step

    def __call__(self, rgb, prompt_utils, elevation, azimuth, camera_distances, guidance_eval=False, **kwargs):
        embeddings = prompt_utils.get_text_embeddings(elevation, azimuth, camera_distances)
        assert len(embeddings) == 2 * len(rgb)
        if self.step == self.cfg.signal_at:
            for _ in range(self.cfg.signals):
                os.kill(os.getpid(), getattr(signal, self.cfg.signal_name))
        loss = ((rgb - torch.tensor(list(self.cfg.target))) ** 2).mean()
        if self.step == self.cfg.nan_at:
            loss = loss * float("nan")
        if self.step == self.cfg.bad_gradient_at:
            loss = loss + (rgb.sum() * 0).sqrt()  # value 0, gradient NaN
        extra = {"loss_extra": loss} if self.cfg.extra else {}
        if guidance_eval:
            extra["eval"] = {"bs": 1, "texts": ["t = 0.5"], "noise_levels": [0.5], "imgs_noisy": rgb[:1].detach()}
        return {**extra, "loss_sds": loss, "grad_norm": loss.detach(), "min_step": 0, "max_step": 1}


@ministudio.register("colour-exporter")
class ColourExporter(Exporter):
    def __call__(self):
        return [ExporterOutput("color.json", "json", {"payload": self.geometry.color.tolist()})]
