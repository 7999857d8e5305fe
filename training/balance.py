"""Every noise level counts alike: the loss of an image is divided by what the identity costs at its t.

x̂ differs from x a thousand times as much at high noise as at low, so that a plain mean trains high noise only, and b is
no better than x itself where x̂ is close. What it is divided by depends on t alone, so the best b stays the same, but for
images that cost far more than others at their t: in a normalised space a blank picture costs a thousand times the usual.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor

BINS = 20  # of t
MOST = 10.0  # times the usual error: what one image may cost
LEAST = 1e-8  # an error below it is rounding


class Balance:
    """The usual error of the identity in each bin of t: the geometric mean over all images that a run has seen.

    A hundredth of blank pictures moves it by a few per cent, where it would rule an arithmetic mean.
    """

    def __init__(self, num_timesteps: int) -> None:
        self.num_timesteps = num_timesteps
        self.sums = torch.zeros(2, BINS, dtype=torch.float64)  # of logarithms of errors, of images

    def weights(self, t: Tensor, identity: Tensor) -> Tensor:
        """1 / usual error for each image (B,), after its own error `identity` (B,), of x as x̂, is counted.

        Less where that error is beyond MOST times the usual. What is not finite is not counted.
        """
        bins, errors = (t * BINS // self.num_timesteps).cpu(), identity.double().cpu().clamp(min=LEAST)
        finite = errors.isfinite()
        seen = torch.zeros_like(self.sums)
        seen[0].index_add_(0, bins[finite], errors[finite].log())
        seen[1].index_add_(0, bins[finite], torch.ones(int(finite.sum()), dtype=torch.float64))
        self.sums += _over_processes(seen, t.device)
        usual = (self.sums[0, bins] / self.sums[1, bins].clamp(min=1)).exp()
        return (1 / usual).minimum(MOST / errors.nan_to_num(nan=LEAST, posinf=LEAST)).to(identity)


def _over_processes(sums: Tensor, device: torch.device) -> Tensor:
    """The sum over all processes of a run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        sums = sums.to(device)
        torch.distributed.all_reduce(sums)
    return sums.cpu()
