"""Reads metrics.jsonl of a run, also while the run writes to it."""

import json
from typing import Any

from etils import epath


def read_metrics(workdir: epath.PathLike) -> dict[int, dict[str, float]]:
    """The metrics of a run by step, in ascending order of steps; empty where the run has reported nothing.

    Several reports of a step, such as that of training and that of an evaluation, are one entry. A line that is cut off
    or damaged is left out.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    found: dict[int, dict[str, float]] = {}
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
        if record := _record(line):
            found.setdefault(record.pop("step"), {}).update(record)
    return dict(sorted(found.items()))


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            return None
        return {name: value if name == "step" else float(value) for name, value in record.items()}
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
