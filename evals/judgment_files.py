"""Files of judgments: those that `camelid judge grade` writes, and published ones."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from ..data.files import file_rows, find_files
from ..errors import UserError, did_you_mean, shown
from .judgments import Judgment

_FIELDS = {field.name: field for field in dataclasses.fields(Judgment)}
_REQUIRED = {name for name, field in _FIELDS.items() if field.default is dataclasses.MISSING}


def read_judgments(path: epath.PathLike, questions: str | None = None) -> Iterator[Judgment]:
    """The judgments of a file: JSON lines with the fields of `Judgment`, or a published file (`published.read`).

    Args:
      path: the file.
      questions: a file of questions, which names the categories of published judgments that have none.

    Raises:
      UserError: there is no such file, or a record is none; the message names file and line.
    """
    rows = file_rows(find_files(str(path)))
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path} has no judgments")
    if not (isinstance(first[1], Mapping) and {"models", "judge"} <= first[1].keys()):
        from . import published

        yield from published.read(str(path), questions=questions)
        return
    yield _judgment(*first)
    for place, record in rows:
        yield _judgment(place, record)


def _judgment(place: str, record: Any) -> Judgment:
    """A record as a judgment, checked by the annotations of its fields."""
    if isinstance(record, Exception):
        raise UserError(f"{place}: {record}")
    if not isinstance(record, Mapping):
        raise UserError(f"{place}: {shown(record)} is no judgment: give an object with {', '.join(sorted(_REQUIRED))}")
    if missing := _REQUIRED - record.keys():
        raise UserError(f"{place}: a judgment needs the field {sorted(missing)[0]}")
    for name, value in record.items():
        if name not in _FIELDS:
            raise UserError(f"{place}: a judgment has no field {name}{did_you_mean(name, _FIELDS)}")
        if not _fits(value, kind := _FIELDS[name].type):
            expected = kind.__name__ if isinstance(kind, type) else kind
            raise UserError(f"{place}: {name} is {shown(value)}: give {expected}")
    try:
        return Judgment(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()})
    except UserError as problem:
        raise UserError(f"{place}: {problem}") from problem


def _fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value has the annotated type of a field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, list) and all(_fits(each, arguments[0]) for each in value)
    if arguments:  # a union
        return any(_fits(value, each) for each in arguments)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
