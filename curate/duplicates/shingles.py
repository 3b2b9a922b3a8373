"""The texts of a record that duplicates are looked for in, and their sets of shingles: short runs of words or
characters, as hashes.

A unit is a word, or one character of a script that is written without spaces, such as Chinese, or one symbol. Letters
are compared without case and in Unicode's form NFKC; white space and punctuation do not count. A text of many units is
the set of its runs of units, a short one the set of its runs of characters.
"""

import functools
import json
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import UserError
from ..rows import side_of, texts_of

COMPARED = ("all", "user", "answers", "first_turn")
"""What of a record is compared: all its texts, the turns of the user, the answers, or the first turn of the user. A
record of plain text has no turns, so it is compared by "all" alone."""

LONGEST_BATCH = 65_536
"""Texts that `shingle_sets` takes at a time."""

_HASH_BITS = np.uint64(48)
STEP = np.uint64(0x9E3779B97F4A7C15)  # the odd number nearest to 2^64 over the golden ratio
_ONE_CHARACTER = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF)),  # Thai, Lao, Tibetan, Burmese, Khmer
    *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3040, 0x312F)),  # radicals, Kana, Bopomofo
    *((0x31A0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),  # Han
)
SEPARATOR, MARK, LETTER, SINGLE, SYMBOL = range(5)
"""Kinds of characters: between units; accent in a word; letter or digit of a word; letter that is a unit; symbol."""


class ShingleSets(NamedTuple):
    """Sets of shingles of several texts, one set after the other in one array."""

    hashes: np.ndarray
    """Hashes of 48 bits as uint64, ascending within a set, each once."""

    sizes: np.ndarray
    """Number of shingles of each text's set as int64; 0 where a text has no set of this kind."""


def compared(record: Mapping[str, Any], part: str) -> list[tuple[str, str]]:
    """The compared texts of a parsed record with the role of each, in order, without empty ones.

    A message's text is its content, its input, its reasoning, and the functions that it calls with their arguments.

    Args:
      record: a record of `data/formats.py`.
      part: a name in COMPARED.

    Raises:
      UserError: the record is not parsed yet.
    """
    if "kind" not in record:
        raise UserError("this step takes parsed records: put the step parse or conversation before it")
    if record["kind"] == "text":
        return [("text", record["text"])] if part == "all" and record["text"] else []
    answers = [(side, _text(turn)) for side in ("chosen", "rejected") for turn in side_of(record, side)]
    turns = [(message["role"], _text(message)) for message in record["messages"]]
    if part == "all":
        found = turns + answers
    elif part == "answers":
        found = [turn for turn in turns if turn[0] == "assistant"] + answers
    else:
        found = [turn for turn in turns if turn[0] == "user"][: 1 if part == "first_turn" else None]
    return [(role, text) for role, text in found if text]


def searched(record: Mapping[str, Any]) -> list[str]:
    """The texts of a parsed record in which other texts are looked for, each once.

    A message is searched as a whole, so that an instruction with its input is one text as in evaluation sets, and its
    parts are searched alone too.
    """
    return list(dict.fromkeys([*(text for _, text in compared(record, "all")), *texts_of(record)]))


def _text(message: Mapping[str, Any]) -> str:
    """All that a message says, one below the other."""
    parts = [message[name] for name in ("content", "input", "reasoning_content") if message.get(name)]
    if calls := message.get("tool_calls"):
        parts.append(json.dumps([call.get("function") for call in calls], ensure_ascii=False, sort_keys=True))
    return "\n".join(parts)


