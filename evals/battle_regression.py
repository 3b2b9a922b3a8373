"""Battles as a logistic regression: the fit of Bradley-Terry ratings, with or without features of style.

Each battle is a row: +1 for model a and -1 for model b, times alpha, and its features. The parameters are r of each
model and a coefficient for each feature; the log-odds that a wins are alpha * (r_a - r_b) + features @ coefficients.
`ratings.py` turns parameters into ratings.

Shapes: M models, K features, P = M + K parameters, N battles, R rows of distinct battles, C clusters.
"""

import math
import numbers
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError, shown
from .judgments import Winner

Battle = tuple[str, str, Winner]
Features = Mapping[str, Sequence[float]] | np.ndarray

_SCORES = {"a": 1.0, "tie": 0.5, "b": 0.0}
_STEPS = 100  # Newton steps; five or six suffice where ratings are finite
_SMALL = 1e-8  # a Newton step that moves no log-odds by more is the last: the next one would be about its square


@dataclass(frozen=True)
class Design:
    """Battles as the rows of a logistic regression; without features, equal battles are one row."""

    models: tuple[str, ...]
    a_R: np.ndarray  # number of model a
    b_R: np.ndarray
    score_R: np.ndarray  # 1, 1/2 or 0
    count_R: np.ndarray  # number of battles
    row_N: np.ndarray  # the row of each battle
    features_RK: np.ndarray  # scaled
    features: tuple[str, ...]
    dropped: tuple[str, ...]


def check_number(name: str, value: float, *, at_least: float = -math.inf, above: float = -math.inf) -> float:
    """The value of an argument; UserError unless it is a finite number within its bounds."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_) and math.isfinite(value)
    if not number or value < at_least or value <= above:
        bound = (
            f" above {above:g}" if above > -math.inf else f" of {at_least:g} or more" if at_least > -math.inf else ""
        )
        raise UserError(f"{name} is {shown(value)}: give a finite number{bound}")
    return float(value)


def check(battles: Sequence[Battle]) -> list[tuple[str, str, float]]:
    """The battles with a's score; UserError names the first bad one."""
    found = []
    for number, battle in enumerate(battles, 1):
        try:
            a, b, winner = battle
            score = _SCORES[winner]
        except (KeyError, TypeError, ValueError) as problem:
            says = f'battle {number} is {shown(battle)}: give (model_a, model_b, "a", "b" or "tie")'
            raise UserError(says) from problem
        if a == b or not isinstance(a, str) or not isinstance(b, str):
            raise UserError(f"battle {number} is {shown(battle)}: a battle needs the names of two different models")
        found.append((a, b, score))
    if not found:
        raise UserError("there are no battles to rate models by")
    return found


def design_of(battles: Sequence[Battle], features: Features | None = None, center: bool = True) -> Design:
    """The rows of battles, as `ratings.style_control` describes its arguments.

    Raises UserError for malformed battles or features, and for groups of models that no battles connect.
    """
    checked = check(battles)
    places: dict[str, int] = {}
    index = [(places.setdefault(a, len(places)), places.setdefault(b, len(places)), 2 * s) for a, b, s in checked]
    rows_N3 = np.asarray(index, np.int64)
    if features is None:
        key_N = (rows_N3[:, 0] * len(places) + rows_N3[:, 1]) * 3 + rows_N3[:, 2]
        _, first_R, row_N, count_R = np.unique(key_N, return_index=True, return_inverse=True, return_counts=True)
        scaled_RK, names, dropped = np.zeros((len(first_R), 0)), (), ()
    else:
        first_R = row_N = np.arange(len(rows_N3))
        count_R = np.ones(len(rows_N3))
        scaled_RK, names, dropped = _scaled(features, len(rows_N3), center)
    a_R, b_R, twice_R = rows_N3[first_R].T
    design = Design(
        tuple(places), a_R, b_R, twice_R / 2, count_R.astype(np.float64), row_N.reshape(-1), scaled_RK, names, dropped
    )
    _check_connected(design)
    return design


def _scaled(features: Features, count: int, center: bool) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """The features that are not constant, scaled, [battles, features]; their names; the names of the others."""
    try:
        if not isinstance(features, Mapping):
            given = np.asarray(features, np.float64)
            features = dict(enumerate(given.reshape(len(given), -1).T))
        given = {str(name): np.asarray(values, np.float64) for name, values in features.items()}
    except (TypeError, ValueError) as problem:
        raise UserError(
            f"style features have to be numbers, one of each feature for each battle: {problem}"
        ) from problem
    columns, dropped = {}, []
    for name, values_N in given.items():
        if values_N.shape != (count,):
            raise UserError(f"style feature {name} has {values_N.size} values for {count} battles: give one for each")
        if not np.isfinite(values_N).all():
            place = int(np.flatnonzero(~np.isfinite(values_N))[0])
            raise UserError(f"style feature {name} of battle {place + 1} is {values_N[place]}: give a finite number")
        if np.ptp(values_N) <= 1e-12 * np.abs(values_N).max():
            dropped.append(name)
            warnings.warn(f"style feature {name} is the same in all battles: it is left out", stacklevel=4)
        elif center:
            columns[name] = (values_N - values_N.mean()) / values_N.std()
        else:
            columns[name] = values_N / np.sqrt((values_N**2).mean())
    scaled = np.stack(list(columns.values()), 1) if columns else np.zeros((count, 0))
    return scaled, tuple(columns), tuple(dropped)


