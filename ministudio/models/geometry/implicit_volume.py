"""implicit-volume: density and features of a NeRF, from an encoding of space and one small network each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

import ministudio
from ministudio.models.geometry.base import BaseImplicitGeometry
from ministudio.models.networks import get_encoding, get_mlp
from ministudio.utils.config import ConfigError, within
from ministudio.utils.errors import did_you_mean
from ministudio.utils.ops import get_activation

NORMAL_TYPES = ("finite_difference", "finite_difference_laplacian", "pred", "analytic")


@ministudio.register("implicit-volume")
class ImplicitVolume(BaseImplicitGeometry):
    @dataclass
    class Config(BaseImplicitGeometry.Config):
        n_input_dims: int = 3
        n_feature_dims: int = 3
        density_activation: Optional[str] = "softplus"
        density_bias: Any = "blob_magic3d"  # blob_magic3d | blob_dreamfusion | a number; added before the activation
        density_blob_scale: float = 10.0
        density_blob_std: float = 0.5  # world units
        pos_encoding_config: dict = field(
            default_factory=lambda: {
                "otype": "HashGrid",
                "n_levels": 16,
                "n_features_per_level": 2,
                "log2_hashmap_size": 19,
                "base_resolution": 16,
                "per_level_scale": 1.447269237440378,
            }
        )
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "VanillaMLP",
                "activation": "ReLU",
                "output_activation": "none",
                "n_neurons": 64,
                "n_hidden_layers": 1,
            }
        )
        normal_type: Optional[str] = "finite_difference"  # one of NORMAL_TYPES; null if no material needs normals
        finite_difference_normal_eps: float = 0.01  # world units
        isosurface_threshold: Any = 25.0
        anneal_density_blob_std_config: Optional[dict] = None  # without effect, as in threestudio

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self._check()
        with within("pos_encoding_config"):
            self.encoding = get_encoding(self.cfg.n_input_dims, self.cfg.pos_encoding_config)
        self.density_network = self._head(1)
        if self.cfg.n_feature_dims > 0:
            self.feature_network = self._head(self.cfg.n_feature_dims)
        if self.cfg.normal_type == "pred":
            self.normal_network = self._head(3)
        self.density_activation = get_activation(self.cfg.density_activation)

    def _head(self, n_output_dims: int) -> torch.nn.Module:
        with within("mlp_network_config"):
            return get_mlp(self.encoding.n_output_dims, n_output_dims, self.cfg.mlp_network_config)

    def _check(self) -> None:
        if self.cfg.n_input_dims != 3:
            raise ConfigError("n_input_dims", f"is 3 for a volume, not {self.cfg.n_input_dims}")
        if self.cfg.normal_type is not None and self.cfg.normal_type not in NORMAL_TYPES:
            problem = f'there is no normal type "{self.cfg.normal_type}"'
            raise ConfigError("normal_type", problem + did_you_mean(self.cfg.normal_type, NORMAL_TYPES))
        if not self.cfg.finite_difference_normal_eps > 0:
            raise ConfigError("finite_difference_normal_eps", f"must be positive, not {self.cfg.finite_difference_normal_eps}")
        self._check_number("density_bias", "blob_magic3d", "blob_dreamfusion")

    # --- the field -------------------------------------------------------------------------------

    def _encode(self, points: Tensor) -> Tensor:
        """Points (N, 3) in world units to features (N, E)."""
        return self.encoding((points + self.cfg.radius) * (0.5 / self.cfg.radius))

    def _density(self, points: Tensor, encoded: Tensor) -> Tensor:
        """Density (N, 1) per world unit of length."""
        return self.density_activation(self.density_network(encoded) + self._bias(points))

    def _bias(self, points: Tensor) -> Any:
        """What the untrained field looks like: a blob at the origin, (N, 1), or a constant."""
        kind, scale, std = self.cfg.density_bias, self.cfg.density_blob_scale, self.cfg.density_blob_std
        if kind == "blob_magic3d":
            return scale * (1.0 - points.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt() / std)
        if kind == "blob_dreamfusion":
            return scale * torch.exp(-0.5 * points.square().sum(-1, keepdim=True) / std**2)
        return kind

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """Everything that is known of points.

        Args:
            points: (..., 3) in world units; outside the box the field is extrapolated.
            output_normal: also unit normals, which point out of the density.

        Returns:
            density (..., 1); features (..., n_feature_dims) if any; normal and shading_normal
            (..., 3) if asked for.
        """
        shape, points = points.shape[:-1], points.reshape(-1, 3)
        analytic = output_normal and self.cfg.normal_type == "analytic"
        with torch.set_grad_enabled(torch.is_grad_enabled() or analytic):
            points = points.detach().requires_grad_() if analytic and not points.requires_grad else points
            encoded = self._encode(points)
            density = self._density(points, encoded)
            result = {"density": density}
            if self.cfg.n_feature_dims > 0:
                result["features"] = self.feature_network(encoded)
            if output_normal:
                result["normal"] = result["shading_normal"] = self._normal(points, encoded, density)
        if analytic and not self.training:
            result = {key: value.detach() for key, value in result.items()}
        return {key: value.view(*shape, value.shape[-1]) for key, value in result.items()}

    def forward_density(self, points: Tensor) -> Tensor:
        """Points (..., 3) to density (..., 1)."""
        rows = points.reshape(-1, 3)
        return self._density(rows, self._encode(rows)).view(*points.shape[:-1], 1)

    def forward_field(self, points: Tensor) -> tuple[Tensor, Optional[Tensor]]:
        return self.forward_density(points), None

    def forward_level(self, field: Tensor, threshold: float) -> Tensor:
        return threshold - field

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        if self.cfg.n_feature_dims == 0:
            return {}
        rows = points.reshape(-1, 3)
        return {"features": self.feature_network(self._encode(rows)).view(*points.shape[:-1], self.cfg.n_feature_dims)}

    # --- normals ---------------------------------------------------------------------------------

    def _normal(self, points: Tensor, encoded: Tensor, density: Tensor) -> Tensor:
        """Unit normals (N, 3): minus the gradient of the density, or what its own network says."""
        if self.cfg.normal_type is None:
            raise ConfigError("system.geometry.normal_type", "is null, but the material needs normals: choose one")
        if self.cfg.normal_type == "pred":
            slope = self.normal_network(encoded)
        elif self.cfg.normal_type == "analytic":
            (gradient,) = torch.autograd.grad(density.sum(), points, create_graph=self.training)
            slope = -gradient
        else:
            slope = self._difference(points, density)
        return F.normalize(slope, dim=-1)

    def _difference(self, points: Tensor, density: Tensor) -> Tensor:
        """Minus the gradient of the density, one-sided or ("laplacian") central, (N, 3)."""
        step = torch.eye(3, device=points.device) * self.cfg.finite_difference_normal_eps
        forward = self.forward_density(self._inside(points.unsqueeze(1) + step)).squeeze(-1)
        if self.cfg.normal_type == "finite_difference":
            return (density - forward) / self.cfg.finite_difference_normal_eps
        backward = self.forward_density(self._inside(points.unsqueeze(1) - step)).squeeze(-1)
        return (backward - forward) / (2.0 * self.cfg.finite_difference_normal_eps)

    def _inside(self, points: Tensor) -> Tensor:
        return points.clamp(-self.cfg.radius, self.cfg.radius)
