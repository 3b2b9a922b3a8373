"""The stages of a run and their units of work: reading, sorting, row steps, and decisions about all rows.

    read     a unit for each file of each source, or for several small ones; it writes rows into a file per partition
    sort     a unit for each partition: rows in the order of their ids, without those that a source has twice
    decide   one unit: what a step that needs to see all rows rejects, by partition
    steps    a unit for each partition: applies the decision before it, then row steps up to the next decision

A row's partition follows from the first digits of its id, so partitions follow each other in the order of ids. The
folder of a stage is named by a hash of all that decides its content, which begins with that of the stage before. A
changed config finds the stages before the first change, and no others.
"""

import dataclasses
import hashlib
import heapq
import inspect
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from ..data.columns import absent, rename
from ..data.files import find_files
from ..data.json_values import RestUnreadable, TooLarge
from ..data.sources import Source, fingerprint, parts_of, raw_rows
from ..errors import UserError
from .applying import LAST, Passing, RejectedRow, apply_steps, decisions, id_of_row
from .measure import Measure
from .parsing import FORMAT
from .rows import Row, id_of
from .settings import READ, CurateConfig, class_name, is_whole, named_steps, settings_of, source_of
from .shards import UnitWriter, encode, facts_of, is_done, new_unit, read_lines
from .values import problem_of, without_nan
from .workers import Workers

T = TypeVar("T")

UNIT_BYTES = 1 << 22
"""Most bytes of the files that one unit of the stage read takes together; a larger file is a unit of its own."""

ROWS, REJECTED = "rows", "rejected"
"""Names of the files in a unit of the stages sort and steps."""

_ID = slice(len('{"id":"'), len('{"id":"') + 20)
"""Where the id stands in a line of the stage read."""


@dataclass(frozen=True)
class Stage:
    """A stage of a run."""

    number: int
    """Its place among the stages, from 0."""

    kind: str
    """ "read", "sort", "decide" or "steps"."""

    steps: tuple[str, ...]
    """Names of the steps that it takes: none, one for "decide"."""

    units: int
    """Number of units of work."""

    key: str
    """Hash of everything that decides its content, in hexadecimal."""

    @property
    def folder(self) -> str:
        return f"{self.number}-{self.kind}-{self.key[:16]}"

    def __str__(self) -> str:
        return f"{self.kind} {', '.join(self.steps)}" if self.steps else self.kind


@dataclass(frozen=True)
class Plan:
    """A run: its config, its stages, and where they are on disk. Every process of a run has the same."""

    config: CurateConfig
    work: Path
    parts: tuple[tuple[Source, ...], ...]
    """The input of each unit of the stage read: files of one source, a task or a TensorFlow Dataset."""

    stages: tuple[Stage, ...]
    fingerprints: dict[str, str]
    """Hash of the content of each source, by name."""

    def unit(self, stage: Stage, number: int) -> Path:
        """The folder of a unit."""
        return self.work / stage.folder / f"{number:05d}"

    def before(self, stage: Stage) -> Stage:
        """The stage whose rows a stage takes."""
        index = stage.number - 1
        return self.stages[index - 1 if self.stages[index].kind == "decide" else index]

    def is_complete(self, stage: Stage) -> bool:
        """Whether all units of a stage are complete."""
        return all(is_done(self.unit(stage, number)) for number in range(stage.units))


def plan_of(config: CurateConfig, work: Path, versions: dict[str, str]) -> Plan:
    """The plan of a run. Reads all input once, for its hash. Raises UserError for a source or step that is not there.

    versions: versions of the packages that decide the content.
    """
    sources = {name: source_of(config, name) for name in sorted(config.sources)}
    fingerprints = {name: fingerprint(source) for name, source in sources.items()}
    parts = tuple(group for source in sources.values() for group in _grouped(parts_of(source)))
    reading = {
        "sources": [[n, s.location, s.format, dict(s.columns), fingerprints[n]] for n, s in sources.items()],
        "how": [config.on_error, config.max_record_bytes, config.partitions],
        "code": _code_hash(),
        "versions": versions,
    }
    stages = [Stage(0, "read", (), len(parts), _hash(reading))]

    def add(kind: str, names: Iterable[str], content: Any) -> None:
        units = 1 if kind == "decide" else config.partitions
        stages.append(Stage(len(stages), kind, tuple(names), units, _hash([stages[-1].key, kind, content])))

    add("sort", (), None)
    groups = _groups([(name, is_whole(step), _content(config, name, step)) for name, step in named_steps(config)])
    for number, (whole, steps) in enumerate(groups):
        if whole is not None:
            add("decide", [whole[0]], whole[1])
        last = [config.tokenizer and named_files([config.tokenizer])] if number == len(groups) - 1 else []
        add("steps", [name for name, _ in steps], [[content for _, content in steps], last])
    return Plan(config, work, parts, tuple(stages), fingerprints)


