"""The score of an answer, given its instruction and the slots of its prompt.

1.0 for the right answer; what the instruction's `credit` gives for answers that are as good or partly right; WORDY for
the right value among a few words that say nothing else. Every other answer is worth 0: wrong, empty, in the wrong
language, a list of all candidates, an endless repetition, a refusal of what may be answered. Only an answer that
commits to one value pays.
"""

import re
import unicodedata
from collections import Counter

from .instructions import Instruction, Slots

WORDY = 0.8  # the right value among needless words
MOST_WORDS = 12  # how many English words or Chinese characters may stand beside the value
FILLERS = {
    "en": "the a an answer is it means that there are in total of here so now has have he she they =",
    "zh": "答案是的意思结果一共有在里现还剩这个等于他她它 =",
}


def grade(instruction: Instruction, slots: Slots, prompt: str, response: str) -> float:
    """What a response to a prompt of the instruction is worth, in [0, 1]."""
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
    """The text without what no answer depends on: capitals, width, quotes, kind of comma, the full stop at the end."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    text = re.sub(r"\s*[,、]\s*", ", ", re.sub(r"[\"“”「」]", "", text))
    return re.sub(r"\s+", " ", text).strip().rstrip(" .。!")


def _is_wordy(instruction: Instruction, slots: Slots, prompt: str, response: str) -> bool:
    """Whether the response is the right value among few words, each of the prompt, the right answer or FILLERS.

    Of the values that the answer could have had, it may name none but the right one, once and last; except that the
    prompt's own may be repeated first, all of them in their order: "5 + 3 = 8" is one answer, "8, 5 or 3" is not.
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
    """Whether the words before the value name no values, or just the prompt's with a word or sign after them."""
    named = list(mentions.finditer(before))
    if not named:
        return True
    echo = [match[0] for match in named] == mentions.findall(prompt)
    return echo and re.search(r"[^\s,.]", before[named[-1].end() :]) is not None


def _words(text: str) -> list[str]:
    """English words, numbers, and every other character but spaces and common punctuation."""
    return re.findall(r"[a-z']+|[0-9]+|[^a-z0-9\s,.:;?!'。]", text)
