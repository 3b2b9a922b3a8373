"""Finds added tokens, which are fixed spellings with an id of their own, in a text, by the rules of `tokenizers`."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .tokenizer_settings import AddedToken

# The characters that Rust's `\s` matches: Unicode's White_Space.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_SPACES_AFTER = re.compile(f"[{_SPACES}]*")


class AddedTokenMatch(NamedTuple):
    """An added token found in a text. Positions are character indices; a stop is one past the last character."""

    id: int  # the token's id
    special: bool  # whether it is a control token
    start: int  # where the match begins: before the spelling if `lstrip` takes in white space there
    spelling_start: int  # the spelling's first character
    spelling_stop: int  # one past the spelling's last character
    stop: int  # where the match ends: behind the spelling if `rstrip` takes in white space there


def spelling_pattern(tokens: Iterable[str]) -> re.Pattern | None:
    """A pattern that matches any of the spellings in `tokens`, the longest first; None if `tokens` is empty."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def find_added_tokens(
    text: str, stretches: Iterable[tuple[int, int]], pattern: re.Pattern | None, tokens: Mapping[str, AddedToken]
) -> list[AddedTokenMatch]:
    """The added tokens in a text, in order.

    Args:
        text: the whole text.
        stretches: character ranges (start, stop) of `text`; only spellings that lie within one range count.
        pattern: the spellings to look for, from `spelling_pattern`; None finds nothing.
        tokens: id and flags of each spelling.
    """
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
            found.append(AddedTokenMatch(token.id, token.special, start, first, last, stop))
            taken = stop
    return found


def _stands_alone(text: str, start: int, stop: int) -> bool:
    """Whether no letter, digit, mark or connector touches `text[start:stop]`."""
    return not any(map(_is_word_character, text[max(0, start - 1) : start] + text[stop : stop + 1]))


def _is_word_character(character: str) -> bool:
    """Whether a character is a letter, a digit, a mark or a connector such as "_"."""
    return character.isalnum() or unicodedata.category(character) in ("Mn", "Mc", "Me", "Pc")
