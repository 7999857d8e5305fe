"""Bootstrap intervals for figures of several prompts and seeds."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 4  # groups that an interval needs: resampling cannot leave the range of the data, which of two holds half of all means


class Estimate(NamedTuple):
    """A figure with its interval, and the number of images that it rests on."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} {self.interval}"

    @property
    def interval(self) -> str:
        """The interval in words; too few values have none."""
        if np.isfinite(self.high - self.low):
            return f"[{self.low:.3f}, {self.high:.3f}]"
        return "(one value)" if self.n == 1 else "(too few)"


def mean(values: Sequence[float], groups: Sequence | None = None, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean with a percentile bootstrap interval.

    groups: what each value belongs to (its prompt). Whole groups are drawn, with all their seeds, because images of
    one prompt are alike; with one group only, single values are drawn, and the interval is about that prompt alone.
    Fewer than FEWEST say too little of their spread: the interval is infinite.
    """

    def resampled(clusters: list[np.ndarray], drawn: np.ndarray) -> np.ndarray:
        sums, counts = np.array([c.sum() for c in clusters]), np.array([len(c) for c in clusters])
        return sums[drawn].sum(1) / counts[drawn].sum(1)

    return _percentile(np.mean, resampled, values, groups, seed, resamples)


def median(values: Sequence[float], groups: Sequence | None = None, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Median, otherwise as `mean`."""

    def resampled(clusters: list[np.ndarray], drawn: np.ndarray) -> np.ndarray:
        return np.array([np.median(np.concatenate([clusters[i] for i in row])) for row in drawn])

    return _percentile(np.median, resampled, values, groups, seed, resamples)


def _percentile(
    statistic: Callable, resampled: Callable, values: Sequence[float], groups: Sequence | None, seed: int, resamples: int
) -> Estimate:
    """The statistic of all values; `resampled(clusters, drawn)` gives it for each row of drawn clusters, (resamples,)."""
    values = np.asarray(values, np.float64)
    clusters = _clusters(values, groups)
    if len(clusters) < FEWEST:
        return Estimate(float(statistic(values)), -np.inf, np.inf, len(values))
    drawn = np.random.default_rng(seed).integers(len(clusters), size=(resamples, len(clusters)))
    return Estimate(float(statistic(values)), *_quantiles(resampled(clusters, drawn), len(clusters)), len(values))


def difference(
    a: Sequence[float], b: Sequence[float], groups: Sequence | None = None, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Mean of a - b, item by item (the same prompts and seeds under two methods), with its interval."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values against {len(b)}; a paired difference needs the same items")
    return mean(np.asarray(a, np.float64) - np.asarray(b, np.float64), groups, seed, resamples)


def pairs(matrix: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Mean of a symmetric matrix (N, N) off its diagonal, such as distances of seeds, with an interval over its items.

    Items are drawn, and pairs of an item with itself left out. Two items have one pair, which says nothing of its spread.
    """
    n, rng = len(matrix), np.random.default_rng(seed)

    def off_diagonal(drawn: np.ndarray) -> float:
        others = drawn[:, None] != drawn[None]
        return matrix[np.ix_(drawn, drawn)][others].mean() if others.any() else np.nan

    value = float(off_diagonal(np.arange(n)))
    if n == 2:
        return Estimate(value, -np.inf, np.inf, 1)
    drawn = np.array([off_diagonal(rng.integers(n, size=n)) for _ in range(resamples)])
    return Estimate(value, *_quantiles(drawn[np.isfinite(drawn)], n), n * (n - 1) // 2)


def basic(
    statistic: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray, groups_a: Sequence | None = None,
    groups_b: Sequence | None = None, seed: int = 0, resamples: int = 200,
) -> Estimate:
    """A non-negative statistic of rows a (N, …) and b (M, …), less its bias, with a basic (reversed percentile) interval.

    For distances between distributions, which few rows bias upwards: resampling shows by how much, since it adds about
    the same bias once more. groups: what each row belongs to (its prompt), the same on both sides. The same groups are then
    drawn on both, so that what they share cancels as it does in the statistic; with fewer than two, rows of each side.
    """
    value, rng = statistic(a, b), np.random.default_rng(seed)
    members_a, members_b = _members(len(a), groups_a), _members(len(b), groups_b)
    joined = sorted(members_a) == sorted(members_b) and groups_a is not None and len(members_a) > 1
    if joined:
        sides = [[members[key] for key in members_a] for members in (members_a, members_b)]
    else:
        sides = [list(_members(len(rows), None).values()) for rows in (a, b)]

    def draw() -> float:
        of_a = rng.choice(len(sides[0]), len(sides[0]))
        of_b = of_a if joined else rng.choice(len(sides[1]), len(sides[1]))
        rows = [np.concatenate([side[k] for k in keys]) for side, keys in zip(sides, (of_a, of_b))]
        return statistic(a[rows[0]], b[rows[1]])

    drawn = np.array([draw() for _ in range(resamples)])
    low, high = _quantiles(drawn, len(sides[0]))
    return Estimate(*(max(0.0, 2 * value - q) for q in (drawn.mean(), high, low)), len(a))


def _members(count: int, groups: Sequence | None) -> dict[Any, np.ndarray]:
    """Group → indices of its rows; without groups each row is its own."""
    members: dict[Any, list[int]] = {}
    for i, key in enumerate(range(count) if groups is None else groups):
        members.setdefault(key, []).append(i)
    return {key: np.array(rows) for key, rows in members.items()}


def _clusters(values: np.ndarray, groups: Sequence | None) -> list[np.ndarray]:
    if len(values) == 0:
        raise ValueError("no values to average")
    members = _members(len(values), groups)
    return [values[rows] for rows in (members if len(members) > 1 else _members(len(values), None)).values()]


def _quantiles(values: np.ndarray, clusters: int) -> tuple[float, float]:
    """The ends of the interval: quantiles further out the fewer the clusters, so that few do not look certain.

    The "expanded percentile interval" (Hesterberg 2015, What Teachers Should Know about the Bootstrap, 4.3): the
    normal quantile of the level is replaced by Student's, times (n / (n - 1))^½.
    """
    far = stats.t.ppf((1 + LEVEL) / 2, clusters - 1) * np.sqrt(clusters / (clusters - 1))
    low, high = np.quantile(values, stats.norm.cdf([-far, far]))
    return float(low), float(high)
