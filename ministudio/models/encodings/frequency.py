"""Fourier features: sines and cosines of doubling frequencies (NeRF, eq. 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ministudio.utils.config import check_keys, whole


class Frequency(nn.Module):
    """otype Frequency: x (N, D) in [0, 1] to sin(2^k pi x) and cos(2^k pi x), (N, 2 D K).

    The order is tinycudann's: for each input all frequencies, sine beside cosine.
    """

    def __init__(self, n_input_dims: int, config: dict[str, Any]) -> None:
        super().__init__()
        check_keys(config, ("otype", "include_xyz", "n_frequencies"))
        self.n_frequencies = whole("n_frequencies", config.get("n_frequencies", 12))
        self.n_input_dims, self.n_output_dims = n_input_dims, n_input_dims * 2 * self.n_frequencies

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.pi * x.unsqueeze(-1) * 2.0 ** torch.arange(self.n_frequencies, device=x.device)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)
