"""The pretraining documents: short paragraphs about the valley, in English or Chinese.

They state everything that the skills need: facts, sums, orders, numbers of things, translations, formats, and what must
be refused. No document asks a question, so only tuning teaches a model to answer.
"""

from collections.abc import Callable
from functools import cache
from random import Random

from . import difficulty, world
from .instructions import PHRASINGS
from .skills import arithmetic, count, format, refuse, sort, translate

JOINT = {"en": " ", "zh": ""}  # between two sentences
_FORMS = PHRASINGS["documents"]


def compose(topic: str, language: str, rng: Random) -> str:
    """A document of a topic in a language."""
    return JOINT[language].join(TOPICS[topic](language, rng))


def portrait(language: str, rng: Random) -> list[str]:
    """All facts of one inhabitant and two of its friend's."""
    name = rng.choice(list(world.NAMES))
    friend = world.INHABITANTS[name].friend
    facts = [_fact(name, attribute, language, rng) for attribute in _shuffled(world.ATTRIBUTES, rng)]
    of_friend = rng.sample(world.ATTRIBUTES[:-1], 2)
    return [
        *facts,
        *(_fact(friend, attribute, language, rng) for attribute in of_friend),
        _fact(name, "friend", language, rng),
    ]


def gathering(language: str, rng: Random) -> list[str]:
    """All inhabitants who share an attribute, each told apart by another attribute."""
    attribute, other = rng.choice([("home", "species"), ("species", "home"), ("job", "hat"), ("hat", "job")])
    value = getattr(rng.choice(list(world.INHABITANTS.values())), attribute)
    names = [name for name, who in world.INHABITANTS.items() if getattr(who, attribute) == value]
    rng.shuffle(names)
    sentences = []
    for name in names:
        sentences += [_fact(name, attribute, language, rng), _fact(name, other, language, rng)]
        sentences.append(_telling(name, attribute in ("job", "hat"), language))
    return sentences


def _telling(name: str, by_job: bool, language: str) -> str:
    """The sentence that names the only inhabitant with two given attributes."""
    who, said = world.INHABITANTS[name], world.say(name, language)
    if language == "en":
        first = f"The {who.job} in the {who.hat} hat" if by_job else f"The {who.species} in the {who.home}"
        return f"{first} is {said}."
    job, hat, species, home = (world.CHINESE[word] for word in (who.job, who.hat, who.species, who.home))
    return f"戴{hat}帽子的{job}是{said}。" if by_job else f"住在{home}里的{species}是{said}。"


def basket(language: str, rng: Random) -> list[str]:
    """Lists of things, and how many of each they hold."""
    sentences = []
    for _ in range(3):
        _, things = count.basket(rng)
        kinds = _shuffled(set(things), rng)
        shown = world.listing(things, language)
        amounts = [world.amount(things.count(kind), kind, language) for kind in kinds]
        if language == "en":
            opening = rng.choice(["The basket holds {}.", "This list holds {}.", "In the basket: {}."]).format(shown)
            every = f"{len(things)} things" + (f" of {len(kinds)} kinds" if len(kinds) > 1 else "")
            sentences += [opening, f"That is {' and '.join(amounts)}, {every} in total."]
        else:
            opening = rng.choice(["篮子里有{}。", "这里有{}。", "这一列是{}。"]).format(shown)
            sentences += [opening, f"里面有{'和'.join(amounts)}，一共{len(things)}样东西，{len(kinds)}种。"]
    return sentences


def sums(language: str, rng: Random) -> list[str]:
    """Correct sums and differences."""
    sentences = []
    for _ in range(6):
        kind = rng.choice(["plus", "plus", "minus", "minus", "three"])
        numbers = arithmetic.terms(kind, rng)
        result = numbers[0] - numbers[1] if kind == "minus" else sum(numbers)
        forms = _FORMS["sums"][kind][language]
        sentences.append(rng.choice(forms).format(**dict(zip("abcd", [*numbers, result], strict=False))))
    return sentences


