"""The report of a sweep: one HTML file with its results in tables and pictures, which needs no other file.

It is written while the sweep runs and at its end, and by `camelid sweep --workdir=DIR --page`.
"""

import datetime
import math
import os
import re
import time
import urllib.parse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import markupsafe

from ...data.checksums import write_whole
from ...data.console import warn
from .identity import Sweep
from .page_figures import FITTING_NAME, POINTS, Curve, Line, curves_figure, cut, parallel_figure
from .results import PointResult, Results, TrialResult
from .space import Choice, Range, short, shown
from .study import Study, import_optuna
from .trials import LOG, curve

FILE = "report.html"
TEMPLATE = Path(__file__).parent / "page.html.jinja"

FEWEST_POINTS = 5
"""Importances are not computed from fewer finished points."""

BEST_POINTS = 5
"""An importance says what sets at least so many points apart from the others, if there are twice as many."""

FIRST_ROWS = 30
"""Rows of the leaderboard that are open from the beginning; the others are unfolded."""

SHARE = 0.05
"""The largest share of a running sweep's time that is spent on writing its page."""

SECONDS_BETWEEN = 10.0
"""The page of a running sweep is not written more often."""


class Row(NamedTuple):
    """A row of the leaderboard: a point."""

    rank: int | None
    """Its place, from 1; None for a point without a finished trial."""
    cells: list[str]
    """The values of the settings."""
    mean: str
    """The mean of the objective; "" without one."""
    interval: str
    """The 95% interval over seeds; "" with fewer than two finished trials."""
    place: tuple[float, float, float] | None
    """Lower end, mean and upper end of the interval, from 0 to 100 over the range that the table shows."""
    trials: Sequence[TrialResult]
    """Its trials."""


class Importance(NamedTuple):
    """How much the settings matter."""

    shares: dict[str, float]
    """The share of each setting, largest first; empty where `why_not` says why."""
    points: int
    """Number of finished points that it is computed from."""
    target: float
    """The share of the best points that the settings have to set apart."""
    why_not: str | None
    """Why there is none; None where there is one."""


class LivePage:
    """The page of a sweep that runs, rewritten as trials end, but not so often that the trials suffer.

    Args:
      sweep: the sweep.
      study: its trials.
    """

    def __init__(self, sweep: Sweep, study: Study):
        self._sweep, self._study = sweep, study
        self._next = time.monotonic() + SECONDS_BETWEEN

    def update(self) -> None:
        """Writes the page if the last time is long enough ago. A page that cannot be written is told, and no error."""
        begun = time.monotonic()
        if begun < self._next:
            return
        self.write(Results(self._sweep, self._study))
        cost = time.monotonic() - begun
        self._next = time.monotonic() + max(SECONDS_BETWEEN, cost / SHARE)

    def write(self, results: Results) -> Path | None:
        """Writes the page now, and returns its path; None where it cannot be written, which is told."""
        try:
            return write_page(results)
        except OSError as error:
            warn(f"the report of the sweep cannot be written ({error}); its trials are not concerned")
            return None


def write_page(results: Results) -> Path:
    """Writes report.html into the sweep's folder, whole or not at all, and returns its path."""
    path = results.sweep.folder / FILE
    write_whole(path, render(results))
    return path


def render(results: Results) -> str:
    """The page as HTML."""
    sweep, identity = results.sweep, results.sweep.identity
    curves = {trial.number: curve(sweep, trial.number) for trial in results.trials}
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"short": short, "shown": shown, "duration": _duration, "link": lambda f: _link(sweep, f)}
    environment.filters |= {"cut": cut, "breakable": _breakable}
    rows, colors = _rows(results), _colors(results)
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        sweep=sweep,
        identity=identity,
        name=sweep.folder.name,
        now=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        counts=results.counts,
        total=len(results.trials),
        is_over=results.over >= sweep.trials,
        best=results.best,
        settings=list(identity.space.searched),
        first=rows[:FIRST_ROWS],
        more=rows[FIRST_ROWS:],
        importance=importance(results),
        parallel=_parallel(results),
        curves=_curves(results, curves, colors),
        colors=[(color, _point_words(point)) for point, color in zip(results.points, colors, strict=False)],
        unfinished=[trial for trial in results.trials if trial.state in ("running", "waiting")],
        steps={number: max(values, default=None) for number, values in curves.items()},
        failed=[trial for trial in results.trials if trial.state == "failed"],
        log=LOG,
    )


