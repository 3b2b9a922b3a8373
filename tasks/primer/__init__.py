"""The primer: generated default data about a small closed world in English and Chinese.

Documents to pretrain on state the world's facts, sums, orders and translations. Instructions ask for them in seven
skills, and every answer has a score. All of it is a function of an index, the same on every machine. The words are in
world.toml and phrasings.toml.

    record = example(7)                                    # a chat record of the training part
    prompt, answer = (m["content"] for m in record["messages"])
    score(prompt, answer)                                  # 1.0

Prompts and documents are held out by a hash of their text, so the training and held-out parts share none.
"""

from collections.abc import Iterator, Mapping
from functools import cache, lru_cache, partial
from itertools import chain, count, islice
from pathlib import Path
from random import Random

from ...errors import UserError, check_choice
from ..groups import group_means
from ..records import SPLITS, chat, distinct, hash_fraction, prompt_text, seeded_random
from . import difficulty
from .instructions import Instruction, Slots
from .mistakes import careless, mistake
from .paragraphs import compose
from .scoring import grade
from .skills import INSTRUCTIONS, SKILLS
from .world import LANGUAGES

SEED = 0
GROUPS = {"skill": SKILLS, "language": LANGUAGES}
SCORES = ("reward",)
KINDS = {
    "documents": "821d15559f7e15d1e86bede6e455eb1c",
    "chat": "44a1d0e5d20eee367ef763e2a0bf7d78",
    "careless": "5629c24f59546d59dbe2db44bc00930a",
    "pairs": "e2055c99622cc207b2b5b3df91a0b492",
}
SIZES = {  # number of records that `records` yields
    ("documents", "train"): 24_000,
    ("documents", "heldout"): 1_000,
    ("chat", "train"): 28_000,
    ("chat", "heldout"): 1_400,
    ("careless", "train"): 28_000,
    ("careless", "heldout"): 1_400,
    ("pairs", "train"): 20_000,
    ("pairs", "heldout"): 700,
}


def is_heldout(text: str) -> bool:
    """Whether a prompt or document is held out, by a hash of its text; about one in ten is."""
    return hash_fraction(text) < difficulty.HELDOUT


def document(index: int) -> dict:
    """The text record of an index >= 0; its text decides its split."""
    rng = seeded_random(SEED, "document", index)
    topic = rng.choices(list(difficulty.TOPICS), weights=difficulty.TOPICS.values())[0]
    language = LANGUAGES[index % 2]
    return {"kind": "text", "text": compose(topic, language, rng), "meta": {"topic": topic, "language": language}}


def documents(split: str = "train") -> Iterator[dict]:
    """The text records of a split in the order of their indices, without end."""
    check_choice("primer: split", split, SPLITS)
    every = (document(index) for index in count())
    return (record for record in every if is_heldout(record["text"]) == (split == "heldout"))


