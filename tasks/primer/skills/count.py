"""Counting: how many apples are in a short list, how many things, how many kinds."""

from random import Random

from .. import difficulty, world
from ..task import Slots, Task

PHRASINGS = {
    "one": {
        "en": (
            "How many {counted} are in this list: {things}?",
            "Count the {counted}: {things}.",
            "The basket holds {things}. How many {counted} does it hold?",
            "Help me count the {counted} in this list: {things}.",
        ),
        "zh": (
            "这里有几{counted}：{things}？",
            "数一数有几{counted}：{things}。",
            "篮子里有{things}。里面有几{counted}？",
            "帮我数一数，{things}里有几{counted}。",
        ),
    },
    "all": {
        "en": (
            "How many things are in this list: {things}?",
            "The basket holds {things}. How many things does it hold?",
        ),
        "zh": ("这里一共有几样东西：{things}？", "篮子里有{things}。里面一共有几样东西？"),
    },
    "kinds": {
        "en": (
            "How many kinds of things are in this list: {things}?",
            "The basket holds {things}. How many kinds of things does it hold?",
        ),
        "zh": ("这里有几种东西：{things}？", "篮子里有{things}。里面有几种东西？"),
    },
}


def basket(rng: Random) -> tuple[str, list[str]]:
    """One noun and a shuffled list of things that holds it some number of times."""
    counted, *others = rng.sample(list(world.THINGS), 3)
    others = rng.choices(others[: rng.randint(1, 2)], k=rng.choice(difficulty.OTHERS))
    things = [counted] * rng.choice(difficulty.COUNTED) + others
    if len(things) == 1:
        things += others
    rng.shuffle(things)
    return counted, things


def tasks(language: str) -> list[Task]:
    """The counting tasks in a language."""
    return [_task(kind, language) for kind in PHRASINGS]


def _task(kind: str, language: str) -> Task:
    nouns = {world.counted(noun, language): world.say(noun, language) for noun in world.NOUNS}

    def draw(rng: Random) -> Slots:
        counted, things = basket(rng)
        return {"counted": world.counted(counted, language), "things": world.listing(things, language)}

    def number(slots: Slots) -> int:
        things = slots["things"].split(world.SEPARATORS[language])
        if kind == "one":
            return things.count(nouns[slots["counted"]])
        return len(things) if kind == "all" else len(set(things))

    return Task(
        name=f"count/{kind}",
        language=language,
        phrasings=PHRASINGS[kind][language],
        draw=draw,
        answer=lambda slots: str(number(slots)),
        credit=lambda slots, response: float(response == world.spelled(number(slots), language)),
        value=lambda slots: str(number(slots)),
        rivals="[0-9]+",
    )
