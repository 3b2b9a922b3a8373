"""The closed world: a valley of 24 animals, and every word that is said about it, in English and Chinese.

A value is keyed by its English word in both languages; `say` gives its word in a language. Each fact stands once, in
world.toml, so the languages cannot disagree.
"""

from typing import NamedTuple

from ..tables import read_table

LANGUAGES = ("en", "zh")
SEPARATORS = {"en": ", ", "zh": "、"}  # between the items of a list


class Inhabitant(NamedTuple):
    """One animal of the valley; all fields are English words of world.toml."""

    name: str
    species: str
    hat: str
    home: str
    job: str
    food: str
    friend: str


_TABLES = read_table(__package__, "world.toml")


def _inhabitants() -> dict[str, Inhabitant]:
    names = list(_TABLES["inhabitants"])
    friends = [names[i ^ 1] for i in range(len(names))]
    rows = zip(_TABLES["inhabitants"].items(), friends, strict=True)
    return {name: Inhabitant(name, *row[1:], friend=friend) for (name, row), friend in rows}


INHABITANTS = _inhabitants()
ATTRIBUTES = ("species", "hat", "home", "job", "food", "friend")
STATEMENTS = _TABLES["statements"]

NAMES = {name: row[0] for name, row in _TABLES["inhabitants"].items()}
COLOURS, HOMES, JOBS, FOODS, OBJECTS, ANIMALS, DAYS, NUMBERS = (
    _TABLES["words"][name] for name in ("colours", "homes", "jobs", "foods", "objects", "animals", "days", "numbers")
)
THINGS = FOODS | OBJECTS  # what is put into baskets, counted and given away
NOUNS = THINGS | ANIMALS  # what can be counted
CHINESE = NAMES | COLOURS | HOMES | JOBS | NOUNS | DAYS | NUMBERS  # every word of the world


def say(word: str, language: str) -> str:
    """The word of the world, given in English, in a language."""
    return word if language == "en" else CHINESE[word]


def spelled(number: int, language: str) -> str:
    """A number in words where the world has a word for it (one to ten), else in digits."""
    return say(list(NUMBERS)[number - 1], language) if 1 <= number <= len(NUMBERS) else str(number)


def plural(noun: str) -> str:
    """The English plural."""
    return _TABLES["plurals"].get(noun, noun + "s")


def measure(noun: str) -> str:
    """The Chinese measure word of a noun."""
    return _TABLES["measures"].get(noun, "个")


def with_article(word: str) -> str:
    """The English word after its indefinite article."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def counted(noun: str, language: str) -> str:
    """The noun as it stands after a number of more than one: "apples", "个苹果"."""
    return plural(noun) if language == "en" else measure(noun) + CHINESE[noun]


def amount(number: int, noun: str, language: str) -> str:
    """A number in digits and its noun: "1 apple", "3 apples", "3个苹果"."""
    if language == "zh":
        return f"{number}{measure(noun)}{CHINESE[noun]}"
    return f"{number} {noun if number == 1 else plural(noun)}"


def phrase(number: int, noun: str, language: str, colour: str = "") -> str:
    """A number in words, a colour if there is one, and a noun: "two red apples", "两个红苹果"."""
    word = list(NUMBERS)[number - 1]
    if language == "zh":
        return ("两" if number == 2 else NUMBERS[word]) + measure(noun) + COLOURS.get(colour, "") + NOUNS[noun]
    return " ".join(filter(None, [word, colour, noun if number == 1 else plural(noun)]))


def listing(words: list[str], language: str) -> str:
    """Words in the language, as a list: "apple, pear" or "苹果、梨". Numbers stay digits."""
    shown = [word if word.isdigit() else say(word, language) for word in words]
    return SEPARATORS[language].join(shown)


def describe(name: str, attribute: str, language: str, form: str) -> str:
    """A form filled in for one attribute of an inhabitant; it may use the slots of STATEMENTS."""
    value = getattr(INHABITANTS[name], attribute)
    return form.format(
        name=say(name, language),
        value=say(value, language),
        a_value=with_article(value),
        plural=plural(value),
        measure=measure(value),
    )


def statement(name: str, attribute: str, language: str, style: int = 0) -> str:
    """One fact of an inhabitant as a sentence."""
    return describe(name, attribute, language, STATEMENTS[attribute][language][style])
