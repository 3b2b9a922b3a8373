"""Values of raw records: what kind they are, how a message shows them, and a form that every JSON writer takes."""

import json
import reprlib
from collections.abc import Mapping

MAX_RECORD_BYTES = 2**26
"""How long a line, a record of a .json list or a row of Parquet may be."""

_DEPTH = 50  # levels of nesting kept in what nobody needs
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 60


class Unreadable:
    """Stands for a value of a table that cannot be read. A record is refused only if it needs the value."""

    def __init__(self, problem: str):
        self.problem = problem

    def __repr__(self) -> str:
        return f"unreadable: {self.problem}"


def kind_of(value) -> str:
    """What a JSON value is, in words for an error message."""
    if isinstance(value, Unreadable):
        return f"a value that cannot be read ({value.problem})"
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def shown(value) -> str:
    """A value as an error message shows it: on one line, shortened."""
    return " ".join(_shorten.repr(value).split())


def present(raw: dict) -> dict:
    """The fields of an object that hold something. Tables of mixed records fill the others with null or NaN."""
    return {field: value for field, value in raw.items() if not (value is None or value != value)}


def plain(meta: dict) -> dict:
    """The fields of a record that no format knows, in a form that JSON and UTF-8 can hold, whatever they are."""
    try:
        json.dumps(meta, ensure_ascii=False).encode()
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
    return value if value is None or isinstance(value, bool | int | float) else _text(str(value))


def _text(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs that stand alone."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
