"""Types, ranges and choices of settings, as annotations of a section's fields (`settings/sections.py`).

lr: Annotated[float, Range(least=0)]                       a finite number, compared in float32
clip_norm: Annotated[float | None, Range(above=0), Unset("no clipping")]
epochs: Count                                              a whole number from 1 up; a bool is not a number
kind: Annotated[str, OneOf("sigmoid", "ipo")]              one of several names
frozen: list[tuple[Regex, bool]] | None                    a list of pairs
gamma: Annotated[float, Range(least=0), Only("kind", "simpo", default=0.5)]
total: Annotated[Length, Units("steps", "epochs")]         one of the leaves total_steps and total_epochs
loss: Function | None                                      "package.module:name" or "file.py:name"
guard: Guard                                               a section in the section
sources: dict[str, Source]                                 a section under each name that the user chooses
"""

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import ml_collections
import numpy as np

from ..errors import UserError, shown
from .functions import FORMS, is_function, raised
from .length import Length

LARGEST = 2**31 - 1
LARGEST_FLOAT = float(np.finfo(np.float32).max)
SMALLEST_FLOAT = float(np.finfo(np.float32).tiny)
"""Numbers become int32 and float32 on the device, which flushes floats below SMALLEST_FLOAT to 0."""

MAPPINGS = (Mapping, ml_collections.ConfigDict)

T = TypeVar("T")


class Range(NamedTuple):
    """An interval of numbers, compared as the device has them: in int32 or float32. None leaves an end open."""

    least: float | None = None
    """The smallest number allowed."""

    above: float | None = None
    """Numbers have to be greater than this."""

    most: float | None = None
    """The largest number allowed."""

    below: float | None = None
    """Numbers have to be less than this."""

    def holds(self, value: float) -> bool:
        if isinstance(value, float):
            with np.errstate(over="ignore", under="ignore"):
                value = np.float32(0 if abs(value) < SMALLEST_FLOAT else value)
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.above is not None:
            high = f"at most {_number(self.most)}" if self.most is not None else ""
            high = f"below {_number(self.below)}" if self.below is not None else high
            return f"greater than {_number(self.above)}{high and ', '}{high}"
        if self.least is None:
            return "" if self.most is None else f"of at most {_number(self.most)}"
        high = f"to {_number(self.most)}" if self.most is not None else "up"
        return f"from {_number(self.least)} {f'to below {_number(self.below)}' if self.below is not None else high}"


class Unset(NamedTuple):
    """The meaning of None, for messages."""

    meaning: str


class OneOf:
    """A choice between names."""

    def __init__(self, *names: str, or_function: bool = False, several: Sequence[str] = ()):
        """Says what may be given.

        Args:
          names: the names.
          or_function: whether the name of a function of the user's own may stand there too (`settings/functions.py`).
          several: names of which several may stand there instead, joined by commas.
        """
        self.names, self.or_function, self.several = names, or_function, tuple(several)

    def __str__(self) -> str:
        also = f", or a function {FORMS}" if self.or_function else ""
        also += f", or several of {', '.join(self.several)}, joined by commas" if self.several else ""
        return ", ".join(map(str, self.names)) + also

    def allows(self, value: Any) -> bool:
        """Whether a value is one of the names, or may be that of a function."""
        if value in self.names or not isinstance(value, str):
            return value in self.names
        return set(value.split(",")) <= set(self.several) or (self.or_function and is_function(value))


class Only:
    """Marks a field that is used only for some values of another field of the section.

    Elsewhere the field has to be None or a default, so that no setting is ignored silently.
    """

    def __init__(self, other: str, *values: Any, default: Any = None):
        """Says when the field is used.

        Args:
          other: the name of the other field.
          values: values of the other field for which this field is used; none: all but None, False and empty ones.
          default: the value that the field may have elsewhere, or a tuple of such values.
        """
        self.other, self.values = other, values
        self.defaults = default if isinstance(default, tuple) else (default,)

    def problem(self, name: str, section: Mapping[str, Any], where: str) -> str | None:
        """The message for a section whose field `name` is set and not used; None where there is nothing to say."""
        value, other = section[name], section.get(self.other)
        used = other in self.values if self.values else bool(other)
        if used or value is None or value in self.defaults:
            return None
        needs = f"it is for {', '.join(map(str, self.values))}" if self.values else f"set {where}.{self.other} too"
        default = next((shown(x) for x in self.defaults if x is not None), "None")
        unused = f"{where}.{name} = {shown(value)} does nothing where {where}.{self.other} is {shown(other)}"
        return f"{unused}: {needs}; or leave it {default}"


