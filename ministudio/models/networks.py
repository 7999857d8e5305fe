"""Encodings and small networks by the names that YAML files use for them."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import ministudio
from ministudio.models.encodings.frequency import Frequency
from ministudio.models.encodings.hash_grid import HashGrid
from ministudio.models.encodings.progressive import ProgressiveBandFrequency, ProgressiveBandHashGrid
from ministudio.models.encodings.spherical_harmonics import SphericalHarmonics
from ministudio.utils.base import Updateable
from ministudio.utils.config import ConfigError, check_keys, config_to_primitive, whole
from ministudio.utils.errors import did_you_mean
from ministudio.utils.ops import get_activation

_ENCODINGS = {
    "HashGrid": HashGrid,
    "Grid": HashGrid,
    "ProgressiveBandHashGrid": ProgressiveBandHashGrid,
    "Frequency": Frequency,
    "ProgressiveBandFrequency": ProgressiveBandFrequency,
    "SphericalHarmonics": SphericalHarmonics,
}
_MLPS = ("VanillaMLP", "FullyFusedMLP", "CutlassMLP")
_MLP_KEYS = ("otype", "activation", "output_activation", "n_neurons", "n_hidden_layers")


class CompositeEncoding(nn.Module, Updateable):
    """An encoding, with the input itself (mapped to [-1, 1]) in front of it if `include_xyz`."""

    def __init__(self, encoding: nn.Module, include_xyz: bool) -> None:
        super().__init__()
        self.encoding, self.include_xyz = encoding, include_xyz
        self.n_input_dims = encoding.n_input_dims
        self.n_output_dims = encoding.n_output_dims + include_xyz * encoding.n_input_dims

    def forward(self, x: Tensor) -> Tensor:
        """x (N, n_input_dims) in [0, 1] -> (N, n_output_dims)."""
        features = self.encoding(x)
        return torch.cat([x * 2.0 - 1.0, features], dim=-1) if self.include_xyz else features


def get_encoding(n_input_dims: int, config: Any) -> CompositeEncoding:
    """The encoding that config["otype"] names.

    Raises:
        ConfigError: no such encoding, or keys that it cannot have.
    """
    config = _primitive(config)
    otype = config.get("otype")
    if otype not in _ENCODINGS:
        raise ConfigError("otype", f'there is no encoding "{otype}"{did_you_mean(str(otype), _ENCODINGS)}')
    encoding = _ENCODINGS[otype](n_input_dims, config)
    return CompositeEncoding(encoding, bool(config.get("include_xyz", False)))


class VanillaMLP(nn.Module):
    """Linear layers without bias, with ReLU between them, always in float32."""

    def __init__(self, n_input_dims: int, n_output_dims: int, config: dict[str, Any]) -> None:
        super().__init__()
        widths = [n_input_dims] + [config["n_neurons"]] * config["n_hidden_layers"]
        layers: list[nn.Module] = []
        for n_in, n_out in zip(widths, widths[1:]):
            layers += [nn.Linear(n_in, n_out, bias=False), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], n_output_dims, bias=False))
        self.output_activation = get_activation(config.get("output_activation", None))
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims

    def forward(self, x: Tensor) -> Tensor:
        """x (N, n_input_dims) -> (N, n_output_dims)."""
        with torch.autocast(x.device.type, enabled=False):
            return self.output_activation(self.layers(x.float()))


def get_mlp(n_input_dims: int, n_output_dims: int, config: Any) -> VanillaMLP:
    """The network that config["otype"] names; tinycudann's fused ones become a VanillaMLP of their size.

    Raises:
        ConfigError: no such network, an unknown key, or a missing size.
    """
    config = _primitive(config)
    otype = config.get("otype")
    if otype not in _MLPS:
        raise ConfigError("otype", f'there is no network "{otype}"{did_you_mean(str(otype), _MLPS)}')
    check_keys(config, _MLP_KEYS)
    for key, least in (("n_neurons", 1), ("n_hidden_layers", 0)):
        if key not in config:
            raise ConfigError(key, "is missing: the network needs it")
        config[key] = whole(key, config[key], least)
    if otype != "VanillaMLP":
        ministudio.info(f"{otype} is a kernel of tinycudann: a VanillaMLP of the same size takes its place")
    return VanillaMLP(n_input_dims, n_output_dims, config)


def _primitive(config: Any) -> dict[str, Any]:
    return config_to_primitive(config) if isinstance(config, DictConfig) else dict(config)
