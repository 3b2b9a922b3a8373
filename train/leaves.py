"""What the leaves of a config may be: types, ranges and choices, written as annotations of a section's fields.

A section is described by a class whose fields are named like its leaves. A NamedTuple is also what `read` makes of the
section; any other class only describes it. The annotations:

    lr: Annotated[float, Range(least=0)]                       a finite number, in float32
    clip_norm: Annotated[float | None, Range(above=0), Unset("no clipping")]
    epochs: Count                                              a whole number; a bool is no number
    kind: Annotated[str, OneOf("sigmoid", "ipo")]              a choice
    frozen: list[tuple[Regex, bool]] | None                    a list of pairs
    gamma: Annotated[float, Range(least=0), Only("kind", "simpo", default=0.5)]
    total: Annotated[float, Duration("steps", "epochs")]       one of total_steps and total_epochs
    guard: Guard                                               a section in the section
    sources: dict[str, Source]                                 sections under any names

A field with a default may be left out. Instead of a class it may be a function, whose arguments after the first are the
leaves. `check(where, values)` of a class, where there is one, raises UserError for
values that are fine alone and wrong together. All of this needs neither data nor devices.
"""

import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

import ml_collections
import numpy as np

from ..data.json_values import shown
from ..errors import UserError
from .settings import Settings, did_you_mean

LARGEST = 2**31 - 1
LARGEST_FLOAT = float(np.finfo(np.float32).max)
SMALLEST_FLOAT = float(np.finfo(np.float32).tiny)
"""Numbers are int32 and float32 on the device, where floats nearer to 0 than the smallest are 0."""

MAPPINGS = (Mapping, ml_collections.ConfigDict)

T = TypeVar("T")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


class Range(NamedTuple):
    """The numbers from `least`, or above `above`, to `most`, or below `below`, all as float32 or int32 has them."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

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
    """What None stands for."""

    meaning: str


class OneOf:
    """Names to choose from."""

    def __init__(self, *names: str):
        self.names = names

    def __str__(self) -> str:
        return ", ".join(map(str, self.names))


class Only:
    """The leaf has a meaning only where its neighbour `other` is one of `values`; without values, where the neighbour
    is set at all. Elsewhere it has to be None or one of the `default`s."""

    def __init__(self, other: str, *values: Any, default: Any = None):
        self.other, self.values = other, values
        self.defaults = default if isinstance(default, tuple) else (default,)

    def problem(self, name: str, section: Mapping[str, Any], where: str) -> str | None:
        """What is wrong in a section whose leaf `name` has this annotation."""
        value, other = section[name], section.get(self.other)
        read = other in self.values if self.values else bool(other)
        if read or value is None or value in self.defaults:
            return None
        needs = f"it is for {', '.join(map(str, self.values))}" if self.values else f"set {where}.{self.other} too"
        default = next((shown(x) for x in self.defaults if x is not None), "None")
        unread = f"{where}.{name} = {shown(value)} does nothing where {where}.{self.other} is {shown(other)}"
        return f"{unread}: {needs}; or leave it {default}"


class Duration(NamedTuple):
    """A length of time in one of several units, each a leaf of its own: `<name>_<unit>`. least: of steps; where it is
    1, no unit may be 0."""

    units: tuple[str, ...]
    required: bool = True
    least: float | None = None


class Regex(NamedTuple):
    """A string that is a regular expression."""


class Path(NamedTuple):
    """A string that is not empty."""


class Integral(NamedTuple):
    """A number without a fraction, as 1e4."""


class Amount(NamedTuple):
    """A number that no device sees, so that whole ones may be as large as others."""


Count = Annotated[int, Range(least=1)]
Whole = Annotated[int, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Finite = Annotated[float, Range()]
Share = Annotated[float, Range(least=0, most=1)]


def check(where: str, values: Mapping[str, Any], kind: type | Callable) -> None:
    """Raises UserError naming the first leaf of a section that is not what `kind` says.

    where: the section's dotted name. values: a mapping, ConfigDict or Settings (whose leaves then count as read).
    """
    fields = fields_of(kind)
    lengths = {
        f"{name}_{unit}": (name, annotation) for name, annotation in fields.items() for unit in _units(annotation)
    }
    known = [name for name, annotation in fields.items() if not _units(annotation)]
    for name in values:
        if name not in known and name not in lengths:
            near = did_you_mean(f"{where}.{name}", [f"{where}.{x}" for x in (*known, *lengths)])
            raise UserError(f"nothing reads {where}.{name}{near}")
    values = dict(values.items())
    for name in known:
        if name in values:
            _check_leaf(f"{where}.{name}", values[name], fields[name])
        elif name not in optional_fields(kind):
            raise UserError(f"the config has no {where}.{name}{did_you_mean(name, values)}")
    for name, (_, annotation) in lengths.items():
        if name in values:
            _check_leaf(f"{where}.{name}", values[name], _number_of(name, annotation))
    for name, annotation in fields.items():
        if duration := _marker(annotation, Duration):
            _check_one(where, name, values, duration)
        only = _marker(annotation, Only)
        if only and name in values and (problem := only.problem(name, values, where)):
            raise UserError(problem)
    if together := getattr(kind, "check", None):
        together(where, values)


def read(settings: Settings, name: str, kind: type[T]) -> T:
    """The section `name` as a NamedTuple. Raises UserError as `check` does."""
    section = settings[name]
    check(settings.dotted(name), section, kind)
    return kind(**section)


def leaves_of(config: Mapping[str, Any], kind: type, path: str = "config") -> Iterator[tuple[str, Any]]:
    """Each leaf's dotted name in a config that holds, with its annotation."""
    fields = fields_of(kind)
    for name, value in config.items():
        annotation = fields.get(name)
        if annotation is None:
            base = next(x for x, a in fields.items() if name.removeprefix(f"{x}_") in _units(a))
            annotation = _number_of(name, fields[base])
        inner = next((x for x in _members(annotation) if _is_section(x)), None)
        entry = next((typing.get_args(x)[1] for x in _members(annotation) if typing.get_origin(x) is dict), None)
        if isinstance(value, MAPPINGS) and inner:
            yield from leaves_of(value, inner, f"{path}.{name}")
        elif isinstance(value, MAPPINGS) and entry and _is_section(entry):
            for key, each in value.items():
                yield from leaves_of(each, entry, f"{path}.{name}.{key}")
        else:
            yield f"{path}.{name}", annotation


