"""Standard errors and intervals against loops, tables and simulation."""

import math

import numpy as np
import pytest

from camelid.evals.intervals import difference, in_words, mean, ratio, wilson


def clustered(values, clusters):
    """The clustered standard error of a mean, by loops over the pairs of each cluster (arXiv:2411.00640, equation 4),
    with the correction for few clusters."""
    n, centre, total = len(values), sum(values) / len(values), 0.0
    for i in range(n):
        for j in range(n):
            if clusters[i] == clusters[j]:
                total += (values[i] - centre) * (values[j] - centre)
    count = len(set(clusters))
    return math.sqrt(count / (count - 1) * total) / n


def test_without_clusters_the_standard_error_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(size=50)
    found = mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert found.high - found.value == pytest.approx(2.0095752 * found.stderr)  # Student's t, 49 degrees of freedom
    assert (found.n, found.clusters) == (50, 50)


def test_items_of_a_cluster_count_together():
    rng = np.random.default_rng(1)
    clusters = rng.integers(0, 12, 60).tolist()
    values = [rng.normal() + cluster for cluster in clusters]
    found = mean(values, clusters)
    assert found.stderr == pytest.approx(clustered(values, clusters))
    assert found.stderr > 1.5 * mean(values).stderr
    assert found.clusters == len(set(clusters))


def test_copies_of_each_item_change_nothing():
    values = np.random.default_rng(2).integers(0, 2, 40).astype(float).tolist()
    once, thrice = mean(values), mean(values * 3, list(range(40)) * 3)
    assert thrice.stderr == pytest.approx(once.stderr) and thrice.n == 120
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize(("p", "n", "interval"), [(0.0, 10, (0.0, 0.2775)), (0.5, 10, (0.2366, 0.7634))])
def test_wilson_s_interval_is_the_published_one(p, n, interval):
    assert wilson(p, n) == pytest.approx(interval, abs=5e-5)


def test_a_score_that_is_right_everywhere_still_has_an_interval():
    found = mean([1.0] * 20)
    assert found.stderr == 0 and found.high == 1.0 and found.low == pytest.approx(20 / (20 + 2.0930241**2))


def test_intervals_cover_the_truth():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(1000):
        strengths = rng.beta(2, 3, 40)  # of clusters; the true mean is 0.4
        values = (rng.random((40, 3)) < strengths[:, None]).astype(float).ravel()
        found = mean(values.tolist(), np.repeat(np.arange(40), 3).tolist())
        covered += found.low <= 0.4 <= found.high
    assert 930 <= covered <= 970


def test_a_ratio_has_the_jackknife_s_error():
    rng = np.random.default_rng(4)
    bottom = rng.integers(50, 500, 200)
    top = bottom * rng.normal(1.3, 0.2, 200)
    found = ratio(top, bottom)
    left_out = np.array([(top.sum() - t) / (bottom.sum() - b) for t, b in zip(top, bottom, strict=True)])
    jackknife = math.sqrt(199 / 200 * ((left_out - left_out.mean()) ** 2).sum())
    assert found.value == pytest.approx(top.sum() / bottom.sum())
    assert found.stderr == pytest.approx(jackknife, rel=0.02)


def test_a_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 1, 100)
    a, b = (hard + 0.1).tolist(), (hard + rng.normal(0, 0.05, 100)).tolist()
    found = difference(a, b)
    assert found.value == pytest.approx(np.mean(a) - np.mean(b))
    assert found.stderr == pytest.approx(np.std(np.subtract(a, b), ddof=1) / 10)
    assert found.stderr < 0.1 * mean(a).stderr and in_words(found) == "higher"


def test_differences_of_ratios_are_paired_too():
    rng = np.random.default_rng(6)
    size = rng.integers(50, 500, 300)
    rate = rng.normal(1.3, 0.2, 300)
    a, b = list(zip(size * rate, size, strict=True)), list(zip(size * (rate - 0.01), size, strict=True))
    found = difference(a, b)
    assert found.value == pytest.approx(0.01) and found.stderr < 1e-12
    assert in_words(found) == "higher" and in_words(difference(b, a)) == "lower"


def test_a_rare_difference_is_covered_too():
    """20 and 50 items of which one in 20 or 33 differs: an interval of the standard error alone covers 63% and 78%."""
    rng = np.random.default_rng(7)
    for n, p in ((20, 0.05), (50, 0.03)):
        covered = 0
        for _ in range(1000):
            apart = (rng.random(n) < p).astype(float).tolist()
            found = difference(apart, [0.0] * n)
            covered += found.low <= p <= found.high
        assert covered >= 940


def test_few_clusters_are_covered():
    rng, covered = np.random.default_rng(8), 0
    for _ in range(1000):
        strengths = rng.beta(2, 2, 4)
        values = (rng.random((4, 10)) < strengths[:, None]).astype(float).ravel()
        found = mean(values.tolist(), np.repeat(np.arange(4), 10).tolist())
        covered += found.low <= 0.5 <= found.high
    assert covered >= 920


def test_weights_count_items_more_or_less():
    values, weights = [1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 1.0, 1.0]
    found = mean(values, weights=weights)
    assert found.value == pytest.approx(0.5) and 0 < found.low < 0.5 < found.high < 1
    assert mean([1.0] * 4, weights=weights).low < 0.7


def test_words_say_what_is_noise():
    assert in_words(difference([1.0, 0.0, 1.0], [0.0, 1.0, 1.0])) == "inside the noise"
    same = difference([1.0, 0.0], [1.0, 0.0])
    assert in_words(same) == "the same on every item" and same.low < 0 < same.high
    assert "no interval" in in_words(difference([1.0], [0.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean([]), "0 numerators"),
        (lambda: mean([1.0, 2.0], ["a"]), "2 items and 1 clusters"),
        (lambda: ratio([1.0], [0.0]), "add up to 0"),
        (lambda: difference([1.0], [1.0, 2.0]), "needs the same items"),
    ],
)
def test_what_has_no_mean_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
