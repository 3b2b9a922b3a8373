"""What a sweep has found: its trials and points, read while it runs or afterwards."""

import datetime
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...evals.intervals import Estimate, ratio
from ...train.run_record import read_record
from .claims import StudyLock, holder
from .identity import Sweep, read_sweep
from .space import SEED, short
from .study import Study, Trial

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}

ORDER = ("finished", "pruned", "running", "waiting", "failed")
"""The states of trials, in the order in which they are counted."""


@dataclass(frozen=True)
class TrialResult:
    """A trial as a user sees it."""

    number: int
    """Its number, from 0."""

    state: str
    """finished, pruned, failed, running, or waiting: its process is gone, and the sweep's next worker resumes it."""

    point: Mapping[str, Any]
    """The value of each setting of the space, the seed included."""

    value: float | None
    """The objective of a finished trial; of a pruned one, its last evaluation."""

    reason: str | None
    """Why it failed or was pruned; who runs it."""

    folder: Path
    """The run directory that the objective is read from."""

    seconds: float | None
    """Time from its beginning to its end; None where it is not over."""

    kills: int
    """How often its process was killed."""

    step: int | None = None
    """The step that a running trial has come to, as far as its run has told; None in other states."""


@dataclass(frozen=True)
class PointResult:
    """The trials of a point, which differ in their seed alone."""

    point: Mapping[str, Any]
    """The value of each setting but the seed."""

    trials: Sequence[TrialResult]
    """The trials, by number."""

    @property
    def estimate(self) -> Estimate | None:
        """The mean of the objective over finished trials, with Student's 95% interval; None without any. The interval
        of a single trial is nan."""
        values = [trial.value for trial in self.trials if trial.state == "finished"]
        return ratio(values, [1.0] * len(values)) if values else None


