"""nerf-volume-renderer: a field of density and colour, integrated along rays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

import ministudio
from ministudio.models.renderers.base import Renderer
from ministudio.models.renderers.compositing import accumulate, render_weights
from ministudio.models.renderers.marching import Samples
from ministudio.models.renderers.occgrid import OccupancyGrid
from ministudio.utils.base import BaseModule
from ministudio.utils.config import ConfigError
from ministudio.utils.ops import chunk_batch

_RAYS_PER_CHUNK = 4096  # outside training, at least; bounds the memory for samples


@ministudio.register("nerf-volume-renderer")
class NeRFVolumeRenderer(Renderer):
    @dataclass
    class Config(Renderer.Config):
        num_samples_per_ray: int = 512  # steps along the diagonal of the box; empty cells take none
        eval_chunk_size: int = 160000  # points at once, outside training
        randomized: bool = True  # jitter the samples in training
        near_plane: float = 0.0
        far_plane: float = 1e10
        return_comp_normal: bool = False  # in training too
        return_normal_perturb: bool = False  # in training: normals of points moved by a little
        estimator: str = "occgrid"
        grid_prune: bool = True  # skip empty cells; false: sample the whole box
        prune_alpha_threshold: bool = True  # drop samples that cannot be seen
        # fields of threestudio's other estimators, accepted so that its YAML files can be read
        proposal_network_config: Optional[dict] = None
        prop_optimizer_config: Optional[dict] = None
        prop_scheduler_config: Optional[dict] = None
        num_samples_per_ray_proposal: int = 64
        num_samples_per_ray_importance: int = 64

    cfg: Config

    def configure(self, geometry: BaseModule, material: BaseModule, background: BaseModule) -> None:
        super().configure(geometry, material, background)
        if self.cfg.estimator in ("proposal", "importance"):
            raise ConfigError("estimator", f'"{self.cfg.estimator}" is not supported here yet: use occgrid')
        if self.cfg.estimator != "occgrid":
            raise ConfigError("estimator", f'there is no estimator "{self.cfg.estimator}": use occgrid')
        for key in ("num_samples_per_ray", "eval_chunk_size"):
            if self.cfg[key] < 1:
                raise ConfigError(key, f"must be positive, not {self.cfg[key]}")
        if not 0 <= self.cfg.near_plane < self.cfg.far_plane:
            raise ConfigError("far_plane", f"must be beyond near_plane {self.cfg.near_plane}, not {self.cfg.far_plane}")
        self.step_size = float((self.bbox[1] - self.bbox[0]).max()) * 1.732 / self.cfg.num_samples_per_ray
        self.estimator = OccupancyGrid(self.bbox.flatten())
        if not self.cfg.grid_prune:
            self.estimator.fill()

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        if not self.cfg.grid_prune:
            self.estimator.fill()  # again: a checkpoint brings its own grid
        elif self.training and not on_load_weights:
            self.estimator.update(global_step, self._density, self.step_size)

    def _density(self, points: Tensor) -> Tensor:
        """Points (N, 3) to density (N,), in pieces and without gradients."""
        with torch.no_grad():
            return chunk_batch(self.scene.geometry.forward_density, self.cfg.eval_chunk_size, points)[:, 0].float()

    def forward(
        self,
        rays_o: Tensor,  # (B, H, W, 3)
        rays_d: Tensor,  # (B, H, W, 3) unit length
        light_positions: Tensor,  # (B, 3)
        bg_color: Optional[Tensor] = None,  # (B, C) or (B, H, W, C), instead of the background
        **kwargs: Any,  # for the material, in training
    ) -> dict[str, Tensor]:
        """Images of the rays; in training also what is known of each sample.

        Returns:
            (B, H, W, ·): comp_rgb = comp_rgb_fg + comp_rgb_bg (1 - opacity), in the material's
            channels; opacity, depth (not divided by opacity) and z_variance (zero where opacity <=
            0.5), one channel each; comp_normal as (n + 1) / 2 · opacity outside training, if there
            are normals. In training, packed (N, ·): weights, t_points, t_intervals, t_dirs, points,
            ray_indices and the geometry's outputs.
        """
        shape = rays_o.shape[:3]
        light = light_positions[:, None, None].expand(*shape, 3).reshape(-1, 3)
        rays = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3), light
        if self.training:
            images, packed = self._render(*rays, **kwargs)
        else:
            images = chunk_batch(lambda *rows: self._render(*rows)[0], self._rays_per_chunk(), *rays)
            packed = {}
        images = {key: value.view(*shape, value.shape[-1]) for key, value in images.items()}
        background = self._background(rays_d, bg_color)
        color = images["comp_rgb_fg"] + background * (1.0 - images["opacity"])
        return {"comp_rgb": color, "comp_rgb_bg": background, **images, **packed}

    def _rays_per_chunk(self) -> int:
        return max(_RAYS_PER_CHUNK, 4 * self.cfg.eval_chunk_size // self.cfg.num_samples_per_ray)

    def _background(self, rays_d: Tensor, bg_color: Optional[Tensor]) -> Tensor:
        """Colours behind everything, (B, H, W, C)."""
        if bg_color is None:
            return self.scene.background(dirs=rays_d)
        bg_color = bg_color[:, None, None] if bg_color.dim() == 2 else bg_color
        return bg_color.expand(*rays_d.shape[:3], -1)

    def _render(
        self, rays_o: Tensor, rays_d: Tensor, light: Tensor, **kwargs: Any
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rays (R, 3) to pixels (R, ·) and packed samples (N, ·)."""
        samples = self._samples(rays_o, rays_d)
        ray, n_rays = samples.ray_indices, len(rays_o)
        dirs, points = rays_d[ray], samples.middles(rays_o, rays_d)
        known, rgb = self._shade(points, dirs, light[ray], **kwargs)
        weights = render_weights(known["density"][:, 0], *samples, n_rays)
        packed = {
            **known,
            "weights": weights[:, None],
            "t_points": (samples.t_starts + samples.t_ends)[:, None] / 2.0,
            "t_intervals": (samples.t_ends - samples.t_starts)[:, None],
            "t_dirs": dirs,
            "points": points,
            "ray_indices": ray,
        }
        if self.training and self.cfg.return_normal_perturb:
            near = points + 0.01 * torch.randn_like(points)
            packed["normal_perturb"] = self.scene.geometry(near, output_normal=True)["normal"]
        return self._composite(packed, rgb, n_rays), packed

    def _samples(self, rays_o: Tensor, rays_d: Tensor) -> Samples:
        prune = self.cfg.grid_prune and self.cfg.prune_alpha_threshold
        return self.estimator.sample(
            rays_o,
            rays_d,
            self.step_size,
            near=self.cfg.near_plane,
            far=self.cfg.far_plane,
            stratified=self.training and self.cfg.randomized,
            density=self._density if prune else None,
        )

    def _shade(self, points: Tensor, dirs: Tensor, light: Tensor, **kwargs: Any) -> tuple[dict[str, Tensor], Tensor]:
        """The geometry's outputs at points (N, 3), and the material's colours (N, C)."""

        def shade(points: Tensor, dirs: Tensor, light: Tensor) -> dict[str, Tensor]:
            known = self.scene.geometry(points, output_normal=self.scene.material.requires_normal)
            rgb = self.scene.material(viewdirs=dirs, positions=points, light_positions=light, **known, **kwargs)
            return {**known, "rgb": rgb}

        chunk = 0 if self.training else self.cfg.eval_chunk_size
        known = chunk_batch(shade, chunk, points, dirs, light)
        return known, known.pop("rgb")

    def _composite(self, packed: dict[str, Tensor], rgb: Tensor, n_rays: int) -> dict[str, Tensor]:
        """Sums along rays: colour, opacity, depth, its variance, and normals if they are shown."""
        weights, ray, t = packed["weights"][:, 0], packed["ray_indices"], packed["t_points"]
        sums = accumulate(weights, torch.cat([torch.ones_like(t), t, rgb.to(t)], dim=-1), ray, n_rays)
        opacity, depth = sums[:, :1], sums[:, 1:2]
        z_variance = accumulate(weights, (t - depth[ray]) ** 2, ray, n_rays)
        images = {
            "comp_rgb_fg": sums[:, 2:],
            "opacity": opacity,
            "depth": depth,
            "z_variance": torch.where(opacity > 0.5, z_variance, torch.zeros_like(z_variance)),
        }
        if "normal" in packed and (not self.training or self.cfg.return_comp_normal):
            normal = F.normalize(accumulate(weights, packed["normal"], ray, n_rays), dim=-1)
            images["comp_normal"] = (normal + 1.0) / 2.0 * opacity
        return images