def _grouped(parts: list[Source]) -> Iterator[tuple[Source, ...]]:
    """The parts of a source in their order, in groups of at most UNIT_BYTES or of one file."""
    group, held = [], 0
    for part in parts:
        path = epath.Path(part.location)
        size = path.stat().length if len(parts) > 1 else 0
        if group and held + size > UNIT_BYTES:
            yield tuple(group)
            group, held = [], 0
        group.append(part)
        held += size
    yield tuple(group)


def _groups(steps: list[tuple[str, bool, Any]]) -> list[tuple[tuple[str, Any] | None, list[tuple[str, Any]]]]:
    """Each decision with the row steps that follow it; the first group has none."""
    groups: list = [(None, [])]
    for name, whole, content in steps:
        if whole:
            groups.append(((name, content), []))
        else:
            groups[-1][1].append((name, content))
    return groups if groups[0][1] or len(groups) == 1 else groups[1:]


def _content(config: CurateConfig, name: str, step: Any) -> list:
    """What decides the results of a step, as JSON can hold it: its settings, and the files that they name."""
    settings, used = settings_of(step), class_name(config, name)
    own = _digest(Path(inspect.getsourcefile(type(step)))) if ":" in used else ""
    return [name, used, own, settings, named_files(settings)]


def named_files(settings: Any) -> dict[str, str]:
    """The hash of the content of each file, glob or folder of files that a string in settings names."""
    found = {}
    for text in _strings(settings):
        path = Path(text).expanduser()
        try:
            files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else None
            files = [Path(file) for file in find_files(text)] if files is None and "*" in text else files
        except (OSError, UserError, ValueError):  # a word that is no path
            files = None
        if files is not None:
            found[text] = _hash([[file.name, _digest(file)] for file in files if file.is_file()])
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.strip() and "\n" not in value and "\0" not in value:
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _code_hash() -> str:
    """A hash of the files of this folder and of `data/`, so that changed code finds none of the old stages."""
    folders = [Path(__file__).parent, Path(__file__).parents[1] / "data"]
    files = [path for folder in folders for kind in ("*.py", "*.toml") for path in sorted(folder.rglob(kind))]
    return _hash([[path.name, _digest(path)] for path in files])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


# In each process of a run: the plan, and its steps, which keep what they load.

_plan: Plan
_steps: dict[str, Any]


def start(plan: Plan) -> None:
    """Begins work on a plan in this process."""
    global _plan, _steps
    _plan, _steps = plan, dict(named_steps(plan.config))


def do_unit(stage: Stage, number: int) -> None:
    """Computes a unit of a stage other than "decide", and writes it."""
    work = {"read": _read, "sort": _sort, "steps": _apply}[stage.kind]
    with new_unit(_plan.unit(stage, number)) as unit:
        work(stage, number, unit)


def partition_of(id: str, partitions: int) -> int:
    """The partition of an id, among a number that is a power of two."""
    return int(id[:8], 16) * partitions >> 32


def _read(stage: Stage, number: int, unit: UnitWriter) -> None:
    config, parts, read = _plan.config, _plan.parts[number], 0
    mapped: set[str] = set()  # the fields in the map of columns that a record had
    for part in parts:
        for found in read_part(config, part):
            read += 1
            partition = f"{partition_of(id_of_row(found), config.partitions):03d}"
            if isinstance(found, Row) and part.columns:
                mapped |= part.columns.keys() & found.record.keys()
            name = partition if isinstance(found, Row) else f"{partition}-{REJECTED}"
            unit.write(name, encode(found.to_json()))
    unit.facts = {"source": parts[0].name, "read": read, "mapped": sorted(mapped)}


