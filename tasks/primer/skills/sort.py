"""Sorting numbers up and down, days of the week, and animals by size. One swap of neighbours is worth half."""

import re
from random import Random

from .. import difficulty, world
from ..instructions import PHRASINGS, Instruction, Slots, one_of

SLOTS = {"rising": "numbers", "falling": "numbers", "days": "days", "sizes": "animals"}
VALUES = {
    "rising": [str(n) for n in range(difficulty.LARGEST + 1)],
    "falling": [str(n) for n in range(difficulty.LARGEST, -1, -1)],
    "days": list(world.DAYS),
    "sizes": list(world.ANIMALS),
}


def unsorted(kind: str, rng: Random) -> tuple[list[str], list[str]]:
    """Random items of a kind in VALUES, first out of order and then in order."""
    items = rng.sample(VALUES[kind], rng.choice(difficulty.SORTED))
    ordered = sorted(items, key=VALUES[kind].index)
    while items == ordered:
        rng.shuffle(items)
    return items, ordered


def instructions(language: str) -> list[Instruction]:
    """The sorting instructions in a language."""
    return [_instruction(kind, language) for kind in PHRASINGS["sort"]]


def _instruction(kind: str, language: str) -> Instruction:
    slot = SLOTS[kind]
    separator = world.SEPARATORS[language]
    places = {world.listing([value], language): place for place, value in enumerate(VALUES[kind])}

    def ordered(slots: Slots) -> list[str]:
        return sorted(slots[slot].split(separator), key=places.__getitem__)

    def credit(slots: Slots, response: str) -> float:
        items = [item.casefold() for item in ordered(slots)]
        shown = re.split("[ ,]+", response)
        swaps = ([*items[:i], items[i + 1], items[i], *items[i + 2 :]] for i in range(len(items) - 1))
        return 1.0 if shown == items else 0.5 if shown in swaps else 0.0

    def answer(slots: Slots) -> str:
        return separator.join(ordered(slots))

    return Instruction(
        name=f"sort/{kind}",
        language=language,
        phrasings=PHRASINGS["sort"][kind][language],
        draw=lambda rng: {slot: world.listing(unsorted(kind, rng)[0], language)},
        answer=answer,
        credit=credit,
        value=answer,
        rivals="[0-9]+" if slot == "numbers" else one_of([value.casefold() for value in places]),
    )