@functools.cache
def fields_of(kind: type | Callable) -> dict[str, Any]:
    """The annotations of a section's class, markers included; of a function, those of its arguments but the first."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if isinstance(kind, type):
        return hints
    return {name: hints.get(name, Any) for name in list(inspect.signature(kind).parameters)[1:]}


def optional_fields(kind: type | Callable) -> set[str]:
    """The fields with a default."""
    if not isinstance(kind, type):
        return {name for name, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
    if issubclass(kind, tuple):
        return set(kind._field_defaults)
    return {name for name in fields_of(kind) if hasattr(kind, name)}


def _check_leaf(path: str, value: Any, annotation: Any) -> None:
    for member in _members(annotation):
        if _is_section(member) and isinstance(value, MAPPINGS):
            return check(path, value, member)
        if typing.get_origin(member) is dict and isinstance(value, MAPPINGS):
            for name, entry in value.items():
                _check_leaf(f"{path}.{name}", entry, typing.get_args(member)[1])
            return None
    if accepts(value, annotation):
        return None
    choice = next((x for m in _members(annotation) if (x := _marker(m, OneOf))), None)
    if choice and isinstance(value, str) and not any(typing.get_origin(m) is list for m in _members(annotation)):
        near = difflib.get_close_matches(value, choice.names, n=1)
        raise UserError(f"{path}: {value!r} is none of {choice}{f'; did you mean {near[0]}?' if near else ''}")
    large = "; " if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > LARGEST else ""
    limits = large and f"{large}the largest whole number is {LARGEST}, the largest other one {LARGEST_FLOAT:.3g}"
    raise UserError(f"{path} = {shown(value)}: give {describe(annotation)}{limits}")


def accepts(value: Any, annotation: Any) -> bool:
    """Whether a leaf may have this value."""
    if typing.get_origin(annotation) is Annotated:
        inner, *markers = typing.get_args(annotation)
        if type(value) is int and LARGEST < abs(value) <= LARGEST_FLOAT and any(isinstance(m, Amount) for m in markers):
            value = float(value)
        return accepts(value, inner) and (value is None or all(_allows(marker, value) for marker in markers))
    if annotation is Any:
        return True
    if len(members := _members(annotation)) > 1:
        return any(accepts(value, member) for member in members)
    if annotation is type(None):
        return value is None
    if annotation is dict:
        return isinstance(value, MAPPINGS)
    if annotation is Regex:
        return isinstance(value, str) and _compiles(value)
    if annotation is Path:
        return isinstance(value, str) and bool(value.strip()) and "\0" not in value
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
    """Whether a marker has nothing against a value that is of the right type already."""
    if isinstance(marker, Range) and isinstance(value, int | float):
        return marker.holds(value)
    if isinstance(marker, OneOf) and isinstance(value, str):
        return value in marker.names
    if isinstance(marker, Integral):
        return abs(value) <= LARGEST and float(value).is_integer()
    return True


def describe(annotation: Any) -> str:
    """What a leaf may be, as the end of "give ..."."""
    inner, markers = annotation, ()
    if typing.get_origin(annotation) is Annotated:
        inner, *markers = typing.get_args(annotation)
    members = _members(inner)
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
        return f"({', '.join(map(describe, arguments))})"
    if origin is dict:
        return "a section of named sections" if _is_section(arguments[1]) else "a section"
    if _is_section(inner):
        return f"a section of {', '.join(fields_of(inner))}"
    if any(isinstance(m, Integral) for m in markers):
        inner = int
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", dict: "a section"}
    return {Regex: "a regular expression", Path: "a path or name"}.get(inner) or names.get(inner, str(inner)) + span


def _plural(annotation: Any) -> str:
    is_tuple = typing.get_origin(annotation) is tuple
    return describe(annotation) if is_tuple else f"items, each {describe(annotation)}"


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type; markers of an annotated union stay outside."""
    plain = annotation
    if typing.get_origin(plain) is Annotated:
        inner = typing.get_args(plain)[0]
        if typing.get_origin(inner) not in (typing.Union, types.UnionType):
            return (annotation,)
        plain = inner
    if typing.get_origin(plain) in (typing.Union, types.UnionType):
        return typing.get_args(plain)
    return (annotation,)


