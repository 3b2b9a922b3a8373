"""Length-controlled win rates: what a win rate would be if both answers were equally long.

Dubois et al., "Length-Controlled AlpacaEval" (arXiv:2404.04475), section 4. A logistic regression of the judge's
preference for a model's answer over the baseline's,

    logit P(model wins question x) = theta + phi tanh(d_x / std(d)) + psi gamma_x,

has a term for the model, one for the difference of lengths d and one for the question's difficulty gamma. The
length-controlled win rate is the mean prediction with phi = 0. As in the published implementation, the penalty is the
absolute sum of coefficients, and five-fold cross-validation chooses its strength. Comparisons of the baseline with its
own answers told more briefly or at greater length may be added, without a model term and with a total weight of 0.2:
they keep phi near what length alone does, so that answers cut short on purpose gain nothing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from .intervals import LEVEL, Estimate
from .win_rates import Comparison

FOLDS = 5
PENALTIES = np.logspace(4, -4, 10)
"""Weights of the absolute sum of coefficients that are tried: the inverse of scikit-learn's default values of C."""

COPIES_WEIGHT = 0.2
"""Total weight of the pairs of an answer and its copy, relative to that of the model's pairs."""

MODELS_FOR_DIFFICULTY = 5
"""Least number of other models against the same baseline from which the difficulty of questions is estimated."""


FEWEST = 50
"""Number of pairs below which a note says that the interval is too narrow: the penalty pulls coefficients towards 0."""

STEEP = 5.0
"""A coefficient of length above this means that length alone decides nearly all verdicts."""


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate and how it came about."""

    rate: Estimate | None
    """The rate from 0 to 1, its interval clustered by question; the difficulty counts as known. None: not possible."""

    coefficients: dict[str, float]
    """Of "model", "length" and "difficulty", without features that were dropped."""

    notes: tuple[str, ...]
    """Sentences on features that were dropped and on weak ground."""


def length_controlled(
    comparisons: Iterable[Comparison],
    model: str,
    baseline: str,
    *,
    difficulty: Mapping[str, float] | None = None,
    copies: Iterable[Comparison] = (),
) -> LengthControlled:
    """The length-controlled win rate of a model against a baseline.

    The target is the judge's probability where it gives one for every pair, else the verdict.

    Args:
      comparisons: those of one judge; others than of these two models are left out.
      difficulty: {question: difficulty}, as of `difficulties`; None: no such term.
      copies: comparisons of the baseline with its own answers told more briefly or at greater length.
    """
    chosen = [each for each in comparisons if set(each.models) == {model, baseline} and each.outcome is not None]
    known = [each for each in chosen if each.lengths is not None]
    if not known:
        return LengthControlled(None, {}, ("no pair has a verdict and known lengths",))
    notes = [f"{len(chosen) - len(known)} pairs without lengths are left out"] if len(known) < len(chosen) else []
    tanh_N = standardised([each.longer(model) for each in known])
    if tanh_N is None:
        notes.append("all answers differ by the same length, so length is not controlled: the rate is the plain one")
        copies = ()
    elif (tanh_N > 0).all() or (tanh_N < 0).all():
        side = "longer" if tanh_N[0] > 0 else "shorter"
        notes.append(f"the model's answer is the {side} one in every pair: the rate extrapolates")
    if len(known) < FEWEST:
        notes.append(f"{len(known)} pairs are few for a regression: the interval is narrower than what they show")
    own = _Rows(known, model, tanh_N, difficulty)
    if difficulty is not None and np.ptp(own.features["difficulty"]) < 1e-9:
        notes.append("all questions are equally difficult: the term for difficulty is dropped")
        own, difficulty = _Rows(known, model, tanh_N, None), None
    rate, coefficients = _fit(own, _rows_of_copies(copies, baseline, difficulty))
    found = dict(zip(own.features, map(float, coefficients), strict=True))
    if abs(found.get("length", 0.0)) > STEEP:
        steep = f"length decides nearly all verdicts (coefficient {found['length']:.1f})"
        notes.append(f"{steep}: the rate rests on few pairs")
    return LengthControlled(rate, found, tuple(notes))


def targets(comparisons: Sequence[Comparison], model: str) -> np.ndarray:
    """What the regression fits, of shape (N,): the judge's probabilities if all pairs have one, else the outcomes."""
    sides = np.array([each.of(model) for each in comparisons])
    return sides[:, 0] if np.isnan(sides[:, 1]).any() else sides[:, 1]


def standardised(longer: Sequence[float]) -> np.ndarray | None:
    """tanh of differences in length divided by their standard deviation, of shape (N,); None if all are equal."""
    difference_N = np.asarray(longer, np.float64)
    deviation = difference_N.std(ddof=1) if len(difference_N) > 1 else 0.0
    return np.tanh(difference_N / deviation) if deviation > 1e-9 else None


