"""Instructions: requests of one kind in one language, which can be written as prompts and read back from them.

The phrasings of an instruction have slots ("Where does {name} live?"). Drawing a prompt fills the slots. Matching a
prompt against the phrasings gives the slots back. The right answer and the score of any answer follow from the slots,
so a score needs only the text of the prompt.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random

from ..tables import read_table
from . import world

PHRASINGS = read_table(__package__, "phrasings.toml")
"""Phrasings by skill, or "documents", and by kind."""

Slots = dict[str, str]
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Instruction:
    """One kind of request, in all its phrasings in one language."""

    name: str  # "skill/kind"
    language: str  # of the prompt, "en" or "zh"
    phrasings: list[str]  # prompts with slots in braces
    draw: Callable[[Random], Slots]  # draws values of all slots
    answer: Callable[[Slots], str]  # the right answer; raises KeyError for slots outside the world
    credit: Callable[[Slots, str], float] = lambda slots, response: 0.0  # score of another answer
    value: Callable[[Slots], str] | None = None  # the part of the answer that earns WORDY among other words
    rivals: str = r"(?!)"  # regular expression of other values, which must not be named beside that part
    literal: bool = False  # whether capitals, spaces and punctuation of the answer count

    @property
    def skill(self) -> str:
        """The skill that the instruction belongs to."""
        return self.name.partition("/")[0]

    @cached_property
    def patterns(self) -> tuple[re.Pattern, ...]:
        """One regular expression for each phrasing, with its slots as named groups."""
        return tuple(_pattern(phrasing, self.language) for phrasing in self.phrasings)

    def prompt(self, rng: Random) -> tuple[str, Slots]:
        """A random prompt, and the values of the slots that occur in it."""
        slots = self.draw(rng)
        phrasing = rng.choice(self.phrasings)
        return phrasing.format(**slots), {slot: slots[slot] for slot in _SLOT.findall(phrasing)}

    def parse(self, prompt: str) -> Slots | None:
        """The slots of a prompt of this instruction; None for any other text."""
        for pattern in self.patterns:
            if match := pattern.fullmatch(prompt):
                try:
                    self.answer(match.groupdict())
                except KeyError:
                    continue
                return match.groupdict()
        return None


def one_of(words: list[str]) -> str:
    """A regular expression that matches any one of the words."""
    return "(?:" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


def _pattern(phrasing: str, language: str) -> re.Pattern:
    """The regular expression of a phrasing, with its slots as named groups."""
    seen, parts = set(), []
    for i, part in enumerate(_SLOT.split(phrasing)):
        if i % 2 == 0:
            parts.append(re.escape(part))
        elif part in seen:
            parts.append(f"(?P={part})")
        else:
            seen.add(part)
            parts.append(f"(?P<{part}>{slot_patterns(language)[part]})")
    return re.compile("".join(parts))


@cache
def slot_patterns(language: str) -> dict[str, str]:
    """For each slot, a regular expression of its values in a language."""

    def words(table: dict[str, str]) -> str:
        return one_of([world.say(word, language) for word in table])

    def list_of(item: str) -> str:
        return f"{item}(?:{world.SEPARATORS[language]}{item})+"

    number = "[0-9]{1,4}"
    word = words(world.CHINESE)
    return {
        "name": words(world.NAMES),
        "species": words(world.ANIMALS),
        "hat": words(world.COLOURS),
        "home": words(world.HOMES),
        "job": words(world.JOBS),
        "things": list_of(words(world.NOUNS)),
        "counted": one_of([world.counted(noun, language) for noun in world.NOUNS]),
        "measure": one_of(sorted({world.measure(noun) for noun in world.NOUNS})),
        "a": number,
        "b": number,
        "c": number,
        "numbers": list_of(number),
        "days": list_of(words(world.DAYS)),
        "animals": list_of(words(world.ANIMALS)),
        "word": word,
        "list": list_of(word),
        "words": f"{word}(?: {word})*",
        "n": "[2-9]",
        "key": ".+",
        "english": "[A-Za-z' .]+",
        "chinese": "[\u4e00-\u9fff。]+",
        "matter": ".+",
    }
