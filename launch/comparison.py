"""Runs compared: the settings in which they differ, and their metrics with intervals over seeds.

runs = read_runs(["runs/lr-*"])
for group in groups(runs):  # a group: runs that differ in their seed alone; of repeated seeds one run counts
    group.leaves, group.best(Metric("eval/heldout/text/loss", "min"))  # {"optim.lr": 0.001}, an Estimate over the seeds
"""

import fnmatch
import functools
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ..checkpoints import absolute_path, proof
from ..data.console import tell, warn
from ..errors import UserError, did_you_mean
from ..evals.intervals import Estimate, ratio
from ..settings.functions import is_function
from ..train.config_record import CONFIG
from ..train.metrics_file import read_metrics
from ..train.resume import OPEN_SECTIONS
from ..train.run_record import COMPLETE, RunRecord, read_record
from .run_folders import each_once, find_runs, is_local, is_run

SEED = "seed"
"""The leaf in which the runs of a group may differ."""

PLACES = re.compile(r"(data|ptx)\.cache_dir|wandb\..*|wandb|profile\..*")
"""Leaves that name places or reports and change no number of a run. They are compared only where they are asked for."""

LOWER = re.compile(r"(^|[/_])(loss|perplexity|bits\w*|nll|kl|error\w*|cost|skipped|seconds\w*)($|[/_])")
"""Metrics of which lower values are better, by their names."""

MOST_METRICS = 3
"""Number of metrics that are compared where none is named."""

CODE = "code "
"""The hash of a file of own code is compared like a leaf, whose name is this and the file, such as "code loss.py"."""

MISSING = object()
"""Stands for a leaf that a run's config does not have."""


class NotBegun(UserError):
    """Nothing tells the config of a run, as where it is still starting."""


class Point(NamedTuple):
    """The value of a metric at a step."""

    value: float
    """The value, which may be nan or infinite."""

    step: int
    """Steps that were done when it was reported."""


class Metric(NamedTuple):
    """A metric to compare."""

    name: str
    """As in metrics.jsonl, such as eval/heldout/text/loss."""

    mode: str
    """"max" if larger values are better, "min" if smaller ones are."""

    @classmethod
    def parse(cls, text: str) -> "Metric":
        """The metric of NAME, NAME:min or NAME:max. Without a direction its name decides: less of a loss is better."""
        name, colon, mode = text.rpartition(":")
        if not colon or mode not in ("min", "max"):
            return cls(text, mode_of(text))
        return cls(name, mode)

    def better(self, a: float, b: float) -> bool:
        """Whether value `a` is better than `b`; nan is worse than every number."""
        if math.isnan(a) or math.isnan(b):
            return math.isnan(b) and not math.isnan(a)
        return a < b if self.mode == "min" else a > b

    def sorts(self, value: float) -> float:
        """A number by which values are sorted from the best to the worst, nan last."""
        return math.inf if math.isnan(value) else value if self.mode == "min" else -value


@dataclass(frozen=True)
class ComparedRun:
    """What a run's folder tells about it."""

    path: epath.Path
    """The run directory."""

    name: str
    """Its path below the folder that the compared runs have in common."""

    leaves: Mapping[str, Any]
    """Its resolved config: {dotted name of a leaf: value}, and {"code FILE": SHA-256} for files of own code."""

    metrics: Mapping[int, Mapping[str, float]]
    """Its reports by step, in ascending order."""

    status: str
    """running, finished, stopped early, interrupted, failed or lost; unknown for runs of versions without run.json."""

    goodput: float | None
    """Share of the wall time that was spent in training steps that were kept; None where it is unknown."""

    step: int
    """The last step that was done, as far as it is known; at least that of the last report."""

    record: RunRecord | None
    """Its attempts and last heartbeat; None for runs of versions without run.json."""

    versions: Sequence[str]
    """The versions of camelid that trained it: commits of its checkout, or versions of the package."""

    @property
    def seed(self) -> Any:
        """The seed of the run; None where its config does not have it."""
        return self.leaves.get(SEED)

    @property
    def seed_key(self) -> str:
        """The seed as JSON, which equals that of a run with the same seed, whatever the config has in its place."""
        return json.dumps(self.seed)

    def curve(self, name: str) -> list[Point]:
        """The values of a metric at the steps where it was reported, in order; empty where it never was."""
        return [Point(values[name], step) for step, values in self.metrics.items() if name in values]

    def best(self, metric: Metric) -> Point | None:
        """The best value of a metric, the later one of two equal values; None where it was never reported.

        The value of step 0, before the run has trained, counts only where there is no other.
        """
        found, curve = None, self.curve(metric.name)
        for point in [point for point in curve if point.step > 0] or curve:
            if found is None or not metric.better(found.value, point.value):
                found = point
        return found

    def last(self, metric: Metric) -> Point | None:
        """The value of a metric where it was last reported; None where it never was."""
        return next(reversed(self.curve(metric.name)), None)


