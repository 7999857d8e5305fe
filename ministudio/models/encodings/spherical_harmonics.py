"""Directions as real spherical harmonics: smooth functions on the sphere, ordered by detail."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ministudio.utils.config import ConfigError, check_keys, whole


class SphericalHarmonics(nn.Module):
    """otype SphericalHarmonics: unit directions, mapped from [-1, 1] to [0, 1], to degree^2 values.

    As tinycudann counts, `degree` n means all bands below n; 1 to 4.
    """

    def __init__(self, n_input_dims: int, config: dict[str, Any]) -> None:
        super().__init__()
        check_keys(config, ("otype", "include_xyz", "degree"))
        self.degree = whole("degree", config.get("degree", 4))
        if n_input_dims != 3:
            raise ConfigError("otype", f"SphericalHarmonics encodes directions in space, not {n_input_dims} inputs")
        if not 1 <= self.degree <= 4:
            raise ConfigError("degree", f"of SphericalHarmonics is 1 to 4, not {self.degree}")
        self.n_input_dims, self.n_output_dims = n_input_dims, self.degree**2

    def forward(self, directions: Tensor) -> Tensor:
        x, y, z = (directions * 2.0 - 1.0).unbind(-1)
        bands = (_band0, _band1, _band2, _band3)[: self.degree]
        return torch.stack([value for band in bands for value in band(x, y, z)], dim=-1)


def _band0(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    return [torch.full_like(x, 0.28209479177387814)]


def _band1(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    return [-0.48860251190291987 * y, 0.48860251190291987 * z, -0.48860251190291987 * x]


def _band2(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    return [
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.94617469575755997 * z * z - 0.31539156525251999,
        -1.0925484305920792 * x * z,
        0.54627421529603959 * (x * x - y * y),
    ]


def _band3(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    return [
        0.59004358992664352 * y * (y * y - 3.0 * x * x),
        2.8906114426405538 * x * y * z,
        0.45704579946446572 * y * (1.0 - 5.0 * z * z),
        0.3731763325901154 * z * (5.0 * z * z - 3.0),
        0.45704579946446572 * x * (1.0 - 5.0 * z * z),
        1.4453057213202769 * z * (x * x - y * y),
        0.59004358992664352 * x * (3.0 * y * y - x * x),
    ]
