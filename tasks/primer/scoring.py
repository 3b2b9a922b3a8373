"""The score of an answer, given its instruction and the slots of its prompt.

The right answer has 1.0. Other answers have what `Instruction.credit` gives for answers that are as good or partly
right. The right value among a few words without other values has WORDY. Every other answer has 0: a wrong or empty one,
one in the wrong language, a list of all candidates, an endless repetition, a refusal of a harmless request. Only an
answer that commits to one value pays.
"""

import re
import unicodedata
from collections import Counter

from .instructions import Instruction, Slots

WORDY = 0.8  # score of the right value among needless words
MOST_WORDS = 12  # the most English words or Chinese characters beside the value
FILLERS = {
    "en": "the a an answer is it means that there are in total of here so now has have he she they =",
    "zh": "答案是的意思结果一共有在里现还剩这个等于他她它 =",
}


def grade(instruction: Instruction, slots: Slots, prompt: str, response: str) -> float:
    """The score in [0, 1] of a response to a prompt.

    Args:
      instruction: the instruction of the prompt.
      slots: the slots of the prompt.
      prompt: the text of the prompt.
      response: the text of the response.
    """
    shown, right = response.strip(), instruction.answer(slots)
    if not instruction.literal:
        shown, right = normal(shown), normal(right)
    if shown == right:
        return 1.0
    worth = instruction.credit(slots, shown)
    if not worth and instruction.value and _is_wordy(instruction, slots, normal(prompt), shown):
        return WORDY
    return worth


def normal(text: str) -> str:
    """The text in small letters, without quotes and final full stop, and with one kind of comma, space and width."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    text = re.sub(r"\s*[,、]\s*", ", ", re.sub(r"[\"“”「」]", "", text))
    return re.sub(r"\s+", " ", text).strip().rstrip(" .。!")


def _is_wordy(instruction: Instruction, slots: Slots, prompt: str, response: str) -> bool:
    """Whether a response is the right value among few words, each from the prompt, the right answer or FILLERS.

    It must name the right value last and no other value. An exception are the values of the prompt, which may come
    first, all of them and in order: "5 + 3 = 8" is one answer, "8, 5 or 3" is not.

    Args:
      instruction: the instruction of the prompt.
      slots: the slots of the prompt.
      prompt: the text of the prompt, normalised.
      response: the text of the response, normalised.
    """
    value = normal(instruction.value(slots))
    found = list(re.finditer(rf"(?<![a-z0-9.\-]){re.escape(value)}(?![a-z0-9]|\.[0-9])", response))
    if not found:
        return False
    before, after = response[: found[-1].start()], response[found[-1].end() :]
    mentions = re.compile(rf"(?<![a-z])(?:{instruction.rivals}|{re.escape(value)})(?![a-z])")
    if mentions.search(after) or not _is_silent_or_echo(mentions, before, prompt):
        return False
    words = Counter(_words(before) + _words(after))
    rest_of_answer = normal(instruction.answer(slots)).replace(value, " ")
    allowed = set(_words(f"{prompt} {FILLERS[instruction.language]} {rest_of_answer}"))
    return words.total() <= MOST_WORDS and set(words) <= allowed and max(words.values(), default=0) <= 2


def _is_silent_or_echo(mentions: re.Pattern, before: str, prompt: str) -> bool:
    """Whether the words before the value name no value, or exactly the prompt's values and then a word or sign.

    Args:
      mentions: a regular expression of all values.
      before: the text before the right value.
      prompt: the text of the prompt, normalised.
    """
    named = list(mentions.finditer(before))
    if not named:
        return True
    echo = [match[0] for match in named] == mentions.findall(prompt)
    return echo and re.search(r"[^\s,.]", before[named[-1].end() :]) is not None


def _words(text: str) -> list[str]:
    """English words, numbers, and every other character except spaces and common punctuation."""
    return re.findall(r"[a-z']+|[0-9]+|[^a-z0-9\s,.:;?!'。]", text)