@dataclass(frozen=True)
class Group:
    """Runs with the same settings and the same own code, which differ in their seed alone.

    Runs with one seed repeat each other and are no further evidence: of these only one counts (`counted`).
    """

    leaves: Mapping[str, Any]
    """The group's values of the leaves in which groups differ. A leaf that the config does not have is left out."""

    runs: Sequence[ComparedRun]
    """The runs, by their seeds."""

    @functools.cached_property
    def counted(self) -> list[ComparedRun]:
        """One run for each seed: the one that went furthest, of equal ones a complete one, else the first."""
        by_seed: dict[str, list[ComparedRun]] = {}
        for run in self.runs:
            by_seed.setdefault(run.seed_key, []).append(run)
        return [max(same, key=lambda run: (run.step, run.status in COMPLETE)) for same in by_seed.values()]

    def best(self, metric: Metric) -> Estimate | None:
        """The mean over seeds of each run's best value; None where no run has the metric."""
        return over_seeds([point.value for run in self.counted if (point := run.best(metric))])

    def last(self, metric: Metric) -> Estimate | None:
        """The mean over seeds of each run's last value; None where no run has the metric."""
        return over_seeds([point.value for run in self.counted if (point := run.last(metric))])

    def curve(self, name: str) -> list[tuple[int, Estimate]]:
        """The mean over seeds of a metric, at the steps at which every run that has the metric reported it."""
        curves = [{point.step: point.value for point in curve} for run in self.counted if (curve := run.curve(name))]
        steps = sorted(functools.reduce(lambda a, b: a & b.keys(), curves[1:], curves[0].keys())) if curves else []
        return [(step, over_seeds([curve[step] for curve in curves])) for step in steps]


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """The mean of one value for each seed, with Student's 95% interval; None without values.

    The interval is nan with a single seed; the mean is nan where a value is.
    """
    if not values:
        return None
    if not all(map(math.isfinite, values)):
        mean = sum(values)  # inf, -inf or nan
        return Estimate(mean, math.nan, math.nan, math.nan, len(values), len(values))
    with np.errstate(over="ignore", invalid="ignore"):  # the largest floats, whose sum is infinite
        return ratio(values, [1.0] * len(values))


def mode_of(name: str) -> str:
    """Whether smaller ("min") or larger ("max") values of a metric are better, by its name."""
    return "min" if LOWER.search(name) else "max"


def read_runs(patterns: Sequence[epath.PathLike]) -> list[ComparedRun]:
    """Reads all runs that paths and globs name, each once, in the order in which they are named.

    Args:
      patterns: run directories, globs of run directories, or folders with runs anywhere below, such as the folder of a
        sweep or of a config with phases.

    A run that has not begun yet is left out, with a line on standard error, unless it is named itself.

    Raises:
      UserError: a path or a glob names no run, a run that is named has not begun, or a config cannot be read.
    """
    paths = each_once(itertools.chain.from_iterable(map(find_runs, patterns)))
    shared = os.path.commonpath([os.fspath(path.parent) for path in paths]) if is_local(paths) else ""
    named, found, waiting = {absolute_path(pattern) for pattern in patterns}, [], []
    for path in paths:
        try:
            found.append(read_run(path, os.path.relpath(path, shared) if shared else os.fspath(path)))
        except NotBegun as error:
            if path in named:
                raise
            waiting.append(error)
        except OSError as error:
            if path in named:
                raise
            warn(f"{path} cannot be read ({error.strerror}): it is left out")
    if not found:
        raise waiting[0] if waiting else UserError(f"none of the runs of {', '.join(map(str, patterns))} can be read")
    for error in waiting:
        tell(f"{error}; it is left out")
    return found


