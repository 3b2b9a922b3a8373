"""Which values JSON can hold: the check of records that are read, and of what steps give back."""

import math
from decimal import Decimal
from typing import Any

from ..data.json_values import Unreadable

MAX_LEVELS = 100
"""Most levels of lists and objects in a record or a column. Steps that walk through a record need no more frames."""

_MAX_BITS = 14_000
"""Longest integer in bits: about 4,200 digits. Python reads integers of at most 4,300 digits."""


def problem_of(value: Any, name: str = "") -> str:
    """Why JSON cannot hold a value; "" if it can.

    Args:
      value: the value of a field or a column, or a whole record.
      name: name of the field or column, with which the answer begins, as in "scores[2] is NaN".
    """
    path, problem = _problem(value, MAX_LEVELS) or ("", "")
    return f"{name}{path}".removeprefix(".") + f" {problem}" if problem else ""


def without_nan(value: Any, levels: int = MAX_LEVELS) -> Any:
    """A copy of a value with None in place of NaN, by which tables mark a value that is missing."""
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, dict) and levels:
        return {name: without_nan(each, levels - 1) for name, each in value.items()}
    return [without_nan(each, levels - 1) for each in value] if isinstance(value, list) and levels else value


def _problem(value: Any, levels: int) -> tuple[str, str] | None:
    """Where in a value the first part stands that JSON cannot hold, and what is wrong with it."""
    if value is None or isinstance(value, str | bool):
        return None
    if isinstance(value, Decimal) or (isinstance(value, int) and value.bit_length() > _MAX_BITS):
        return "", "is a number of more than 4,200 digits"
    if isinstance(value, int):
        return None
    if isinstance(value, float):
        if math.isfinite(value):
            return None
        return "", "is NaN" if value != value else "is infinite, or beyond the largest floating-point number"
    if isinstance(value, Unreadable):
        return "", f"is {value}"
    if not isinstance(value, dict | list | tuple):
        return "", f"is of the type {type(value).__name__}"
    if not levels:
        return "", f"has more than {MAX_LEVELS} levels of nesting"
    is_object = isinstance(value, dict)
    for name, each in value.items() if is_object else enumerate(value):
        if is_object and not isinstance(name, str):
            return "", f"has a key of the type {type(name).__name__}, not a text"
        if found := _problem(each, levels - 1):
            path = f".{name}" if is_object else f"[{name}]"
            return path + (found[0] if len(found[0]) < 60 else "..."), found[1]
    return None
