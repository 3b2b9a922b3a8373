"""Begins or continues a sweep: from the options of a command to workers."""

import dataclasses
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from ...errors import UserError, did_you_mean
from ...evals.registry import Evaluations
from ...model.host_devices import host_devices
from ...settings.config_files import load_phases, split_escaped
from ...settings.config_names import split_name
from ...train.loop import Interrupted
from ..checks import check_phases
from ..outputs import check_writable
from .claims import StudyLock
from .devices import environments
from .identity import (
    NAME,
    Identity,
    Objective,
    Pruning,
    Sweep,
    begin_or_continue,
    read_sweep,
    resolved,
    study_name,
    without_password,
)
from .page import LivePage
from .results import Results, summary, table
from .space import Point, Range, Space, config_of, short, shown
from .stopping import MARK
from .study import Study, import_optuna
from .trials import PACKAGE, TrialProcess, importable
from .vectorized import Programs, check_programs
from .workers import LOG, Log, Options, Workers

METHODS = ("grid", "random", "tpe")

CHECKED = 64
"""Points of a grid that are checked before anything starts; of larger grids and of ranges, the ends are checked."""

SHOWN = 20
"""Rows of the table that a sweep ends with."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a command asks for."""

    folder: Path
    """The sweep's folder."""

    config: str
    """The config file with its arguments."""

    overrides: tuple[str, ...]
    """Flags --config.NAME=VALUE."""

    space: Space
    """The settings that vary."""

    objective: str
    """METRIC:min or METRIC:max."""

    at: str = "last"
    """The evaluation that counts: last or best."""

    trials: int | None = None
    """Number of trials in total; None: all of a grid, or as many as the sweep had so far."""

    method: str | None = None
    """grid, random or tpe; None: grid for a space of choices, else tpe."""

    seed: int = 0
    """Seed of the points that random and tpe draw."""

    prune: Pruning | None = None
    """How trials are ended early."""

    storage: str = "journal"
    """journal, sqlite, or the URL of a database."""

    command: tuple[str, ...] = ()
    """The arguments of the command."""

    vmap: bool = False
    """Whether the workers of this command train several trials in one program."""


def begin(asked: Asked) -> tuple[Sweep, Study]:
    """The sweep that a command asks for, checked, and its study, which is made if it is new.

    Raises:
      UserError: something is wrong, or the folder has another sweep; the message names what differs.
    """
    import_optuna()
    check_writable(asked.folder)
    sweep = planned(asked)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    lock = StudyLock(sweep.folder)
    with lock:
        counted = (sweep.folder / NAME).exists() and _is_counted(read_sweep(sweep.folder), lock, asked.storage)
        sweep = begin_or_continue(sweep, counted=counted)
        return sweep, Study(sweep, lock, url=asked.storage)


def run(sweep: Sweep, study: Study, options: Options) -> Results:
    """Works on a sweep until all its trials are over, prints the table of its results and writes its page.

    Raises:
      Interrupted: a signal or `--stop` ended it; the same command goes on.
      UserError: no trial can run.
    """
    log = Log(sweep.folder)
    places = environments(options.workers, host_devices()) if options.workers > 1 else [{}]
    results, objective = Results(sweep, study), sweep.identity.objective
    log(f"sweep {sweep.folder}: {summary(results)}, {sweep.identity.method} over {sweep.identity.space}, {objective}")
    seeds = len(sweep.identity.space.seeds) or 1
    if sweep.trials % seeds:
        log(f"the last of {sweep.trials} trials is number {sweep.trials % seeds} of the {seeds} seeds of its point")
    quoted = shlex.quote(os.fspath(sweep.folder))
    log(f"it outlives the terminal: camelid sweep --workdir={quoted} --show tells its state, --stop ends it")
    page = LivePage(sweep, study)
    try:
        Workers(sweep, study, options, places, log, _processes(options), page.update).run()
    except Interrupted:
        page.write(Results(sweep, study))
        raise
    results = Results(sweep, study)
    log(summary(results))
    print_results(results, SHOWN)
    if (path := page.write(results)) is not None:
        print(f"report: {path}")
    return results


def _processes(options: Options):
    """What starts the process of a trial."""
    return TrialProcess if options.vmap is None else Programs(options.vmap)


def print_results(results: Results, most: int | None = None) -> None:
    """Prints the leaderboard, failed trials with their reasons, and where the best run lies."""
    from rich.console import Console

    console = Console()
    if results.trials:
        console.print(table(results, most))
    if most is not None and len(results.points) > most:
        print(f"({len(results.points) - most} more points: --show lists all)")
    for trial in results.trials:
        if trial.state == "failed":
            print(f"trial {trial.number} failed: {trial.reason}  ({trial.folder})")
        elif trial.state == "running":
            at = "" if trial.step is None else f" at step {trial.step}"
            print(f"trial {trial.number} runs{at}, in {trial.reason}  ({trial.folder})")
    best, point = results.best, results.best_point
    if point is not None and results.sweep.identity.space.seeds and point.point:
        seeds = sum(trial.state == "finished" for trial in point.trials)
        mean = f"{results.sweep.identity.objective.metric} {short(point.estimate.value)}"
        print(f"best point: {shown(point.point)}, with a mean {mean} over {seeds} seed{'s' if seeds > 1 else ''}")
    if best is not None:
        print(f"best trial: {best.number} with {shown(best.point)}, in {best.folder}")