class Units:
    """Marks a field of type `Length`, which the config gives in one of several leaves, `<name>_<unit>`."""

    def __init__(self, *units: str, least: float | None = None):
        """Says in which units the length may be given.

        Args:
          units: names of units.
          least: the smallest number of steps; with 1 no unit may be 0.
        """
        self.units, self.least = units, least

    def leaves(self, name: str) -> dict[str, Any]:
        """The annotation of each leaf by its name, for a field of this name."""
        share = Range(above=0) if self.least else Range(least=0)
        found = {f"{name}_{unit}": Annotated[float | None, Amount(), share] for unit in self.units}
        if "percent" in self.units:
            found[f"{name}_percent"] = Annotated[float | None, Amount(), share._replace(most=100)]
        if "steps" in self.units:
            found[f"{name}_steps"] = Annotated[float | None, Integral(), Range(least=self.least)]
        return found


class Regex(NamedTuple):
    """A string that is a regular expression."""


class Path(NamedTuple):
    """A string that is not empty."""


class Name(NamedTuple):
    """A string that is not empty and names something, such as a metric."""


class Text(NamedTuple):
    """A string that is not empty and is read by people or models."""


class Function(NamedTuple):
    """A string that names a function, class or file of the user's own (`settings/functions.py`)."""


class Integral(NamedTuple):
    """Marks a number without a fraction, which may be written as a float, such as 1e4."""


class Amount(NamedTuple):
    """Marks a number that no device sees, so that a whole number may be as large as a float."""