def code_points(text: str) -> np.ndarray:
    """The code points of a text as uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijective hash of each uint64 (the finaliser of SplitMix64: Steele and others, "Fast splittable pseudorandom
    number generators", 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def character_values(points: np.ndarray) -> np.ndarray:
    """A hash of each code point as uint64."""
    return mixed(points.astype(np.uint64) + STEP)


def powers(count: int) -> np.ndarray:
    """The first `count` powers of STEP modulo 2^64: the weights of places in polynomial hashes."""
    found = np.full(count, STEP)
    found[:1] = 1
    return np.multiply.accumulate(found)


@functools.cache
def character_kinds() -> np.ndarray:
    """The kind of each code point as uint8: SEPARATOR, MARK, LETTER, SINGLE or SYMBOL."""
    named = {"L": LETTER, "N": LETTER, "M": MARK, "S": SYMBOL}
    points = range(sys.maxunicode + 1)
    kinds = np.fromiter((named.get(unicodedata.category(chr(p))[0], SEPARATOR) for p in points), np.uint8, len(points))
    for first, last in _ONE_CHARACTER:
        block = kinds[first : last + 1]
        block[block == LETTER] = SINGLE
    return kinds


def unit_starts(kinds: np.ndarray) -> np.ndarray:
    """Whether a unit starts at each character, given the kinds of the characters."""
    in_word = (kinds == MARK) | (kinds == LETTER)
    starts = in_word.copy()
    starts[1:] &= ~in_word[:-1]
    return starts | (kinds >= SINGLE)


def shingle_sets(texts: Sequence[str], words: int, characters: int, short: int) -> tuple[ShingleSets, ShingleSets]:
    """The sets of runs of units, and the sets of runs of characters, of up to LONGEST_BATCH texts.

    A text of at least `short` units has a set of runs of units. A text of fewer than twice as many units has a set of
    runs of characters. So two texts of similar length have a set of one kind in common. A text that is shorter than a
    run is one shingle; a text without any unit has no set.

    Args:
      texts: the texts.
      words: units in a run of units.
      characters: characters in a run of characters.
      short: units of the shortest text that has runs of units; at least `words`.
    """
    plain = [unicodedata.normalize("NFKC", text).casefold() for text in texts]
    points = code_points("\n".join([*plain, ""]))
    kinds = character_kinds()[points]
    starts = unit_starts(kinds)
    counted = kinds != SEPARATOR
    ends = np.cumsum([len(text) + 1 for text in plain]) if plain else np.zeros(0, np.int64)
    character_ends = _counts_up_to(counted, ends)
    unit_ends = _counts_up_to(starts, ends)
    values = character_values(points[counted])
    units = np.diff(unit_ends, prepend=0)
    by_words = _runs(_unit_values(values, starts[counted]), unit_ends, units >= short, words)
    return by_words, _runs(values, character_ends, (units > 0) & (units < 2 * short), characters)


def _counts_up_to(marks: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The number of marks before each end, as int64."""
    return np.concatenate([[0], np.cumsum(marks)])[ends]


def _unit_values(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The hash of each unit, from the hashes of its characters and marks where units start."""
    first = np.flatnonzero(starts)
    if not first.size:
        return values[:0]
    place = np.arange(len(values)) - np.repeat(first, np.diff(first, append=len(values)))
    return mixed(np.add.reduceat(values * powers(int(place.max()) + 1)[place], first))


def _runs(values: np.ndarray, ends: np.ndarray, chosen: np.ndarray, length: int) -> ShingleSets:
    """The sets of runs of `length` values of the chosen texts. ends: where each text's values end in `values`."""
    sizes = np.diff(ends, prepend=0)
    counts = np.where(chosen, np.maximum(sizes - length + 1, 1), 0)
    owner = np.repeat(np.arange(len(ends)), counts)
    first = np.arange(len(owner)) + np.repeat(ends - sizes - (np.cumsum(counts) - counts), counts)
    end = ends[owner]
    total = np.zeros(len(owner), np.uint64)
    for place, weight in enumerate(powers(length)):
        inside = first + place < end
        total += np.where(inside, values[np.minimum(first + place, max(len(values) - 1, 0))], 0) * weight
    keys = (owner.astype(np.uint64) << _HASH_BITS) | (mixed(total) >> (np.uint64(64) - _HASH_BITS))
    keys.sort()
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
    found = np.bincount((keys >> _HASH_BITS).astype(np.int64), minlength=len(ends))
    return ShingleSets(keys & ((np.uint64(1) << _HASH_BITS) - np.uint64(1)), found)
