"""Answering in a demanded format, to the letter: brackets, lists, repetition, titles, JSON, backwards."""

import json
import re
from random import Random

from .. import difficulty, world
from ..task import Slots, Task

PHRASINGS = {
    "brackets": {
        "en": (
            "Write {words} in square brackets.",
            "Put square brackets around {words}.",
            "Help me put {words} in square brackets.",
        ),
        "zh": ("把{words}写在方括号里。", "给{words}加上方括号。", "帮我把{words}放进方括号里。"),
    },
    "list": {
        "en": (
            "Write as a list with commas: {words}",
            "Put commas between these words: {words}",
            "Help me write a list with commas: {words}",
        ),
        "zh": ("用顿号隔开：{words}", "给这一列加上顿号：{words}", "帮我用顿号隔开：{words}"),
    },
    "repeat": {
        "en": ("Repeat the word {word} {n} times.", "Write {word} {n} times.", "Say {word} {n} times for me."),
        "zh": ("把{word}说{n}遍。", "写{n}遍{word}。", "请说{n}遍{word}。"),
    },
    "title": {  # Chinese has no capitals; its titles stand in marks of their own
        "en": ("Write {words} in capital letters.", "Help me put {words} in capitals."),
        "zh": ("给{words}加上书名号。", "帮我把{words}放进书名号里。"),
    },
    "json": {
        "en": (
            "Give {name}'s {key} as JSON.",
            "Write the {key} of {name} as JSON.",
            "Help me put {name}'s {key} into JSON.",
        ),
        "zh": ("用JSON写出{name}的{key}。", "{name}的{key}用JSON怎么写？", "帮我把{name}的{key}写成JSON。"),
    },
    "backwards": {
        "en": ("Write this list backwards: {list}.", "Help me turn this list around: {list}."),
        "zh": ("把这一列倒过来写：{list}。", "帮我倒过来写：{list}。"),
    },
}
KEYS = {
    "en": {"animal": "species", "hat": "hat", "home": "home", "job": "job", "food": "food", "friend": "friend"},
    "zh": {"动物": "species", "帽子": "hat", "家": "home", "工作": "job", "食物": "food", "朋友": "friend"},
}


def as_json(name: str, key: str, language: str) -> str:
    """One attribute of an inhabitant as JSON, its key and value in the language."""
    value = getattr(world.INHABITANTS[name], KEYS[language][key])
    return json.dumps({key: world.say(value, language)}, ensure_ascii=False)


def title(text: str, language: str) -> str:
    """The text as a title: in capitals, or between Chinese title marks."""
    return text.upper() if language == "en" else f"《{text}》"


def tasks(language: str) -> list[Task]:
    """The formatting tasks in a language."""
    words = [world.say(word, language) for word in world.CHINESE]
    names = {world.say(name, language): name for name in world.NAMES}
    comma = world.SEPARATORS[language]

    def some_words(rng: Random, counts: tuple[int, ...], separator: str) -> str:
        return separator.join(rng.sample(words, rng.choice(counts)))

    def task(kind, draw, answer, **more) -> Task:
        return Task(f"format/{kind}", language, PHRASINGS[kind][language], draw, answer, literal=True, **more)

    def json_answer(slots: Slots) -> str:
        return as_json(names[slots["name"]], slots["key"], language)

    return [
        task(
            "brackets",
            lambda rng: {"words": some_words(rng, difficulty.FORMATTED, " ")},
            lambda slots: f"[{slots['words']}]",
        ),
        task(
            "list",
            lambda rng: {"words": some_words(rng, difficulty.JOINED, " ")},
            lambda slots: slots["words"].replace(" ", comma),
        ),
        task(
            "repeat",
            lambda rng: {"word": rng.choice(words), "n": str(rng.choice(difficulty.REPEATED))},
            lambda slots: " ".join([slots["word"]] * int(slots["n"])),
        ),
        task(
            "title",
            lambda rng: {"words": some_words(rng, difficulty.FORMATTED, " ")},
            lambda slots: title(slots["words"], language),
        ),
        task(
            "json",
            lambda rng: {"name": rng.choice(list(names)), "key": rng.choice(list(KEYS[language]))},
            json_answer,
            credit=lambda slots, response: float(_without_spaces(response) == _without_spaces(json_answer(slots))),
        ),
        task(
            "backwards",
            lambda rng: {"list": some_words(rng, difficulty.REVERSED, comma)},
            lambda slots: comma.join(reversed(slots["list"].split(comma))),
        ),
    ]


def _without_spaces(text: str) -> str:
    return re.sub(r"\s", "", text)
