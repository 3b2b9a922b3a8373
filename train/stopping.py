"""Early stopping: a run ends when a metric of an evaluation has not improved for some time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from ..settings.leaves import Count, Name, NotNegative, OneOf, Only, Unset


@dataclass(frozen=True)
class StoppingSettings:
    """The section `config.early_stopping`: the run ends where a metric of an evaluation no longer improves."""

    metric: Annotated[Name | None, Unset("no early end")] = None
    """Metric of an evaluation, such as eval/heldout/text/loss. None: the run goes on to its end."""

    mode: Annotated[str, OneOf("min", "max"), Only("metric", default="min")] = "min"
    """min: smaller values are better; max: larger values."""

    patience: Annotated[Count, Only("metric", default=3)] = 3
    """Evaluations in a row without an improvement after which the run ends."""

    min_delta: Annotated[NotNegative, Only("metric", default=0.0)] = 0.0
    """An improvement is a change of the metric for the better by more than this."""


class EarlyStopping:
    """Counts the evaluations that did not improve.

    The evaluation before the first step counts as one. A value that is not finite is no improvement.

    Attributes:
      counters: the metric with its mode, the value of the last improvement with its step, the number of evaluations
        since, the best value with its step, which may be better by up to `min_delta`, and whether the evaluations ended
        the run; a checkpoint keeps them.
    """

    def __init__(self, settings: StoppingSettings):
        self._settings = settings
        self.counters: dict[str, Any] = self._fresh()

    def restore(self, counters: Mapping[str, Any], *, longer: bool) -> None:
        """Takes the counters of a checkpoint, unless they are of another metric.

        longer: whether the run is made longer than it was then. If its patience was at an end, it may try again: the
        count starts over, and the best value stays.
        """
        fresh = self._fresh()
        if all(counters.get(name) == fresh[name] for name in ("metric", "mode")):
            same = {"peak": counters.get("best"), "peak_step": counters.get("step")}  # in checkpoints that lack them
            self.counters = fresh | same | dict(counters)
            if longer and (self.counters["ended"] or self._exhausted):  # at the last step a full count ends nothing
                self.counters["count"] = 0
            self.counters["ended"] = self.counters["ended"] and self._exhausted

    @property
    def ended(self) -> bool:
        """Whether the run has ended early, and these settings do not let it go on."""
        return self.counters["ended"]

    def see(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Takes in the metrics of the evaluations after `step` steps. Returns whether the run has to end."""
        value = metrics.get(self._settings.metric) if self._settings.metric is not None else None
        if value is None:
            return False
        if self._improves(value, self.counters["peak"], 0.0):
            self.counters |= {"peak": float(value), "peak_step": step}
        if self._improves(value, self.counters["best"], self._settings.min_delta):
            self.counters |= {"best": float(value), "step": step, "count": 0}
        else:
            self.counters["count"] += 1
        return self._exhausted

    def _improves(self, value: float, best: float | None, least: float) -> bool:
        sign = 1.0 if self._settings.mode == "max" else -1.0
        return math.isfinite(value) and (best is None or sign * (value - best) > least)

    def end(self) -> None:
        """Says that the run ends here, as it does at its last step; a run that resumes later goes on."""
        self.counters["ended"] = True

    def words(self) -> str:
        """Why the run ends."""
        names = ("best", "step", "count", "peak", "peak_step")
        best, step, count, peak, peak_step = (self.counters[name] for name in names)
        least = f" by more than {self._settings.min_delta:g}" if self._settings.min_delta else ""
        said = f"{self._settings.metric} has not improved{least} in {count} evaluation{'s' if count != 1 else ''}"
        if best is None:
            return f"{said}: it was never finite"
        if peak_step in (None, step):
            return f"{said}: its best value, {best:.6g}, is that of step {step}"
        return f"{said} since step {step} ({best:.6g}); its best value, {peak:.6g}, is that of step {peak_step}"

    @property
    def _exhausted(self) -> bool:
        return self._settings.metric is not None and self.counters["count"] >= self._settings.patience

    def _fresh(self) -> dict[str, Any]:
        s = self._settings
        best = dict.fromkeys(("best", "step", "peak", "peak_step"))
        return {"metric": s.metric, "mode": s.mode, **best, "count": 0, "ended": False}
