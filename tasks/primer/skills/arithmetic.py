"""Arithmetic: sums and differences of small numbers, bare and in stories."""

from itertools import pairwise
from random import Random

from .. import difficulty, world
from ..scoring import WORDY
from ..task import Slots, Task

PHRASINGS = {
    "plus": {
        "en": ("What is {a} plus {b}?", "How much is {a} + {b}?", "Add {a} and {b}.", "Help me work out {a} + {b}."),
        "zh": ("{a}加{b}等于多少？", "{a} + {b}是多少？", "算一算{a}加{b}。", "帮我算{a} + {b}。"),
    },
    "minus": {
        "en": (
            "What is {a} minus {b}?",
            "How much is {a} - {b}?",
            "Take {b} away from {a}.",
            "Help me work out {a} - {b}.",
        ),
        "zh": ("{a}减{b}等于多少？", "{a} - {b}是多少？", "算一算{a}减{b}。", "帮我算{a} - {b}。"),
    },
    "three": {
        "en": ("What is {a} plus {b} plus {c}?", "How much is {a} + {b} + {c}?"),
        "zh": ("{a}加{b}加{c}等于多少？", "{a} + {b} + {c}是多少？"),
    },
    "gain": {
        "en": (
            "{name} has {a} {counted} and gets {b} more. How many {counted} does {name} have now?",
            "{name} has {a} {counted} and finds {b} more. How many is that?",
        ),
        "zh": (
            "{name}有{a}{counted}，又得到{b}{measure}。现在有多少？",
            "{name}有{a}{counted}，又找到{b}{measure}。一共有多少？",
        ),
    },
    "loss": {
        "en": (
            "{name} has {a} {counted} and gives away {b}. How many {counted} does {name} have now?",
            "{name} has {a} {counted} and loses {b}. How many are left?",
        ),
        "zh": (
            "{name}有{a}{counted}，送走{b}{measure}。现在有多少？",
            "{name}有{a}{counted}，丢了{b}{measure}。还剩多少？",
        ),
    },
}
TERMS = {"plus": (1, 1), "minus": (1, -1), "three": (1, 1, 1), "gain": (1, 1), "loss": (1, -1)}


def terms(kind: str, rng: Random) -> list[int]:
    """The numbers of one problem; neither they nor the result leave the range of the difficulty."""
    story = kind in ("gain", "loss")
    low, high, largest = (2, 1, difficulty.LARGEST_IN_STORIES) if story else (0, 0, difficulty.LARGEST)
    whole = rng.randint(low + high, largest)
    cuts = sorted(rng.randint(low, whole - high) for _ in TERMS[kind][1:])
    if TERMS[kind][-1] < 0:
        return [whole, whole - cuts[0]]
    return [end - start for start, end in pairwise([0, *cuts, whole])]


def tasks(language: str) -> list[Task]:
    """The arithmetic tasks in a language."""
    return [_task(kind, language) for kind in PHRASINGS]


def _task(kind: str, language: str) -> Task:
    def draw(rng: Random) -> Slots:
        thing = rng.choice(list(world.THINGS))
        return {
            **dict(zip("abc", map(str, terms(kind, rng)), strict=False)),
            "name": world.say(rng.choice(list(world.NAMES)), language),
            "counted": world.counted(thing, language),
            "measure": world.measure(thing),
        }

    def answer(slots: Slots) -> str:
        return str(sum(sign * int(slots[letter]) for sign, letter in zip(TERMS[kind], "abc", strict=False)))

    def credit(slots: Slots, response: str) -> float:
        result = answer(slots)
        if response == world.spelled(int(result), language):
            return 1.0
        signs = ["", *(" + " if sign > 0 else " - " for sign in TERMS[kind][1:])]
        equation = "".join(sign + slots[letter] for sign, letter in zip(signs, "abc", strict=False))
        return WORDY if response == f"{equation} = {result}" else 0.0

    return Task(
        name=f"arithmetic/{kind}",
        language=language,
        phrasings=PHRASINGS[kind][language],
        draw=draw,
        answer=answer,
        credit=credit,
        value=answer,
        rivals="[0-9]+",
    )