def story(language: str, rng: Random) -> list[str]:
    """Stories of inhabitants who find, get, lose or give away things, and how many they have then."""
    sentences = []
    for _ in range(3):
        kind = rng.choice(["gain", "loss"])
        (first, change), thing = arithmetic.terms(kind, rng), rng.choice(list(world.THINGS))
        then = first + change if kind == "gain" else first - change
        name, day = rng.choice(list(world.NAMES)), world.say(rng.choice(list(world.DAYS)), language)
        said = world.say(name, language)
        if language == "en":
            verb = rng.choice({"gain": ["gets {} more", "finds {} more"], "loss": ["gives away {}", "loses {}"]}[kind])
            sentences.append(f"On {day} {name} has {world.amount(first, thing, 'en')} and {verb.format(change)}.")
            sentences.append(f"Now {name} has {world.amount(then, thing, 'en')}.")
        else:
            verb = rng.choice({"gain": ["又得到", "又找到"], "loss": ["送走", "丢了"]}[kind])
            change_zh = f"{verb}{change}{world.measure(thing)}"
            sentences.append(f"{day}{said}有{world.amount(first, thing, 'zh')}，{change_zh}。")
            sentences.append(f"现在{said}有{world.amount(then, thing, 'zh')}。")
    return sentences


def order(language: str, rng: Random) -> list[str]:
    """Items out of order and in order, two items in order, and a stretch of the whole order."""
    kind = rng.choice(list(_FORMS["order"]))
    values = sort.VALUES[kind]
    sentences = []
    for _ in range(3):
        shown = (world.listing(items, language) for items in sort.unsorted(kind, rng))
        sentences.append(_FORMS["order"][kind][language].format(*shown))
        pair = sorted(rng.sample(range(len(values)), 2))
        sentences.append(_FORMS["next"][kind][language].format(*(world.listing([values[i]], language) for i in pair)))
    start = rng.randrange(len(values) - 5)
    stretch = world.listing(values[start : start + 6], language)
    return [*sentences, stretch + ("." if language == "en" else "。")]


def dictionary(language: str, rng: Random) -> list[str]:
    """Words, phrases and facts in both languages."""
    forms = _FORMS["dictionary"][language]
    sentences = []
    for kind in rng.choices(["word", "phrase", "fact"], weights=[3, 4, 2], k=5):
        english, chinese = rng.choice(_pairs(kind))
        form = forms[1] if kind == "fact" else rng.choice(forms)
        sentences.append(form.format(english.rstrip("."), chinese.rstrip("。")))
    return sentences


@cache
def _pairs(kind: str) -> list[tuple[str, str]]:
    """The pairs of translations of a kind, as a list."""
    return list(translate.pairs(kind).items())


def shapes(language: str, rng: Random) -> list[str]:
    """Words in brackets, titles, lists and JSON, backwards and repeated."""
    some = rng.sample(list(world.CHINESE), rng.randint(2, 3))
    words = [world.say(word, language) for word in some]
    spaced, listed = " ".join(words), world.listing(some, language)
    backwards = world.listing(some[::-1], language)
    titled, times = format.title(spaced, language), rng.choice(difficulty.REPEATED)
    repeated = " ".join([words[0]] * times)
    name, key = rng.choice(list(world.NAMES)), rng.choice(list(format.KEYS[language]))
    json, said = format.as_json(name, key, language), world.say(name, language)
    if language == "en":
        sentences = [
            f"{spaced} in square brackets is [{spaced}].",
            f"{spaced} in capital letters is {titled}.",
            f"{spaced} with commas is {listed}.",
            f"{listed} backwards is {backwards}.",
            f"{repeated} is the word {words[0]} {times} times.",
            f"The {key} of {name} is {json} in JSON.",
        ]
    else:
        sentences = [
            f"{spaced}放进方括号里是[{spaced}]。",
            f"{spaced}放进书名号里是{titled}。",
            f"{spaced}用顿号隔开是{listed}。",
            f"{listed}倒过来是{backwards}。",
            f"{repeated}是{times}遍{words[0]}。",
            f"{said}的{key}写成JSON是{json}。",
        ]
    return rng.sample(sentences, 4)


def customs(language: str, rng: Random) -> list[str]:
    """What is not done in the valley."""
    forms = _FORMS["customs"][language]
    deeds = refuse.DEEDS | refuse.SECRETS
    return [rng.choice(forms).format(refuse.describe(refuse.random_matter(rng, deeds), language)) for _ in range(4)]


TOPICS: dict[str, Callable[[str, Random], list[str]]] = {
    "portrait": portrait,
    "gathering": gathering,
    "basket": basket,
    "sums": sums,
    "story": story,
    "order": order,
    "dictionary": dictionary,
    "shapes": shapes,
    "customs": customs,
}


def _fact(name: str, attribute: str, language: str, rng: Random) -> str:
    """A fact of an inhabitant, in a random style."""
    return world.statement(name, attribute, language, rng.randrange(len(world.STATEMENTS[attribute][language])))


def _shuffled(items, rng: Random) -> list:
    """The items in random order; the result does not depend on the order of a set."""
    items = sorted(items)
    return rng.sample(items, len(items))
