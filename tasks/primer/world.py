"""The closed world: a valley of 24 animals, and all words about it, in English and Chinese.

Every word is keyed by its English form; `say` gives it in a language. Each fact is in world.toml once, so the two
languages cannot contradict each other.
"""

from typing import NamedTuple

from ..tables import read_table

LANGUAGES = ("en", "zh")
SEPARATORS = {"en": ", ", "zh": "、"}  # between the items of a list


class Inhabitant(NamedTuple):
    """An animal of the valley; all fields are English words of world.toml."""

    name: str
    species: str
    hat: str  # its colour
    home: str
    job: str
    food: str  # the favourite one
    friend: str  # the name of another inhabitant


_TABLES = read_table(__package__, "world.toml")


def _inhabitants() -> dict[str, Inhabitant]:
    """The animals by name. Animals 0 and 1 of world.toml are friends, and so are 2 and 3, and so on."""
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
THINGS = FOODS | OBJECTS  # things in baskets and stories
NOUNS = THINGS | ANIMALS  # everything that can be counted
CHINESE = NAMES | COLOURS | HOMES | JOBS | NOUNS | DAYS | NUMBERS  # every word of the world


def say(word: str, language: str) -> str:
    """A word of the world, given in English, in a language."""
    return word if language == "en" else CHINESE[word]


def spelled(number: int, language: str) -> str:
    """A number as a word if the world has one (one to ten), else in digits."""
    return say(list(NUMBERS)[number - 1], language) if 1 <= number <= len(NUMBERS) else str(number)


def plural(noun: str) -> str:
    """The plural of an English noun."""
    return _TABLES["plurals"].get(noun, noun + "s")


def measure(noun: str) -> str:
    """The Chinese measure word of a noun, which is given in English."""
    return _TABLES["measures"].get(noun, "个")


def with_article(word: str) -> str:
    """An English word behind its indefinite article."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def counted(noun: str, language: str) -> str:
    """A noun in the form that follows a number above one: "apples", "个苹果"."""
    return plural(noun) if language == "en" else measure(noun) + CHINESE[noun]


def amount(number: int, noun: str, language: str) -> str:
    """A number in digits and its noun: "1 apple", "3 apples", "3个苹果"."""
    if language == "zh":
        return f"{number}{measure(noun)}{CHINESE[noun]}"
    return f"{number} {noun if number == 1 else plural(noun)}"


def phrase(number: int, noun: str, language: str, colour: str = "") -> str:
    """A number as a word, an optional colour, and a noun: "two red apples", "两个红苹果".

    Args:
      number: from 1 to 10.
      noun: the noun in English.
      language: "en" or "zh".
      colour: the colour in English, or "".
    """
    word = list(NUMBERS)[number - 1]
    if language == "zh":
        return ("两" if number == 2 else NUMBERS[word]) + measure(noun) + COLOURS.get(colour, "") + NOUNS[noun]
    return " ".join(filter(None, [word, colour, noun if number == 1 else plural(noun)]))


def listing(words: list[str], language: str) -> str:
    """A list of words in a language: "apple, pear" or "苹果、梨". Numbers stay digits."""
    shown = [word if word.isdigit() else say(word, language) for word in words]
    return SEPARATORS[language].join(shown)


def describe(name: str, attribute: str, language: str, form: str) -> str:
    """A form filled in with one attribute of an inhabitant.

    Args:
      name: the inhabitant.
      attribute: one of ATTRIBUTES.
      language: "en" or "zh".
      form: text with slots: {name}, {value}, {a_value}, {plural} or {measure}.
    """
    value = getattr(INHABITANTS[name], attribute)
    return form.format(
        name=say(name, language),
        value=say(value, language),
        a_value=with_article(value),
        plural=plural(value),
        measure=measure(value),
    )


def statement(name: str, attribute: str, language: str, style: int = 0) -> str:
    """A sentence that states one fact of an inhabitant.

    Args:
      name: the inhabitant.
      attribute: one of ATTRIBUTES.
      language: "en" or "zh".
      style: index of the form in STATEMENTS.
    """
    return describe(name, attribute, language, STATEMENTS[attribute][language][style])
