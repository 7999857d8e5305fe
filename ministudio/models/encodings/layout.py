"""Where a multiresolution hash grid keeps its features: tinycudann's layout, so that checkpoints fit both.

Level l has S_l = N_min b^l - 1 cells of interpolation per unit length and ceil(S_l) + 1 vertices per
axis (Instant-NGP, eq. 2). A level that fits in 2^T entries is stored densely, a finer one is hashed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from ministudio.utils.config import ConfigError, check_keys, whole

PRIMES = (1, 2654435761, 805459861)  # of the spatial hash, eq. 4; one per axis
_ALSO_ACCEPTED = ("otype", "type", "hash", "interpolation", "include_xyz")


@dataclass(frozen=True)
class GridLayout:
    """Sizes of a grid over [0, 1]^3; the features of all levels lie in one flat vector, level by level."""

    n_levels: int = 16
    n_features_per_level: int = 2  # F
    log2_hashmap_size: int = 19  # T
    base_resolution: int = 16  # N_min
    per_level_scale: float = 2.0  # b

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GridLayout:
        """Read tinycudann's keys.

        Raises:
            ConfigError: an unknown key, or a value that no grid can have.
        """
        known = [f.name for f in fields(cls)]
        check_keys(config, (*known, *_ALSO_ACCEPTED))
        for key, only in (("type", "Hash"), ("interpolation", "Linear"), ("hash", "CoherentPrime")):
            if config.get(key, only) != only:
                raise ConfigError(key, f'only "{only}" is supported, not "{config[key]}"')
        counts = {key: whole(key, config[key]) for key in known if key in config and key != "per_level_scale"}
        scale = config.get("per_level_scale", cls.per_level_scale)
        if not isinstance(scale, (int, float)) or not scale > 0:
            raise ConfigError("per_level_scale", f"must be a positive number, not {scale}")
        return cls(**counts, per_level_scale=scale)

    @property
    def n_output_dims(self) -> int:
        return self.n_levels * self.n_features_per_level

    @cached_property
    def scales(self) -> np.ndarray:
        """S_l, (L,) float32."""
        growth = math.log2(self.per_level_scale)
        return np.array([2.0 ** (level * growth) * self.base_resolution - 1.0 for level in range(self.n_levels)], np.float32)

    @cached_property
    def resolutions(self) -> np.ndarray:
        """Vertices per axis, (L,) int64."""
        return np.ceil(self.scales).astype(np.int64) + 1

    @cached_property
    def sizes(self) -> np.ndarray:
        """Entries per level, (L,) int64; dense sizes are rounded up to a multiple of 8."""
        dense = [-(-int(r) ** 3 // 8) * 8 for r in self.resolutions]
        return np.array([min(size, 1 << self.log2_hashmap_size) for size in dense], np.int64)

    @cached_property
    def hashed(self) -> np.ndarray:
        """Which levels have fewer entries than vertices, (L,) bool."""
        return np.array([int(r) ** 3 > int(s) for r, s in zip(self.resolutions, self.sizes)])

    @cached_property
    def offsets(self) -> np.ndarray:
        """First entry of each level, (L,) int64."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)

    @property
    def n_params(self) -> int:
        return int(self.sizes.sum()) * self.n_features_per_level