def read_run(path: epath.PathLike, name: str | None = None, leaves: Mapping[str, Any] | None = None) -> ComparedRun:
    """Reads a run directory, also while the run trains.

    Args:
      path: the run directory.
      name: what the run is called. Default: the last part of its path.
      leaves: the leaves of its config. Default: they are read.

    Raises:
      NotBegun: neither config.json nor a checkpoint tells the config.
      UserError: config.json is damaged.
    """
    path = absolute_path(path)
    record, metrics = read_record(path), _metrics_of(path)
    leaves = leaves_of(path) if leaves is None else leaves
    return ComparedRun(
        path=path,
        name=name or path.name,
        leaves={**_own_code(path, record, leaves), **leaves},
        metrics=metrics,
        status="unknown" if record is None else record.status,
        goodput=None if record is None else record.goodput,
        step=max(next(reversed(metrics), 0), 0 if record is None else record.step),
        record=record,
        versions=[]
        if record is None
        else list(dict.fromkeys(each.version for each in record.attempts if each.version)),
    )


def leaves_of(run: epath.Path) -> dict[str, Any]:
    """The resolved config of a run, {dotted name of a leaf: value}.

    Raises:
      NotBegun: neither config.json nor a checkpoint tells the config.
      UserError: config.json is damaged.
    """
    return _from_phases_before(dict(_flat(_config_of(run))), run)


def differing_leaves(runs: Sequence[ComparedRun], asked: Sequence[str] = ()) -> list[str]:
    """The leaves in which runs differ, in the order of their configs.

    A leaf that some of the configs do not have is compared among the others: it belongs to another recipe, or came with
    a version of camelid. In sections in which users choose the names, a missing leaf is a difference.

    Args:
      runs: the runs.
      asked: names or globs of leaves that are listed in any case, such as "optim.*". Leaves that name places
        (`PLACES`) are listed only where they are asked for.

    Raises:
      UserError: no run has a leaf that is asked for.
    """
    names = list(dict.fromkeys(itertools.chain.from_iterable(run.leaves for run in runs)))
    for pattern in asked:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"--leaves: no config has a leaf {pattern!r}{did_you_mean(pattern, names)}")
    wanted = {name for pattern in asked for name in fnmatch.filter(names, pattern)}
    return [name for name in names if name in wanted or (_differs(runs, name) and not PLACES.fullmatch(name))]


def groups(runs: Sequence[ComparedRun]) -> list[Group]:
    """Runs put together that differ in their seed alone, in the order of their first runs.

    Two runs with one seed and the same settings are in one group too: they repeat each other, and one of them counts.
    """
    leaves = [name for name in differing_leaves(runs) if name != SEED]
    found: dict[str, list[ComparedRun]] = {}
    for run in runs:
        key = json.dumps([[name, run.leaves[name]] for name in leaves if name in run.leaves], sort_keys=True)
        found.setdefault(key, []).append(run)
    return [
        Group(
            {name: same[0].leaves[name] for name in leaves if name in same[0].leaves},
            sorted(same, key=lambda run: (0, run.seed, "") if isinstance(run.seed, int) else (1, 0, str(run.seed))),
        )
        for same in found.values()
    ]


def default_metrics(runs: Sequence[ComparedRun]) -> list[Metric]:
    """The metrics that are compared where none is named, at most `MOST_METRICS`.

    All runs have reported these metrics; runs that have reported nothing yet do not count. First comes the metric by
    which a run keeps its best checkpoint or stops early, then of each evaluation the metric whose name has the fewest
    parts, the first of these. Where there is none, it is train/loss.
    """
    reported = [names_of(run) for run in runs if run.metrics]
    shared = [name for name in reported[0] if all(name in names for names in reported)] if reported else []
    chosen = {}
    for run in runs:
        name, mode = _best_of(run.leaves)
        if name in shared:
            chosen[name] = mode if mode in ("min", "max") else mode_of(name)
    evaluations: dict[str, list[str]] = {}
    for name in shared:
        if name.startswith("eval/"):
            evaluations.setdefault(_evaluation(name, shared), []).append(name)
    for names in evaluations.values():
        if chosen.keys().isdisjoint(names):
            shortest = min(names, key=lambda name: name.count("/"))
            chosen[shortest] = mode_of(shortest)
    if not chosen and "train/loss" in shared:
        chosen["train/loss"] = "min"
    return [Metric(*each) for each in itertools.islice(chosen.items(), MOST_METRICS)]


