"""The primer: the embedded default data, a deterministic generator of a small closed world in English and Chinese.

Documents to pretrain on state the world's facts, sums, orders and translations; instructions ask for them in
seven skills, and each has one gold score. All of it is a pure function of an index, written down nowhere and the
same on every machine.

    record = example(7)                                    # a chat record of the training part
    prompt, answer = (m["content"] for m in record["messages"])
    score(prompt, answer)                                  # 1.0

Prompts and documents are held out by a hash of their text, so training and held-out parts share none.
"""

from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import count, islice
from pathlib import Path
from random import Random

from ...errors import UserError
from . import difficulty
from .mistakes import careless, mistake
from .paragraphs import compose
from .scoring import grade
from .skills import SKILLS, TASKS
from .task import Slots, Task
from .world import LANGUAGES

__all__ = [
    "KINDS",
    "LANGUAGES",
    "SIZES",
    "SKILLS",
    "SPLITS",
    "document",
    "documents",
    "example",
    "heldout_prompts",
    "is_heldout",
    "pair",
    "records",
    "reward",
    "score",
]

SEED = 0
SPLITS = ("train", "heldout")
KINDS = ("documents", "chat", "careless", "pairs")
SIZES = {  # how many records `records` yields
    ("documents", "train"): 24_000,
    ("documents", "heldout"): 1_000,
    ("chat", "train"): 28_000,
    ("chat", "heldout"): 1_400,
    ("careless", "train"): 28_000,
    ("careless", "heldout"): 1_400,
    ("pairs", "train"): 20_000,
    ("pairs", "heldout"): 700,
}
_TRIES = 1_000  # after so many held-out examples with no new one among them, a skill and language has no more


def is_heldout(text: str) -> bool:
    """Whether a prompt or document belongs to the held-out part: by its text alone, one in ten."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) < difficulty.HELDOUT * 2**64


def document(index: int) -> dict:
    """The text record of an index >= 0, of whichever split its text belongs to."""
    rng = _random("document", index)
    topic = rng.choices(list(difficulty.TOPICS), weights=difficulty.TOPICS.values())[0]
    language = LANGUAGES[index % 2]
    return {"kind": "text", "text": compose(topic, language, rng), "meta": {"topic": topic, "language": language}}


def documents(split: str = "train") -> Iterator[dict]:
    """The endless text records of a split, in the order of their index."""
    _known("split", split, SPLITS)
    every = (document(index) for index in count())
    return (record for record in every if is_heldout(record["text"]) == (split == "heldout"))


def example(index: int, split: str = "train", careless_share: float = 0.0) -> dict:
    """The chat record of an index >= 0: an instruction and its gold answer. Skills and languages take turns.

    Indices are endless; where a skill has few prompts, the same record comes back at other indices. Of the answers a
    share `careless_share` is not the gold one but a careless teacher's.
    """
    _known("split", split, SPLITS)
    skill, language = SKILLS[index % len(SKILLS)], LANGUAGES[index // len(SKILLS) % len(LANGUAGES)]
    rng = _random(f"chat/{split}", index)
    while True:
        task = _draw_task(skill, language, rng)
        prompt, slots = task.prompt(rng)
        if is_heldout(prompt) == (split == "heldout"):
            record = _chat_record(task, prompt, slots)
            if rng.random() < careless_share:
                record["messages"][-1]["content"] = careless(task, slots, rng)
            return record


def pair(index: int, split: str = "train") -> dict:
    """The preference record of an index >= 0: an instruction, its gold answer, and one of a lower gold score."""
    _known("split", split, SPLITS)
    skill, language = SKILLS[index % len(SKILLS)], LANGUAGES[index // len(SKILLS) % len(LANGUAGES)]
    rng = _random(f"pairs/{split}", index)

    def sibling(rng: Random) -> tuple[Task, Slots]:
        other = _draw_task(skill, rng.choice(LANGUAGES), rng)
        return other, other.prompt(rng)[1]

    while True:
        task = _draw_task(skill, language, rng)
        prompt, slots = task.prompt(rng)
        right, wrong = task.answer(slots), mistake(task, slots, sibling, rng)
        margin = 1.0 - grade(task, slots, prompt, wrong)
        if margin > 0 and is_heldout(prompt) == (split == "heldout"):
            return _chat_record(task, prompt, slots) | {
                "kind": "preference",
                "messages": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": right}],
                "rejected": [{"role": "assistant", "content": wrong}],
                "margin": margin,
            }


def records(kind: str, split: str = "train") -> Iterator[dict]:
    """The first SIZES[kind, split] records of one of KINDS; held-out chats are all distinct.

    "careless" are the chats of a teacher of whose answers a share difficulty.CARELESS is careless; held out, none is.
    """
    _known("kind", kind, KINDS)
    _known("split", split, SPLITS)
    size = SIZES[kind, split]
    if kind == "documents":
        return islice(documents(split), size)
    if kind == "pairs":
        return (pair(index, split) for index in range(size))
    if split == "train":
        share = difficulty.CARELESS if kind == "careless" else 0.0
        return (example(index, careless_share=share) for index in range(size))
    each = size // (len(SKILLS) * len(LANGUAGES))
    return (record for language in LANGUAGES for record in heldout_prompts(each, language))


def heldout_prompts(per_skill: int, language: str) -> list[dict]:
    """Distinct held-out chat records in a language, `per_skill` of each skill: the yardstick of an evaluation.

    A smaller number gives a part of what a larger one gives. Raises UserError where a skill has too few.
    """
    _known("language", language, LANGUAGES)
    return [record for skill in SKILLS for record in _distinct(skill, language, per_skill)]


def score(prompt: str, response: str) -> float:
    """The gold score in [0, 1] of a response to a prompt of the primer. Raises UserError for any other prompt."""
    task, slots = _parse(prompt.strip())
    return grade(task, slots, prompt.strip(), response)


def reward(record: Mapping, answer: str) -> float:
    """The gold score of an answer to a prompt's record {"messages", ...}, as rewards of answers are asked."""
    return score(record["messages"][-1]["content"], answer)


