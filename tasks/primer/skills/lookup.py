"""Looking up the facts of the world: of an inhabitant, of an inhabitant's friend, and who has two given attributes."""

from .. import world
from ..scoring import normal
from ..task import Slots, Task, one_of

FACTS = {
    "species": {
        "en": (
            "What animal is {name}?",
            "Which animal is {name}?",
            "What kind of animal is {name}?",
            "Tell me what animal {name} is.",
            "Do you know what animal {name} is?",
            "Please say what kind of animal {name} is.",
        ),
        "zh": (
            "{name}是什么动物？",
            "{name}是哪种动物？",
            "你知道{name}是哪种动物吗？",
            "告诉我{name}是什么动物。",
            "你知道{name}是什么动物吗？",
            "请说出{name}是哪种动物。",
        ),
    },
    "hat": {
        "en": (
            "What colour is {name}'s hat?",
            "Which hat does {name} wear?",
            "Tell me the colour of {name}'s hat.",
            "What colour of hat does {name} wear?",
            "Do you know what hat {name} wears?",
            "I want to find {name}. Which hat should I look for?",
        ),
        "zh": (
            "{name}的帽子是什么颜色？",
            "{name}戴什么帽子？",
            "告诉我{name}戴什么帽子。",
            "{name}戴什么颜色的帽子？",
            "你知道{name}的帽子是什么颜色吗？",
            "我想找{name}，该找什么颜色的帽子？",
        ),
    },
    "home": {
        "en": (
            "Where does {name} live?",
            "Where is {name}'s house?",
            "Tell me where {name} lives.",
            "How do I find {name}'s house?",
            "Help me find {name}'s house.",
            "I want to visit {name}. Where should I go?",
        ),
        "zh": (
            "{name}住在哪里？",
            "{name}的家在哪里？",
            "告诉我{name}住在哪里。",
            "怎么找{name}的家？",
            "帮我找{name}的家。",
            "我想去看{name}，该去哪里？",
        ),
    },
    "job": {
        "en": (
            "What is {name}'s job?",
            "What does {name} work as?",
            "Tell me what {name} works as.",
            "What does {name} do by day?",
            "Do you know {name}'s job?",
            "I want to help {name} at work. What is the job?",
        ),
        "zh": (
            "{name}的工作是什么？",
            "{name}做什么工作？",
            "告诉我{name}的工作是什么。",
            "{name}白天做什么？",
            "你知道{name}做什么工作吗？",
            "我想帮{name}工作，是什么工作？",
        ),
    },
    "food": {
        "en": (
            "What does {name} like to eat?",
            "Which food does {name} like?",
            "Tell me what {name} likes to eat.",
            "What does {name} eat every day?",
            "Help me find food for {name}.",
            "I want to give {name} some food. What should I bring?",
        ),
        "zh": (
            "{name}喜欢吃什么？",
            "{name}喜欢什么食物？",
            "告诉我{name}喜欢吃什么。",
            "{name}每天吃什么？",
            "帮我给{name}找食物。",
            "我想给{name}送食物，该送什么？",
        ),
    },
    "friend": {
        "en": (
            "Who is {name}'s friend?",
            "Who is the friend of {name}?",
            "Tell me who {name}'s friend is.",
            "What is {name}'s friend called?",
            "Do you know {name}'s friend?",
            "I want to find {name}'s friend. Who is it?",
        ),
        "zh": (
            "{name}的朋友是谁？",
            "谁是{name}的朋友？",
            "告诉我{name}的朋友是谁。",
            "{name}的朋友叫什么？",
            "你知道{name}的朋友是谁吗？",
            "我想找{name}的朋友，是谁？",
        ),
    },
}
FRIENDS = {
    "species": {
        "en": ("What animal is {name}'s friend?", "Tell me what animal {name}'s friend is."),
        "zh": ("{name}的朋友是什么动物？", "告诉我{name}的朋友是什么动物。"),
    },
    "hat": {
        "en": ("What hat does {name}'s friend wear?", "Tell me which hat {name}'s friend wears."),
        "zh": ("{name}的朋友戴什么帽子？", "告诉我{name}的朋友戴什么帽子。"),
    },
    "home": {
        "en": ("Where does {name}'s friend live?", "Tell me where {name}'s friend lives."),
        "zh": ("{name}的朋友住在哪里？", "告诉我{name}的朋友住在哪里。"),
    },
    "job": {
        "en": ("What does {name}'s friend work as?", "Tell me what {name}'s friend works as."),
        "zh": ("{name}的朋友做什么工作？", "告诉我{name}的朋友的工作是什么。"),
    },
    "food": {
        "en": ("What does {name}'s friend like to eat?", "Tell me what {name}'s friend likes to eat."),
        "zh": ("{name}的朋友喜欢吃什么？", "告诉我{name}的朋友喜欢吃什么。"),
    },
}
WHO = {
    "job": {
        "en": (
            "Who is the {job} in the {hat} hat?",
            "Which {job} wears a {hat} hat?",
            "Tell me who the {job} in the {hat} hat is.",
        ),
        "zh": ("戴{hat}帽子的{job}是谁？", "谁是戴{hat}帽子的{job}？", "告诉我戴{hat}帽子的{job}是谁。"),
    },
    "species": {
        "en": (
            "Who is the {species} in the {home}?",
            "Which {species} lives in the {home}?",
            "Tell me who the {species} in the {home} is.",
        ),
        "zh": ("住在{home}里的{species}是谁？", "谁是住在{home}里的{species}？", "告诉我住在{home}里的{species}是谁。"),
    },
}
WHO_BY = {"job": "hat", "species": "home"}  # together with this, the attribute names one inhabitant
# Beside a whole sentence, these short answers are just as good.
SHORT = {
    "species": {"en": ("{value}", "{a_value}"), "zh": ("{value}", "一{measure}{value}")},
    "hat": {"en": ("{value}", "a {value} hat"), "zh": ("{value}", "{value}色", "{value}帽子", "{value}色的")},
    "home": {"en": ("{value}", "the {value}", "in the {value}"), "zh": ("{value}", "{value}里", "在{value}里")},
    "job": {"en": ("{value}", "{a_value}"), "zh": ("{value}", "是{value}")},
    "food": {"en": ("{value}", "{plural}"), "zh": ("{value}",)},
    "friend": {"en": ("{value}",), "zh": ("{value}", "是{value}")},
}


