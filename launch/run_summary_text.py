"""A run's summary as text for a terminal, one block for each run."""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from ..model.sharding import mesh_words
from ..train.goodput import BUCKETS
from ..train.run_record import Attempt
from .comparison_tables import printable
from .run_summary import NOT_BEGUN, Checkpoint, Summary

MOST_LINES = 5
"""Number of attempts, and of checkpoints, that a block shows; JSON has all."""

BAR = 30
"""Width of the longest possible bar, for all of the time."""

LABEL = 12
"""Width of the names before the values."""


def text_of(summary: Summary) -> str:
    """The block of a run: its path, and a line for each thing that is known."""
    lines = [printable(_shown_path(summary.path))]
    for name, values in _entries(summary):
        for place, value in enumerate(values):
            lines.append(f"  {name if place == 0 else '':{LABEL}} {printable(value)}".rstrip())
    return "\n".join(lines)


def _entries(summary: Summary) -> Iterator[tuple[str, Sequence[str]]]:
    """The names of what is known with their lines."""
    last = summary.attempts[-1] if summary.attempts else Attempt()
    yield "status", [f"{summary.status}{f': {summary.reason}' if summary.reason else ''}"]
    if summary.status == NOT_BEGUN:
        return
    yield "recipe", [summary.recipe or "unknown"]
    yield "step", [f"{summary.step:,}{'' if summary.total_steps is None else f' of {summary.total_steps:,}'}"]
    yield "began", [_when(summary.start)] if summary.start else []
    yield "ended", [_when(summary.stop)] if summary.stop else []
    yield "command", [shlex.join(map(str, last.command))] if last.command else []
    yield "folder", [f"{last.folder} on {last.host}"] if last.folder else []
    yield "camelid", [last.version] if last.version else []
    yield "project", [_project(last)] if isinstance(last.project, dict) else []
    versions = ", ".join(f"{name} {version}" for name, version in last.versions.items())
    yield "versions", [versions] if versions else []
    yield "devices", [_devices(last)] if last.devices else []
    yield "own code", [f"{name} ({value[:7]})" for name, value in summary.code.items()]
    yield "attempts", _attempts(summary.attempts)
    yield "time", _time(summary)
    yield "checkpoints", _checkpoints(summary)
    yield "metrics", _metrics(summary)
    yield "problems", summary.problems


def _attempts(attempts: Sequence[Attempt]) -> list[str]:
    """How many attempts there were, and how the last ones of several ended."""
    if len(attempts) < 2:
        return [str(len(attempts))] if attempts else []
    ends = Counter(each.exit or "running" for each in attempts)
    lines = [f"{len(attempts)}: {', '.join(f'{number} {end}' for end, number in ends.items())}"]
    for number, each in list(enumerate(attempts, start=1))[-MOST_LINES:]:
        reason = f": {each.reason}" if each.reason else ""
        steps = f"steps {each.from_step:,} to {each.to_step:,} in {_duration(sum(each.seconds.values()))}"
        lines.append(f"{number}  {steps}, {each.exit or 'running'}{reason}")
    return lines


def _time(summary: Summary) -> list[str]:
    """Goodput, and a bar for each bucket with time in it, the longest first."""
    total = sum(summary.seconds.values())
    if not total:
        return []
    lines = [f"{_duration(total)}, of which {summary.goodput or 0.0:.1%} in training steps that were kept (goodput)"]
    buckets = {name: summary.seconds[name] for name in BUCKETS if summary.seconds.get(name)}
    for name, seconds in sorted(buckets.items(), key=lambda item: -item[1]):
        share = seconds / total
        lines.append(f"{name:10} {_duration(seconds):>10} {share:6.1%}  {round(BAR * share) * '█'}")
    return lines


def _checkpoints(summary: Summary) -> list[str]:
    """The steps of the checkpoints; the newest ones of many, and the best."""
    if not summary.checkpoints:
        return ["none"]
    shown = [each for each in summary.checkpoints[:-MOST_LINES] if each.best] + list(summary.checkpoints[-MOST_LINES:])
    hidden = len(summary.checkpoints) - len(shown)
    width = len(f"{shown[-1].step:,}")
    lines = [f"{each.step:{width},}  {', '.join(_about(each, summary))}" for each in shown]
    return [*lines, f"and {hidden} more"] if hidden else lines


def _about(checkpoint: Checkpoint, summary: Summary) -> Iterator[str]:
    if not checkpoint.complete:
        yield "not complete"
    if checkpoint.last:
        yield "last"
    if checkpoint.best:
        yield "best"
    if checkpoint.value is not None:
        yield f"{summary.best[0]} {checkpoint.value:.4g}"


def _metrics(summary: Summary) -> list[str]:
    width = max((len(each.name) for each in summary.metrics), default=0)
    lines = []
    for each in summary.metrics:
        best = f"best ({each.mode}) {each.best:.4g} at {each.best_step:,}"
        lines.append(f"{each.name:{width}}  {each.last:.4g} at {each.step:,}; {best}")
    return lines


def _devices(attempt: Attempt) -> str:
    found = attempt.devices
    platform, kind = found.get("platform"), found.get("kind")
    processes, mesh = found.get("processes"), found.get("mesh")
    split = f", {mesh_words(mesh)}" if isinstance(mesh, dict) and found.get("count") != 1 else ""
    return (
        f"{found.get('count')} {platform}{f' ({kind})' if kind != platform else ''}"
        f", {processes} process{'' if processes == 1 else 'es'}{split}"
    )


def _project(attempt: Attempt) -> str:
    """The checkout around the folder of the command."""
    commit, changed = attempt.project.get("commit"), attempt.project.get("dirty")
    return f"{attempt.project.get('folder')} at {str(commit)[:7]}{' with changed files' if changed else ''}"


def _shown_path(path: str) -> str:
    """A path as it is shortest: from the current folder where it lies below it."""
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        return path
    return os.path.relpath(path, here) if path.startswith(f"{here}{os.sep}") else path


def _when(moment: str) -> str:
    """A time of run.json in UTC, to the second."""
    try:
        return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, TypeError):
        return str(moment)


def _duration(seconds: float) -> str:
    """Seconds in the two largest units that they have."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60) if seconds >= 3600 else int(seconds / 60)
    if seconds < 3600:
        return f"{minutes} min {int(seconds % 60)} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
