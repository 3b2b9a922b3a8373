"""Translating words of the world, its facts, and phrases of a number, a colour and a noun, in both directions.

Instructions in either language ask for both directions. A phrase with one wrong part is worth half.
"""

import re
from functools import cache
from random import Random

from .. import difficulty, world
from ..instructions import PHRASINGS, Instruction, Slots


@cache
def pairs(kind: str) -> dict[str, str]:
    """Everything of a kind ("word", "fact" or "phrase") that can be translated: Chinese text by its English text."""
    if kind == "word":
        standalone = {colour: f"{chinese}色" for colour, chinese in world.COLOURS.items()}
        return world.CHINESE | standalone
    if kind == "fact":
        facts = ((name, attribute) for name in world.NAMES for attribute in world.ATTRIBUTES)
        return {world.statement(*fact, "en"): world.statement(*fact, "zh") for fact in facts}
    return {world.phrase(*part, "en", colour): world.phrase(*part, "zh", colour) for *part, colour in _parts()}


def _parts() -> list[tuple[int, str, str]]:
    """The number, the noun and the colour ("" for none) of every phrase."""
    numbers = range(1, difficulty.LARGEST_IN_PHRASES + 1)
    return [(number, noun, colour) for number in numbers for noun in world.NOUNS for colour in ("", *world.COLOURS)]


@cache
def _parts_of() -> dict[str, tuple]:
    """The number, the colour and the noun of every phrase, by its text in either language."""
    return {
        world.phrase(number, noun, language, colour): (number, noun, colour)
        for number, noun, colour in _parts()
        for language in world.LANGUAGES
    }


def _phrase_credit(right: str, response: str) -> float:
    """0.5 for a phrase with one wrong part, or with only the Chinese measure word wrong; else 0."""
    parts = _parts_of()
    if response in parts and right.isascii() == response.isascii():
        wrong = sum(a != b for a, b in zip(parts[right], parts[response], strict=True))
        return 0.5 if wrong == 1 else 0.0
    measures = "".join({world.measure(noun) for noun in world.NOUNS})
    bare_right, bare_response = (re.sub(f"^(.)[{measures}]", r"\1", text) for text in (right, response))
    return 0.5 if bare_right == bare_response else 0.0


def instructions(language: str) -> list[Instruction]:
    """The translation instructions in a language."""
    return [_instruction(kind, language) for kind in ("word", "fact", "phrase")]


def _instruction(kind: str, language: str) -> Instruction:
    from_english = pairs(kind)
    from_chinese = {chinese: english for english, chinese in from_english.items()}
    forms = PHRASINGS["translate"]
    every = list(from_english.items())

    def draw(rng: Random) -> Slots:
        return dict(zip(("english", "chinese"), rng.choice(every), strict=True))

    def answer(slots: Slots) -> str:
        return from_english[slots["english"]] if "english" in slots else from_chinese[slots["chinese"]]

    def credit(slots: Slots, response: str) -> float:
        if kind == "word":
            return float(response == world.COLOURS.get(slots.get("english")))  # 红 is as good as 红色
        return _phrase_credit(answer(slots), response) if kind == "phrase" else 0.0

    return Instruction(
        name=f"translate/{kind}",
        language=language,
        phrasings=forms["any"][language] + (forms["within"][language] if kind != "fact" else []),
        draw=draw,
        answer=answer,
        credit=credit,
        value=answer,
    )
