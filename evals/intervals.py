"""Means with their uncertainty: standard errors clustered by question, and differences between models.

Formulas follow E. Miller, "Adding Error Bars to Evals" (arXiv:2411.00640): items of one cluster, such as questions
about one text or several answers to one question, may agree with each other, and clusters are independent.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

Score = float | tuple[float, float]
"""A number, whose mean over items is the metric; or a numerator and a denominator, whose sums' ratio is the metric."""

LEVEL = 0.95
"""Probability with which an interval covers the true value."""


class Estimate(NamedTuple):
    """A value measured on items, with its uncertainty."""

    value: float
    """The mean, ratio or difference."""

    stderr: float
    """Its standard error, clustered; nan with fewer than two clusters."""

    low: float
    """Lower end of the 95% interval; nan with fewer than two clusters."""

    high: float
    """Upper end of the 95% interval."""

    n: int
    """Number of items."""

    clusters: int
    """Number of clusters."""

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def mean(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, weights: Sequence[float] | None = None
) -> Estimate:
    """The mean of values.

    The interval is Student's with one degree of freedom less than clusters. Values that are all 0 or 1 get Wilson's
    interval for a proportion, with as many items as would have the same standard error without clusters: it stays
    within [0, 1] and has a width even where all values are equal.

    Args:
      values: one value of each item.
      clusters: the cluster of each item; None: each item is one.
      weights: how much each item counts; None: all the same.

    Raises:
      ValueError: there are no values, or not as many clusters.
    """
    values_N = np.asarray(values, np.float64)
    weights_N = np.ones_like(values_N) if weights is None else np.asarray(weights, np.float64)
    found = ratio(values_N * weights_N, weights_N, clusters)
    if found.clusters < 2 or not np.isin(values_N, (0.0, 1.0)).all():
        return found
    p, variance = found.value, found.value * (1 - found.value)
    if variance and found.stderr:
        independent = variance / found.stderr**2
    else:
        sums_C = weights_N if clusters is None else _sums(weights_N, clusters)
        independent = float(sums_C.sum() ** 2 / (sums_C**2).sum())
    low, high = wilson(p, independent, quantile(found.clusters))
    return found._replace(low=low, high=high)


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """The ratio of two sums over items, such as bits to bytes; its standard error is that of a linearised ratio.

    Args:
      numerators: the numerator of each item.
      denominators: the denominator of each item.
      clusters: the cluster of each item; None: each item is one.

    Raises:
      ValueError: there are no items, the numbers of items differ, or the denominators add up to 0.
    """
    value, influence_N = _linearised(numerators, denominators)
    return _estimate(value, influence_N, clusters)


def difference(a: Sequence[Score], b: Sequence[Score], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The difference a - b of two means, or ratios, over the same items (a paired difference).

    Where each item's difference is -1, 0 or 1, as between answers that are right or wrong, the interval is that of A.
    Agresti and Y. Min (Statistics in Medicine, 2005): half an item is added for each of the four outcomes of a pair. It
    has a width even where all items agree.

    Args:
      a: a score of each item: a number, or a numerator and a denominator.
      b: another score of each item.
      clusters: the cluster of each item; None: each item is one.

    Raises:
      ValueError: there are no items, or not as many of each.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values: a paired difference needs the same items")
    (first, first_N), (second, second_N) = (_linearised(*parts(scores)) for scores in (a, b))
    found = _estimate(first - second, first_N - second_N, clusters)
    is_plain = not any(isinstance(score, tuple | list) for score in (*a, *b))
    if found.clusters < 2 or not is_plain or not np.isin(np.subtract(a, b), (-1.0, 0.0, 1.0)).all():
        return found
    apart_N = np.subtract(a, b)
    sums_C = apart_N if clusters is None else _sums(apart_N, clusters)
    size, n = len(apart_N) / len(sums_C), len(apart_N)
    value = apart_N.sum() / (n + 2 * size)
    stderr = math.sqrt(float((sums_C**2).sum()) + size**2 - n * size * (apart_N.sum() / n) ** 2) / (n + 2 * size)
    half = quantile(len(sums_C)) * stderr
    return found._replace(low=max(value - half, -1.0), high=min(value + half, 1.0))


def parts(scores: Sequence[Score]) -> tuple[list[float], list[float]]:
    """Numerators and denominators of scores; a plain number has the denominator 1."""
    pairs = [score if isinstance(score, tuple | list) else (score, 1.0) for score in scores]
    return [top for top, _ in pairs], [bottom for _, bottom in pairs]


def _linearised(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, np.ndarray]:
    """The ratio of two sums, and what each item adds to its error."""
    top_N, bottom_N = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if not len(top_N) or len(top_N) != len(bottom_N):
        raise ValueError(f"{len(top_N)} numerators and {len(bottom_N)} denominators: give as many, one at least")
    total = bottom_N.sum()
    if not total:
        raise ValueError("the denominators add up to 0")
    value = top_N.sum() / total
    return float(value), (top_N - value * bottom_N) / total


def _estimate(value: float, influence_N: np.ndarray, clusters: Sequence[Hashable] | None) -> Estimate:
    """The estimate of a value from what each item adds to its error."""
    n = len(influence_N)
    if clusters is not None and len(clusters) != n:
        raise ValueError(f"{n} items and {len(clusters)} clusters: give the cluster of each item")
    sums_C = influence_N if clusters is None else _sums(influence_N, clusters)
    count = len(sums_C)
    if count < 2:
        return Estimate(value, math.nan, math.nan, math.nan, n, count)
    stderr = math.sqrt(count / (count - 1) * float((sums_C**2).sum()))
    half = quantile(count) * stderr
    return Estimate(value, stderr, value - half, value + half, n, count)


def in_words(difference: Estimate) -> str:
    """Says whether a difference is larger than its uncertainty, as in "inside the noise"."""
    if math.isnan(difference.low):
        return "one question alone has no interval"
    if not difference.stderr and not difference.value:
        return "the same on every item"
    if difference.low <= 0 <= difference.high:
        return "inside the noise"
    return "higher" if difference.value > 0 else "lower"


def wilson(p: float, n: float, z: float | None = None) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion p among n items (E. B. Wilson, 1927).

    z: how many standard errors the interval reaches; None: those of a normal distribution.
    """
    z = float(special.ndtri((1 + LEVEL) / 2)) if z is None else z
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (centre - half) / scale if p > 0 else 0.0, (centre + half) / scale if p < 1 else 1.0


def _sums(values_N: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """The sum of the values of each cluster."""
    places: dict[Hashable, int] = {}
    index_N = [places.setdefault(cluster, len(places)) for cluster in clusters]
    return np.bincount(index_N, values_N)


def quantile(clusters: int) -> float:
    """How many standard errors a 95% interval reaches: Student's, with a degree of freedom less than clusters."""
    return float(special.stdtrit(clusters - 1, (1 + LEVEL) / 2))
