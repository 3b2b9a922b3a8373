"""Rows through steps, and the checks of what a step gives back."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.formats import parse
from ..errors import UserError, shown
from ..settings.functions import raised
from .forms import OWN
from .parsing import FORMAT
from .rows import HELDOUT, ID_DIGITS, LANGUAGE, SPLIT, TRAIN, Rejected, Row, Rows, Step, WholeStep
from .settings import WRITE, WRITE_REASONS
from .shards import encode
from .values import problem_of

_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}(-[0-9]+)*")

Result = Row | list[Row] | Rejected
Watch = Callable[[str, Step, Row, Result], None]
"""Called with the name of a step, the step, the row before it, and what the step made of it."""


@dataclass(frozen=True)
class RejectedRow:
    """A row that a step rejected, and why."""

    row: Row
    """The row as it came to the step."""

    step: str
    """Name of the step in the config; READ or WRITE for the engine's own checks."""

    reason: str
    """One of the step's reasons."""

    detail: str = ""
    """What was found in the row."""

    def to_json(self) -> dict[str, Any]:
        """The object that stands in the files of `rejected/`, from which `from_json` makes it again."""
        row = self.row.to_json()
        record, columns = row.pop("record"), row.pop("columns")
        why = {"step": self.step, "reason": self.reason, "detail": self.detail}
        return {**row, **why, "columns": columns, "record": record}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "RejectedRow":
        """The rejected row in an object that `to_json` made."""
        row = Row(found["id"], found["record"], found["source"], found["place"], found["columns"])
        return cls(row, found["step"], found["reason"], found["detail"])


@dataclass
class Passing:
    """Counts of the rows that passed each step."""

    came: Counter[str] = field(default_factory=Counter)
    """Rows that came to the step, by its name."""

    changed: Counter[str] = field(default_factory=Counter)
    """Rows whose record the step changed or divided, by its name."""

    def __call__(self, name: str, step: Step, row: Row, result: Result) -> None:
        self.came[name] += 1
        self.changed[name] += is_change(step, row, result)


def is_change(step: Step, row: Row, result: Result) -> bool:
    """Whether a step gave a row another record, or several rows in its place. A raw record in camelid's form, with
    nothing else changed, is the same record."""
    if not isinstance(result, Row):
        return isinstance(result, list)
    if result.record == row.record:
        return False
    try:
        return result.record != parse(dict(row.record), row.columns.get(FORMAT, getattr(step, "format", "auto")))
    except (ValueError, KeyError):  # no record of a format, or a step of one's own with a setting of this name
        return True


def apply_steps(
    row: Row, steps: Iterable[tuple[str, Step]], watch: Watch = lambda *_: None
) -> tuple[list[Row], list[RejectedRow]]:
    """What becomes of a row: the rows that are kept and the rows that are rejected, each in the order of ids.

    Raises:
      UserError: a step raises an exception, or gives back what no step may. It names the step, the id and the place.
    """
    rows, rejected = [row], []
    for name, step in steps:
        following: list[Row] = []
        for each in rows:
            result = call_step(name, step, each)
            watch(name, step, each, result)
            if isinstance(result, Rejected):
                rejected.append(RejectedRow(each.with_(**result.columns), name, result.reason, result.detail))
            else:
                following += [result] if isinstance(result, Row) else result
        rows = following
    return sorted(rows, key=id_of_row), sorted(rejected, key=id_of_row)


def id_of_row(row: Row | RejectedRow) -> str:
    """The id of a row, or of a row that was rejected, for sorting."""
    return row.row.id if isinstance(row, RejectedRow) else row.id


def call_step(name: str, step: Step, row: Row) -> Result:
    """What a step makes of a row. Raises UserError as `apply_steps` does."""
    where = f"step {name} at row {row.id} ({row.place})"
    before = encode(row.to_json()) if _is_own(step) else b""
    with _named(where):
        result = step(row)
    if before and _is_changed(row, before):
        raise UserError(f"{where} changed the row in place: give back another row, made with row.with_")
    if isinstance(result, Rejected):
        check_rejected(name, step.reasons, result, where)
    elif isinstance(result, Row):
        if result.id != row.id:
            raise UserError(f"{where} gave the row the id {result.id}: only Row.split makes further ids")
        check_row(row, result, where)
    elif not (isinstance(result, list) and result and all(isinstance(each, Row) for each in result)):
        raise UserError(f"{where} gave back {type(result).__name__}: give a Row, a list of at least one, or Rejected")
    else:
        ids = [each.id for each in result]
        if len(set(ids)) < len(ids) or not all(_is_part(each, row.id) for each in ids):
            raise UserError(f"{where} gave rows with the ids {shown(ids)}: make them with Row.split")
        for each in result:
            check_row(row, each, where)
    return result


