"""Ratings of models from battles: online Elo, Bradley-Terry, control of style, intervals and ranks.

A battle is `(model_a, model_b, winner)` with the winner "a", "b" or "tie"; a tie is half a win for each model. Ratings
are on the scale of chess: with `base` 10 and `scale` 400, a model that is rated 400 points higher wins 10 times as
often as it loses,

    P(a beats b) = 1 / (1 + base ** ((R_b - R_a) / scale)).

In the formulas below r = (R - init) / scale, and x = log(base) * (r_a - r_b) is the log-odds that a beats b. Only
differences of ratings mean something: their mean is `init`, or an anchor fixes one of them.
"""

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from ..errors import UserError, did_you_mean, shown
from .battle_regression import (
    Battle,
    Design,
    Features,
    check,
    check_number,
    count_clusters,
    covariance,
    design_of,
    fit,
    newton,
    reaches,
    resamples,
)
from .intervals import LEVEL

Anchor = str | tuple[str, float]

SEPARATED_RIDGE = 0.01
"""Ridge for a resample of the bootstrap that has no finite ratings: small enough to put a model that lost all its
battles far below one that won a single battle."""


class Interval(NamedTuple):
    """A rating with its 95% interval."""

    low: float
    """Lower end."""

    median: float
    """The median of the resamples; of a sandwich interval the rating itself."""

    high: float
    """Upper end."""

    stderr: float
    """Standard error."""


class Intervals(dict[str, Interval]):
    """Intervals by model, best first."""

    separated: int = 0
    """Number of resamples in which some models won, or lost, every battle against the others, or did not meet them.
    No finite ratings exist there, and `SEPARATED_RIDGE` is used: ends of intervals of such models mean "beyond"."""


class StyleControl(dict[str, float]):
    """Ratings by model, best first, with the influence of style taken out."""

    coefficients: dict[str, float]
    """Log-odds that a standard deviation of each feature adds to a's chance."""

    dropped: tuple[str, ...]
    """Features that are constant over all battles: nothing can be learnt of them, and they are left out."""


class Rank(NamedTuple):
    """A model's place among all models."""

    rank: int
    """1 + number of models that are better beyond the noise."""

    worst: int
    """Number of models - number of models that are worse beyond the noise."""

    tied: tuple[str, ...]
    """Models from which it cannot be told apart: the 95% interval of the difference contains 0."""


def elo(
    battles: Sequence[Battle], *, k: float = 4.0, init: float = 1000.0, base: float = 10.0, scale: float = 400.0
) -> dict[str, float]:
    """Online Elo ratings: after each battle, R_a += k * (score - P(a beats b)) and R_b loses as much.

    Ratings depend on the order of the battles, and later battles weigh more (A. Elo, "The Rating of Chessplayers",
    1978).

    Args:
      battles: the battles in the order in which they took place.
      k: the most points that a battle can move a rating by.
      init: rating of a model before its first battle.
      base, scale: see the module.

    Returns:
      The ratings by model, best first.

    Raises:
      UserError: there are no battles, one is malformed, or an argument is not a finite number within its bounds.
    """
    _check_scale(base, scale)
    k, init = check_number("k", k, above=0), check_number("init", init)
    ratings: dict[str, float] = {}
    for a, b, score in check(battles):
        rating_a, rating_b = ratings.setdefault(a, init), ratings.setdefault(b, init)
        move = k * (score - _logistic(math.log(base) * (rating_a - rating_b) / scale))
        ratings[a], ratings[b] = rating_a + move, rating_b - move
    return _best_first(ratings)


