"""Sections of a config as frozen dataclasses: reading a ConfigDict into them, and making one from their defaults.

    @dataclass(frozen=True)
    class Guard:
        spike_sigma: Annotated[Positive | None, Unset("no limit of the loss")] = 10.0
        \"\"\"Standard deviations above the running mean beyond which a step is skipped.\"\"\"

        def check(self, where: str) -> None: ...       # optional: raises UserError for leaves that do not fit together

    config = to_config(Guard())                       # what an experiment's file changes, and flags override
    guard = read(config, Guard, "config.guard")       # everything is checked here, and nowhere else

A field with a default may be missing from the config. Reading needs neither data nor devices.
"""

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from ..errors import UserError, shown
from .leaf_names import did_you_mean_leaf
from .leaves import (
    LARGEST,
    LARGEST_FLOAT,
    MAPPINGS,
    OneOf,
    Only,
    Units,
    accepts,
    describe,
    fields_of,
    is_section,
    marker_of,
    members_of,
)
from .length import Length

T = TypeVar("T")


def read(values: Mapping[str, Any], kind: type[T], where: str = "config", *, complete: bool = False) -> T:
    """A section of a config as the dataclass `kind`.

    Args:
      values: the section, a ConfigDict or any mapping.
      kind: the dataclass.
      where: the section's dotted name, for messages.
      complete: whether fields with a default have to be there too, in this section and in sections that every config
        has; entries under names that the user chooses may always leave them out.

    Raises:
      UserError: names the first leaf that is unknown (with the nearest spelling), missing, of another type, out of its
        range, or at odds with another one.
    """
    section = kind(**_arguments(values, kind, where, complete))
    if hasattr(section, "check"):
        section.check(where)
    return section


def read_arguments(values: Mapping[str, Any], function: Callable, where: str) -> dict[str, Any]:
    """A section as keyword arguments of a function, whose annotations say what they may be. Its first argument is not
    the section's. Raises UserError as `read` does."""
    return _arguments(values, function, where, complete=False)


def to_config(section: Any) -> ConfigDict:
    """A ConfigDict with every leaf of a dataclass instance; of a length, the leaf of each of its units."""
    config = ConfigDict()
    for name, annotation in fields_of(type(section)).items():
        value = getattr(section, name)
        if units := marker_of(annotation, Units):
            for unit in units.units:
                config[f"{name}_{unit}"] = value.value if value is not None and value.unit == unit else None
        else:
            config[name] = _to_leaf(value)
    return config