def _check_connected(design: Design) -> None:
    """Raises UserError if there are groups of models that never met."""
    met_MM = _closure(_tally(design, np.ones_like(design.count_R)) > 0)
    parts = {tuple(np.flatnonzero(row)) for row in met_MM}
    if len(parts) > 1:
        named = "; ".join(_names(design.models[i] for i in part) for part in sorted(parts, key=lambda x: (-len(x), x)))
        raise UserError(
            f"no battles connect these {len(parts)} groups of models, so their ratings cannot be compared: {named}; "
            "add battles between them, or rate each group alone"
        )


def _names(models: Iterable[str]) -> str:
    models = list(models)
    return ", ".join(models[:4]) + (f" and {len(models) - 4} more" if len(models) > 4 else "")


def _tally(design: Design, value_R: np.ndarray) -> np.ndarray:
    """The sums of values over rows between each two models, whichever of them is a."""
    size = len(design.models)
    sum_MM = np.bincount(design.a_R * size + design.b_R, value_R, size * size).reshape(size, size)
    return sum_MM + sum_MM.T


def _closure(edge_MM: np.ndarray) -> np.ndarray:
    """Whether a path leads from one model to another, through any number of others."""
    reach_MM = edge_MM | np.eye(len(edge_MM), dtype=bool)
    while True:
        further_MM = reach_MM.astype(np.float32) @ reach_MM.astype(np.float32) > 0
        if (further_MM == reach_MM).all():
            return reach_MM
        reach_MM = further_MM


def reaches(design: Design, count_R: np.ndarray) -> np.ndarray:
    """Whether a chain of points, each won by one model against the next, leads from one model to another. Finite
    ratings exist if and only if such chains lead everywhere (L. Ford, 1957)."""
    edge_MM = np.zeros((len(design.models),) * 2, bool)
    won, lost = (count_R > 0) & (design.score_R > 0), (count_R > 0) & (design.score_R < 1)
    edge_MM[design.a_R[won], design.b_R[won]] = True
    edge_MM[design.b_R[lost], design.a_R[lost]] = True
    return _closure(edge_MM)


def fit(design: Design, count_R: np.ndarray, alpha: float, ridge: float) -> np.ndarray:
    """r of each model and the coefficient of each feature; UserError where there are none that are finite."""
    check_number("ridge", ridge, at_least=0)
    if not ridge:
        reach_MM = reaches(design, count_R)
        said = []
        for leads_MM, what in ((reach_MM, "won"), (reach_MM.T, "lost")):
            extreme = [m for i, m in enumerate(design.models) if (leads_MM[i] | ~leads_MM[:, i]).all()]
            said += [f"{_names(extreme)} {what} every battle against the others"] * (len(extreme) < len(design.models))
        if not reach_MM.all():
            raise UserError(
                f"{' and '.join(said)}: such a rating is infinite; give ridge=0.5 for finite ones, or leave models out"
            )
    return newton(design, count_R, alpha, ridge, np.zeros(len(design.models) + design.features_RK.shape[1]))


def newton(design: Design, count_R: np.ndarray, alpha: float, ridge: float, start: np.ndarray) -> np.ndarray:
    """Minimises the penalised loss from `start`; a step that would not lower it is halved."""

    def loss(params: np.ndarray) -> float:
        x_R = _log_odds(design, params, alpha)
        return float(count_R @ (np.logaddexp(0, x_R) - design.score_R * x_R) + ridge / 2 * params @ params)

    params, value = start, loss(start)
    for _ in range(_STEPS):
        p_R = _sigmoid(_log_odds(design, params, alpha))
        gradient = _sum(design, count_R * (p_R - design.score_R), alpha) + ridge * params
        try:
            step = np.linalg.solve(_hessian(design, count_R * p_R * (1 - p_R), alpha, ridge), gradient)
        except np.linalg.LinAlgError:
            break
        if max(alpha, 1) * np.abs(step).max() <= _SMALL:
            return params - step
        while (lower := loss(params - step)) > value + 1e-12 * abs(value):
            step = step / 2
        params, value = params - step, lower
    if design.features:
        problem = "style features predict the winner perfectly, or repeat each other, and no finite ratings exist"
        raise UserError(f"{problem}: give ridge=0.5")
    raise UserError(f"ridge is {ridge}, too near 0 for models that won or lost every battle: give ridge=0.5")


