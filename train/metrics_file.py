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
            found.setdefault(record.pop("step"), {}).update({name: float(value) for name, value in record.items()})
    return dict(sorted(found.items()))


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
