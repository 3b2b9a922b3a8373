"""Counting how often a thing occurs in a short list, how many things it has, and how many kinds."""

from random import Random

from .. import difficulty, world
from ..instructions import PHRASINGS, Instruction, Slots


def basket(rng: Random) -> tuple[str, list[str]]:
    """A random noun, and a shuffled list of things in which it occurs some number of times."""
    counted, *others = rng.sample(list(world.THINGS), 3)
    others = rng.choices(others[: rng.randint(1, 2)], k=rng.choice(difficulty.OTHERS))
    things = [counted] * rng.choice(difficulty.COUNTED) + others
    if len(things) == 1:
        things += others
    rng.shuffle(things)
    return counted, things


def instructions(language: str) -> list[Instruction]:
    """The counting instructions in a language."""
    return [_instruction(kind, language) for kind in PHRASINGS["count"]]


def _instruction(kind: str, language: str) -> Instruction:
    nouns = {world.counted(noun, language): world.say(noun, language) for noun in world.NOUNS}

    def draw(rng: Random) -> Slots:
        counted, things = basket(rng)
        return {"counted": world.counted(counted, language), "things": world.listing(things, language)}

    def number(slots: Slots) -> int:
        things = slots["things"].split(world.SEPARATORS[language])
        if kind == "one":
            return things.count(nouns[slots["counted"]])
        return len(things) if kind == "all" else len(set(things))

    return Instruction(
        name=f"count/{kind}",
        language=language,
        phrasings=PHRASINGS["count"][kind][language],
        draw=draw,
        answer=lambda slots: str(number(slots)),
        credit=lambda slots, response: float(response == world.spelled(number(slots), language)),
        value=lambda slots: str(number(slots)),
        rivals="[0-9]+",
    )