def decisions(name: str, step: WholeStep, rows: Rows) -> Iterator[tuple[str, Rejected]]:
    """What a step that needs to see all rows rejects: ids with reasons.

    Raises:
      UserError: the step raises an exception, or gives back what no step may. It names the step, and the id if there is
        one.
    """
    with _named(f"step {name}"):
        found = iter(step.decide(rows))
    end = object()
    while True:
        with _named(f"step {name}"):
            decision = next(found, end)
        if decision is end:
            return
        match decision:
            case (str() as id, Rejected() as why):
                if not _ID.fullmatch(id):
                    raise UserError(f"step {name} rejects {shown(id)}, which is the id of no row")
                check_rejected(name, step.reasons, why, f"step {name} at row {id}")
                yield id, why
            case _:
                raise UserError(f"step {name} decides {shown(decision)}: give pairs of a row's id and Rejected(reason)")


def check_rejected(name: str, reasons: Sequence[str], found: Rejected, where: str) -> None:
    """Raises UserError, which begins with `where`, for a reason that is none of its step's, and for a detail or columns
    that cannot be written."""
    if found.reason not in reasons:
        known = ", ".join(reasons) or "none"
        raise UserError(f"{where} rejects as {found.reason!r}, which is none of the reasons of {name} ({known})")
    if not isinstance(found.detail, str):
        raise UserError(f"{where} gave the detail {shown(found.detail)}: give a text")
    check_columns({}, found.columns, where)


def check_row(before: Row, after: Row, where: str) -> None:
    """Raises UserError, which begins with `where`, for a row that no step may make of another."""
    if (after.source, after.place) != (before.source, before.place):
        raise UserError(f"{where} changed the row's source or place: change its record and columns alone")
    if not isinstance(after.record, dict):
        raise UserError(f"{where} gave a record that is of the type {type(after.record).__name__}: give a dict")
    if after.record is not before.record:
        _check_values("the field", before.record, after.record, where)
    if after.columns is not before.columns:
        check_columns(before.columns, after.columns, where)


def check_columns(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> None:
    """Raises UserError, which begins with `where`, for columns that cannot be written. before: columns that are known
    to be right."""
    if not isinstance(after, dict):
        raise UserError(f"{where} gave columns that are of the type {type(after).__name__}: give a dict")
    _check_values("the column", before, after, where)
    if taken := [name for name in OWN if name in after]:
        raise UserError(f"{where} gave the column {taken[0]}, which the engine writes itself: give it another name")
    if (split := after.get(SPLIT, TRAIN)) not in (TRAIN, HELDOUT):
        raise UserError(f"{where} gave the column {SPLIT} = {shown(split)}: give {TRAIN} or {HELDOUT}")
    if not isinstance(language := after.get(LANGUAGE), str | None):
        raise UserError(f"{where} gave the column {LANGUAGE} = {shown(language)}: give a text, such as en, or None")


def _check_values(what: str, before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> None:
    for name, value in after.items():
        if not isinstance(name, str):
            raise UserError(f"{where} gave {what} {shown(name)}: names are texts")
        if not (name in before and before[name] is value) and (problem := problem_of(value, name)):
            raise UserError(
                f"{where}: {what} {problem}, and JSON cannot hold it: give texts, numbers, booleans, None, and "
                "lists and dicts of them"
            )


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Adds the step to the errors that it raises. What no change of the input or the config mends stays an OSError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except MemoryError as error:
        advice = "out of memory: lower --workers or raise config.partitions, and give the command again"
        raise OSError(f"{where}: {advice}") from error
    except ChildProcessError:  # a worker was killed, which the engine says itself
        raise
    except OSError as error:
        raise OSError(f"{where}: {error}") from error
    except (Exception, SystemExit) as error:  # a step of one's own may raise anything
        raise UserError(f"{where} raised {raised(error)}") from error


def _is_changed(row: Row, before: bytes) -> bool:
    try:
        return encode(row.to_json()) != before
    except (TypeError, ValueError, RecursionError):  # what stands there now cannot be written
        return True


def _is_own(step: Any) -> bool:
    """Whether a step is none of the engine's."""
    return not type(step).__module__.startswith(f"{__package__}.")


def _is_part(id: object, whole: str) -> bool:
    return isinstance(id, str) and (id == whole or id.startswith(f"{whole}-"))


@dataclass(frozen=True)
class Write:
    """The engine's last check: rejects rows that `data/` cannot read as records in camelid's own format."""

    reasons = WRITE_REASONS

    def __call__(self, row: Row) -> Row | Rejected:
        try:
            parse(dict(row.record), "camelid")
        except ValueError as problem:
            return Rejected("malformed", str(problem))
        return row


LAST = (WRITE, Write())
"""Name and step of the last check."""
