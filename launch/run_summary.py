"""What a run is and did, from the files of its folder: run.json, heartbeat.json, config.json, metrics and checkpoints.

for summary in summaries(["runs/sft"]):
    summary.status, summary.step, summary.checkpoints

Files are read also while the run trains. What is missing or damaged is None or empty, and a line in `problems` or on
standard error says so.
"""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from ..checkpoints import absolute_path, proof
from ..checkpoints.reading import Best
from ..errors import UserError
from ..train.config_record import CONFIG
from ..train.run_record import Attempt, RunRecord, closed, with_heartbeat
from .comparison import ComparedRun, Metric, default_metrics, leaves_of, read_run
from .run_folders import each_once, find_runs, is_run

NOT_BEGUN = "not begun"
"""The status of a phase that has no files yet."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a run."""

    step: int
    """Its step."""

    complete: bool
    """Whether it was written to its end."""

    last: bool
    """Whether it is the newest complete one, from which the run resumes."""

    best: bool
    """Whether it is the best complete one by `config.checkpoint.best`."""

    value: float | None
    """The value of that metric; None where it was not evaluated."""


@dataclass(frozen=True)
class Value:
    """A metric where it was last reported, and at its best."""

    name: str
    """As in metrics.jsonl."""

    mode: str
    """"max" if larger values are better, "min" if smaller ones are."""

    last: float
    """The last value."""

    step: int
    """Its step."""

    best: float
    """The best value after the first step."""

    best_step: int
    """Its step."""


@dataclass(frozen=True)
class Summary:
    """What a run is and did. What nobody knows is None or empty."""

    path: str
    """The run directory."""

    status: str
    """That of `RunRecord`; unknown for runs of versions without run.json, and "not begun" for a phase without files."""

    reason: str | None = None
    """Why it ended before its end; of a running one what it is doing."""

    recipe: str | None = None
    """The recipe."""

    step: int = 0
    """The last step that was done."""

    total_steps: int | None = None
    """Number of steps of the whole run."""

    start: str | None = None
    """When the first attempt began, ISO 8601 in UTC."""

    stop: str | None = None
    """When the last attempt ended; None while it runs."""

    attempts: Sequence[Attempt] = ()
    """The attempts, in the order in which they began."""

    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Seconds in each bucket of goodput over all attempts."""

    goodput: float | None = None
    """The share of wall time in training steps that were kept."""

    best: tuple[str, str] | None = None
    """`config.checkpoint.best`: the metric that chooses the best checkpoint, and its mode."""

    checkpoints: Sequence[Checkpoint] = ()
    """The checkpoints that there are, by their steps."""

    metrics: Sequence[Value] = ()
    """The metrics that `camelid compare` shows, and train/loss."""

    code: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Own code of the last attempt: {name of a function in the config: SHA-256 of its file}."""

    problems: Sequence[str] = ()
    """Sentences about files that could not be read."""

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return dataclasses.asdict(self)


def summaries(patterns: Sequence[epath.PathLike]) -> list[Summary]:
    """Reads all runs that paths and globs name, each once; of a config with phases each phase, in its order.

    Raises:
      UserError: a path or a glob names no run.
    """
    paths = each_once(path for pattern in patterns for path in _runs_of(pattern))
    return [summary_of(path) if is_run(path) else Summary(str(path), NOT_BEGUN) for path in paths]


def summary_of(path: epath.PathLike) -> Summary:
    """Reads a run directory."""
    path = absolute_path(path)
    problems: list[str] = []
    try:
        leaves = leaves_of(path)
    except (UserError, OSError) as error:
        leaves = {}
        problems.append(str(error))
    run = read_run(path, leaves=leaves)
    attempts = _attempts(run.record, run.status)
    manifests = _manifests(path / "checkpoints", problems)
    last = attempts[-1] if attempts else Attempt()
    best = _best_of(leaves)
    metrics = [*default_metrics([run]), *([Metric("train/loss", "min")] if run.curve("train/loss") else [])]
    recipe = leaves.get("recipe")
    return Summary(
        path=str(path),
        status=run.status,
        reason=_doing(run.record) if run.status == "running" else last.reason,
        recipe=None if recipe is None else str(recipe),
        step=max([run.step, *(step for step, manifest in manifests.items() if manifest)]),
        total_steps=_total(attempts, manifests, leaves),
        start=(attempts[0].start if attempts else None) or None,
        stop=None if run.status == "running" else last.stop,
        attempts=attempts,
        seconds={} if run.record is None else run.record.seconds,
        goodput=run.goodput,
        best=best,
        checkpoints=_checkpoints(path / "checkpoints", manifests, best),
        metrics=[_value(run, metric) for metric in dict.fromkeys(metrics)],
        code=_code(attempts, manifests),
        problems=problems,
    )


