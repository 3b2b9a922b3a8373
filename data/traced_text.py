"""Strings that know the origin of each of their characters, whatever a chat template makes of them.

`Traced` is a `str`: it compares, searches and measures like the plain text. Results of string operations (sums, slices,
`split`, `strip`, `replace`, `join`, …) are traced again. The origins of a text are a string of the same length, with
one character for each character of the text. So cutting and joining works on both alike.

An origin is a source and a generation block. Sources are numbers: TEMPLATE, the template itself; WORDS, a message that
the assistant does not learn; BLENDED, several sources that cannot be told apart; FIRST_TURN + k, message k, the
assistant's. A plain `str` is the template's. Blocks are numbers too: 0 outside `{% generation %}`, and 1 and 2 by turns
inside, so that adjacent blocks stay apart.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

TEMPLATE, WORDS, BLENDED, FIRST_TURN = range(4)
_BLOCKS = 3
_TEMPLATE = chr(TEMPLATE)


class Untraceable(Exception):
    """A template calls an operation whose result cannot be traced."""


class TextRun(NamedTuple):
    """A stretch of characters of one origin."""

    start: int  # the first character
    stop: int  # one past the last character
    source: int  # TEMPLATE, WORDS, BLENDED, or FIRST_TURN + index of the message
    block: int  # 0 outside generation blocks, else 1 or 2


class Traced(str):
    """A text that knows the origin of each of its characters. Made by `traced`."""

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
        """Parts that follow each other in this text, `gap` characters apart, as traced texts."""
        tiles, start = [], 0
        for part in parts:
            tiles.append(traced(part, self._origins[start : start + len(part)]))
            start += len(part) + gap
        return tiles

    def _find(self, parts: Iterable[str]) -> list["Traced"]:
        """Parts that follow each other in this text, with white space between them, as traced texts."""
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

    # Changing letters: traced if the length stays, else blended

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

    # Padding

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
    """`text` with `origins`, one character for each of its own."""
    new = str.__new__(Traced, text)
    new._origins = origins
    return new


def from_source(text: str, source: int) -> Traced:
    """`text` with all characters from one source, outside generation blocks."""
    return traced(text, chr(source * _BLOCKS) * len(text))


def origins_of(text: str) -> str:
    """The origins of a text; those of a plain `str` are the template's."""
    return text._origins if type(text) is Traced else _TEMPLATE * len(text)


def concat(parts: list[str]) -> str:
    """The joined parts; a plain `str` if all of them are."""
    if Traced not in map(type, parts):
        return "".join(parts)
    origins = [part._origins if type(part) is Traced else _TEMPLATE * len(part) for part in parts]
    return traced("".join(parts), "".join(origins))


def blend(text: str, *made_from: str) -> str:
    """`text` with one origin for all of it: the common origin of the texts `made_from`, or BLENDED if they differ.

    Blank text of the template does not count, since it is only padding.
    """
    origins = set("".join(origins_of(part) for part in made_from if type(part) is Traced or part.strip()))
    if origins <= {_TEMPLATE}:
        return str.__str__(text)
    return traced(text, (origins.pop() if len(origins) == 1 else chr(BLENDED * _BLOCKS)) * len(text))


def blend_nested(text: str, leaves: Iterable[str]) -> str:
    """`text`, which writes a list or an object with the strings `leaves`, blended from the traced ones among them."""
    return blend(text, *(leaf for leaf in leaves if type(leaf) is Traced))


def percent(template: str, values: Any) -> str:
    """`template % values`, traced: `%s` inserts a text with its origins; other conversions blend the whole result."""
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
    """The strings in a value that is an operand of `%`."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for pair in values.items():
            yield from _strings(pair)
    elif isinstance(values, list | tuple | set | frozenset):
        for value in values:
            yield from _strings(value)


def mark_block(text: str, block: int) -> str:
    """`text` with its characters marked as inside generation block `block`, 1 or 2; marks of inner blocks are kept."""
    origins = origins_of(text)
    one = origins[:1]
    for origin in one if origins.count(one) == len(origins) else set(origins):
        if ord(origin) % _BLOCKS == 0:
            origins = origins.replace(origin, chr(ord(origin) + block))
    return traced(text, origins)


@functools.lru_cache(maxsize=4096)
def _run_of(origin: str) -> re.Pattern:
    return re.compile(re.escape(origin) + "+")


def runs(text: str) -> list[TextRun]:
    """The text cut into runs where the origin changes."""
    origins, found, start = origins_of(text), [], 0
    while start < len(origins):
        origin = origins[start]
        stop = _run_of(origin).match(origins, start).end()
        found.append(TextRun(start, stop, *divmod(ord(origin), _BLOCKS)))
        start = stop
    return found