def check_mapped(plan: Plan) -> None:
    """Raises UserError for a column in the map of a source that none of its records has. All of them have been read."""
    for name, source in plan.config.sources.items():
        if not source.columns:
            continue
        units = [plan.unit(plan.stages[0], n) for n, parts in enumerate(plan.parts) if parts[0].name == name]
        missing = source.columns.keys() - {field for unit in units for field in facts_of(unit)["mapped"]}
        records = (raw for _, raw in raw_records(source_of(plan.config, name)) if isinstance(raw, dict))
        if missing and (first := next(records, None)):
            clause = absent({"": source.columns[min(missing)]}, first)
            raise UserError(f"config.sources.{name}.columns: {clause}")


def read_part(config: CurateConfig, part: Source) -> Iterator[Row | RejectedRow]:
    """The rows of one file or dataset, and, with on_error=skip, rows without a record for those that cannot be read.

    Raises UserError for a record that cannot be read, and always if that is the rest of a file.
    """
    measure = Measure(config.tokenizer)
    for place, raw in raw_records(part):
        if isinstance(raw, dict):
            yield row_of(part, place, raw)
            continue
        problem = str(raw)
        if isinstance(raw, RestUnreadable):
            raise UserError(f"{place}: {problem}: mend the file, or leave it out of the source")
        if config.on_error == "raise":
            hint = "or raise config.max_record_bytes" if isinstance(raw, TooLarge) else "or mend it"
            raise UserError(f"{place}: {problem} (on_error=skip rejects such records as unreadable; {hint})")
        row = dataclasses.replace(row_of(part, place, {}), id=id_of(part.name, {"unreadable": place}))
        yield RejectedRow(measure.with_size(row), READ, "unreadable", problem)


def row_of(source: Source, place: str, raw: dict[str, Any]) -> Row:
    """The row of a raw record of a source, with its columns under the names of fields."""
    raw = rename(raw, source.columns) if source.columns else raw
    columns = {} if source.format == "auto" else {FORMAT: source.format}
    return Row(id_of(source.name, raw), raw, source.name, place, columns)


def raw_records(source: Source) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """Pairs (place, raw record) of a source; a ValueError stands in for a record that cannot be read.

    NaN, by which tables mark a value that is missing, is None. A value that JSON cannot hold cannot be read.
    """
    for place, raw in raw_rows(source):
        if isinstance(raw, ValueError):
            yield place, raw
        elif not isinstance(raw, dict):
            yield place, ValueError("the record is no JSON object with named fields")
        elif not problem_of(raw):
            yield place, raw
        else:
            raw = without_nan(raw)
            problem = problem_of(raw)
            yield place, ValueError(f"the field {problem}") if problem else raw


def _sort(stage: Stage, number: int, unit: UnitWriter) -> None:
    fragments = [_plan.unit(_plan.stages[0], part) for part in range(len(_plan.parts))]
    measure = Measure(_plan.config.tokenizer)
    lines = [line for fragment in fragments for line in read_lines(fragment, f"{number:03d}")]
    rejected = [
        RejectedRow.from_json(json.loads(line))
        for fragment in fragments
        for line in read_lines(fragment, f"{number:03d}-{REJECTED}")
    ]
    lines.sort(key=lambda line: line[_ID])
    for _, equal in itertools.groupby(lines, key=lambda line: line[_ID]):
        first, *others = equal
        unit.write(ROWS, first)
        for line in others:
            row, detail = Row.from_json(json.loads(line)), f"equals {json.loads(first)['place']}"
            rejected.append(RejectedRow(measure.with_size(row), READ, "repeated", detail))
    for each in sorted(rejected, key=id_of_row):
        unit.write(REJECTED, encode(each.to_json()))