def _log_odds(design: Design, params: np.ndarray, alpha: float) -> np.ndarray:
    r_M, beta_K = np.split(params, [len(design.models)])
    return alpha * (r_M[design.a_R] - r_M[design.b_R]) + design.features_RK @ beta_K


def _sum(design: Design, value_R: np.ndarray, alpha: float) -> np.ndarray:
    """The sum over rows of a value times the derivative of the log-odds."""
    size = len(design.models)
    by_model_M = np.bincount(design.a_R, value_R, size) - np.bincount(design.b_R, value_R, size)
    return np.concatenate([alpha * by_model_M, value_R @ design.features_RK])


def _hessian(design: Design, weight_R: np.ndarray, alpha: float, ridge: float) -> np.ndarray:
    """The sum over rows of a weight times the outer product of the derivative of the log-odds, and the ridge.

    Ratings have no place of their own: a block of ones on the models makes the matrix invertible and moves no solution.
    """
    size = len(design.models)
    matrix = np.zeros((size + design.features_RK.shape[1],) * 2)
    pair_MM = _tally(design, weight_R)
    matrix[:size, :size] = alpha**2 * (np.diag(pair_MM.sum(0)) - pair_MM + pair_MM.mean())
    weighted_RK = weight_R[:, None] * design.features_RK
    for k, column_R in enumerate(weighted_RK.T, size):
        matrix[k] = _sum(design, column_R, alpha)
    matrix[:size, size:] = matrix[size:, :size].T
    return matrix + ridge * np.eye(len(matrix))


def covariance(
    design: Design, params: np.ndarray, alpha: float, ridge: float, clusters: Sequence[Hashable] | None
) -> tuple[np.ndarray, int]:
    """The sandwich covariance of the parameters [P, P], ratings around their mean; and its degrees of freedom.

    It is corrected by battles / (battles - free parameters), or by clusters / (clusters - 1). One battle or cluster
    alone, or several that agree exactly, do not show how far others would differ: all values are nan.
    """
    size, n, free = len(design.models), len(design.row_N), len(params) - 1
    p_R = _sigmoid(_log_odds(design, params, alpha))
    error_R = design.score_R - p_R
    if clusters is None:
        count, meat = n, _hessian(design, design.count_R * error_R**2, alpha, 0.0) * n / max(n - free, 1)
    else:
        cluster_N = _cluster_numbers(clusters, n)
        count = int(cluster_N.max()) + 1
        sums_CP = np.zeros((count, len(params)))
        error_N, a_N, b_N = (x[design.row_N] for x in (error_R, design.a_R, design.b_R))
        np.add.at(sums_CP, (cluster_N, a_N), alpha * error_N)
        np.add.at(sums_CP, (cluster_N, b_N), -alpha * error_N)
        np.add.at(sums_CP[:, size:], cluster_N, error_N[:, None] * design.features_RK[design.row_N])
        meat = sums_CP.T @ sums_CP * count / max(count - 1, 1)
    if count < 2 or np.abs(meat).max() < 1e-16:
        return np.full((len(params),) * 2, np.nan), 0
    around_mean = np.eye(len(params))
    around_mean[:size, :size] -= 1 / size
    bread = np.linalg.inv(_hessian(design, design.count_R * p_R * (1 - p_R), alpha, ridge))
    return around_mean @ bread @ meat @ bread @ around_mean, count - 1


def _cluster_numbers(clusters: Sequence[Hashable], n: int) -> np.ndarray:
    if len(clusters) != n:
        raise UserError(f"there are {len(clusters)} clusters for {n} battles: give one for each")
    places: dict[Hashable, int] = {}
    return np.asarray([places.setdefault(cluster, len(places)) for cluster in clusters])


def count_clusters(design: Design, clusters: Sequence[Hashable] | None) -> int:
    """The number of clusters; without clusters each battle is one."""
    return len(design.row_N) if clusters is None else int(_cluster_numbers(clusters, len(design.row_N)).max()) + 1


def resamples(
    design: Design, clusters: Sequence[Hashable] | None, rounds: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """The counts of the rows in each resample."""
    if clusters is None:
        share_R = design.count_R / design.count_R.sum()
        for _ in range(rounds):
            yield rng.multinomial(len(design.row_N), share_R).astype(np.float64)
    else:
        cluster_N = _cluster_numbers(clusters, len(design.row_N))
        total = int(cluster_N.max()) + 1
        for _ in range(rounds):
            times_C = rng.multinomial(total, np.full(total, 1 / total))
            yield np.bincount(design.row_N, times_C[cluster_N], len(design.count_R))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
