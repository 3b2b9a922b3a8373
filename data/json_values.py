"""Describes values of raw records in error messages, and turns them into values that JSON can hold."""

import json
import math
from collections.abc import Mapping

MAX_RECORD_BYTES = 2**26
"""Default limit in bytes of a line, a record of a .json list or a row of Parquet."""

_DEPTH = 50  # levels of nesting that `plain` keeps


class TooLarge(ValueError):
    """A record, or an unpacked file, exceeds the limit that `max_record_bytes` sets."""


class RestUnreadable(ValueError):
    """The rest of a file, from this place on, cannot be read."""


class RestTooLarge(RestUnreadable, TooLarge):
    """The rest of a file, from this place on, is not read: it exceeds the limit that `max_record_bytes` sets."""


class Unreadable:
    """Placeholder for a table cell that cannot be read. A record is refused only if its format needs the value."""

    def __init__(self, problem: str):
        self.problem = problem

    def __repr__(self) -> str:
        return f"unreadable: {self.problem}"


def kind_of(value) -> str:
    """The type of a JSON value in words, such as "a list", for an error message."""
    if isinstance(value, Unreadable):
        return f"a value that cannot be read ({value.problem})"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def present(raw: dict) -> dict:
    """The fields of a record that are not null or NaN. Tables fill the fields that a record lacks with null or NaN."""
    return {field: value for field, value in raw.items() if not (value is None or value != value)}


def plain(meta: dict) -> dict:
    """`meta` if JSON in UTF-8 can hold it; else a copy in which text replaces every value that JSON cannot hold, and
    null replaces NaN."""
    try:
        json.dumps(meta, ensure_ascii=False, allow_nan=False).encode()
    except (RecursionError, TypeError, ValueError, OverflowError):
        return _plain(meta, _DEPTH)
    return meta


def _plain(value, depth: int):
    if isinstance(value, Mapping | list | tuple) and not depth:
        return "..."
    if isinstance(value, Mapping):
        return {_text(str(name)): _plain(item, depth - 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if value is None or isinstance(value, bool | int | float) else _text(str(value))


def lone_surrogate(text: str) -> str | None:
    """The first lone surrogate in a text, half a character that UTF-8 cannot write; None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def _text(text: str) -> str:
    """`text` with U+FFFD in place of each lone surrogate."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