def difficulties(comparisons: Iterable[Comparison], baseline: str, without: str = "") -> dict[str, float] | None:
    """The difficulty of each question for the baseline's rivals: high where they win more than elsewhere.

    One logistic regression over all models has a term and a length coefficient for each model, and a term gamma for
    each question, which a squared penalty of 1/2 gamma^2 keeps near 0.

    Args:
      comparisons: those of one judge.
      baseline: the model that all are compared with.
      without: a model that is left out, such as the one whose rate is sought: its own outcomes are no feature.

    Returns:
      {question: gamma}; None with fewer than MODELS_FOR_DIFFICULTY other models.
    """
    rows: dict[str, list[Comparison]] = {}
    for each in comparisons:
        if baseline in each.models and each.outcome is not None and each.lengths is not None:
            rows.setdefault(each.models[each.models[0] == baseline], []).append(each)
    rows.pop(without, None)
    if len(rows) < MODELS_FOR_DIFFICULTY:
        return None
    places: dict[str, int] = {}
    question_R = np.array([places.setdefault(each.question, len(places)) for own in rows.values() for each in own])
    model_R = np.repeat(np.arange(len(rows)), [len(own) for own in rows.values()])
    target_R = np.concatenate([targets(own, model) for model, own in rows.items()])
    tanh = [standardised([each.longer(model) for each in own]) for model, own in rows.items()]
    tanh_R = np.concatenate(
        [np.zeros(len(own)) if x is None else x for x, own in zip(tanh, rows.values(), strict=True)]
    )

    def loss(parameters):
        theta_M, phi_M, gamma_X = np.split(parameters, [len(rows), 2 * len(rows)])
        logit_R = theta_M[model_R] + phi_M[model_R] * tanh_R + gamma_X[question_R]
        slope_R = special.expit(logit_R) - target_R
        penalty = np.concatenate([1e-3 * theta_M, 1e-3 * phi_M, gamma_X])  # keeps models that win all finite
        gradient = penalty + np.concatenate(
            [
                np.bincount(model_R, slope_R, len(rows)),
                np.bincount(model_R, slope_R * tanh_R, len(rows)),
                np.bincount(question_R, slope_R, len(places)),
            ]
        )
        return (np.logaddexp(0, logit_R) - target_R * logit_R).sum() + 0.5 * (penalty * parameters).sum(), gradient

    found = optimize.minimize(loss, np.zeros(2 * len(rows) + len(places)), jac=True, method="L-BFGS-B")
    gamma_X = found.x[2 * len(rows) :]
    return {question: float(gamma_X[place]) for question, place in places.items()}


def logistic(features_NF: np.ndarray, target_N: np.ndarray, weight_N: np.ndarray, penalty: float) -> np.ndarray:
    """Coefficients, of shape (F,), that minimise the weighted log loss plus penalty times their absolute sum.

    Newton's method on the log loss; each step adds the penalty to the quadratic model and solves it by coordinate
    descent (Friedman, Hastie and Tibshirani, "Regularization Paths", 2010, section 3).

    Args:
      features_NF: the features.
      target_N: probabilities from 0 to 1.
      weight_N: the weight of each row.
      penalty: above 0.
    """

    def loss(coefficients_F):
        logit_N = features_NF @ coefficients_F
        fit = (weight_N * (np.logaddexp(0, logit_N) - target_N * logit_N)).sum()
        return fit + penalty * np.abs(coefficients_F).sum()

    at_F = np.zeros(features_NF.shape[1])
    value = loss(at_F)
    for _ in range(200):
        fitted_N = special.expit(features_NF @ at_F)
        slope_F = features_NF.T @ (weight_N * (fitted_N - target_N))
        curve_FF = (features_NF * (weight_N * fitted_N * (1 - fitted_N))[:, None]).T @ features_NF
        step_F = _least(slope_F, curve_FF + 1e-9 * np.eye(len(at_F)), at_F, penalty) - at_F
        size = 1.0
        while (tried := loss(at_F + size * step_F)) > value and size > 1e-6:
            size /= 2
        if tried > value:
            break
        at_F, value = at_F + size * step_F, tried
        if np.abs(step_F).max() < 1e-9:
            break
    return at_F


def _least(slope_F: np.ndarray, curve_FF: np.ndarray, at_F: np.ndarray, penalty: float) -> np.ndarray:
    """The x that minimises slope (x - at) + 1/2 (x - at)' curve (x - at) + penalty |x|, by coordinate descent."""
    slope, curve, at, x = slope_F.tolist(), curve_FF.tolist(), at_F.tolist(), at_F.tolist()
    for _ in range(1000):
        moved = 0.0
        for i, row in enumerate(curve):
            pull = row[i] * x[i] - slope[i] - sum(c * (new - old) for c, new, old in zip(row, x, at, strict=True))
            least = math.copysign(max(0.0, abs(pull) - penalty), pull) / row[i]
            moved, x[i] = max(moved, abs(least - x[i])), least
        if moved < 1e-12:
            break
    return np.array(x)


