"""The balance over t: every noise level has the same mean, whatever its errors, and the best b stays the same."""

import pytest
import torch

from training.balance import BINS, Balance

T = 1000


def test_after_some_images_every_bin_weighs_its_errors_to_one():
    g = torch.Generator().manual_seed(0)
    balance, t = Balance(T), torch.randint(T, (20_000,), generator=g)
    scale = torch.logspace(-4, 1, T)[t]  # five orders of magnitude between low and high noise
    errors = scale * torch.rand(len(t), generator=g)
    weighed = errors * balance.weights(t, errors)
    for b in range(BINS):
        assert abs(weighed[t * BINS // T == b].mean() - 1) < 1e-5


def test_what_was_seen_before_counts():
    balance, t = Balance(T), torch.tensor([10])
    assert balance.weights(t, torch.tensor([4.0])).item() == 0.25
    assert balance.weights(t, torch.tensor([2.0])).item() == pytest.approx(1 / 3)  # of 4 and 2
    assert balance.weights(torch.tensor([990]), torch.tensor([0.5])).item() == 2.0
    assert balance.sums[1].sum() == 3


def test_an_exact_identity_gives_a_finite_weight():
    assert Balance(T).weights(torch.tensor([0]), torch.tensor([0.0])).isfinite().all()