def with_defaults(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """A section's values with the defaults of the leaves that it leaves out, in all sections within; lengths stay as
    they are, and so do leaves that `kind` does not know."""
    found, fields = dict(values), fields_of(kind)
    for field in dataclasses.fields(kind):
        if marker_of(fields[field.name], Units) or field.name in found or field.default is dataclasses.MISSING:
            continue
        found[field.name] = _to_leaf(field.default)
    for name, value in found.items():
        for member in members_of(fields.get(name)) if isinstance(value, MAPPINGS) else ():
            if is_section(member):
                found[name] = with_defaults(value, member)
            elif typing.get_origin(member) is dict and is_section(entry := typing.get_args(member)[1]):
                found[name] = {key: with_defaults(each, entry) for key, each in value.items()}
    return found


def leaves_of(values: Mapping[str, Any], kind: type | Callable, path: str = "config") -> Iterator[tuple[str, Any]]:
    """Each leaf's dotted name in a config that `read` takes, with the leaf's annotation."""
    known = _leaf_annotations(kind)
    for name, value in values.items():
        annotation = known[name]
        inner = next((x for x in members_of(annotation) if is_section(x)), None)
        entry = next((typing.get_args(x)[1] for x in members_of(annotation) if typing.get_origin(x) is dict), None)
        if isinstance(value, MAPPINGS) and inner:
            yield from leaves_of(value, inner, f"{path}.{name}")
        elif isinstance(value, MAPPINGS) and entry and is_section(entry):
            for key, each in value.items():
                yield from leaves_of(each, entry, f"{path}.{name}.{key}")
        else:
            yield f"{path}.{name}", annotation


def _to_leaf(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_config(value)
    if isinstance(value, dict):
        return ConfigDict({name: _to_leaf(entry) for name, entry in value.items()})
    return value


def _leaf_annotations(kind: type | Callable) -> dict[str, Any]:
    """The annotation of each leaf of a section by its name; lengths have a leaf for each unit."""
    found = {}
    for name, annotation in fields_of(kind).items():
        units = marker_of(annotation, Units)
        found |= units.leaves(name) if units else {name: annotation}
    return found


def _arguments(values: Mapping[str, Any], kind: type | Callable, where: str, complete: bool) -> dict[str, Any]:
    """The fields of a section that a config gives, checked."""
    fields, leaves, values = fields_of(kind), _leaf_annotations(kind), dict(values.items())
    for name in values:
        if name not in leaves:
            near = did_you_mean_leaf(f"{where}.{name}", [f"{where}.{leaf}" for leaf in leaves])
            raise UserError(f"nothing reads {where}.{name}{near}")
    optional = set() if complete else _fields_with_default(kind)
    for name, annotation in fields.items():
        if name not in values and name not in optional and not marker_of(annotation, Units):
            raise UserError(f"the config has no {where}.{name}{_default_advice(kind, name, where)}")
    given = [name for name in leaves if name in values]  # in their order: the first wrong one is told
    read = {name: _read_leaf(f"{where}.{name}", values[name], leaves[name], complete) for name in given}
    found = {}
    for name, annotation in fields.items():
        if units := marker_of(annotation, Units):
            required = type(None) not in members_of(typing.get_args(annotation)[0])
            found[name] = _one_length(f"{where}.{name}", {unit: read.get(f"{name}_{unit}") for unit in units.units})
            if required and found[name] is None:
                raise UserError(_set_one(f"{where}.{name}", units.units, []))
        elif name in read:
            found[name] = read[name]
        only = marker_of(annotation, Only)
        if only and name in values and (problem := only.problem(name, values, where)):
            raise UserError(problem)
    return found


def _read_leaf(path: str, value: Any, annotation: Any, complete: bool = False) -> Any:
    """The value of a leaf, sections as dataclasses. Raises UserError where the annotation does not allow it."""
    for member in members_of(annotation):
        if is_section(member) and isinstance(value, MAPPINGS):
            return read(value, member, path, complete=complete and len(members_of(annotation)) == 1)
        if typing.get_origin(member) is dict and isinstance(value, MAPPINGS):
            entry = typing.get_args(member)[1]
            if wrong := [name for name in value if not (isinstance(name, str) and re.fullmatch(r"[\w.-]+", name))]:
                raise UserError(f"{path}: the name {shown(wrong[0])} is not made of letters, digits and . _ -")
            return {name: _read_leaf(f"{path}.{name}", each, entry) for name, each in value.items()}
    if accepts(value, annotation):
        return dict(value.items()) if isinstance(value, MAPPINGS) else value
    choice = next((x for m in members_of(annotation) if (x := marker_of(m, OneOf))), None)
    if choice and isinstance(value, str) and not any(typing.get_origin(m) is list for m in members_of(annotation)):
        near = difflib.get_close_matches(value, choice.names, n=1)
        raise UserError(f"{path}: {shown(value)} is none of {choice}{f'; did you mean {near[0]}?' if near else ''}")
    large = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > LARGEST
    limits = f"; the largest whole number is {LARGEST}, the largest other one {LARGEST_FLOAT:.3g}" if large else ""
    raise UserError(f"{path} = {shown(value)}: give {describe(annotation)}{limits}")


def _one_length(path: str, by_unit: Mapping[str, float | None]) -> Length | None:
    """The length that one of the leaves gives; None where none does. Raises UserError for two."""
    given = {unit: value for unit, value in by_unit.items() if value is not None}
    if len(given) > 1:
        raise UserError(_set_one(path, by_unit, [f"{path}_{unit}" for unit in given]))
    return next((Length(value, unit, f"{path}_{unit}") for unit, value in given.items()), None)


def _default_advice(kind: type | Callable, name: str, where: str) -> str:
    """What to do about a field that a config lacks: where it has a default, how to set it; else ""."""
    unset = dataclasses.MISSING
    default = (
        next((f.default for f in dataclasses.fields(kind) if f.name == name), unset) if is_section(kind) else unset
    )
    if default is unset or dataclasses.is_dataclass(default):
        return ""
    leaf = f"{where}.{name}".removeprefix("config.")
    return f": give --config.{leaf}={default}, or write c.{leaf} = {default!r} in the config's file"


def _set_one(path: str, units: typing.Iterable[str], given: list[str]) -> str:
    cure = f"; unset the one that is not meant, as in --{given[-1]}=None" if given else ""
    names = ", ".join(f"{path}_{unit}" for unit in units)
    return f"set one of {names}: the config sets {' and '.join(given) or 'none of them'}{cure}"


def _fields_with_default(kind: type | Callable) -> set[str]:
    if not is_section(kind):
        return {name for name, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
    unset = dataclasses.MISSING
    return {f.name for f in dataclasses.fields(kind) if (f.default, f.default_factory) != (unset, unset)}