def importance(results: Results) -> Importance:
    """The importance of each setting by PED-ANOVA (arXiv:2304.10255), from the mean of each point over its seeds."""
    searched = results.sweep.identity.space.searched
    points = [point for point in results.points if _mean(point) is not None]
    count = len(points)
    target = min(max(0.1, BEST_POINTS / max(count, 1)), 0.5)
    if len(searched) < 2:
        why = "the space has one setting only" if searched else "the space has seeds only"
        return Importance({}, count, target, why)
    if count < FEWEST_POINTS:
        return Importance({}, count, target, f"it needs {FEWEST_POINTS} finished points, and there are {count}")
    if len({_mean(point) for point in points}) == 1:
        return Importance({}, count, target, "all points have the same value")
    optuna = import_optuna()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(direction=f"{results.sweep.identity.objective.mode}imize")
            ways = {name: values.distribution() for name, values in searched.items()}
            for point in points:
                params = {name: searched[name].stored(point.point[name]) for name in searched}
                study.add_trial(optuna.trial.create_trial(params=params, distributions=ways, value=_mean(point)))
            found = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=target)
            )
    finally:
        optuna.logging.set_verbosity(before)
    if not any(share > 0 for share in found.values()):
        return Importance({}, count, target, "no setting sets the best points apart from the others")
    return Importance(dict(sorted(found.items(), key=lambda item: -item[1])), count, target, None)


# Tables ---------------------------------------------------------------------------------------------------------------


def _mean(point: PointResult) -> float | None:
    """The mean of a point over its finished trials; None without a finite one."""
    found = point.estimate
    return found.value if found is not None and math.isfinite(found.value) else None


def _rows(results: Results) -> list[Row]:
    """The rows of the leaderboard, the best first."""
    searched = list(results.sweep.identity.space.searched)
    low, high = _shown_range(results)
    rows, rank = [], 0
    for point in results.points:
        found, mean = point.estimate, _mean(point)
        rank += mean is not None
        known = mean is not None and math.isfinite(found.low)
        place = None
        if mean is not None and high > low:
            ends = (found.low, mean, found.high) if known else (mean, mean, mean)
            place = tuple(100 * min(max((end - low) / (high - low), 0.0), 1.0) for end in ends)
        cells = [short(point.point[name]) if name in point.point else "" for name in searched]
        interval = f"{found.low:.4g} to {found.high:.4g}" if known else ""
        shown_mean = "" if mean is None else f"{mean:.5g}"
        rows.append(Row(rank if mean is not None else None, cells, shown_mean, interval, place, point.trials))
    return rows


def _shown_range(results: Results) -> tuple[float, float]:
    """The range of the objective that the column of intervals shows: of the means, with room for most intervals."""
    means = [mean for point in results.points if (mean := _mean(point)) is not None]
    ends = [
        end
        for point in results.points
        if _mean(point) is not None
        for end in (point.estimate.low, point.estimate.high)
        if math.isfinite(end)
    ]
    if not means:
        return 0.0, 0.0
    low, high = _without_outliers(means)
    room = (high - low) or abs(high) or 1.0
    return max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)


def _without_outliers(values: Sequence[float]) -> tuple[float, float]:
    """The range of values without those that lie further beyond the quartiles than three times their distance."""
    ordered = sorted(values)
    first, third = (ordered[round((len(ordered) - 1) * share)] for share in (0.25, 0.75))
    near = [value for value in ordered if first - 3 * (third - first) <= value <= third + 3 * (third - first)]
    return near[0], near[-1]