def _apply(stage: Stage, number: int, unit: UnitWriter) -> None:
    measure, passing = Measure(_plan.config.tokenizer), Passing()
    steps = [(name, _steps[name]) for name in stage.steps]
    last = stage.number == len(_plan.stages) - 1
    whole, decided = _decided(stage, number)
    for row in rows_in(_plan, _plan.before(stage), number):
        if whole:
            passing.came[whole] += 1
        if row.id in decided:
            reason, detail, columns = decided.pop(row.id)
            kept, rejected = [], [RejectedRow(row.with_(**columns), whole, reason, detail)]
        else:
            kept, rejected = apply_steps(row, [*steps, LAST] if last else steps, passing)
        for each in kept:
            unit.write(ROWS, encode((measure.with_size(each) if last else each).to_json()))
        for each in rejected:
            unit.write(REJECTED, encode(dataclasses.replace(each, row=measure.with_size(each.row)).to_json()))
    if decided:
        raise UserError(f"step {whole} rejects the id {min(decided)}, which no row has")
    unit.facts = {"came": passing.came, "changed": passing.changed}


def _decided(stage: Stage, number: int) -> tuple[str, dict[str, tuple[str, str, dict[str, Any]]]]:
    """The step that decided just before a stage, "" if none did, and its decisions about one partition: reason, detail
    and columns by id."""
    decision = _plan.stages[stage.number - 1]
    if decision.kind != "decide":
        return "", {}
    found = {}
    for line in read_lines(_plan.unit(decision, 0), f"{number:03d}"):
        id, *why = json.loads(line)
        if id in found:
            raise UserError(f"step {decision.steps[0]} rejects the id {id} twice")
        found[id] = tuple(why)
    return decision.steps[0], found


def rows_in(plan: Plan, stage: Stage, number: int) -> Iterator[Row]:
    """The rows of one partition after a stage, in the order of their ids. Raises UserError for damage on disk."""
    return (Row.from_json(json.loads(line)) for line in read_lines(plan.unit(stage, number), ROWS))


def rejected_in(plan: Plan, number: int) -> Iterator[RejectedRow]:
    """The rejected rows of one partition, of all stages, in the order of their ids."""
    stages = [stage for stage in plan.stages if stage.kind in ("sort", "steps")]
    files = [read_lines(plan.unit(stage, number), REJECTED) for stage in stages]
    rows = [(RejectedRow.from_json(json.loads(line)) for line in lines) for lines in files]
    return heapq.merge(*rows, key=id_of_row)


class _AllRows:
    """The rows that reach a step which decides about all of them (`rows.Rows`)."""

    def __init__(self, plan: Plan, stage: Stage, workers: Workers, folder: Path):
        self._plan, self._stage, self._workers = plan, stage, workers
        self.folder, self.workers = folder, workers.count

    def __iter__(self) -> Iterator[Row]:
        for number in range(self._stage.units):
            yield from rows_in(self._plan, self._stage, number)

    def map(self, function: Callable[[Iterator[Row]], T]) -> Iterator[T]:
        calls = ((function, self._stage, number) for number in range(self._stage.units))
        return self._workers.map(_map_partition, calls)


def _map_partition(function: Callable[[Iterator[Row]], T], stage: Stage, number: int) -> T:
    return function(rows_in(_plan, stage, number))


def decide(plan: Plan, stage: Stage, workers: Workers) -> None:
    """Computes the unit of a stage "decide" with all workers, and writes it."""
    [name] = stage.steps
    step = dict(named_steps(plan.config))[name]
    with new_unit(plan.unit(stage, 0)) as unit:
        folder = plan.work / f"{stage.folder}-files"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            for id, found in decisions(name, step, _AllRows(plan, plan.before(stage), workers, folder)):
                number = partition_of(id, plan.config.partitions)
                unit.write(f"{number:03d}", encode([id, found.reason, found.detail, found.columns]))
        except ChildProcessError:
            raise
        except OSError as error:  # numpy names no file where a disk is full
            raise OSError(f"{error} (the step's files are in {folder})") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def passing_of(plan: Plan) -> Passing:
    """The counts of all steps, added up over units."""
    total = Passing()
    for stage in plan.stages:
        for number in range(stage.units) if stage.kind == "steps" else ():
            facts = facts_of(plan.unit(stage, number))
            total.came.update(facts["came"])
            total.changed.update(facts["changed"])
    return total


def read_counts(plan: Plan) -> dict[str, int]:
    """Number of records that were read of each source."""
    found = dict.fromkeys(plan.config.sources, 0)
    for number in range(len(plan.parts)):
        facts = facts_of(plan.unit(plan.stages[0], number))
        found[facts["source"]] += facts["read"]
    return found
