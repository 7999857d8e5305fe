"""Bootstrap intervals: they cover the truth as often as they claim, and respect groups and pairs."""

import numpy as np
import pytest

from imaging import bootstrap


def test_coverage_of_the_mean_of_groups():
    """Prompts differ more than seeds do: only intervals over whole prompts cover the truth at their level."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 3).tolist()
    hits = {"grouped": 0, "single": 0}
    for trial in range(200):
        values = np.repeat(rng.normal(size=40), 3) + 0.2 * rng.normal(size=120)
        for name, by in {"grouped": groups, "single": None}.items():
            estimate = bootstrap.mean(values, by, seed=trial, resamples=300)
            hits[name] += estimate.low <= 0 <= estimate.high
    assert 0.88 <= hits["grouped"] / 200 <= 0.99
    assert hits["single"] / 200 < 0.85


@pytest.mark.parametrize("count", [4, 8, 24])
def test_coverage_holds_for_few_prompts(count):
    rng = np.random.default_rng(count)
    draws = [bootstrap.mean(rng.normal(size=count), seed=trial, resamples=1000) for trial in range(300)]
    covered = sum(e.low <= 0 <= e.high for e in draws) / len(draws)
    assert covered >= (0.85 if count == 4 else 0.91)  # of four values it cannot leave the range; plain quantiles: 0.78


def test_the_mean_is_the_mean_and_seeded():
    values, groups = [1.0, 2.0, 3.0, 10.0, 10.0, 10.0], ["a", "a", "a", "b", "c", "d"]
    first = bootstrap.mean(values, groups)
    assert first.value == 6.0 and first.n == 6 and first == bootstrap.mean(values, groups)
    assert first.low == pytest.approx(2.0) and first.high == pytest.approx(10.0)  # only a drawn, a never


def test_one_group_falls_back_to_single_values():
    estimate = bootstrap.mean([0.0, 1.0, 0.0, 1.0], ["p"] * 4)
    assert estimate.low < 0.5 < estimate.high


def test_a_single_value_has_no_finite_interval():
    estimate = bootstrap.mean([0.3])
    assert estimate.value == 0.3 and (estimate.low, estimate.high) == (-np.inf, np.inf)
    assert str(estimate) == "0.300 (one value)"


def test_three_prompts_have_none_either():
    """Resampled means stay within the data, where the mean of three normal values lies beyond it once in four times."""
    estimate = bootstrap.mean([0.1, 0.1, 0.3, 0.5], ["a", "a", "b", "c"])
    assert (estimate.low, estimate.high) == (-np.inf, np.inf) and str(estimate) == "0.250 (too few)"


def test_a_paired_difference_is_narrower_than_its_parts():
    rng = np.random.default_rng(1)
    base = rng.normal(size=50)
    pair = bootstrap.difference(base + 0.1 + 0.01 * rng.normal(size=50), base)
    assert 0.09 < pair.low < pair.value < pair.high < 0.11
    with pytest.raises(ValueError, match="same items"):
        bootstrap.difference([1.0], [1.0, 2.0])


def test_basic_takes_off_the_bias_of_few_rows():
    """The squared mean of n draws of variance 1 around 0.3 is 0.09 on average, plus a bias of 1/n."""
    nought = np.zeros((2, 1))
    statistic = lambda a, b: float((a.mean() - b.mean()) ** 2)  # noqa: E731
    draws = [np.random.default_rng(i).normal(0.3, 1, size=(20, 1)) for i in range(300)]
    raw = np.mean([statistic(rows, nought) for rows in draws])
    estimates = [bootstrap.basic(statistic, rows, nought, resamples=60) for rows in draws]
    assert raw == pytest.approx(0.09 + 1 / 20, abs=0.02)
    # `max(0, …)` keeps a little of the bias
    assert abs(np.mean([e.value for e in estimates]) - 0.09) < 0.6 * (raw - 0.09)
    assert all(0 <= e.low <= e.value <= e.high for e in estimates)


def test_basic_draws_whole_groups():
    rows = np.repeat(np.random.default_rng(0).normal(1, 1, size=(10, 1)), 5, axis=0)
    groups = np.repeat(np.arange(10), 5).tolist()
    apart = lambda a, b: abs(float(a.mean() - b.mean()))  # noqa: E731
    width = lambda *both: np.ptp(bootstrap.basic(apart, rows, 0 * rows, *both)[1:3])  # noqa: E731
    assert width(groups, groups) > 1.5 * width()


def test_basic_draws_the_same_groups_on_both_sides():
    """Two sides that differ by 1 whatever the group differ by 1 in every resample, in whatever order their rows are."""
    a, groups = np.arange(20.0)[:, None], [i // 2 for i in range(20)]
    b, order = a + 1, np.random.default_rng(0).permutation(20)
    apart = lambda a, b: float(abs(a.mean() - b.mean()))  # noqa: E731
    joint = bootstrap.basic(apart, a, b[order], groups, [groups[i] for i in order])
    assert joint[:3] == pytest.approx((1, 1, 1))
    assert np.ptp(bootstrap.basic(apart, a, b)[1:3]) > 1


def test_pairs_of_items_have_the_interval_of_their_items():
    """Distances |x - y| of normal draws: the mean over pairs is 2 / √π; its interval covers that, and is wider than one
    that takes the pairs for independent."""
    covered, wide = 0, []
    for trial in range(40):
        x = np.random.default_rng(trial).normal(size=12)
        matrix = abs(x[:, None] - x[None])
        found = bootstrap.pairs(matrix, resamples=300)
        assert found.value == pytest.approx(matrix[np.triu_indices(12, 1)].mean()) and found.n == 66
        covered += found.low <= 2 / np.pi**0.5 <= found.high
        wide.append(np.ptp(found[1:3]) / np.ptp(bootstrap.mean(matrix[np.triu_indices(12, 1)])[1:3]))
    assert covered >= 34 and np.mean(wide) > 1.5
    assert not np.isfinite(bootstrap.pairs(np.ones((2, 2))).low)


def test_nothing_to_average():
    with pytest.raises(ValueError, match="no values"):
        bootstrap.mean([])
