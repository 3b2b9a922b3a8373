"""Answering in an exact format: brackets, lists, repetition, titles, JSON, reversed order."""

import json
import re
from random import Random

from .. import difficulty, world
from ..instructions import PHRASINGS, Instruction, Slots

KEYS = {
    "en": {"animal": "species", "hat": "hat", "home": "home", "job": "job", "food": "food", "friend": "friend"},
    "zh": {"动物": "species", "帽子": "hat", "家": "home", "工作": "job", "食物": "food", "朋友": "friend"},
}


def as_json(name: str, key: str, language: str) -> str:
    """One attribute of an inhabitant as JSON. `key` is a key of KEYS[language]; the value is in that language too."""
    value = getattr(world.INHABITANTS[name], KEYS[language][key])
    return json.dumps({key: world.say(value, language)}, ensure_ascii=False)


def title(text: str, language: str) -> str:
    """A text as a title: in capitals (en) or between title marks (zh)."""
    return text.upper() if language == "en" else f"《{text}》"


def instructions(language: str) -> list[Instruction]:
    """The formatting instructions in a language."""
    words = [world.say(word, language) for word in world.CHINESE]
    names = {world.say(name, language): name for name in world.NAMES}
    comma = world.SEPARATORS[language]

    def some_words(rng: Random, counts: tuple[int, ...], separator: str) -> str:
        return separator.join(rng.sample(words, rng.choice(counts)))

    def instruction(kind, draw, answer, **more) -> Instruction:
        return Instruction(
            f"format/{kind}", language, PHRASINGS["format"][kind][language], draw, answer, literal=True, **more
        )

    def json_answer(slots: Slots) -> str:
        return as_json(names[slots["name"]], slots["key"], language)

    return [
        instruction(
            "brackets",
            lambda rng: {"words": some_words(rng, difficulty.FORMATTED, " ")},
            lambda slots: f"[{slots['words']}]",
        ),
        instruction(
            "list",
            lambda rng: {"words": some_words(rng, difficulty.JOINED, " ")},
            lambda slots: slots["words"].replace(" ", comma),
        ),
        instruction(
            "repeat",
            lambda rng: {"word": rng.choice(words), "n": str(rng.choice(difficulty.REPEATED))},
            lambda slots: " ".join([slots["word"]] * int(slots["n"])),
        ),
        instruction(
            "title",
            lambda rng: {"words": some_words(rng, difficulty.FORMATTED, " ")},
            lambda slots: title(slots["words"], language),
        ),
        instruction(
            "json",
            lambda rng: {"name": rng.choice(list(names)), "key": rng.choice(list(KEYS[language]))},
            json_answer,
            credit=lambda slots, response: float(_without_spaces(response) == _without_spaces(json_answer(slots))),
        ),
        instruction(
            "backwards",
            lambda rng: {"list": some_words(rng, difficulty.REVERSED, comma)},
            lambda slots: comma.join(reversed(slots["list"].split(comma))),
        ),
    ]


def _without_spaces(text: str) -> str:
    return re.sub(r"\s", "", text)