class Results:
    """The results of a sweep at one moment.

    Args:
      sweep: the sweep.
      study: its trials.
    """

    def __init__(self, sweep: Sweep, study: Study):
        self.sweep = sweep
        self.study = study.study
        """Optuna's study. The seed of a trial is not among its parameters."""
        self.trials = [_result(sweep, trial) for trial in study.trials()]

    @functools.cached_property
    def best(self) -> TrialResult | None:
        """The finished trial with the best value; the first of several; None without any."""
        return self._best([trial for trial in self.trials if trial.state == "finished"])

    @property
    def over(self) -> int:
        """Number of trials that are over: finished, pruned or failed."""
        return sum(trial.state in STATES.values() for trial in self.trials)

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials in each state that occurs."""
        states = [trial.state for trial in self.trials]
        return {state: states.count(state) for state in ORDER if state in states}

    @functools.cached_property
    def points(self) -> list[PointResult]:
        """All points: those with finished trials first, from the best mean to the worst, then the others by number."""
        together: dict[str, list[TrialResult]] = {}
        for trial in self.trials:
            point = {name: value for name, value in trial.point.items() if not self._is_seed(name)}
            together.setdefault(json.dumps(point), []).append(trial)
        found = [
            PointResult({n: v for n, v in trials[0].point.items() if not self._is_seed(n)}, trials)
            for trials in together.values()
        ]
        sign = 1 if self.sweep.identity.objective.mode == "min" else -1
        return sorted(found, key=lambda point: sign * point.estimate.value if point.estimate else math.inf)

    @property
    def best_point(self) -> PointResult | None:
        """The point with the best mean over its seeds; None without a finished trial."""
        return self.points[0] if self.points and self.points[0].estimate else None

    def _is_seed(self, name: str) -> bool:
        return name == SEED and bool(self.sweep.identity.space.seeds)

    def _best(self, trials: Sequence[TrialResult]) -> TrialResult | None:
        found = None
        for trial in trials:
            if found is None or self.sweep.identity.objective.better(trial.value, found.value):
                found = trial
        return found


def read_results(folder: str | os.PathLike, *, url: str | None = None) -> Results:
    """The results of the sweep in a folder, also while it runs.

    Args:
      folder: the sweep's folder.
      url: the database's URL with its password, where the sweep is stored in one.

    Raises:
      UserError: there is no sweep or it cannot be read.
    """
    sweep = read_sweep(folder)
    return Results(sweep, Study(sweep, StudyLock(sweep.folder, only_reads=True), url=url, create=False))


def as_json(results: Results) -> dict[str, Any]:
    """The results as JSON has them."""
    identity = results.sweep.identity
    return {
        "sweep": os.fspath(results.sweep.folder),
        "objective": str(identity.objective),
        "at": identity.objective.at,
        "method": identity.method,
        "space": identity.space.lines(),
        "trials_wanted": results.sweep.trials,
        "counts": results.counts,
        "best": results.best and results.best.number,
        "points": [
            {
                "point": dict(point.point),
                "mean": point.estimate and point.estimate.value,
                "low": _finite(point.estimate and point.estimate.low),
                "high": _finite(point.estimate and point.estimate.high),
                "trials": [trial.number for trial in point.trials],
            }
            for point in results.points
        ],
        "trials": [
            {
                "number": trial.number,
                "state": trial.state,
                "point": dict(trial.point),
                "value": _finite(trial.value),
                "reason": trial.reason,
                "folder": os.fspath(trial.folder),
                "seconds": trial.seconds,
                "kills": trial.kills,
                "step": trial.step,
            }
            for trial in results.trials
        ],
    }


def table(results: Results, most: int | None = None):
    """The leaderboard as a rich table: a row for each point.

    Args:
      results: the results.
      most: the most rows; None: all.
    """
    from rich.table import Table
    from rich.text import Text

    identity = results.sweep.identity
    names = [name for name in identity.space.settings if not (name == SEED and identity.space.seeds)]
    title = f"{identity.objective.metric} ({'smallest' if identity.objective.mode == 'min' else 'largest'} first)"
    shown = Table(title=title, title_justify="left")
    for name in names:
        shown.add_column(Text(name), justify="right", overflow="fold")
    for name in ("mean" if identity.space.seeds else "value", *(["95% interval"] if identity.space.seeds else [])):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("trials", overflow="fold")
    for point in results.points[:most]:
        estimate = point.estimate
        cells = [short(point.point[name]) if name in point.point else "" for name in names]
        cells.append(short(estimate.value) if estimate else "")
        if identity.space.seeds:
            known = estimate and math.isfinite(estimate.low)
            cells.append(f"{estimate.low:.4g} to {estimate.high:.4g}" if known else "")
        shown.add_row(*map(Text, cells), Text(", ".join(map(_trial_words, point.trials))))
    return shown


def summary(results: Results) -> str:
    """How many of the sweep's trials are in which state, in a line."""
    counts = ", ".join(f"{number} {state}" for state, number in results.counts.items())
    count = len(results.trials)
    return f"{count} of {max(count, results.sweep.trials)} trials{counts and f': {counts}'}"


def _trial_words(trial: TrialResult) -> str:
    return str(trial.number) if trial.state == "finished" else f"{trial.number} {trial.state}"


def _result(sweep: Sweep, trial: Trial) -> TrialResult:
    stored = trial.stored
    state, reason = STATES.get(stored.state.name), stored.user_attrs.get("reason")
    if state is None:
        reason = holder(sweep.trial_folder(trial.number) / ".worker")
        state = "running" if reason else "waiting"
    folder, ends = sweep.run_folder(trial.number), (stored.datetime_start, stored.datetime_complete)
    record = read_record(folder) if state == "running" else None
    value = stored.value if state in ("finished", "pruned") else None
    return TrialResult(
        number=trial.number,
        state=state,
        point=trial.point,
        value=value,
        reason=reason,
        folder=folder,
        seconds=_seconds(*ends),
        kills=stored.user_attrs.get("kills", 0),
        step=record.step if record is not None else None,
    )


def _seconds(begin: datetime.datetime | None, end: datetime.datetime | None) -> float | None:
    return (end - begin).total_seconds() if begin and end else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
