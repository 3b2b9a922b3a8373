"""The study of a sweep: its trials in Optuna's storage, shared by all workers.

Trials are numbered from 0. With S seeds, trial k runs point k // S with seed k % S. A point of `grid` and `random`
follows from its number alone, so that a sweep whose workers were killed equals one that was left alone. A point of
`tpe` depends on the trials that were over when it was drawn.
"""

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import UserError
from .claims import Claim, StudyLock, claim
from .identity import Pruning, Sweep, without_password
from .space import SEED, Space

JOURNAL, SQLITE = "study.journal", "study.db"
RETRY = "retry_of"
"""The attribute of a trial in Optuna's storage that runs a failed one again: its number."""

STARTUP = 10
"""Points that TPE draws at random before it learns from trials."""


class Trial(NamedTuple):
    """A trial as the storage knows it."""

    number: int
    """Its number in the sweep."""

    stored: Any
    """Optuna's FrozenTrial of its latest attempt."""

    point: Mapping[str, Any]
    """The value of each setting of the space, its seed included."""


@dataclass
class Claimed:
    """A trial that this process runs."""

    trial: Trial
    """The trial."""

    lock: Claim
    """The right to run it."""

    resumed: bool
    """Whether another process began it."""


class Study:
    """The trials of a sweep. All that changes them takes the study's lock, which `lock` is.

    Args:
      sweep: the sweep, as its sweep.json says.
      url: the database's URL with its password; None: `sweep.storage`.
      create: whether the study is made where it is missing.

    Raises:
      UserError: Optuna is missing, the database cannot be reached, or there is no study yet.
    """

    def __init__(self, sweep: Sweep, lock: StudyLock, *, url: str | None = None, create: bool = True):
        self.sweep, self._lock = sweep, lock
        self._space, self._identity = sweep.identity.space, sweep.identity
        with _quiet(), _explained(sweep.storage):
            self.study = _open(sweep, lock, url or sweep.storage, create)

    def trials(self) -> list[Trial]:
        """All trials by number, each with its latest attempt. One that was cut off while it was made has no point."""
        with _quiet(), _explained(self.sweep.storage):
            stored = self.study.get_trials(deepcopy=False)
        latest: dict[int, Any] = {}
        for each in stored:
            number = each.user_attrs.get(RETRY)
            latest[len(latest) if number is None else number] = each
        return [Trial(number, each, self._point(number, each)) for number, each in sorted(latest.items())]

    def claim_next(self, *, limit: int = 1, retry: Container[int] = ()) -> list[Claimed]:
        """The next trials to run: those whose process is gone first, by number, then new ones.

        Args:
          limit: the most trials to claim.
          retry: failed attempts that are run again, by their numbers in Optuna's storage.

        Returns:
          The trials, which nobody else runs; empty where there is nothing to begin.
        """
        from optuna.trial import TrialState

        found: list[Claimed] = []
        with self._lock, _quiet(), _explained(self.sweep.storage):
            trials = self._whole_trials()
            for trial in trials:
                if len(found) == limit:
                    return found
                if trial.stored.state == TrialState.RUNNING and (lock := self._claim(trial.number)):
                    found.append(Claimed(trial, lock, resumed=True))
            for trial in trials:
                if len(found) == limit:
                    return found
                again = trial.stored.state == TrialState.FAIL and trial.stored.number in retry
                if again and (lock := self._claim(trial.number)):
                    self._add(trial.stored.params, {RETRY: trial.number})
                    found.append(Claimed(trial._replace(stored=self._newest()), lock, resumed=True))
            for number in range(len(trials), min(len(trials) + limit - len(found), self.sweep.trials)):
                trial = self._new(number)
                found.append(Claimed(trial, self._claim(number), resumed=False))
        return found

    def report(self, trial: Trial, evaluation: int, value: float) -> bool:
        """Reports the value of an evaluation, numbered from 1. Returns whether the trial shall be ended early."""
        import optuna

        with self._lock, _quiet(), _explained(self.sweep.storage):
            optuna.Trial(self.study, trial.stored._trial_id).report(value, evaluation)
            longest = self._longest()
            return longest > 0 and self._reaches_rungs(trial, evaluation, longest)

    def finish(self, claimed: Claimed, state: str, value: float | None = None, reason: str | None = None) -> None:
        """Writes the end of a trial, and gives its lock back.

        Args:
          claimed: the trial.
          state: finished, pruned or failed.
          value: the objective's value of a finished trial.
          reason: why it failed or was ended.
        """
        import optuna

        states = optuna.trial.TrialState
        told = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]
        with self._lock, _quiet(), _explained(self.sweep.storage):
            if state == "finished" and self._identity.prune is not None:
                own = self._latest(claimed.trial).last_step or 0
                self._reaches_rungs(claimed.trial, own, max(own, self._longest()))  # later trials are compared with it
            if reason is not None:
                optuna.Trial(self.study, claimed.trial.stored._trial_id).set_user_attr("reason", reason)
            self.study.tell(claimed.trial.stored.number, value, told)
        claimed.lock.release()

    def note(self, trial: Trial, name: str, value: Any) -> None:
        """Writes an attribute of a trial that runs, such as the number of times that it was begun."""
        import optuna

        with self._lock, _quiet(), _explained(self.sweep.storage):
            optuna.Trial(self.study, trial.stored._trial_id).set_user_attr(name, value)

    def _longest(self) -> int:
        """The most evaluations of a complete trial; 0 without any: Hyperband's rungs are not known yet."""
        import optuna

        complete = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        return max((trial.last_step or 0 for trial in complete), default=0)

    def _reaches_rungs(self, trial: Trial, evaluation: int, longest: int) -> bool:
        """Notes the rungs that a trial has reached with its evaluations so far. Returns whether it shall end at one.

        The first trials reach rungs before these are known; all evaluations are therefore gone through each time.
        """
        pruner = _hyperband(self._identity.prune, longest)
        for step in range(1, evaluation + 1):
            then = copy.copy(self._latest(trial))
            then.intermediate_values = {at: x for at, x in then.intermediate_values.items() if at <= step}
            if pruner.prune(self.study, then):
                return True
        return False

    def _latest(self, trial: Trial) -> Any:
        """A trial as the storage has it now."""
        return self.study.get_trials(deepcopy=False)[trial.stored.number]

    def _whole_trials(self) -> list[Trial]:
        """All trials, after those were completed that a process was making when it was killed."""
        import optuna

        trials = self.trials()
        for at, trial in enumerate(trials):
            if len(trial.point) < len(self._space.settings) and not trial.stored.state.is_finished():
                self._draw(optuna.Trial(self.study, trial.stored._trial_id), trial.number)
                stored = self._latest(trial)
                trials[at] = Trial(trial.number, stored, self._point(trial.number, stored))
        return trials

    def _new(self, number: int) -> Trial:
        """Makes the trial of a number. Its point is known before, or TPE draws it."""
        params = self._known(number)
        if params is None:
            self._draw(self.study.ask(), number)
        else:
            self._add(params, {})
        stored = self._newest()
        return Trial(number, stored, self._point(number, stored))

    def _known(self, number: int) -> dict[str, Any] | None:
        """The parameters of a trial as Optuna stores them; None for a point that TPE has to draw."""
        searched, seeds = self._space.searched, len(self._space.seeds) or 1
        if self._identity.method == "grid":
            point = self._space.grid_point(number // seeds)
            return {name: values.stored(point[name]) for name, values in searched.items()}
        if self._identity.method == "random":
            return _random_point(self._space, self._identity.seed, number // seeds)
        return self.trials()[number - number % seeds].stored.params if number % seeds else None

    def _draw(self, live: Any, number: int) -> None:
        """Gives a trial that Optuna has just made its parameters."""
        import optuna

        seeds = len(self._space.seeds) or 1
        seed = int(np.random.SeedSequence([self._identity.seed, number // seeds]).generate_state(1)[0])
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP * seeds, seed=seed)
        self.study.pruner = optuna.pruners.NopPruner()  # with Hyperband's, each bracket would learn by itself
        for name, values in self._space.searched.items():
            values.suggest(live, name)

    def _add(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        """Adds a running trial in one operation."""
        import optuna

        self.study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING,
                params=dict(params),
                distributions={name: values.distribution() for name, values in self._space.searched.items()},
                user_attrs=dict(attributes),
            )
        )

    def _newest(self) -> Any:
        return self.study.get_trials(deepcopy=False)[-1]

    def _claim(self, number: int) -> Claim | None:
        return claim(self.sweep.trial_folder(number) / ".worker")

    def _point(self, number: int, stored: Any) -> dict[str, Any]:
        """The values of the settings, in the space's order."""
        seeds = self._space.seeds
        point = {}
        for name, values in self._space.settings.items():
            if name == SEED and seeds:
                point[name] = seeds[number % len(seeds)]
            elif name in stored.params:
                point[name] = values.restored(stored.params[name])
        return point


def _random_point(space: Space, seed: int, point: int) -> dict[str, Any]:
    """The parameters of a point of random search, as Optuna stores them; they depend on the seed and the point's
    number alone."""
    import optuna

    state = int(np.random.SeedSequence([seed, point]).generate_state(1)[0])
    sampler = optuna.samplers.RandomSampler(seed=state)
    return {
        name: sampler.sample_independent(None, None, name, values.distribution())
        for name, values in space.searched.items()
    }


def _hyperband(prune: Pruning, longest: int) -> Any:
    """The pruner of a sweep whose complete trials have up to `longest` evaluations."""
    import optuna

    least = prune.min_evaluations
    return optuna.pruners.HyperbandPruner(
        min_resource=least, max_resource=max(longest, least), reduction_factor=prune.reduction
    )


def _open(sweep: Sweep, lock: StudyLock, url: str, create: bool) -> Any:
    """Optuna's study of a sweep."""
    import optuna

    with lock:
        storage = _storage(sweep.folder, lock, url)
        direction = "minimize" if sweep.identity.objective.mode == "min" else "maximize"
        try:
            return optuna.load_study(study_name=sweep.study, storage=storage, sampler=optuna.samplers.RandomSampler())
        except KeyError:
            if not create:
                raise UserError(f"{sweep.folder}: the sweep has no trials yet") from None
        return optuna.create_study(
            study_name=sweep.study,
            storage=storage,
            direction=direction,
            sampler=optuna.samplers.RandomSampler(),
        )


def _storage(folder: Path, lock: StudyLock, url: str) -> Any:
    import optuna

    if url == "journal":
        path = folder / JOURNAL
        return optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(os.fspath(path), lock_obj=_JournalLock(path, lock))
        )
    if url == "sqlite":
        kwargs = {"connect_args": {"timeout": 60}}
        return optuna.storages.RDBStorage(f"sqlite:///{folder / SQLITE}", engine_kwargs=kwargs)
    return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


class _JournalLock:
    """The study's lock as Optuna's journal wants it. Optuna's own lock files outlive a killed process by 30 seconds.

    A line that a full disk or a crash cut off is removed before the next one is written.
    """

    def __init__(self, path: Path, lock: StudyLock):
        self._path, self._lock = path, lock

    def acquire(self) -> bool:
        self._lock.__enter__()
        _drop_cut_off_line(self._path)
        return True

    def release(self) -> None:
        self._lock.__exit__()


def _drop_cut_off_line(path: Path) -> None:
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Optuna's own log lines and warnings from the terminal."""
    import_optuna().logging.disable_default_handler()
    logging.getLogger("alembic").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def import_optuna() -> Any:
    """Optuna. Raises UserError where it is missing."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"camelid sweep needs {error.name}: pip install 'camelid[sweep]'") from None
    return optuna


@contextlib.contextmanager
def _explained(storage: str) -> Iterator[None]:
    """Turns the errors of databases into one line."""
    try:
        yield
    except ImportError as error:
        needs = f" ({error.name})" if error.name else ""
        raise UserError(
            f"--storage={without_password(storage)}: the database's driver is not installed{needs}"
        ) from None
    except (UserError, OSError):
        raise
    except Exception as error:
        if isinstance(error, json.JSONDecodeError) or str(error) == "Invalid log format.":
            raise UserError(f"{JOURNAL} is damaged ({error}): restore it, or begin another sweep") from error
        if type(error).__module__.partition(".")[0] not in ("sqlalchemy", "optuna"):
            raise
        said = " ".join(str(error).split())[:200]
        raise UserError(f"--storage={without_password(storage)}: {said}") from error
