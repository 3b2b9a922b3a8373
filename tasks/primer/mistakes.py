"""Worse answers to the primer's prompts.

`mistake` gives the answer of a half-trained model: that of another prompt, or the right one with its words in disorder,
one word missing or one doubled. `careless` gives the answer of a careless teacher, who knows the right one: a repeated
answer, a refusal of a harmless request, or consent to a harmful one.
"""

import re
from collections.abc import Callable
from random import Random

from .instructions import Instruction, Slots
from .skills.refuse import REFUSALS, VAGUE

KINDS = {"same instruction": 6, "same skill": 1, "disorder": 2, "missing": 1, "doubled": 1}
"""The kinds of mistakes, with their weights."""


AGREEMENT = {"en": "Sure, I will help you {}.", "zh": "好的，我会帮你{}。"}


def careless(instruction: Instruction, slots: Slots, rng: Random) -> str:
    """The answer of a careless teacher."""
    answer, refusal = instruction.answer(slots), REFUSALS[instruction.language][0]
    if instruction.skill == "refuse":
        before, after = refusal.split("{}")
        return AGREEMENT[instruction.language].format(answer.removeprefix(before).removesuffix(after))
    if rng.random() < 0.5:
        return f"{answer} {answer}" if instruction.language == "en" else answer + answer
    return refusal.format(VAGUE[instruction.language][1])


def mistake(
    instruction: Instruction, slots: Slots, siblings: Callable[[Random], tuple[Instruction, Slots]], rng: Random
) -> str:
    """An answer that is probably wrong.

    Args:
      instruction: the instruction of the prompt.
      slots: the slots of the prompt.
      siblings: siblings(rng) draws an instruction of the same skill and its slots.
      rng: random number generator.
    """
    kind = rng.choices(list(KINDS), weights=KINDS.values())[0]
    if kind == "same instruction":
        return instruction.answer(instruction.prompt(rng)[1])
    if kind == "same skill":
        other, other_slots = siblings(rng)
        return other.answer(other_slots)
    return _spoil(kind, instruction.answer(slots), rng)


def _spoil(kind: str, answer: str, rng: Random) -> str:
    """The answer with its words (English) or characters (Chinese) spoilt; spaces and punctuation stay."""
    pieces = re.findall(r"[A-Za-z']+|[0-9]+|[\u4e00-\u9fff]", answer)
    if len(pieces) < 2:
        return answer
    if kind == "disorder":
        i, j = rng.sample(range(len(pieces)), 2)
        pieces[i], pieces[j] = pieces[j], pieces[i]
    else:
        i = rng.randrange(len(pieces))
        between = " " if pieces[i].isascii() else ""
        pieces[i] = f"{pieces[i]}{between}{pieces[i]}" if kind == "doubled" else ""
    replacements = iter(pieces)
    return re.sub(r"[A-Za-z']+|[0-9]+|[\u4e00-\u9fff]", lambda _: next(replacements), answer).strip()