Count = Annotated[int, Range(least=1)]
Whole = Annotated[int, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Finite = Annotated[float, Range()]
Share = Annotated[float, Range(least=0, most=1)]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def accepts(value: Any, annotation: Any) -> bool:
    """Whether a value has the type of a leaf and holds to its markers."""
    if typing.get_origin(annotation) is Annotated:
        inner, *markers = typing.get_args(annotation)
        if type(value) is int and LARGEST < abs(value) <= LARGEST_FLOAT and any(isinstance(m, Amount) for m in markers):
            value = float(value)
        return accepts(value, inner) and (value is None or all(_allows(marker, value) for marker in markers))
    if annotation is Any:
        return True
    if len(members := members_of(annotation)) > 1:
        return any(accepts(value, member) for member in members)
    if annotation is type(None):
        return value is None
    if annotation is dict:
        return isinstance(value, MAPPINGS)
    if annotation is Regex:
        return isinstance(value, str) and _compiles(value)
    if annotation in (Path, Name, Text):
        return isinstance(value, str) and bool(value.strip()) and "\0" not in value
    if annotation is Function:
        return isinstance(value, str) and is_function(value)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list:
        return isinstance(value, list | tuple) and all(accepts(each, arguments[0]) for each in value)
    if origin is tuple:
        pairs = isinstance(value, list | tuple) and len(value) == len(arguments)
        return pairs and all(map(accepts, value, arguments))
    if annotation is bool or isinstance(value, bool):
        return isinstance(value, bool) and annotation is bool
    if annotation is int:
        return isinstance(value, int) and abs(value) <= LARGEST
    if annotation is float:
        return isinstance(value, int | float) and abs(value) <= (LARGEST if isinstance(value, int) else LARGEST_FLOAT)
    return isinstance(annotation, type) and isinstance(value, annotation)


def _allows(marker: Any, value: Any) -> bool:
    """Whether a value of the right type is within the range, among the names, or whole, as the marker asks."""
    if isinstance(marker, Range) and isinstance(value, int | float):
        return marker.holds(value)
    if isinstance(marker, OneOf) and isinstance(value, str):
        return marker.allows(value)
    if isinstance(marker, Integral):
        return abs(value) <= LARGEST and float(value).is_integer()
    return True


def describe(annotation: Any) -> str:
    """The values that a leaf may have, in words that follow "give" in an error message."""
    inner, markers = annotation, ()
    if typing.get_origin(annotation) is Annotated:
        inner, *markers = typing.get_args(annotation)
    members = members_of(inner)
    if len(members) > 1 or members[0] is type(None):
        unset = next((f"None for {m.meaning}" for m in markers if isinstance(m, Unset)), "None")
        marked = [Annotated[m, *markers] if markers else m for m in members if m is not type(None)]
        parts = [describe(m) for m in marked] + ([unset] if type(None) in members else [])
        return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, or {parts[-1]}"
    if choice := next((m for m in markers if isinstance(m, OneOf)), None):
        return f"one of {choice}"
    span = next((f" {m}" if str(m) else "" for m in markers if isinstance(m, Range)), "")
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if origin is list:
        return f"a list of {_plural(arguments[0])}"
    if origin is tuple:
        return f"({', '.join(describe(each).replace(', or ', ' or ') for each in arguments)})"
    if origin is dict and arguments[1] is not dict:
        return "a section of named sections" if is_section(arguments[1]) else f"a map to {_plural(arguments[1])}"
    if origin is dict:
        return "a section of named sections"
    if is_section(inner):
        return f"a section of {', '.join(fields_of(inner))}"
    if any(isinstance(m, Integral) for m in markers):
        inner = int
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", dict: "a section"}
    strings = {Path: "a path or name", Name: "a name", Text: "a text"}
    strings |= {Regex: "a regular expression", Function: f"a function {FORMS}"}
    return strings.get(inner) or names.get(inner, str(inner)) + span


_PLURALS = {
    "a string": "strings",
    "a path or name": "paths or names",
    "a name": "names",
    "a text": "texts",
    "a number": "numbers",
    "a whole number": "whole numbers",
    "a regular expression": "regular expressions",
}


def _plural(annotation: Any) -> str:
    """The items of a list, in words that follow "a list of"."""
    one = describe(annotation)
    if typing.get_origin(annotation) is tuple:
        return one
    for single, many in _PLURALS.items():
        if re.match(rf"{single}( from| greater| of|$)", one):
            return one.replace(single, many, 1)
    return one.replace("one of", "names out of", 1) if marker_of(annotation, OneOf) else f"items, each {one}"


def members_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, without the markers of the union as a whole; the annotation itself if it is no union."""
    plain = annotation
    if typing.get_origin(plain) is Annotated:
        inner = typing.get_args(plain)[0]
        if typing.get_origin(inner) not in (typing.Union, types.UnionType):
            return (annotation,)
        plain = inner
    if typing.get_origin(plain) in (typing.Union, types.UnionType):
        return typing.get_args(plain)
    return (annotation,)


def marker_of(annotation: Any, kind: type[T]) -> T | None:
    """The marker of a class that an annotation carries; None where it carries none."""
    if typing.get_origin(annotation) is not Annotated:
        return None
    return next((marker for marker in typing.get_args(annotation)[1:] if isinstance(marker, kind)), None)


def is_section(annotation: Any) -> bool:
    """Whether an annotation is the class of a section."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation) and annotation is not Length


@functools.cache
def fields_of(kind: type | Callable) -> dict[str, Any]:
    """The annotations of a section's class, markers included; of a function, those of its arguments but the first."""
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except Exception as error:  # an annotation of the user's own that is a string may be anything
        raise UserError(f"{kind.__qualname__}: its annotations cannot be read: {raised(error)}") from error
    if is_section(kind):
        return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return {name: hints.get(name, Any) for name in list(inspect.signature(kind).parameters)[1:]}


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True