def _marker(annotation: Any, kind: type[T]) -> T | None:
    if typing.get_origin(annotation) is not Annotated:
        return None
    return next((marker for marker in typing.get_args(annotation)[1:] if isinstance(marker, kind)), None)


def _is_section(annotation: Any) -> bool:
    plain = isinstance(annotation, type) and annotation not in (Regex, Path)
    return plain and typing.get_origin(annotation) is None and bool(getattr(annotation, "__annotations__", None))


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _units(annotation: Any) -> tuple[str, ...]:
    duration = _marker(annotation, Duration)
    return duration.units if duration else ()


def _number_of(name: str, annotation: Any) -> Any:
    """What one unit of a length of time may be."""
    duration = _marker(annotation, Duration)
    if name.endswith("_steps"):
        return Annotated[float | None, Integral(), Range(least=duration.least)]
    most = 100 if name.endswith("_percent") else None
    return Annotated[float | None, Amount(), Range(above=0, most=most) if duration.least else Range(least=0, most=most)]


def _check_one(where: str, name: str, values: Mapping[str, Any], duration: Duration) -> None:
    """One unit of a length of time is set, or none where it is not required."""
    names = [f"{where}.{name}_{unit}" for unit in duration.units]
    given = [path for path in names if values.get(path.rpartition(".")[2]) is not None]
    if len(given) > 1 or (duration.required and not given):
        found = " and ".join(given) or "none of them"
        cure = f"; unset the one that is not meant, as in --{given[-1]}=None" if given else ""
        raise UserError(f"set one of {', '.join(names)}: the config sets {found}{cure}")
