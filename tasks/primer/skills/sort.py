"""Sorting: numbers up and down, days of the week, animals by their size. One swap of neighbours is worth half."""

import re
from random import Random

from .. import difficulty, world
from ..task import Slots, Task, one_of

PHRASINGS = {
    "rising": {
        "en": (
            "Sort these numbers from small to large: {numbers}.",
            "Put {numbers} in order, the smallest first.",
            "Help me write {numbers} from small to large.",
            "What is the rising order of {numbers}?",
        ),
        "zh": (
            "把这些数从小到大排好：{numbers}。",
            "{numbers}从小到大怎么排？",
            "帮我把{numbers}从小到大写出来。",
            "请排好{numbers}，小的在前。",
        ),
    },
    "falling": {
        "en": (
            "Sort these numbers from large to small: {numbers}.",
            "Put {numbers} in order, the largest first.",
            "Help me write {numbers} from large to small.",
        ),
        "zh": (
            "把这些数从大到小排好：{numbers}。",
            "{numbers}从大到小怎么排？",
            "帮我把{numbers}从大到小写出来。",
        ),
    },
    "days": {
        "en": ("Put these days in order: {days}.", "Sort the days of the week: {days}.", "Help me order {days}."),
        "zh": ("按先后排好这些日子：{days}。", "{days}的先后怎么排？", "帮我把{days}按先后写出来。"),
    },
    "sizes": {
        "en": (
            "Sort these animals from small to large: {animals}.",
            "Put {animals} in order, the smallest animal first.",
        ),
        "zh": ("把这些动物从小到大排好：{animals}。", "{animals}从小到大怎么排？"),
    },
}
SLOTS = {"rising": "numbers", "falling": "numbers", "days": "days", "sizes": "animals"}
VALUES = {
    "rising": [str(n) for n in range(difficulty.LARGEST + 1)],
    "falling": [str(n) for n in range(difficulty.LARGEST, -1, -1)],
    "days": list(world.DAYS),
    "sizes": list(world.ANIMALS),
}


def unsorted(kind: str, rng: Random) -> tuple[list[str], list[str]]:
    """Items that are not in order, and the same in order."""
    items = rng.sample(VALUES[kind], rng.choice(difficulty.SORTED))
    ordered = sorted(items, key=VALUES[kind].index)
    while items == ordered:
        rng.shuffle(items)
    return items, ordered


def tasks(language: str) -> list[Task]:
    """The sorting tasks in a language."""
    return [_task(kind, language) for kind in PHRASINGS]


def _task(kind: str, language: str) -> Task:
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

    return Task(
        name=f"sort/{kind}",
        language=language,
        phrasings=PHRASINGS[kind][language],
        draw=lambda rng: {slot: world.listing(unsorted(kind, rng)[0], language)},
        answer=answer,
        credit=credit,
        value=answer,
        rivals="[0-9]+" if slot == "numbers" else one_of([value.casefold() for value in places]),
    )