def files() -> list[Path]:
    """What the records depend on."""
    return sorted(Path(__file__).parent.rglob("*.py"))


def _distinct(skill: str, language: str, number: int) -> list[dict]:
    first = SKILLS.index(skill) + len(SKILLS) * LANGUAGES.index(language)
    found: dict[str, dict] = {}
    indices = count(first, len(SKILLS) * len(LANGUAGES))
    tries = 0
    while len(found) < number:
        record = example(next(indices), "heldout")
        tries = 0 if record["messages"][0]["content"] not in found else tries + 1
        if tries == _TRIES:
            raise UserError(
                f"primer: {skill} in {language} has no {number} held-out prompts; ask for at most {len(found)}"
            )
        found.setdefault(record["messages"][0]["content"], record)
    return list(found.values())


@lru_cache(maxsize=65_536)
def _parse(prompt: str) -> tuple[Task, Slots]:
    for task in TASKS:
        if (slots := task.parse(prompt)) is not None:
            return task, slots
    raise UserError(f"primer: not one of its prompts, so it has no gold score: {prompt!r}")


@cache
def _tasks(skill: str, language: str) -> dict[str, list[Task]]:
    """The tasks of a skill in a language, by their name."""
    tasks: dict[str, list[Task]] = {}
    for task in TASKS:
        if task.skill == skill and task.language == language:
            tasks.setdefault(task.name, []).append(task)
    return tasks


def _draw_task(skill: str, language: str, rng: Random) -> Task:
    tasks = _tasks(skill, language)
    name = rng.choices(list(tasks), weights=[difficulty.TASKS[name] for name in tasks])[0]
    return rng.choice(tasks[name])


def _chat_record(task: Task, prompt: str, slots: Slots) -> dict:
    return {
        "kind": "chat",
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": task.answer(slots)},
        ],
        "meta": {"skill": task.skill, "language": task.language, "task": task.name},
    }


def _random(kind: str, index: int) -> Random:
    """Random numbers of one record, the same on every machine."""
    digest = blake2b(f"{SEED}/{kind}/{index}".encode(), digest_size=16).digest()
    return Random(int.from_bytes(digest))


def _known(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"primer: unknown {what} {value!r}; choose one of {', '.join(choices)}")
