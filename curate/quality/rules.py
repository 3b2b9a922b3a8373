"""What the steps of published quality rules share: which text they judge, in which language, and how they report.

A step measures a text and writes each number into a column. A rule compares one column with one setting. The setting
None switches the rule off. Chinese texts have settings of their own, in the section `zh` of the step.
"""

import abc
import functools
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from ...settings.leaves import OneOf
from ..rows import LANGUAGE, Rejected, Row, side_of, texts_of
from ..words import is_chinese, split

Number = float | int


class Rule(NamedTuple):
    """A rule: a column, compared with a setting."""

    reason: str
    """Name of the rule, as datatrove reports it."""

    column: str
    """The column that it looks at."""

    setting: str
    """The field of the step that holds its threshold."""

    is_least: bool = False
    """Whether the threshold is the least value that is kept; else it is the largest one."""

    def is_broken(self, measured: Mapping[str, Any], limits: Any) -> bool:
        """Whether a text with these columns breaks the rule. False where the rule is off, or has no such column."""
        value, threshold = measured.get(self.column), getattr(limits, self.setting)
        if value is None or threshold is None:
            return False
        return value < threshold if self.is_least else value > threshold


@dataclass(frozen=True)
class Quality(abc.ABC):
    """The settings and the judgement that the steps of quality rules share."""

    rules: ClassVar[tuple[Rule, ...]] = ()
    reasons: ClassVar[tuple[str, ...]] = ()
    prefix: ClassVar[str] = ""

    part: Annotated[str, OneOf("all", "answers")] = "all"
    """Which text of a conversation is judged: all its turns, or the assistant's and the chosen answer. A row without
    answers passes unjudged then. Plain text is judged as it is."""

    language: str = "en"
    """The language of rows without a column `language`."""

    report_only: bool = False
    """Whether every row is kept. The column <step>_breaks then lists all rules that it breaks."""

    def __call__(self, row: Row) -> Row | Rejected:
        """The row with its measurements as columns, or the first rule that it breaks."""
        if (text := text_part(row.record, self.part)) is None:
            return row
        language = row.columns.get(LANGUAGE) or self.language
        return self.judge(row, self.measure(text, language), language)

    @abc.abstractmethod
    def measure(self, text: str, language: str) -> dict[str, Number]:
        """What the rules compare with their thresholds: the number of each column for a text in a language."""

    def judge(self, row: Row, measured: Mapping[str, Number], language: str) -> Row | Rejected:
        """The row with columns, or why it is rejected."""
        limits = self.limits(language)
        broken = [rule for rule in self.rules if rule.is_broken(measured, limits)]
        columns = {name: round(value, 6) for name, value in measured.items()}
        if self.report_only:
            return row.with_(**columns, **{f"{self.prefix}_breaks": [rule.reason for rule in broken]})
        if broken:
            rule = broken[0]
            sign, threshold = "<" if rule.is_least else ">", getattr(limits, rule.setting)
            return Rejected(rule.reason, f"{rule.column} {measured[rule.column]:g} {sign} {threshold:g}", columns)
        return row.with_(**columns)

    def limits(self, language: str) -> Any:
        """The settings for a language."""
        return self.zh if is_chinese(language) else self  # type: ignore[attr-defined]


def text_part(record: Mapping[str, Any], part: str) -> str | None:
    """The text of a parsed record that is judged. None: the record has no such part."""
    if part == "all" or record.get("kind") == "text":
        return "\n".join(texts_of(record))
    messages = [*record["messages"], *side_of(record, "chosen")]
    answers = [message["content"] for message in messages if message["role"] == "assistant" and message.get("content")]
    return "\n".join(answers) if answers else None


@functools.lru_cache(maxsize=1)
def tokens(text: str, language: str) -> tuple[str, ...]:
    """The words and punctuation marks of a text. The last text is remembered: several steps look at it in turn."""
    return tuple(split(text, language, punctuation=True))


def duplicates(parts: Iterable[str]) -> tuple[int, int]:
    """How many parts have occurred before them, and how many characters these have."""
    seen: set[str] = set()
    number = characters = 0
    for part in parts:
        if part in seen:
            number += 1
            characters += len(part)
        seen.add(part)
    return number, characters


@functools.cache
def tables() -> dict[str, Any]:
    """The word lists and marks of `quality.toml`."""
    return tomllib.loads(Path(__file__).with_name("quality.toml").read_text(encoding="utf-8"))


def sentence_ends(language: str) -> Callable[[str], bool]:
    """Whether a line ends with a mark that ends sentences.

    In Chinese "…" is one too, and a quote, a bracket, or a remark of up to 20 characters in brackets may follow.
    """
    marks = tables()["sentence_ends"]["all"]
    if not is_chinese(language):
        ends = tuple(marks)
        return lambda line: line.endswith(ends)
    return lambda line: _chinese_end().search(line, max(0, len(line) - 60)) is not None


@functools.cache
def _chinese_end() -> re.Pattern:
    marks = tables()["sentence_ends"]
    every, closing = re.escape(marks["all"] + marks["zh"]), re.escape(marks["zh_closing"])
    return re.compile(rf"[{every}][{closing}]*(?:[（(][^（）()]{{1,20}}[）)])?\s*$")
