"""Means of the steps' metrics between two reports, which a checkpoint keeps so that a resumed run reports the same."""

import math
from collections.abc import Mapping
from typing import Any

COUNTERS = ("lr", "skipped", "streak", "tokens")
"""Metrics of which a report gives the last value."""


class Means:
    """Sums of the metrics since the last report.

    Means are over all trained tokens. Skipped steps are left out, unless all were skipped; then the last one counts.
    """

    def __init__(self) -> None:
        self._clear()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to report."""
        return not self._last

    def add(self, metrics: Mapping[str, float]) -> None:
        """Takes in the metrics of a step."""
        self._last = dict(metrics)
        if metrics["streak"] == 0:
            self._accepted = True
            self._tokens += metrics["tokens"]
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + value * metrics["tokens"]

    def read(self) -> dict[str, float]:
        """The metrics of a report; the sums then start over."""
        last = self._last
        sums = self._sums if self._accepted else {name: value * last["tokens"] for name, value in last.items()}
        tokens = self._tokens if self._accepted else last["tokens"]
        means = {name: sums[name] / max(tokens, 1) for name in last}
        self._clear()
        return means | {name: last[name] for name in COUNTERS}

    @property
    def counters(self) -> dict[str, Any]:
        """The sums, as JSON can hold them."""
        sums, last = ({name: _to_json(x) for name, x in each.items()} for each in (self._sums, self._last))
        return {"sums": sums, "last": last, "tokens": self._tokens, "accepted": self._accepted}

    def restore(self, counters: Mapping[str, Any]) -> None:
        """Takes over the sums of a checkpoint."""
        self._sums, self._last = ({name: float(x) for name, x in counters[key].items()} for key in ("sums", "last"))
        self._tokens, self._accepted = float(counters["tokens"]), counters["accepted"]

    def _clear(self) -> None:
        self._sums: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._tokens, self._accepted = 0.0, False


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
