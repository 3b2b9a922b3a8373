"""What makes two commands one sweep: the file sweep.json in the sweep's folder.

A sweep is its space, its objective, its method and its config. The same command continues it, also with another number
of trials or workers, and on another machine; a command that changes anything else is refused.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections

from ...data.checksums import write_whole
from ...errors import UserError
from .space import Space, read_space

NAME = "sweep.json"
TRIALS = "trials"


@dataclass(frozen=True)
class Objective:
    """What a sweep looks for."""

    metric: str
    """A metric of metrics.jsonl, such as eval/heldout/text/loss."""

    mode: str
    """"min" if smaller values are better, "max" if larger ones are."""

    at: str = "last"
    """The evaluation that counts: "last", or "best", the best one after the first step."""

    def __str__(self) -> str:
        return f"{self.metric}:{self.mode}"

    def better(self, a: float, b: float) -> bool:
        """Whether a value is better than another one."""
        return a < b if self.mode == "min" else a > b

    def of(self, curve: Mapping[int, float]) -> float | None:
        """The value of a run by the values of the metric after the first step; None where there is none."""
        values = [value for step, value in sorted(curve.items()) if step > 0]
        if not values:
            return None
        numbers = [value for value in values if value == value]
        if self.at == "last" or not numbers:
            return values[-1]
        return min(numbers) if self.mode == "min" else max(numbers)


@dataclass(frozen=True)
class Pruning:
    """How Hyperband ends trials before their end (arXiv:1603.06560, in its asynchronous form, arXiv:1810.05934)."""

    min_evaluations: int = 1
    """Number of evaluations that every trial has before it may be ended."""

    reduction: int = 3
    """Of so many trials at a rung one goes on."""


@dataclass(frozen=True)
class Identity:
    """What every worker of a sweep agrees on."""

    space: Space
    """The settings that vary."""

    objective: Objective
    """What the sweep looks for."""

    method: str
    """grid, random or tpe."""

    seed: int
    """Seed of the points that random and tpe draw."""

    prune: Pruning | None
    """How trials are ended early; None: they are not."""

    config: Mapping[str, Any]
    """The resolved config without the settings of the space: {leaf: value}; of a config with phases, a leaf of one
    phase is called phases.<phase>.<leaf>."""

    @property
    def hash(self) -> str:
        """A hash of all of it."""
        content = json.dumps(_described(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder and what its sweep.json says."""

    folder: Path
    """The sweep's folder, absolute."""

    identity: Identity
    """What every worker of the sweep agrees on."""

    config_path: str
    """The value of `--config` of the command that last started it."""

    overrides: tuple[str, ...]
    """The flags --config.NAME=VALUE of that command."""

    phases: tuple[str, ...]
    """Names of the config's phases; ("",) for a config without."""

    storage: str
    """journal, sqlite, or the URL of a database, without its password."""

    study: str
    """The name of the study in Optuna's storage."""

    trials: int
    """Number of trials that the sweep has in total."""

    command: tuple[str, ...]
    """The arguments of the command that last started it."""

    def trial_folder(self, number: int) -> Path:
        """The folder of a trial: an ordinary run directory."""
        return self.folder / TRIALS / f"{number:04d}"

    def run_folder(self, number: int) -> Path:
        """The run directory that the objective is read from: the trial's folder, or that of its last phase."""
        return self.trial_folder(number) / self.phases[-1]


def read_sweep(folder: str | os.PathLike) -> Sweep:
    """What sweep.json says. Raises UserError where there is no sweep, or the file is damaged."""
    folder = Path(folder).expanduser().absolute()
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        identity = found["identity"]
        return Sweep(
            folder=folder,
            identity=Identity(
                space=read_space(identity["space"]),
                objective=Objective(**identity["objective"]),
                method=identity["method"],
                seed=identity["seed"],
                prune=identity["prune"] and Pruning(**identity["prune"]),
                config=identity["config"],
            ),
            config_path=found["config_path"],
            overrides=tuple(found["overrides"]),
            phases=tuple(found["phases"]),
            storage=found["storage"],
            study=found["study"],
            trials=found["trials"],
            command=tuple(found["command"]),
        )
    except FileNotFoundError:
        raise UserError(f"{folder}: there is no sweep here (no {NAME})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / NAME} is damaged ({type(error).__name__}: {error})") from None


