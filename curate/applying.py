"""Rows through steps, one row at a time, and the checks of what a step gives back."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.formats import parse
from ..errors import UserError
from ..settings.functions import raised
from .rows import Rejected, Row, Step
from .settings import WRITE, WRITE_REASONS

Result = Row | list[Row] | Rejected
Watch = Callable[[str, Row, Result], None]
"""Called with the name of a step, the row before it, and what the step made of it."""


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

    def __call__(self, name: str, row: Row, result: Result) -> None:
        self.came[name] += 1
        self.changed[name] += is_change(row, result)


def is_change(row: Row, result: Result) -> bool:
    """Whether a step gave a row another record, or several rows in its place."""
    return isinstance(result, list) or (isinstance(result, Row) and result.record != row.record)


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
            watch(name, each, result)
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
    try:
        result = step(row)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # a step of one's own may raise anything
        raise UserError(f"{where} raised {raised(error)}") from error
    if isinstance(result, Rejected):
        check_reason(name, step.reasons, result, where)
    elif isinstance(result, Row):
        if result.id != row.id:
            raise UserError(f"{where} gave the row the id {result.id}: only Row.split makes further ids")
    elif not (isinstance(result, list) and result and all(isinstance(each, Row) for each in result)):
        raise UserError(f"{where} gave back {type(result).__name__}: give a Row, a list of at least one, or Rejected")
    else:
        ids = [each.id for each in result]
        if len(set(ids)) < len(ids) or not all(each == row.id or each.startswith(f"{row.id}-") for each in ids):
            raise UserError(f"{where} gave rows with the ids {', '.join(ids[:5])}: make them with Row.split")
    return result


def check_reason(name: str, reasons: Sequence[str], found: Rejected, where: str) -> None:
    """Raises UserError, which begins with `where`, for a reason that is none of its step's."""
    if found.reason not in reasons:
        known = ", ".join(reasons) or "none"
        raise UserError(f"{where} rejects as {found.reason!r}, which is none of the reasons of {name} ({known})")


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
