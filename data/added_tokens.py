"""Added tokens: spellings that stand for one token each, and how `tokenizers` finds them in a text."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .tokenizer_settings import AddedToken

# What Rust's `\s` matches: Unicode's White_Space.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_SPACES_AFTER = re.compile(f"[{_SPACES}]*")


class Found(NamedTuple):
    """An added token in a text: its spelling stands from `first` to `last`, and it takes in `start` to `stop`."""

    id: int
    special: bool
    start: int
    first: int
    last: int
    stop: int


def spellings(tokens: Iterable[str]) -> re.Pattern | None:
    """A pattern for any of these spellings; where several begin at one place, for the longest. None without any."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def find(
    text: str, stretches: Iterable[tuple[int, int]], pattern: re.Pattern | None, tokens: Mapping[str, AddedToken]
) -> list[Found]:
    """The added tokens whose spelling lies within one of the stretches of `text`, in order."""
    found, taken = [], 0
    for low, high in stretches if pattern is not None else ():
        for match in pattern.finditer(text, low, high):
            token = tokens[match[0]]
            start, stop = first, last = match.span()
            if first < taken or (token.single_word and not _stands_alone(text, first, last)):
                continue
            if token.lstrip:
                start = taken + len(text[taken:first].rstrip(_SPACES))
            if token.rstrip:
                stop = _SPACES_AFTER.match(text, last).end()
            found.append(Found(token.id, token.special, start, first, last, stop))
            taken = stop
    return found


def _stands_alone(text: str, start: int, stop: int) -> bool:
    return not any(map(_is_of_word, text[max(0, start - 1) : start] + text[stop : stop + 1]))


def _is_of_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character) in ("Mn", "Mc", "Me", "Pc")