def begin_or_continue(sweep: Sweep, *, counted: bool) -> Sweep:
    """Writes sweep.json, after it was compared with the one that is there. Call it with the study's lock held.

    Args:
      sweep: what the command says. The file keeps the largest number of trials that was asked for.
      counted: whether the sweep has trials that are over. As long as it has none, its objective may change.

    Returns:
      The sweep, under the name that its study has.

    Raises:
      UserError: the sweep in the folder is another one; the message names what differs with both values.
    """
    path = sweep.folder / NAME
    begun, trials = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), sweep.trials
    if path.exists():
        before = read_sweep(sweep.folder)
        changes = differences(before.identity, sweep.identity, counted=counted)
        if before.storage != sweep.storage:
            changes.append(f"--storage was {before.storage} and is {sweep.storage}")
        if changes:
            raise UserError(
                f"{sweep.folder}: this sweep cannot continue with these changes: {'; '.join(changes)}. Give the former "
                "values, or begin another sweep in another --workdir"
            )
        begun = json.loads(path.read_text(encoding="utf-8")).get("begun", begun)
        study = before.study if before.identity.hash == sweep.identity.hash else sweep.study
        sweep = dataclasses.replace(sweep, study=study)
        trials = max(sweep.trials, before.trials)
    content = {
        "hash": sweep.identity.hash,
        "begun": begun,
        "study": sweep.study,
        "storage": sweep.storage,
        "trials": trials,
        "phases": sweep.phases,
        "config_path": sweep.config_path,
        "overrides": sweep.overrides,
        "command": sweep.command,
        "identity": _described(sweep.identity),
    }
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return sweep


def study_name(identity: Identity, folder: Path, storage: str) -> str:
    """The name of a new study. In a database that sweeps share, the folder is part of it."""
    if "://" not in storage:
        return f"camelid-{identity.hash}"
    place = hashlib.sha256(os.fspath(folder).encode()).hexdigest()[:8]
    return f"camelid-{identity.hash}-{place}"


def without_password(storage: str) -> str:
    """A database's URL with `***` in place of its password."""
    return re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", storage)


def differences(before: Identity, now: Identity, *, counted: bool) -> list[str]:
    """Sentences about what differs between two sweeps, with both values."""
    found = []
    old, new = before.space.settings, now.space.settings
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            said = [str(values.get(name, "not there")) for values in (old, new)]
            found.append(f"{name} in --space was {said[0]} and is {said[1]}")
    if not found and list(old) != list(new):
        found.append(f"--space had the order {', '.join(old)} and has {', '.join(new)}")
    for leaf in dict.fromkeys([*before.config, *now.config]):
        if leaf in old or leaf in new:
            continue
        values = [json.dumps(i.config[leaf]) if leaf in i.config else "not there" for i in (before, now)]
        if values[0] != values[1]:
            found.append(f"config.{leaf} was {values[0]} and is {values[1]}")
    pairs = {"--method": (before.method, now.method), "--seed": (before.seed, now.seed)}
    pairs["--prune"] = (_prune_words(before.prune), _prune_words(now.prune))
    if counted:
        pairs["--objective"] = (str(before.objective), str(now.objective))
        pairs["--at"] = (before.objective.at, now.objective.at)
    return found + [f"{name} was {old} and is {new}" for name, (old, new) in pairs.items() if old != new]


def resolved(phases: Mapping[str, ml_collections.ConfigDict], space: Space) -> dict[str, Any]:
    """The leaves of a config, without those of the space, as JSON has them.

    Leaves that all phases share stand once; others are called phases.<phase>.<leaf>.
    """
    flat = {name: dict(_leaves(json.loads(config.to_json_best_effort()))) for name, config in phases.items()}
    found = {}
    for leaf in dict.fromkeys(leaf for leaves in flat.values() for leaf in leaves):
        values = [leaves.get(leaf, _MISSING) for leaves in flat.values()]
        if all(value is not _MISSING and value == values[0] for value in values):
            found[leaf] = values[0]
        else:
            found |= {f"phases.{name}.{leaf}": leaves[leaf] for name, leaves in flat.items() if leaf in leaves}
    return {
        leaf: value
        for leaf, value in found.items()
        if space.settings.keys().isdisjoint({leaf, re.sub(r"^phases\.\w+\.", "", leaf)})
    }


_MISSING = object()


def _leaves(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _described(identity: Identity) -> dict[str, Any]:
    """An identity as JSON has it."""
    return {
        "space": identity.space.lines(),
        "objective": dataclasses.asdict(identity.objective),
        "method": identity.method,
        "seed": identity.seed,
        "prune": identity.prune and dataclasses.asdict(identity.prune),
        "config": dict(identity.config),
    }


def _prune_words(prune: Pruning | None) -> str:
    if prune is None:
        return "none"
    return f"hyperband with --min_evaluations={prune.min_evaluations} --reduction={prune.reduction}"
