"""Arithmetic: sums and differences of small numbers, by themselves and in stories."""

from itertools import pairwise
from random import Random

from .. import difficulty, world
from ..instructions import PHRASINGS, Instruction, Slots
from ..scoring import WORDY

TERMS = {"plus": (1, 1), "minus": (1, -1), "three": (1, 1, 1), "gain": (1, 1), "loss": (1, -1)}


def terms(kind: str, rng: Random) -> list[int]:
    """The numbers of a random problem of a kind in TERMS. They and the result stay in the range of `difficulty`."""
    story = kind in ("gain", "loss")
    low, high, largest = (2, 1, difficulty.LARGEST_IN_STORIES) if story else (0, 0, difficulty.LARGEST)
    whole = rng.randint(low + high, largest)
    cuts = sorted(rng.randint(low, whole - high) for _ in TERMS[kind][1:])
    if TERMS[kind][-1] < 0:
        return [whole, whole - cuts[0]]
    return [end - start for start, end in pairwise([0, *cuts, whole])]


def instructions(language: str) -> list[Instruction]:
    """The arithmetic instructions in a language."""
    return [_instruction(kind, language) for kind in PHRASINGS["arithmetic"]]


def _instruction(kind: str, language: str) -> Instruction:
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

    return Instruction(
        name=f"arithmetic/{kind}",
        language=language,
        phrasings=PHRASINGS["arithmetic"][kind][language],
        draw=draw,
        answer=answer,
        credit=credit,
        value=answer,
        rivals="[0-9]+",
    )
