"""The balance over t: every noise level has the same mean, whatever its errors, and the best b stays the same."""

import pytest
import torch

from training.balance import BINS, Balance

T = 1000


def test_after_some_images_every_bin_weighs_its_errors_alike():
    """The geometric mean of what is weighed is 1 in every bin."""
    g = torch.Generator().manual_seed(0)
    balance, t = Balance(T), torch.randint(T, (20_000,), generator=g)
    scale = torch.logspace(-4, 1, T)[t]  # five orders of magnitude between low and high noise
    errors = scale * (0.5 + torch.rand(len(t), generator=g))
    weighed = errors * balance.weights(t, errors)
    for b in range(BINS):
        assert abs(weighed[t * BINS // T == b].log().mean()) < 1e-5


def test_what_was_seen_before_counts():
    balance, t = Balance(T), torch.tensor([10])
    assert balance.weights(t, torch.tensor([4.0])).item() == pytest.approx(0.25)
    assert balance.weights(t, torch.tensor([1.0])).item() == pytest.approx(0.5)  # of 4 and 1: 2
    assert balance.weights(torch.tensor([990]), torch.tensor([0.5])).item() == pytest.approx(2.0)
    assert balance.sums[1].sum() == 3


def test_a_few_blank_pictures_rule_neither_a_bin_nor_the_loss():
    """One in a hundred costs a thousand times the usual: the others keep their weight within a tenth, and it costs 10."""
    balance = Balance(T)
    t, errors = torch.full((1000,), 10), torch.ones(1000)
    errors[::100] = 1000.0
    weights = balance.weights(t, errors)
    assert weights[1].item() == pytest.approx(1.0, abs=0.1)
    assert weights[0].item() * 1000 == pytest.approx(10.0)


def test_an_exact_identity_gives_a_finite_weight():
    assert Balance(T).weights(torch.tensor([0]), torch.tensor([0.0])).isfinite().all()


def test_what_is_not_finite_leaves_no_trace():
    balance, t = Balance(T), torch.tensor([10, 10])
    weights = balance.weights(t, torch.tensor([2.0, float("nan")]))
    assert weights.isfinite().all() and balance.sums.isfinite().all() and balance.sums[1].sum() == 1
    assert balance.weights(t[:1], torch.tensor([float("inf")])).isfinite().all() and balance.sums[1].sum() == 1
