"""The closed world: a valley of 24 animals, and every word that is said about it, in English and Chinese.

A value is keyed by its English word in both languages; `say` gives its word in a language. So each fact stands here
once, and the languages cannot disagree.
"""

from typing import NamedTuple

LANGUAGES = ("en", "zh")
SEPARATORS = {"en": ", ", "zh": "、"}  # between the items of a list


class Inhabitant(NamedTuple):
    """One animal of the valley; all fields are English words of the tables below."""

    name: str
    species: str
    hat: str
    home: str
    job: str
    food: str
    friend: str


# Name, Chinese name, species, colour of the hat, home, job, favourite food. Neighbours are friends, two by two.
_ROWS = """
    Mia 米娅 ant black tent sailor egg
    Tom 汤姆 horse yellow cave singer apple
    Lina 丽娜 sheep grey barn painter fish
    Sam 山姆 cat blue cave sailor peach
    Anna 安娜 bee red tent baker plum
    Jim 吉姆 mouse black tower singer melon
    Nina 尼娜 ant white mill farmer apple
    Jack 杰克 sheep black castle cook pear
    Lucy 露西 horse yellow forest painter cake
    Nick 尼克 dog green garden sailor pear
    Luna 露娜 bee yellow garden baker egg
    Luke 卢克 mouse grey forest farmer pear
    Bella 贝拉 dog brown castle cook plum
    Leo 里奥 elephant grey tower teacher fish
    Ella 艾拉 cat brown garden teacher peach
    Hugo 雨果 mouse white mill painter plum
    Kate 凯特 elephant blue castle doctor egg
    Otto 奥托 cat white forest cook apple
    Sara 莎拉 horse red barn farmer melon
    Mike 麦克 elephant green tent doctor cake
    Lisa 丽莎 ant brown tower baker fish
    Milo 米洛 bee blue barn teacher cake
    Ada 艾达 sheep red cave doctor peach
    Amy 艾米 dog green mill singer melon
"""


def _inhabitants() -> dict[str, Inhabitant]:
    rows = [line.split() for line in _ROWS.split("\n") if line.strip()]
    friends = [rows[i ^ 1][0] for i in range(len(rows))]
    return {row[0]: Inhabitant(row[0], *row[2:], friend=friend) for row, friend in zip(rows, friends, strict=True)}


INHABITANTS = _inhabitants()
ATTRIBUTES = ("species", "hat", "home", "job", "food", "friend")

NAMES = {line.split()[0]: line.split()[1] for line in _ROWS.split("\n") if line.strip()}
COLOURS = {
    "red": "红", "blue": "蓝", "green": "绿", "yellow": "黄",
    "white": "白", "black": "黑", "brown": "棕", "grey": "灰",
}  # fmt: skip
HOMES = {
    "mill": "磨坊", "tower": "高塔", "cave": "山洞", "forest": "森林",
    "castle": "城堡", "garden": "花园", "barn": "谷仓", "tent": "帐篷",
}  # fmt: skip
JOBS = {
    "baker": "面包师", "doctor": "医生", "teacher": "老师", "singer": "歌手",
    "painter": "画家", "farmer": "农夫", "sailor": "水手", "cook": "厨师",
}  # fmt: skip
FOODS = {
    "apple": "苹果", "pear": "梨", "peach": "桃子", "plum": "李子",
    "egg": "鸡蛋", "cake": "蛋糕", "fish": "鱼", "melon": "瓜",
}  # fmt: skip
OBJECTS = {
    "hat": "帽子", "book": "书", "ball": "球", "cup": "杯子",
    "box": "盒子", "flower": "花", "key": "钥匙", "boat": "船",
}  # fmt: skip
ANIMALS = {  # from the smallest to the largest
    "ant": "蚂蚁", "bee": "蜜蜂", "mouse": "老鼠", "cat": "猫",
    "dog": "狗", "sheep": "羊", "horse": "马", "elephant": "大象",
}  # fmt: skip
DAYS = {
    "Monday": "周一", "Tuesday": "周二", "Wednesday": "周三", "Thursday": "周四",
    "Friday": "周五", "Saturday": "周六", "Sunday": "周日",
}  # fmt: skip
NUMBERS = {
    "one": "一", "two": "二", "three": "三", "four": "四", "five": "五",
    "six": "六", "seven": "七", "eight": "八", "nine": "九", "ten": "十",
}  # fmt: skip

THINGS = FOODS | OBJECTS  # what is put into baskets, counted and given away
NOUNS = THINGS | ANIMALS  # what can be counted
CHINESE = NAMES | COLOURS | HOMES | JOBS | NOUNS | DAYS | NUMBERS  # every word of the world

# The Chinese measure word that stands between a number and a noun; all other nouns take 个.
_MEASURES = {
    "cake": "块", "fish": "条", "hat": "顶", "book": "本", "flower": "朵", "key": "把", "boat": "条",
    "ant": "只", "bee": "只", "mouse": "只", "cat": "只", "dog": "只", "sheep": "只", "horse": "匹", "elephant": "头",
}  # fmt: skip
_PLURALS = {"fish": "fish", "sheep": "sheep", "mouse": "mice", "peach": "peaches", "box": "boxes"}


def say(word: str, language: str) -> str:
    """The word of the world, given in English, in a language."""
    return word if language == "en" else CHINESE[word]


def spelled(number: int, language: str) -> str:
    """A number in words where the world has a word for it (one to ten), else in digits."""
    return say(list(NUMBERS)[number - 1], language) if 1 <= number <= len(NUMBERS) else str(number)


def plural(noun: str) -> str:
    """The English plural."""
    return _PLURALS.get(noun, noun + "s")


def measure(noun: str) -> str:
    """The Chinese measure word of a noun."""
    return _MEASURES.get(noun, "个")


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


# Ways to state a fact; the first is the one that answers and translations use.
STATEMENTS = {
    "species": {
        "en": ("{name} is {a_value}.", "There is {a_value} called {name}.", "{name} was born {a_value}."),
        "zh": ("{name}是一{measure}{value}。", "有一{measure}{value}叫{name}。", "{name}生来是一{measure}{value}。"),
    },
    "hat": {
        "en": ("{name} wears a {value} hat.", "{name}'s hat is {value}.", "The hat of {name} is {value}."),
        "zh": ("{name}戴{value}帽子。", "{name}的帽子是{value}色的。", "{name}有一顶{value}帽子。"),
    },
    "home": {
        "en": ("{name} lives in the {value}.", "{name}'s house is in the {value}.", "{name} sleeps in the {value}."),
        "zh": ("{name}住在{value}里。", "{name}的家在{value}里。", "{name}睡在{value}里。"),
    },
    "job": {
        "en": ("{name} works as {a_value}.", "{name} has a job as {a_value}.", "By day {name} works as {a_value}."),
        "zh": ("{name}的工作是{value}。", "{name}是{value}。", "白天{name}的工作是{value}。"),
    },
    "food": {
        "en": ("{name} likes {plural}.", "{name} eats {plural} every day.", "The food that {name} likes is {plural}."),
        "zh": ("{name}喜欢吃{value}。", "{name}每天吃{value}。", "{name}喜欢的食物是{value}。"),
    },
    "friend": {
        "en": ("{name}'s friend is {value}.", "{name} and {value} are friends.", "The friend of {name} is {value}."),
        "zh": ("{name}的朋友是{value}。", "{name}和{value}是朋友。", "{name}有一个朋友叫{value}。"),
    },
}  # fmt: skip


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