def bradley_terry(
    battles: Sequence[Battle],
    *,
    ridge: float = 0.0,
    init: float = 1000.0,
    base: float = 10.0,
    scale: float = 400.0,
    anchor: Anchor | None = None,
) -> dict[str, float]:
    """Bradley-Terry ratings: the maximum-likelihood ratings of all battles at once, in any order.

    Newton's method minimises sum(-s log P(a beats b) - (1 - s) log P(b beats a)) + ridge / 2 * sum(r ** 2) over r,
    where s is 1, 1/2 or 0 (R. Bradley and M. Terry, 1952; ties as half as in Chiang et al., "Chatbot Arena",
    arXiv:2403.04132).

    Args:
      battles: the battles.
      ridge: pulls ratings towards their mean. Above 0, a model that won or lost all its battles has a finite rating.
      init: mean of the ratings, or the anchor's rating.
      base, scale: see the module.
      anchor: a model whose rating is `init`, or a pair (model, rating).

    Returns:
      The ratings by model, best first.

    Raises:
      UserError: there are no battles, one is malformed, the anchor is in none, or groups of models never met. With
        ridge 0 also if some models won, or lost, every battle against the others: their ratings would be infinite.
    """
    design = design_of(battles)
    params = fit(design, design.count_R, math.log(_check_scale(base, scale)), ridge)
    return _best_first(dict(zip(design.models, _rating(design, params, init, scale, anchor).tolist(), strict=True)))


def style_control(
    battles: Sequence[Battle],
    features: Features,
    *,
    ridge: float = 0.5,
    center: bool = True,
    init: float = 1000.0,
    base: float = 10.0,
    scale: float = 400.0,
    anchor: Anchor | None = None,
) -> StyleControl:
    """Bradley-Terry ratings beside the influence of style, such as length: the log-odds are x + sum_k beta_k * f_k.

    f_k is feature k with mean 0 and standard deviation 1. The penalty is ridge / 2 * (sum(r ** 2) + sum(beta ** 2)).
    The method is that of Li et al., "Does Style Matter?" (LMSYS, 2024), whose ridge is 0.5.

    Args:
      battles: the battles.
      features: for each battle, how much more of something a's answer has than b's: a dict of sequences by name, or an
        array [battles, features]. `relative_difference` makes such numbers of lengths and counts.
      ridge: pulls ratings and coefficients towards 0.
      center: subtracts a feature's mean, which is right where models are a or b at random. False only scales it:
        ratings are then those at equal style, also where one model is always a.
      init, base, scale, anchor: as in `bradley_terry`.

    Returns:
      The ratings, with `coefficients` and `dropped`. A constant feature is left out, with a warning.

    Raises:
      UserError: as `bradley_terry`; or features do not fit the battles, are not finite, or predict the winner perfectly
        or repeat each other while ridge is 0.
    """
    design = design_of(battles, features, center)
    params = fit(design, design.count_R, math.log(_check_scale(base, scale)), ridge)
    ratings = dict(zip(design.models, _rating(design, params, init, scale, anchor).tolist(), strict=True))
    found = StyleControl(_best_first(ratings))
    found.coefficients = dict(zip(design.features, params[len(design.models) :].tolist(), strict=True))
    found.dropped = design.dropped
    return found


