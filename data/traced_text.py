"""Text that remembers, character by character, where it comes from, whatever a chat template makes of it.

`Traced` is a `str`: it compares, is searched and is measured as the plain text. What a template makes of it (sums,
slices, `split`, `strip`, `replace`, `join`, …) is traced again. The origins of a text are a string of the same length,
one character for each of its own, so that cutting and joining the text cuts and joins its origins.

An origin is a source and a generation block: which text a character was taken from, and whether it was written inside
`{% generation %}`. Sources are numbers: the template itself, a message that is not the assistant's to learn, several of
these at once in a way that cannot be told apart (`BLENDED`), and from `FIRST_TURN` on the assistant's turns. A plain
`str` is the template's. Blocks are 0 (none), 1 and 2, by turns, so that two blocks that touch stay two.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

TEMPLATE, WORDS, BLENDED, FIRST_TURN = range(4)
_BLOCKS = 3
_TEMPLATE = chr(TEMPLATE)


class Untraceable(Exception):
    """A template calls something whose result cannot be traced."""


class Run(NamedTuple):
    """A stretch of characters of one origin."""

    start: int
    stop: int
    source: int
    block: int


class Traced(str):
    """A text whose characters know their origin. Made by `traced`."""

    __slots__ = ("_origins",)

    def __str__(self):
        return self

    def __iter__(self):
        return map(traced, str.__iter__(self), self._origins)

    def __getitem__(self, key):
        return traced(str.__getitem__(self, key), self._origins[key])

    def __add__(self, other):
        if not isinstance(other, str):
            return NotImplemented
        return traced(str.__add__(self, other), self._origins + origins_of(other))

    def __radd__(self, other):
        return traced(str.__add__(other, self), origins_of(other) + self._origins)

    def __mul__(self, times):
        return traced(str.__mul__(self, times), self._origins * times)

    __rmul__ = __mul__

    def __mod__(self, values):
        return percent(self, values)

    def __rmod__(self, template):
        return percent(template, self)

    # Cutting

    def _tile(self, parts: Iterable[str], gap: int = 0) -> list["Traced"]:
        """Parts that stand one after the other in this text, `gap` characters apart."""
        tiles, start = [], 0
        for part in parts:
            tiles.append(traced(part, self._origins[start : start + len(part)]))
            start += len(part) + gap
        return tiles

    def _find(self, parts: Iterable[str]) -> list["Traced"]:
        """Parts that stand one after the other in this text, with whitespace between them."""
        found, start = [], 0
        for part in parts:
            start = str.index(self, part, start)
            found.append(traced(part, self._origins[start : start + len(part)]))
            start += len(part)
        return found

    def split(self, sep=None, maxsplit=-1):
        parts = str.split(self, sep, maxsplit)
        return self._find(parts) if sep is None else self._tile(parts, len(sep))

    def rsplit(self, sep=None, maxsplit=-1):
        parts = str.rsplit(self, sep, maxsplit)
        return self._find(parts) if sep is None else self._tile(parts, len(sep))

    def splitlines(self, keepends=False):
        whole = self._tile(str.splitlines(self, True))
        ends = str.splitlines(self, keepends)
        return [line[: len(end)] for line, end in zip(whole, ends, strict=True)]

    def partition(self, sep):
        return tuple(self._tile(str.partition(self, sep)))

    def rpartition(self, sep):
        return tuple(self._tile(str.rpartition(self, sep)))

    def strip(self, chars=None):
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars=None):
        kept = str.lstrip(self, chars)
        return traced(kept, self._origins[len(self) - len(kept) :])

    def rstrip(self, chars=None):
        kept = str.rstrip(self, chars)
        return traced(kept, self._origins[: len(kept)])

    def removeprefix(self, prefix):
        return self[len(prefix) :] if str.startswith(self, prefix) else self

    def removesuffix(self, suffix):
        return self[: -len(suffix)] if suffix and str.endswith(self, suffix) else self

    # Joining

    def join(self, parts):
        parts = list(parts)
        return traced(str.join(self, parts), self._origins.join(map(origins_of, parts)))

    def replace(self, old, new, count=-1):
        if not old:
            return blend(str.replace(self, old, new, count), self, new)
        return traced(new, origins_of(new)).join(self.split(old, count))

    # Changing letters: one for one, or else as a whole

    def _letters(self, text: str) -> str:
        return traced(text, self._origins) if len(text) == len(self) else blend(text, self)

    def upper(self):
        return self._letters(str.upper(self))

    def lower(self):
        return self._letters(str.lower(self))

    def title(self):
        return self._letters(str.title(self))

    def capitalize(self):
        return self._letters(str.capitalize(self))

    def casefold(self):
        return self._letters(str.casefold(self))

    def swapcase(self):
        return self._letters(str.swapcase(self))

    # Filling up

    def center(self, width, fill=" "):
        return blend(str.center(self, width, fill), self, fill)

    def ljust(self, width, fill=" "):
        return self + fill * (width - len(self))

    def rjust(self, width, fill=" "):
        return fill * (width - len(self)) + self

    def zfill(self, width):
        return blend(str.zfill(self, width), self, "0")

    def expandtabs(self, tabsize=8):
        return blend(str.expandtabs(self, tabsize), self)


def traced(text: str, origins: str) -> Traced:
    """`text` with the origin of each of its characters."""
    new = str.__new__(Traced, text)
    new._origins = origins
    return new


def from_source(text: str, source: int) -> Traced:
    """`text`, all of it from one source."""
    return traced(text, chr(source * _BLOCKS) * len(text))


def origins_of(text: str) -> str:
    """The origin of each character."""
    return text._origins if type(text) is Traced else _TEMPLATE * len(text)


def concat(parts: list[str]) -> str:
    """The parts, joined; plain where all of them are."""
    if Traced not in map(type, parts):
        return "".join(parts)
    origins = [part._origins if type(part) is Traced else _TEMPLATE * len(part) for part in parts]
    return traced("".join(parts), "".join(origins))


def blend(text: str, *made_from: str) -> str:
    """A text made from others in a way that is not followed: of one origin, if all of them are of that one.

    Blank text of the template does not count: it fills up what it is put into.
    """
    origins = set("".join(origins_of(part) for part in made_from if type(part) is Traced or part.strip()))
    if origins <= {_TEMPLATE}:
        return str.__str__(text)
    return traced(text, (origins.pop() if len(origins) == 1 else chr(BLENDED * _BLOCKS)) * len(text))


def blend_nested(text: str, leaves: Iterable[str]) -> str:
    """The text of a list or an object with such strings in it: theirs, where they are of one origin."""
    return blend(text, *(leaf for leaf in leaves if type(leaf) is Traced))


def percent(template: str, values: Any) -> str:
    """`template % values`. `%s` puts in a text as it is; of other conversions the result is blended."""
    plain = str.__mod__(template, values)
    parts = re.split(r"%(?:\((\w+)\))?(.)", template, flags=re.DOTALL)
    if type(template) is Traced or not set(parts[2::3]) <= {"s", "%"}:
        return blend(plain, template, *_strings(values))
    given = iter(values if isinstance(values, tuple) else (values,))
    out = [parts[0]]
    for name, conversion, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if conversion == "s":
            value = values[name] if name else next(given)
            out.append(value if isinstance(value, str) else blend_nested(str(value), _strings(value)))
        else:
            out.append("%")
        out.append(literal)
    return concat(out)


def _strings(values: Any) -> Iterator[str]:
    """The strings in a value that `%` takes."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for pair in values.items():
            yield from _strings(pair)
    elif isinstance(values, list | tuple | set | frozenset):
        for value in values:
            yield from _strings(value)


def mark_block(text: str, block: int) -> str:
    """The text, as written inside a generation block, which is 1 or 2."""
    origins = origins_of(text)
    one = origins[:1]
    for origin in one if origins.count(one) == len(origins) else set(origins):
        if ord(origin) % _BLOCKS == 0:
            origins = origins.replace(origin, chr(ord(origin) + block))
    return traced(text, origins)


@functools.lru_cache(maxsize=4096)
def _run_of(origin: str) -> re.Pattern:
    return re.compile(re.escape(origin) + "+")


def runs(text: str) -> list[Run]:
    """The text cut where the origin changes."""
    origins, found, start = origins_of(text), [], 0
    while start < len(origins):
        origin = origins[start]
        stop = _run_of(origin).match(origins, start).end()
        found.append(Run(start, stop, *divmod(ord(origin), _BLOCKS)))
        start = stop
    return found