def _best_of(leaves: Mapping[str, Any]) -> tuple[Any, Any]:
    """The metric by which a run keeps its best checkpoint or stops early, and its mode; None where there is none."""
    best = leaves.get("checkpoint.best")
    if isinstance(best, list | tuple) and len(best) == 2:
        return best[0], best[1]
    return leaves.get("early_stopping.metric"), leaves.get("early_stopping.mode")


def _evaluation(name: str, names: Iterable[str]) -> str:
    """The evaluation that a metric belongs to, among `names`: eval/<name>, or eval/heldout/<source> of held-out texts.

    eval/heldout/scores/gold/en is a part of the metric eval/heldout/scores, and so of the evaluation eval/heldout.
    """
    parts = name.split("/")
    section = "/".join(parts[:3])
    return section if parts[1:2] == ["heldout"] and len(parts) > 3 and section not in names else "/".join(parts[:2])


def names_of(run: ComparedRun) -> list[str]:
    """The names of all metrics that a run has reported, in the order of their first reports."""
    return list(dict.fromkeys(itertools.chain.from_iterable(run.metrics.values())))


def _differs(runs: Sequence[ComparedRun], name: str) -> bool:
    values = [run.leaves.get(name, MISSING) for run in runs]
    if not OPEN_SECTIONS.fullmatch(name):
        values = [value for value in values if value is not MISSING]
    return any(value != values[0] for value in values)


def _config_of(run: epath.Path) -> Mapping[str, Any]:
    """The resolved config of a run: its config.json; for versions without it, from the newest complete checkpoint."""
    path = run / CONFIG
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{path} is damaged: it holds no JSON object")
        return found
    steps = proof.complete_steps(run / "checkpoints")
    found = proof.manifest_in(run / "checkpoints" / str(steps[-1])).get("config") if steps else None
    if not isinstance(found, dict):
        raise NotBegun(f"{run}: neither a {CONFIG} nor a complete checkpoint tells the config of this run")
    return found


def _metrics_of(run: epath.Path) -> dict[int, dict[str, float]]:
    """The metrics of a run; none where the file cannot be read, with a line on standard error."""
    try:
        return read_metrics(run)
    except OSError as error:
        tell(f"{run}/metrics.jsonl cannot be read, and is left out: {error}")
        return {}


def _own_code(run: epath.Path, record: RunRecord | None, leaves: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of files of own code, {"code loss.py": SHA-256}: of a run that resumed with changed code all hashes.

    Attempts that did no step do not count. Versions that did not write them into run.json wrote them into checkpoints.
    """
    attempts = [each for each in ([] if record is None else record.attempts) if isinstance(each.code, dict)]
    found = [each.code for each in attempts if each.to_step > each.from_step] or [each.code for each in attempts]
    if not found and any(isinstance(value, str) and is_function(value) for value in leaves.values()):
        steps = proof.complete_steps(run / "checkpoints")
        found = [proof.manifest_in(run / "checkpoints" / str(step)).get("code") or {} for step in steps[-1:]]
    hashes: dict[str, list[str]] = {}
    for name, value in itertools.chain.from_iterable(code.items() for code in found):
        known = hashes.setdefault(name.rpartition(":")[0], [])
        known.extend([] if value in known else [str(value)])
    return {f"{CODE}{file}": ", ".join(known) for file, known in hashes.items()}


def _flat(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _from_phases_before(leaves: dict[str, Any], run: epath.Path) -> dict[str, Any]:
    """The leaves of a phase's run, with paths of the phases before it relative to its folder.

    Two seeds of a config with phases start from different runs, which are the same phase of the config.
    """
    if not any((run.parent / name).exists() for name in ("phases.json", CONFIG)):
        return leaves
    before = {f"{run.parent.name}/{each.name}": f"../{each.name}" for each in run.parent.iterdir() if is_run(each)}
    return {
        name: before.get("/".join(PurePath(value).parts[-2:]), value) if isinstance(value, str) else value
        for name, value in leaves.items()
    }