def _duration(seconds: float | None) -> str:
    """A time for reading: 42 s, 12 min or 3.5 h."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _breakable(name: str) -> markupsafe.Markup:
    """The name of a setting as HTML in which lines may be broken after dots and underscores."""
    return markupsafe.Markup(re.sub(r"([._])", r"\1<wbr>", str(markupsafe.escape(name))))


def _link(sweep: Sweep, folder: Path) -> str:
    """The address of a folder of the sweep, relative to the page."""
    return urllib.parse.quote(os.path.relpath(folder, sweep.folder).replace(os.sep, "/")) + "/"


# Pictures -------------------------------------------------------------------------------------------------------------


def _parallel(results: Results) -> str | None:
    """The picture of parallel coordinates; None without a finished point, and for fewer than two settings."""
    objective, searched = results.sweep.identity.objective, results.sweep.identity.space.searched
    points = [point for point in results.points if (mean := _mean(point)) is not None and mean == mean]
    if not points or len(searched) < 2:
        return None
    low, high = _without_outliers([_mean(point) for point in points])
    lines = []
    for place, point in enumerate(points):  # the best first
        height = _position(Range(low, high), _mean(point)) if high > low else 0.5
        heights = [_position(values, point.point[name]) for name, values in searched.items()]
        title = f"{shown(point.point)}: {objective.metric} {_mean(point):.5g}"
        lines.append(Line([*heights, height], 1 - place / len(points), title))
    ends = {0.5: short(low)} if high == low else {share: short(low + share * (high - low)) for share in (0, 0.5, 1)}
    metric = objective.metric if len(objective.metric) <= FITTING_NAME else f"…{objective.metric[1 - FITTING_NAME :]}"
    axes = {name: _ticks(values) for name, values in searched.items()} | {metric: ends}
    return parallel_figure(axes, lines)


def _position(values: Choice | Range, value: Any) -> float:
    """The height of a value on its axis, from 0 to 1; values outside a range are put at its end."""
    if isinstance(values, Choice):
        count = len(values.values)
        return values.values.index(value) / (count - 1) if count > 1 else 0.5
    scale = math.log if values.log else float
    low, high = scale(values.low), scale(values.high)
    return min(max((scale(value) - low) / (high - low), 0.0), 1.0)


def _ticks(values: Choice | Range) -> dict[float, str]:
    """The labels of an axis by their heights."""
    if isinstance(values, Choice):
        return {_position(values, value): short(value) for value in values.values}
    middle = math.sqrt(values.low * values.high) if values.log else (values.low + values.high) / 2
    ends = [values.low, *([] if values.whole and values.high - values.low < 2 else [middle]), values.high]
    marks = [round(value) for value in ends] if values.whole else ends
    return {_position(values, mark): short(mark) for mark in dict.fromkeys(marks)}


def _colors(results: Results) -> Sequence[str]:
    """A colour for the curves of each point, the best first; empty where there are too many points to tell apart."""
    return POINTS[: len(results.points)] if 1 < len(results.points) <= len(POINTS) else ()


def _point_words(point: PointResult) -> str:
    """A point in a line; the seeds where the space has nothing else."""
    return shown(point.point) or "all seeds"


def _curves(results: Results, curves: Mapping[int, Mapping[int, float]], colors: Sequence[str]) -> str | None:
    """The picture of the objective by step; None where no trial has reported it."""
    best = results.best.number if results.best else None
    color = {
        trial.number: color for point, color in zip(results.points, colors, strict=False) for trial in point.trials
    }
    found = [
        Curve(
            [(step, value) for step, value in sorted(curves[trial.number].items()) if math.isfinite(value)],
            "best" if trial.number == best else trial.state,
            f"trial {trial.number}, {trial.state}: {shown(trial.point)}",
            color.get(trial.number),
        )
        for trial in results.trials
    ]
    drawn = [each for each in found if each.points]
    if not drawn:
        return None
    return curves_figure(drawn, results.sweep.identity.objective.metric)
