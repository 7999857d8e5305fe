"""Every noise level counts alike: the loss of an image is divided by what the identity costs at its t.

x̂ differs from x a thousand times as much at high noise as at low, so that a plain mean trains high noise only, and b is
no better than x itself where x̂ is close. What it is divided by depends on t alone, so the best b stays the same.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor

BINS = 20  # of t


class Balance:
    """Mean error of the identity in each bin of t, over all images that a run has seen."""

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps
        self.sums = torch.zeros(2, BINS, dtype=torch.float64)  # of errors, of images

    def weights(self, t: Tensor, identity: Tensor) -> Tensor:
        """1 / mean error for each image (B,), after its own error `identity` (B,), of x as x̂, is counted."""
        bins = (t * BINS // self.num_timesteps).cpu()
        seen = torch.zeros_like(self.sums)
        seen[0].index_add_(0, bins, identity.double().cpu())
        seen[1].index_add_(0, bins, torch.ones(len(bins), dtype=torch.float64))
        self.sums += _over_processes(seen, t.device)
        mean = self.sums[0, bins] / self.sums[1, bins]
        return (1 / mean.clamp(min=1e-8)).to(identity)


def _over_processes(sums: Tensor, device: torch.device) -> Tensor:
    """The sum over all processes of a run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        sums = sums.to(device)
        torch.distributed.all_reduce(sums)
    return sums.cpu()
