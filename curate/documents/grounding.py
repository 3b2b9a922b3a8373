"""Whether an answer rests on a passage: its numbers and names stand there, and most of its words do.

This finds answers that bring in something new. It does not prove that an answer is right.
"""

import functools
import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

from ...settings.leaves import Share
from ..rows import LANGUAGE, Rejected, Row
from ..words import HAN, split

RESTS_ON = "rests_on"
"""Name of the column with the passage that a question and its answer were made from."""

UNANSWERABLE = re.compile(
    r"\b(?:passage|text|document|article|information)\b.{0,40}\b(?:does not|doesn't|do not|is not|isn't|not)\b"
    r"|\bnot (?:mentioned|stated|specified|provided|given|available)\b|\bcannot be (?:answered|determined)\b"
    r"|(?:没有|未|并未|没)(?:提及|提到|说明|给出|提供|明确)|无法(?:回答|确定|得知)|无从得知",
    re.IGNORECASE,
)
"""Answers that say that there is none."""

REFERS = re.compile(
    r"\b(?:the|this|that) (?:above |given |following )?(?:passage|text|excerpt|paragraph|article)\b|\bmentioned above\b"
    r"|本文|上文|文中|这段(?:文字|话)|该段|上述(?:文字|内容|段落)|根据(?:文章|段落|原文)",
    re.IGNORECASE,
)
"""Questions that only somebody understands who sees the passage."""

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_LIST_NUMBER = re.compile(r"^\s*\d{1,2}[.)、]\s", re.MULTILINE)
_NAME = re.compile(r"(?<![.!?:;。！？：；\n\"“‘(（-] )(?<!^)(?<![\n\"“‘(（。！？：；])\b[A-Z][\w’'&]*[\w]")
_QUOTED = re.compile(r"《([^《》]+)》|“([^“”]+)”|「([^「」]+)」")
_LATIN = re.compile(r"[A-Za-z][A-Za-z0-9]+")
_ENGLISH = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
_ENGLISH += "seventeen eighteen nineteen twenty"
_TENS = {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100}
NUMBER_WORDS = {word: number for number, word in enumerate(_ENGLISH.split())} | _TENS
_CHINESE = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_CHINESE_NUMBER = re.compile(
    r"[零〇一二两三四五六七八九]?[百]?[零]?[一二三四五六七八九]?十[一二三四五六七八九]?|[零〇一二两三四五六七八九]+百?"
)


@dataclass(frozen=True)
class Grounded:
    """Rejects questions whose answers do not rest on the passage in the column `rests_on`."""

    reasons: ClassVar = ("not_in_passage", "unanswerable", "refers_to_passage")

    support: Share = 0.5
    """Smallest share of the answer's content words that have to stand in the passage, its headings or the question."""

    def __call__(self, row: Row) -> Row | Rejected:
        """The row with the column `support`, or why it is rejected. A row without a passage is not judged."""
        passage = row.columns.get(RESTS_ON)
        if passage is None or row.record["kind"] != "chat":
            return row
        question, answer = (row.record["messages"][place]["content"] for place in (-2, -1))
        if UNANSWERABLE.search(answer):
            return Rejected("unanswerable", answer[:200])
        sees_it = row.record["messages"][-2].get("input") == passage
        if not sees_it and (found := REFERS.search(question)):
            return Rejected("refers_to_passage", found[0])
        known = "\n".join([passage, *row.columns.get("heading", ()), row.columns.get("file", "")])
        if missing := [*missing_numbers(answer, known), *missing_names(answer, known)]:
            return Rejected("not_in_passage", ", ".join(missing[:5]))
        share = support_of(answer, f"{known}\n{question}", row.columns.get(LANGUAGE, ""))
        if share < self.support:
            return Rejected("not_in_passage", f"{share:.2f} of its words")
        return row.with_(support=round(share, 4))


def missing_numbers(answer: str, passage: str) -> list[str]:
    """The numbers of an answer that its passage has neither in digits nor in words (up to a hundred)."""
    known = numbers_of(passage) | _number_words(passage)
    return [number for number in sorted(numbers_of(_LIST_NUMBER.sub("", answer))) if number not in known]


def numbers_of(text: str) -> set[str]:
    """The numbers in a text in digits, without separators of thousands and zeros at the end of decimals."""
    found = set()
    for number in _NUMBER.findall(unicodedata.normalize("NFKC", text)):
        if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", number):
            number = number.replace(",", "")
        found.add(re.sub(r"\.$", "", re.sub(r"(\.\d*?)0+$", r"\1", number)))
    return found


def _number_words(text: str) -> set[str]:
    found = set()
    for first, second in re.findall(
        r"\b([a-z]+)(?:[- ](one|two|three|four|five|six|seven|eight|nine)\b)?", text.lower()
    ):
        if first in _TENS and first != "hundred" and second:
            found.add(str(NUMBER_WORDS[first] + NUMBER_WORDS[second]))
        else:
            found |= {str(NUMBER_WORDS[word]) for word in (first, second) if word in NUMBER_WORDS}
    return found | {str(value) for word in _CHINESE_NUMBER.findall(text) if (value := _chinese_value(word)) is not None}


def _chinese_value(word: str) -> int | None:
    """The value of a Chinese number below 1,000; of digits one by one, such as 二〇二四, the number that they spell."""
    if "十" not in word and "百" not in word:
        return int("".join(str(_CHINESE[digit]) for digit in word)) if word else None
    hundreds, _, rest = word.rpartition("百")
    tens, ten, ones = rest.partition("十")
    value = 100 * _CHINESE.get(hundreds, 1) if "百" in word else 0
    value += 10 * _CHINESE.get(tens.strip("零") or "一", 1) if ten else 0
    return value + _CHINESE.get((ones if ten else rest).strip("零"), 0)


def missing_names(answer: str, passage: str) -> list[str]:
    """The names of an answer that its passage does not have.

    Names are capitalised words within a sentence; in Chinese, Latin words, and what stands in quotation marks.
    """
    known = _plain(passage)
    names = _LATIN.findall(answer) if re.search(f"[{HAN}]", answer) else _NAME.findall(answer)
    quoted = [next(filter(None, groups)) for groups in _QUOTED.findall(answer)]
    return [name for name in dict.fromkeys([*names, *quoted]) if _plain(re.sub(r"['’]s$", "", name)) not in known]


def support_of(answer: str, known: str, language: str = "") -> float:
    """The share of an answer's content words that a text has; 1 if the answer has none.

    Content words have two Chinese characters or four letters. Of a Latin word the first five letters have to stand in
    the text, so that inflected forms count.
    """
    text = _plain(known)
    words = {word.casefold() for word in split(answer, language)}
    content = {w for w in words if len(w) >= (2 if _han().search(w) else 4)}
    found = sum(word[: None if _han().search(word) else 5] in text for word in content)
    return found / len(content) if content else 1.0


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).casefold()


@functools.cache
def _han() -> re.Pattern:
    return re.compile(f"[{HAN}]")
