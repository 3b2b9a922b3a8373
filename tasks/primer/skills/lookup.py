"""Looking up facts: of an inhabitant, of an inhabitant's friend, and which inhabitant has two given attributes."""

from .. import world
from ..instructions import PHRASINGS, Instruction, Slots, one_of
from ..scoring import normal

_FORMS = PHRASINGS["lookup"]
WHO_BY = {"job": "hat", "species": "home"}  # the second attribute that, with the first, determines an inhabitant


def instructions(language: str) -> list[Instruction]:
    """The lookup instructions in a language, one for each attribute that is asked for."""
    about = [_about(kind, attribute, language) for kind in ("fact", "friend") for attribute in _FORMS[kind]]
    return about + [_who(attribute, language) for attribute in _FORMS["who"]]


def _about(kind: str, attribute: str, language: str) -> Instruction:
    """The instruction that asks for an attribute of an inhabitant ("fact") or of an inhabitant's friend ("friend")."""
    names = {world.say(name, language): name for name in world.NAMES}
    form = "{plural}" if attribute == "food" and language == "en" else "{value}"
    words = {getattr(inhabitant, attribute) for inhabitant in world.INHABITANTS.values()}

    def subject(slots: Slots) -> str:
        name = names[slots["name"]]
        return world.INHABITANTS[name].friend if kind == "friend" else name

    def value(slots: Slots) -> str:
        return world.describe(subject(slots), attribute, language, form)

    def credit(slots: Slots, response: str) -> float:
        full = {normal(world.statement(subject(slots), attribute, language, style)) for style in range(3)}
        forms = _FORMS["short"][attribute][language]
        short = {normal(world.describe(subject(slots), attribute, language, form)) for form in forms}
        return 1.0 if response in full | short else 0.0

    return Instruction(
        name=f"lookup/{kind}",
        language=language,
        phrasings=_FORMS[kind][attribute][language],
        draw=lambda rng: {"name": rng.choice(list(names))},
        answer=lambda slots: world.statement(subject(slots), attribute, language),
        credit=credit,
        value=value if kind == "fact" else None,  # among more words, "Mia lives in the cave" would be a false statement
        rivals=one_of([world.say(word, language).casefold() for word in words]),
    )


def _who(attribute: str, language: str) -> Instruction:
    """The instruction that asks which inhabitant has two given attributes, `attribute` and WHO_BY[attribute]."""
    other = WHO_BY[attribute]
    names = {
        (world.say(getattr(who, attribute), language), world.say(getattr(who, other), language)): who.name
        for who in world.INHABITANTS.values()
    }

    def value(slots: Slots) -> str:
        return world.say(names[slots[attribute], slots[other]], language)

    return Instruction(
        name="lookup/who",
        language=language,
        phrasings=_FORMS["who"][attribute][language],
        draw=lambda rng: dict(zip((attribute, other), rng.choice(list(names)), strict=True)),
        answer=lambda slots: f"It is {value(slots)}." if language == "en" else f"是{value(slots)}。",
        credit=lambda slots, response: float(response == value(slots).casefold()),
        value=value,
        rivals=one_of([world.say(name, language).casefold() for name in world.NAMES]),
    )