def tasks(language: str) -> list[Task]:
    """The lookup tasks in a language, one for each attribute that is asked for."""
    facts = [_about(attribute, language, FACTS, of_friend=False) for attribute in FACTS]
    friends = [_about(attribute, language, FRIENDS, of_friend=True) for attribute in FRIENDS]
    return facts + friends + [_who(attribute, language) for attribute in WHO]


def _about(attribute: str, language: str, phrasings: dict, *, of_friend: bool) -> Task:
    names = {world.say(name, language): name for name in world.NAMES}
    form = "{plural}" if attribute == "food" and language == "en" else "{value}"
    words = {getattr(inhabitant, attribute) for inhabitant in world.INHABITANTS.values()}

    def subject(slots: Slots) -> str:
        name = names[slots["name"]]
        return world.INHABITANTS[name].friend if of_friend else name

    def value(slots: Slots) -> str:
        return world.describe(subject(slots), attribute, language, form)

    def credit(slots: Slots, response: str) -> float:
        full = {normal(world.statement(subject(slots), attribute, language, style)) for style in range(3)}
        short = {
            normal(world.describe(subject(slots), attribute, language, form)) for form in SHORT[attribute][language]
        }
        return 1.0 if response in full | short else 0.0

    return Task(
        name="lookup/friend" if of_friend else "lookup/fact",
        language=language,
        phrasings=phrasings[attribute][language],
        draw=lambda rng: {"name": rng.choice(list(names))},
        answer=lambda slots: world.statement(subject(slots), attribute, language),
        credit=credit,
        value=None if of_friend else value,  # among more words, "Mia lives in the cave" would be a false statement
        rivals=one_of([world.say(word, language).casefold() for word in words]),
    )


def _who(attribute: str, language: str) -> Task:
    other = WHO_BY[attribute]
    names = {
        (world.say(getattr(who, attribute), language), world.say(getattr(who, other), language)): who.name
        for who in world.INHABITANTS.values()
    }

    def value(slots: Slots) -> str:
        return world.say(names[slots[attribute], slots[other]], language)

    return Task(
        name="lookup/who",
        language=language,
        phrasings=WHO[attribute][language],
        draw=lambda rng: dict(zip((attribute, other), rng.choice(list(names)), strict=True)),
        answer=lambda slots: f"It is {value(slots)}." if language == "en" else f"是{value(slots)}。",
        credit=lambda slots, response: float(response == value(slots).casefold()),
        value=value,
        rivals=one_of([world.say(name, language).casefold() for name in world.NAMES]),
    )