def bootstrap(
    battles: Sequence[Battle],
    *,
    rounds: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    features: Features | None = None,
    center: bool = True,
    ridge: float = 0.0,
    init: float = 1000.0,
    base: float = 10.0,
    scale: float = 400.0,
    anchor: Anchor | None = None,
) -> Intervals:
    """95% percentile intervals of Bradley-Terry ratings over resamples of the battles.

    A resample draws as many battles as there are, with replacement: counts of distinct battles are multinomial.
    Clusters are drawn instead where they are given. The same seed gives the same intervals. Percentiles are expanded
    for the number of clusters, or of battles, n: the lower one is Phi(-sqrt(n / (n - 1)) t), with Student's t of n - 1
    degrees of freedom, and the standard error grows by the same root (T. Hesterberg, "What Teachers Should Know about
    the Bootstrap", arXiv:1411.5279, section 4.3). One cluster alone has no interval: its ends are nan.

    Args:
      battles: the battles.
      rounds: number of resamples; 100 give a rough interval, 1000 a smooth one.
      seed: of the random numbers.
      clusters: what each battle shares with battles that are not independent of it, such as the question.
      features, center: with features, the ratings are those of `style_control`.
      ridge, init, base, scale, anchor: as in `bradley_terry`.

    Raises:
      UserError: as `bradley_terry` or `style_control`; or rounds is below 1, or the number of clusters differs.
    """
    for name, value, least in (("rounds", rounds, 1), ("seed", seed, 0)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise UserError(f"{name} is {shown(value)}: give a whole number of {least} or more")
    design = design_of(battles, features, center)
    alpha = math.log(_check_scale(base, scale))
    start = fit(design, design.count_R, alpha, ridge)
    rng, samples, separated = np.random.default_rng(seed), [], 0
    for count_R in resamples(design, clusters, rounds, rng):
        apart = not ridge and not reaches(design, count_R).all()
        separated += apart
        params = newton(design, count_R, alpha, SEPARATED_RIDGE if apart else ridge, start)
        samples.append(_rating(design, params, init, scale, anchor))
    count = count_clusters(design, clusters)
    if count < 2:
        ends, stderr_M = [nan_M := np.full(len(design.models), np.nan), samples[0], nan_M], nan_M
    else:
        grow = math.sqrt(count / (count - 1))
        tail = float(special.ndtr(-grow * _quantile(count - 1)))
        # "weibull" makes the expected share of resamples between the ends right for any number of rounds
        ends = np.quantile(samples, [tail, 0.5, 1 - tail], axis=0, method="weibull")
        stderr_M = grow * np.std(samples, axis=0, ddof=1 if rounds > 1 else 0)
    if separated:
        warnings.warn(
            f"{separated} of {rounds} resamples have no finite ratings, since some models won or lost every battle: "
            f'ends of their intervals mean "beyond"; ridge=0.5 keeps them finite',
            stacklevel=2,
        )
    return _intervals(design.models, *ends, stderr_M, separated)


def sandwich(
    battles: Sequence[Battle],
    *,
    clusters: Sequence[Hashable] | None = None,
    features: Features | None = None,
    center: bool = True,
    ridge: float = 0.0,
    init: float = 1000.0,
    base: float = 10.0,
    scale: float = 400.0,
    anchor: Anchor | None = None,
) -> Intervals:
    """95% intervals of Bradley-Terry ratings from the sandwich covariance, which also holds where the model does not.

    The covariance of r is inv(H) G inv(H): H is the second derivative of the loss and G the sum of g g' over battles,
    or over clusters, where g is a battle's or a cluster's first derivative (P. Huber, 1967; H. White, 1982). It is
    corrected by N / (N - P) for N battles and P free parameters, or by C / (C - 1) for C clusters, and intervals are
    Student's with C - 1 degrees of freedom; without clusters each battle is one. One cluster alone, or several that
    agree exactly, have no interval: its ends are nan. An anchor has an interval of width 0, and those of other models
    are those of differences from it.

    Args:
      battles: the battles.
      clusters, features, center: as in `bootstrap`.
      ridge, init, base, scale, anchor: as in `bradley_terry`.

    Raises:
      UserError: as `bradley_terry` or `style_control`; or the number of clusters differs.
    """
    design, alpha = design_of(battles, features, center), math.log(_check_scale(base, scale))
    params = fit(design, design.count_R, alpha, ridge)
    rating_M = _rating(design, params, init, scale, anchor)
    count = len(design.models)
    contrast_MM = np.eye(count)
    if anchor is not None:
        contrast_MM[:, design.models.index(_anchor(design, anchor, init)[0])] -= 1
    cov_PP, freedom = covariance(design, params, alpha, ridge, clusters)
    cov_MM = contrast_MM @ cov_PP[:count, :count] @ contrast_MM.T
    stderr_M = scale * np.sqrt(np.maximum(np.diag(cov_MM), 0))
    half_M = _quantile(freedom) * stderr_M
    return _intervals(design.models, rating_M - half_M, rating_M, rating_M + half_M, stderr_M)


def ranks(
    battles: Sequence[Battle],
    *,
    clusters: Sequence[Hashable] | None = None,
    features: Features | None = None,
    center: bool = True,
    ridge: float = 0.0,
) -> dict[str, Rank]:
    """Ranks of models by their Bradley-Terry ratings, and which models cannot be told apart.

    Two models are told apart if the 95% sandwich interval of the difference of their ratings does not contain 0. The
    covariance of the two ratings counts: comparing whether two intervals overlap would not. Pairs are compared one by
    one, without a correction for their number. One cluster, such as one question, tells no models apart, and neither
    do several that agree exactly.

    Args:
      battles: the battles.
      clusters, features, center: as in `bootstrap`.
      ridge: as in `bradley_terry`.

    Returns:
      Ranks by model, highest rating first.

    Raises:
      UserError: as `sandwich`.
    """
    design = design_of(battles, features, center)
    params, count = fit(design, design.count_R, math.log(10), ridge), len(design.models)
    cov_PP, freedom = covariance(design, params, math.log(10), ridge, clusters)
    cov_MM = cov_PP[:count, :count]
    variance_MM = np.diag(cov_MM)[:, None] + np.diag(cov_MM) - 2 * cov_MM
    ahead_MM = params[:count, None] - params[:count]
    told_MM = ahead_MM**2 > _quantile(freedom) ** 2 * variance_MM  # nothing is told apart by one cluster: nan
    found = {}
    for i in np.argsort(-params[:count], kind="stable"):
        tied = tuple(design.models[j] for j in range(count) if j != i and not told_MM[i, j])
        better, worse = (int((told_MM[i] & (sign * ahead_MM[i] > 0)).sum()) for sign in (-1, 1))
        found[design.models[i]] = Rank(1 + better, count - worse, tied)
    return found


def groups(ranks: Mapping[str, Rank]) -> list[tuple[str, ...]]:
    """Groups of models that cannot be told apart from each other: runs of neighbours by rating, each as long as
    possible.

    Groups may overlap: a, b and b, c may each be one while a and c are told apart.
    """
    models, found, end = list(ranks), [], 0
    for first in range(len(models)):
        last = first + 1
        while last < len(models) and set(models[first:last]) <= set(ranks[models[last]].tied):
            last += 1
        if last > end:  # else it is part of the group before
            found.append(tuple(models[first:last]))
            end = last
    return found


def win_probability(rating_a: float, rating_b: float, *, base: float = 10.0, scale: float = 400.0) -> float:
    """The probability that a model with `rating_a` beats one with `rating_b`, a tie counted as half."""
    apart = check_number("rating_a", rating_a) - check_number("rating_b", rating_b)
    return _logistic(math.log(_check_scale(base, scale)) * apart / scale)


def relative_difference(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """(a - b) / (a + b + 1) of each battle: lengths or counts of both answers as a feature for `style_control`.

    Raises:
      UserError: not as many of both, or a value is below 0 or not finite.
    """
    a_N, b_N = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a_N.shape != b_N.shape:
        raise UserError(f"there are {a_N.size} and {b_N.size} lengths or counts: give as many of both answers")
    for value in (*a_N[~(np.isfinite(a_N) & (a_N >= 0))], *b_N[~(np.isfinite(b_N) & (b_N >= 0))]):
        raise UserError(f"a length or count is {value}: give finite numbers of 0 or more")
    return (a_N - b_N) / (a_N + b_N + 1)


def _check_scale(base: float, scale: float) -> float:
    check_number("scale", scale, above=0)
    return check_number("base", base, above=1)


def _quantile(freedom: int) -> float:
    """How many standard errors Student's 95% interval reaches to each side; nan without a degree of freedom."""
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2)) if freedom else math.nan


def _anchor(design: Design, anchor: Anchor, init: float) -> tuple[str, float]:
    model, rating = (anchor, init) if isinstance(anchor, str) else anchor
    if model not in design.models:
        raise UserError(f"anchor {model} is in no battle{did_you_mean(model, design.models)}")
    return model, check_number("the anchor's rating", rating)


def _rating(design: Design, params: np.ndarray, init: float, scale: float, anchor: Anchor | None) -> np.ndarray:
    rating_M = check_number("init", init) + scale * params[: len(design.models)]
    if anchor is None:
        return rating_M
    model, rating = _anchor(design, anchor, init)
    return rating_M + rating - rating_M[design.models.index(model)]


def _intervals(models: Sequence[str], low_M, median_M, high_M, stderr_M, separated: int = 0) -> Intervals:
    order = np.argsort(-np.asarray(median_M), kind="stable")
    columns = [np.asarray(x)[order].tolist() for x in (low_M, median_M, high_M, stderr_M)]
    found = Intervals(zip([models[i] for i in order], map(Interval, *columns), strict=True))
    found.separated = separated
    return found


def _best_first(ratings: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(ratings.items(), key=lambda item: -item[1]))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
