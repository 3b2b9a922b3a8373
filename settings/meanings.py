"""Every leaf of a config with its value, default, allowed values and meaning, for people to read.

The meaning is the string under a field of a section's class; of an argument of a function, its line under "Args:".
"""

import ast
import dataclasses
import enum
import functools
import inspect
import itertools
import re
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .leaves import MAPPINGS, Units, describe, fields_of, is_section, marker_of, members_of
from .length import Length

NAME = "NAME"
"""Stands for the name of an entry in a section whose names users choose."""


class Absent(enum.Enum):
    """What stands in place of a value."""

    ABSENT = "absent"
    """The config does not have the leaf; in place of a default: there is none."""


ABSENT = Absent.ABSENT


class Leaf(NamedTuple):
    """A leaf of a config, or a section in it."""

    name: str
    """Its dotted name, such as "config.optim.lr"."""

    value: Any
    """Its value in the config; ABSENT where the config does not have it."""

    default: Any
    """Its default; ABSENT where it has to be given."""

    allowed: str
    """The values that it may have, in words that follow "give"."""

    meaning: str
    """What it means, in sentences; "" where nothing says so."""

    is_section: bool = False
    """Whether it is a section, whose leaves follow."""

    @property
    def is_changed(self) -> bool:
        """Whether the config gives it another value than the default."""
        return not self.is_section and self.value is not ABSENT and _comparable(self.value) != _comparable(self.default)


Kinds = Callable[[str, str, Mapping[str, Any]], list[type | Callable]]
"""kinds(path, name, section) -> what reads an entry of an untyped section such as `config.evals`: classes of sections,
and functions whose keyword arguments are its leaves."""


def meaning_of_leaves(
    values: Mapping[str, Any], kind: type | Callable, kinds: Kinds, path: str = "config", default: Any = ABSENT
) -> Iterator[Leaf]:
    """All leaves of a section in the order of its class, sections before their leaves.

    Args:
      values: the section, a ConfigDict or any mapping; it need not hold, and may leave leaves out.
      kind: the class of the section, or a function whose keyword arguments are its leaves.
      kinds: what reads the entries of untyped sections.
      path: the section's dotted name.
      default: an instance of `kind` with the defaults; ABSENT takes those of the class.
    """
    meanings, known = meanings_of(kind), set()
    for name, annotation in fields_of(kind).items():
        own = getattr(default, name) if default is not ABSENT else _default_of(kind, name)
        meaning, where = meanings.get(name, ""), f"{path}.{name}"
        if units := marker_of(annotation, Units):
            for unit in units.units:
                leaf, length = f"{name}_{unit}", own if isinstance(own, Length) else None
                given = length.value if length is not None and length.unit == unit else None
                known.add(leaf)
                allowed = describe(units.leaves(name)[leaf])
                yield Leaf(f"{path}.{leaf}", values.get(leaf, ABSENT), given, allowed, meaning)
            continue
        known.add(name)
        value = values.get(name, ABSENT)
        yield from _leaves_of_field(value, annotation, own, meaning, kinds, where)
    for name, value in values.items():
        if name not in known:
            yield Leaf(f"{path}.{name}", value, ABSENT, "nothing", "Nothing reads this leaf: it is refused.")


def _leaves_of_field(
    value: Any, annotation: Any, default: Any, meaning: str, kinds: Kinds, where: str
) -> Iterator[Leaf]:
    """The leaves of a field: itself, or those of the section or the sections that it is."""
    members = members_of(annotation)
    inner = next((each for each in members if is_section(each)), None)
    entries = next((typing.get_args(each)[1] for each in members if typing.get_origin(each) is dict), None)
    is_typed = is_section(entries)
    is_open = entries is dict or annotation is dict or is_typed
    if inner and (isinstance(value, MAPPINGS) or (value is ABSENT and default is not None)):
        yield Leaf(where, value, default, describe(annotation), meaning, True)
        own = default if dataclasses.is_dataclass(default) else ABSENT
        yield from meaning_of_leaves(value if value is not ABSENT else {}, inner, kinds, where, own)
    elif is_open and (isinstance(value, MAPPINGS) or value is ABSENT):
        yield Leaf(where, value, default, describe(annotation), meaning, True)
        found = dict(value.items()) if value is not ABSENT else {}
        for name, entry in (found or ({NAME: {}} if is_typed else {})).items():
            yield from _leaves_of_entry(entry, entries if is_typed else None, kinds, where, name)
    else:
        yield Leaf(where, value, default, describe(annotation), meaning)
        if inner and (value is None or value is ABSENT):
            yield from meaning_of_leaves({}, inner, kinds, where)


def _leaves_of_entry(entry: Any, kind: type | None, kinds: Kinds, path: str, name: str) -> Iterator[Leaf]:
    """The leaves of an entry in a section whose names users choose."""
    where = f"{path}.{name}"
    if not isinstance(entry, MAPPINGS):
        yield Leaf(where, entry, ABSENT, "a section", "")
        return
    seen = []
    for each in [kind] if kind else kinds(path, name, entry):
        leaves = {leaf.name: leaf for leaf in meaning_of_leaves(entry, each, kinds, where)}
        seen.append({name: leaf for name, leaf in leaves.items() if leaf.allowed != "nothing"})
    read = {name: leaf for leaves in seen for name, leaf in leaves.items()}
    yield from read.values()
    for leaf, value in entry.items():
        if f"{where}.{leaf}" not in read:
            said = "Nothing reads this leaf: it is refused." if read else ""
            yield Leaf(f"{where}.{leaf}", value, ABSENT, "nothing" if read else "any value", said)


@functools.cache
def meanings_of(kind: type | Callable) -> dict[str, str]:
    """The meaning of each field of a class, inherited ones too, or of each argument of a function, on one line each."""
    if not inspect.isclass(kind):
        return _arguments_in(inspect.getdoc(kind) or "")
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body
        except (OSError, TypeError, SyntaxError):  # a class without a source file, such as one typed into a console
            continue
        for field, text in itertools.pairwise(body):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_text and isinstance(text.value.value, str):
                found[field.target.id] = " ".join(text.value.value.split())
    return found


def _arguments_in(doc: str) -> dict[str, str]:
    """The lines under "Args:" in a docstring."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", f"{doc}\n", re.MULTILINE)
    found: dict[str, str] = {}
    for name, said in re.findall(r"^[ ]{2,4}\*{0,2}(\w+): (.*(?:\n[ ]{3,}.*)*)", section[1] if section else "", re.M):
        said = " ".join(said.split())
        found[name] = said[:1].upper() + said[1:]
    return found


def _default_of(kind: type | Callable, name: str) -> Any:
    """The default of a field or an argument; ABSENT where it has none."""
    if not is_section(kind):
        default = inspect.signature(kind).parameters[name].default
        return ABSENT if default is inspect.Parameter.empty else default
    field = next(each for each in dataclasses.fields(kind) if each.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return ABSENT if field.default is dataclasses.MISSING else field.default


def _comparable(value: Any) -> Any:
    """A value as JSON would hold it: lists and tuples are the same, and so are mappings of any class."""
    if isinstance(value, MAPPINGS):
        return {name: _comparable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(each) for each in value]
    return value