class _Rows:
    """Comparisons as rows of the regression, from the side of a model."""

    def __init__(self, found, model: str, tanh_N, difficulty: Mapping[str, float] | None, known: float = 1.0):
        self.questions = [each.question for each in found]
        self.target_N = targets(found, model)
        self.features = {"model": np.full(len(found), known)}
        if tanh_N is not None:
            self.features["length"] = tanh_N
        if difficulty is not None:
            self.features["difficulty"] = np.array([difficulty.get(question, 0.0) for question in self.questions])

    def matrix(self) -> np.ndarray:
        return np.stack(list(self.features.values()), 1)


def _rows_of_copies(copies: Iterable[Comparison], baseline: str, difficulty) -> list[_Rows]:
    """The rows of each copy of the baseline; they have no model term."""
    by_copy: dict[str, list[Comparison]] = {}
    for each in copies:
        if baseline in each.models and each.outcome is not None and each.lengths is not None:
            by_copy.setdefault(each.models[each.models[0] == baseline], []).append(each)
    lengths = {copy: standardised([each.longer(copy) for each in found]) for copy, found in by_copy.items()}
    return [_Rows(by_copy[copy], copy, x, difficulty, 0.0) for copy, x in lengths.items() if x is not None]


def _fit(own: _Rows, copies: Sequence[_Rows]) -> tuple[Estimate, np.ndarray]:
    """The rate with equal lengths, and the coefficients, from the model's pairs and those of copies."""
    count, names, own_NF = len(own.target_N), list(own.features), own.matrix()
    features_RF = np.concatenate([own_NF, *(each.matrix() for each in copies)])
    target_R = np.concatenate([own.target_N, *(each.target_N for each in copies)])
    weight_R = np.ones(len(target_R))
    weight_R[count:] = COPIES_WEIGHT * count / max(1, len(target_R) - count)

    places: dict[str, int] = {}
    rows = [question for each in (own, *copies) for question in each.questions]
    cluster_R = np.array([places.setdefault(question, len(places)) for question in rows])
    penalty = min(PENALTIES, key=lambda each: _loss_held_out(features_RF, target_R, weight_R, cluster_R % FOLDS, each))
    coefficients = logistic(features_RF, target_R, weight_R, penalty)

    equal_NF = own_NF.copy()
    if "length" in names:
        equal_NF[:, names.index("length")] = 0.0
    predicted_N = special.expit(equal_NF @ coefficients)
    influence_N = _influence(features_RF, target_R, weight_R, coefficients, equal_NF, predicted_N)[:count]
    return _interval(predicted_N, np.bincount(cluster_R[:count], influence_N)), coefficients


def _loss_held_out(features_RF, target_R, weight_R, fold_R, penalty: float) -> float:
    total = 0.0
    for fold in range(FOLDS):
        kept = fold_R != fold
        if kept.all() or not kept.any():
            continue
        logit = features_RF[~kept] @ logistic(features_RF[kept], target_R[kept], weight_R[kept], penalty)
        total += (weight_R[~kept] * (np.logaddexp(0, logit) - target_R[~kept] * logit)).sum()
    return float(total)


def _influence(features_RF, target_R, weight_R, coefficients, equal_NF, predicted_N) -> np.ndarray:
    """How far each row moves the mean prediction: through the coefficients, and the model's rows by being asked."""
    active = coefficients != 0
    through_R = np.zeros(len(target_R))
    if active.any():
        x_RA, fitted_R = features_RF[:, active], special.expit(features_RF @ coefficients)
        information_AA = (x_RA * (weight_R * fitted_R * (1 - fitted_R))[:, None]).T @ x_RA
        slope_A = ((predicted_N * (1 - predicted_N))[:, None] * equal_NF[:, active]).mean(0)
        direction_A = np.linalg.lstsq(information_AA, slope_A, rcond=None)[0]
        through_R = weight_R * (target_R - fitted_R) * (x_RA @ direction_A)
    through_R[: len(predicted_N)] += (predicted_N - predicted_N.mean()) / len(predicted_N)
    return through_R


def _interval(predicted_N: np.ndarray, sums_C: np.ndarray) -> Estimate:
    """The mean prediction with an interval that is symmetric in the logit, so that it stays within 0 and 1."""
    rate, clusters = float(predicted_N.mean()), len(sums_C)
    if clusters < 2 or not 0 < rate < 1:
        return Estimate(rate, math.nan, math.nan, math.nan, len(predicted_N), clusters)
    stderr = math.sqrt(clusters / (clusters - 1) * float(((sums_C - sums_C.mean()) ** 2).sum()))
    half = float(special.stdtrit(clusters - 1, (1 + LEVEL) / 2)) * stderr / (rate * (1 - rate))
    low, high = special.expit(special.logit(rate) + np.array([-half, half]))
    return Estimate(rate, stderr, float(low), float(high), len(predicted_N), clusters)
