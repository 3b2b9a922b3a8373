"""Means with their uncertainty: standard errors clustered by question, and differences between models.

Formulas follow E. Miller, "Adding Error Bars to Evals" (arXiv:2411.00640): items of one cluster, such as questions
about one text or several answers to one question, may agree with each other, and clusters are independent.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

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


def mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The mean of values.

    The interval is Student's with one degree of freedom less than clusters. Values that are all 0 or 1 get Wilson's
    interval for a proportion, with as many items as would have the same standard error without clusters: it stays
    within [0, 1] and has a width even where all values are equal.

    Args:
      values: one value of each item.
      clusters: the cluster of each item; None: each item is one.

    Raises:
      ValueError: there are no values, or not as many clusters.
    """
    values_N = np.asarray(values, np.float64)
    found = ratio(values_N, np.ones_like(values_N), clusters)
    if found.clusters < 2 or not np.isin(values_N, (0.0, 1.0)).all():
        return found
    p, variance = found.value, found.value * (1 - found.value)
    independent = variance / found.stderr**2 if variance and found.stderr else found.clusters
    low, high = wilson(p, independent)
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
    top_N, bottom_N = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if not len(top_N) or len(top_N) != len(bottom_N) or (clusters is not None and len(clusters) != len(top_N)):
        counts = f"{len(top_N)} numerators, {len(bottom_N)} denominators"
        raise ValueError(f"{counts} and {'no' if clusters is None else len(clusters)} clusters: give as many of each")
    total = bottom_N.sum()
    if not total:
        raise ValueError("the denominators add up to 0")
    value = top_N.sum() / total
    sums_C = _sums(top_N - value * bottom_N, clusters)
    count = len(sums_C)
    if count < 2:
        return Estimate(float(value), math.nan, math.nan, math.nan, len(top_N), count)
    stderr = math.sqrt(count / (count - 1) * float((sums_C**2).sum())) / abs(total)
    half = float(special.stdtrit(count - 1, (1 + LEVEL) / 2)) * stderr
    return Estimate(float(value), stderr, float(value - half), float(value + half), len(top_N), count)


def difference(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The mean of a - b over items that both were measured on (a paired difference).

    Raises ValueError if there are no items, or not as many of each.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values: a paired difference needs the same items")
    apart_N = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return ratio(apart_N, np.ones_like(apart_N), clusters)


def in_words(difference: Estimate) -> str:
    """Says whether a difference is larger than its uncertainty, as in "inside the noise"."""
    if math.isnan(difference.low):
        return "one question alone has no interval"
    if not difference.stderr and not difference.value:
        return "the same on every item"
    if difference.low <= 0 <= difference.high:
        return "inside the noise"
    return "higher" if difference.value > 0 else "lower"


def wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion p among n items (E. B. Wilson, 1927)."""
    z = float(special.ndtri((1 + LEVEL) / 2))
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def _sums(values_N: np.ndarray, clusters: Sequence[Hashable] | None) -> np.ndarray:
    """The sum of the values of each cluster."""
    if clusters is None:
        return values_N
    places: dict[Hashable, int] = {}
    index_N = [places.setdefault(cluster, len(places)) for cluster in clusters]
    return np.bincount(index_N, values_N)
