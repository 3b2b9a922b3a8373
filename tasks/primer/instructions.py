"""An instruction: one thing to ask for in one language, that can be written and read back.

Its phrasings carry slots ("Where does {name} live?"). Drawing fills the slots; matching a prompt against the phrasings
gets the slots back, and everything else (the right answer, what another answer is worth) follows from the slots. The
score of an answer needs the prompt's text and nothing else.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random

from ..tables import read_table
from . import world

PHRASINGS = read_table(__package__, "phrasings.toml")
"""Forms of what is said, by skill and kind; those of documents under "documents"."""

Slots = dict[str, str]
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Instruction:
    """One thing to ask for, in all its phrasings in one language."""

    name: str  # "skill/kind"
    language: str  # of the prompt
    phrasings: list[str]
    draw: Callable[[Random], Slots]
    answer: Callable[[Slots], str]  # the right answer; raises KeyError for slots outside the world
    credit: Callable[[Slots, str], float] = lambda slots, response: 0.0  # what another (normal) answer is worth
    value: Callable[[Slots], str] | None = None  # the part of the answer that earns most of the score among more words
    rivals: str = r"(?!)"  # regular expression of the values that would make such an answer a hedge
    literal: bool = False  # whether capitals, spaces and punctuation of the answer count

    @property
    def skill(self) -> str:
        return self.name.partition("/")[0]

    @cached_property
    def patterns(self) -> tuple[re.Pattern, ...]:
        """One regular expression per phrasing, its slots as named groups."""
        return tuple(_pattern(phrasing, self.language) for phrasing in self.phrasings)

    def prompt(self, rng: Random) -> tuple[str, Slots]:
        """A prompt drawn at random, and the slots that it shows."""
        slots = self.draw(rng)
        phrasing = rng.choice(self.phrasings)
        return phrasing.format(**slots), {slot: slots[slot] for slot in _SLOT.findall(phrasing)}

    def parse(self, prompt: str) -> Slots | None:
        """The slots of a prompt of this instruction, None for any other text."""
        for pattern in self.patterns:
            if match := pattern.fullmatch(prompt):
                try:
                    self.answer(match.groupdict())
                except KeyError:
                    continue
                return match.groupdict()
        return None


def one_of(words: list[str]) -> str:
    """A regular expression of any one of the words."""
    return "(?:" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


def _pattern(phrasing: str, language: str) -> re.Pattern:
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
    """What each slot may hold in a language, as regular expressions, by the slot's name."""

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