def _runs_of(pattern: epath.PathLike) -> Iterator[epath.Path]:
    """The runs that a path or a glob names. Phases of a config come in their order; of a path also those not begun."""
    folder = absolute_path(os.path.expanduser(os.fspath(pattern)))
    if not is_run(folder) and (phases := _phases(folder)):
        yield from (folder / name for name in phases)
        return
    order: dict[epath.Path, list[epath.Path]] = {}
    for path in find_runs(pattern):
        order.setdefault(path.parent, []).append(path)
    for parent, runs in order.items():
        names = _phases(parent)
        yield from sorted(runs, key=lambda path: names.index(path.name) if path.name in names else 0)


def _phases(folder: epath.Path) -> list[str]:
    """The names of the phases of a config in the folder of its runs; none for other folders."""
    try:
        return [str(name) for name, _ in json.loads((folder / CONFIG).read_text())["phases"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []


def _attempts(record: RunRecord | None, status: str) -> list[Attempt]:
    """The attempts with what the last heartbeat knows, and with the end of one that was killed."""
    if record is None:
        return []
    known = with_heartbeat if status == "running" else closed
    return known(record.attempts, record.heartbeat)


def _doing(record: RunRecord) -> str:
    """What a run is doing now, and when it last did a step or began something else."""
    beat = record.heartbeat or {}
    said = f"{beat.get('doing')} on {beat.get('host')}"
    if not isinstance(since := beat.get("since"), int | float):
        return said
    return f"{said}, last progress {max(time.time() - since, 0.0):.0f} s ago"


def _manifests(directory: epath.Path, problems: list[str]) -> dict[int, dict[str, Any]]:
    """The manifests of the checkpoints by step, {} for one that is not complete or cannot be read."""
    try:
        paths = {step: directory / str(step) for step in proof.numbered(directory)}
        return {step: proof.manifest_in(path) if proof.is_complete(path) else {} for step, path in paths.items()}
    except OSError as error:
        problems.append(f"{directory}: {error}")
        return {}


def _checkpoints(
    directory: epath.Path, manifests: Mapping[int, dict[str, Any]], best: tuple[str, str] | None
) -> list[Checkpoint]:
    complete = [step for step in manifests if proof.is_complete(directory / str(step))]
    values: dict[int, float] = {}
    for step in complete if best else ():
        metrics = manifests[step].get("metrics")
        value = metrics.get(best[0]) if isinstance(metrics, dict) else None
        if isinstance(value, int | float):
            values[step] = float(value)
    chosen = Best(*best).of(values) if best else None
    return [
        Checkpoint(step, step in complete, step == max(complete, default=None), step == chosen, values.get(step))
        for step in manifests
    ]


def _best_of(leaves: Mapping[str, Any]) -> tuple[str, str] | None:
    best = leaves.get("checkpoint.best")
    return (str(best[0]), str(best[1])) if isinstance(best, list | tuple) and len(best) == 2 else None


def _total(
    attempts: Sequence[Attempt], manifests: Mapping[int, dict[str, Any]], leaves: Mapping[str, Any]
) -> int | None:
    """The steps of the whole run, as the newest of what knows it says."""
    known = [each.total_steps for each in reversed(attempts)]
    known += [manifests[step].get("total_steps") for step in reversed(manifests)] + [leaves.get("total_steps")]
    return next((total for total in known if isinstance(total, int)), None)


def _code(attempts: Sequence[Attempt], manifests: Mapping[int, dict[str, Any]]) -> dict[str, str]:
    known = [each.code for each in reversed(attempts)] + [manifests[step].get("code") for step in reversed(manifests)]
    return next(({str(name): str(each) for name, each in code.items()} for code in known if isinstance(code, dict)), {})


def _value(run: ComparedRun, metric: Metric) -> Value:
    last, best = run.last(metric), run.best(metric)
    return Value(metric.name, metric.mode, last.value, last.step, best.value, best.step)