def detach(sweep: Sweep, argv: Sequence[str], stop_mark: int) -> int:
    """Starts a camelid command that outlives the terminal and writes into the sweep's log.

    Args:
      sweep: the sweep.
      argv: the arguments of the command.
      stop_mark: `stopping.asked_before` of this command.

    Returns:
      The process id.
    """
    with (sweep.folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{PACKAGE}.launch.sweeps.child", "0", *argv],
            env=os.environ | importable() | {MARK: str(stop_mark)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    return process.pid


def planned(asked: Asked) -> Sweep:
    """The sweep of a command, after every setting was checked with the config."""
    method = _method(asked)
    phases = _check_space(asked, method)
    identity = Identity(
        space=asked.space,
        objective=_objective(asked),
        method=method,
        seed=asked.seed,
        prune=asked.prune,
        config=resolved(phases, asked.space),
    )
    folder = asked.folder.expanduser().absolute()
    sweep = Sweep(
        folder=folder,
        identity=identity,
        config_path=asked.config,
        overrides=(*asked.overrides, *_group_flags(phases, folder)),
        phases=tuple(phases),
        storage=without_password(asked.storage),
        study=study_name(identity, folder, asked.storage),
        trials=_trials(asked, method, folder),
        command=asked.command,
    )
    if asked.vmap:
        check_programs(sweep)
    return sweep


def _method(asked: Asked) -> str:
    method = asked.method or ("grid" if asked.space.only_choices else "tpe")
    ranges = [f"{name}={values}" for name, values in asked.space.settings.items() if isinstance(values, Range)]
    if method == "grid" and ranges:
        raise UserError(f"--method=grid needs choices, such as {{1e-4,1e-3}}, and {ranges[0]} is a range")
    if method == "grid" and asked.seed:
        raise UserError(f"--seed={asked.seed} does nothing with --method=grid; seeds of the trials are in --space")
    if method != "grid" and not asked.space.searched:
        raise UserError(f"--method={method}: --space has nothing but seeds to choose from; use --method=grid")
    return method


def _objective(asked: Asked) -> Objective:
    metric, _, mode = asked.objective.rpartition(":")
    if not metric or mode not in ("min", "max"):
        near = did_you_mean(mode, ("min", "max")) if metric else ""
        raise UserError(f"--objective={asked.objective}: write METRIC:min or METRIC:max{near}")
    return Objective(metric, mode, asked.at)


def _trials(asked: Asked, method: str, folder: Path) -> int:
    """The number of trials in total."""
    size = asked.space.grid_size * (len(asked.space.seeds) or 1) if method == "grid" else math.inf
    if asked.trials is not None:
        return min(asked.trials, size)
    if method == "grid":
        return size
    if (folder / NAME).exists():
        return read_sweep(folder).trials
    raise UserError(f"--method={method} draws points without end: give --trials=N, their number in total")


def _check_space(asked: Asked, method: str) -> dict[str, ml_collections.ConfigDict]:
    """Checks the config at points of the space. Returns its phases at the first of them."""
    given = split_escaped(split_name(asked.config)[1] or "", ",")
    for argument in given:
        if (name := f":{argument.partition('=')[0]}") in asked.space.settings:
            raise UserError(f"--config has {argument}, and --space sets {name} too: give one of them")
    for name in asked.space.settings:
        flag = re.compile(rf"--(no)?config\.{re.escape(name)}(=.*)?")
        if given := next((each for each in asked.overrides if flag.fullmatch(each)), None):
            raise UserError(f"{given} and --space both set {name}: give one of them")
    points = list(asked.space.probes())
    if method == "grid" and asked.space.grid_size <= CHECKED:
        seed = {name: value for name, value in points[0].items() if name not in asked.space.searched}
        points += [asked.space.grid_point(number) | seed for number in range(asked.space.grid_size)]
        points = list({shown(point): point for point in points}.values())
    evaluations, first = Evaluations(), None
    for point in points:
        config, flags = config_of(asked.config, point)
        try:
            phases = load_phases(config, [*asked.overrides, *flags])
            check_phases(phases, evaluations, here=False)
        except UserError as error:
            _explain(error, asked, point)
        first = first or phases
    return first


def _group_flags(phases: Mapping[str, ml_collections.ConfigDict], folder: Path) -> list[str]:
    """The flag that joins the trials on Weights & Biases, where they are sent there and the config names no group."""
    sent = [phase.wandb for phase in phases.values() if phase.wandb.project is not None]
    if len(sent) < len(phases) or any(section.group is not None for section in sent):
        return []
    return [f"--config.wandb.group={folder.name}"]


def _explain(error: UserError, asked: Asked, point: Point) -> None:
    """Raises the error of a point of the space with words about the space; of a config that is wrong by itself, as it
    is."""
    if not any(name.startswith(":") for name in point):
        check_phases(load_phases(asked.config, asked.overrides), Evaluations(), here=False)
    wants_whole = "of type int" in str(error) or "a whole number" in str(error)
    wholes = [
        name
        for name, values in asked.space.settings.items()
        if isinstance(values, Range) and not values.whole and f"config.{name}" in str(error)
    ]
    hint = f"; for whole numbers write {wholes[0]}=int(low,high) or int(low,high,log)" if wholes and wants_whole else ""
    raise UserError(f"--space: at {shown(point)}: {error}{hint}") from None


def _is_counted(before: Sweep, lock: StudyLock, url: str) -> bool:
    """Whether a sweep has trials that are over."""
    try:
        return any(trial.stored.state.is_finished() for trial in Study(before, lock, url=url, create=False).trials())
    except UserError:  # it was cut off before it had a study, or is stored elsewhere, which is refused
        return False