def example(index: int, split: str = "train", careless_share: float = 0.0) -> dict:
    """The chat record of an index >= 0: an instruction and its answer. Skills and languages alternate.

    There is no last index. A skill with few prompts gives the same record at several indices.

    Args:
      index: the index.
      split: "train" or "heldout".
      careless_share: share of the answers that are those of a careless teacher, not right ones.
    """
    check_choice("primer: split", split, SPLITS)
    skill, language = SKILLS[index % len(SKILLS)], LANGUAGES[index // len(SKILLS) % len(LANGUAGES)]
    rng = seeded_random(SEED, "chat", split, index)
    while True:
        instruction = _draw_instruction(skill, language, rng)
        prompt, slots = instruction.prompt(rng)
        if is_heldout(prompt) == (split == "heldout"):
            record = _chat_record(instruction, prompt, slots)
            if rng.random() < careless_share:
                record["messages"][-1]["content"] = careless(instruction, slots, rng)
            return record


def pair(index: int, split: str = "train") -> dict:
    """The preference record of an index >= 0: an instruction, its right answer, and an answer with a lower score."""
    check_choice("primer: split", split, SPLITS)
    skill, language = SKILLS[index % len(SKILLS)], LANGUAGES[index // len(SKILLS) % len(LANGUAGES)]
    rng = seeded_random(SEED, "pairs", split, index)

    def sibling(rng: Random) -> tuple[Instruction, Slots]:
        other = _draw_instruction(skill, rng.choice(LANGUAGES), rng)
        return other, other.prompt(rng)[1]

    while True:
        instruction = _draw_instruction(skill, language, rng)
        prompt, slots = instruction.prompt(rng)
        right, wrong = instruction.answer(slots), mistake(instruction, slots, sibling, rng)
        margin = 1.0 - grade(instruction, slots, prompt, wrong)
        if margin > 0 and is_heldout(prompt) == (split == "heldout"):
            return _chat_record(instruction, prompt, slots) | {
                "kind": "preference",
                "messages": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": right}],
                "rejected": [{"role": "assistant", "content": wrong}],
                "margin": margin,
            }


def records(kind: str, split: str = "train") -> Iterator[dict]:
    """The first SIZES[kind, split] records of a kind and a split.

    Held-out chats all differ. The answers of "careless" are those of a teacher who is careless in a share
    difficulty.CARELESS of them; held out, all answers are right.

    Args:
      kind: one of KINDS.
      split: "train" or "heldout".
    """
    check_choice("primer: kind", kind, KINDS)
    check_choice("primer: split", split, SPLITS)
    size = SIZES[kind, split]
    if kind == "documents":
        return islice(documents(split), size)
    if kind == "pairs":
        return (pair(index, split) for index in range(size))
    if split == "train":
        share = difficulty.CARELESS if kind == "careless" else 0.0
        return (example(index, careless_share=share) for index in range(size))
    groups = len(SKILLS) * len(LANGUAGES)
    turns = (distinct(example(i, "heldout") for i in range(turn, 1_000_000, groups)) for turn in range(groups))
    return chain.from_iterable(islice(turn, size // groups) for turn in turns)


def score(prompt: str, response: str) -> float:
    """The score in [0, 1] of a response to a prompt of the primer. Raises UserError for any other prompt."""
    instruction, slots = _parse(prompt.strip())
    return grade(instruction, slots, prompt.strip(), response)


def reward(record: Mapping, answer: str) -> float:
    """The score of an answer to the prompt of `record`."""
    return score(prompt_text(record), answer)


metrics = partial(group_means, GROUPS)


def files() -> list[Path]:
    """No files: all records are generated."""
    return []


@lru_cache(maxsize=65_536)
def _parse(prompt: str) -> tuple[Instruction, Slots]:
    """The instruction of a prompt, and the values of its slots. Raises UserError for any other text."""
    for instruction in INSTRUCTIONS:
        if (slots := instruction.parse(prompt)) is not None:
            return instruction, slots
    raise UserError(f"primer: this is not one of its prompts, so it has no score: {prompt!r}")


@cache
def _instructions(skill: str, language: str) -> dict[str, list[Instruction]]:
    """The instructions of a skill in a language, by name."""
    instructions: dict[str, list[Instruction]] = {}
    for instruction in INSTRUCTIONS:
        if instruction.skill == skill and instruction.language == language:
            instructions.setdefault(instruction.name, []).append(instruction)
    return instructions


def _draw_instruction(skill: str, language: str, rng: Random) -> Instruction:
    """A random instruction of a skill in a language, by the shares in difficulty.INSTRUCTIONS."""
    instructions = _instructions(skill, language)
    name = rng.choices(list(instructions), weights=[difficulty.INSTRUCTIONS[name] for name in instructions])[0]
    return rng.choice(instructions[name])


def _chat_record(instruction: Instruction, prompt: str, slots: Slots) -> dict:
    """The chat record of an instruction with its right answer."""
    return chat(
        prompt, instruction.answer(slots), skill=instruction.skill, language=instruction.language, task=instruction.name
    )
