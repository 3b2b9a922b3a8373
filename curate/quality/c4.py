"""The step `c4`: the rules that made C4 (arXiv:1910.10683, section 2.2), with those of its code that datatrove has too.

Some rules remove lines, others whole texts. Numbers are those of datatrove's C4QualityFilter but for sentences: they
are counted by their marks here, and by spaCy there.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from ...errors import UserError
from ...settings import leaves
from ...settings.leaves import Unset, Whole
from .. import words
from ..rows import LANGUAGE, Rejected, Row
from .rules import Number, Quality, Rule, sentence_ends, tables, text_part

OFF = Unset("no such rule")

REMOVED = ("too_long_word", "no_terminal_punct", "too_few_words", "javascript", "policy")
"""Why lines are removed, in the order in which it is asked."""

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")


@dataclass(frozen=True)
class C4Limits:
    """Thresholds of the rules; None switches a rule off."""

    terminal_punct: bool = True
    """Whether lines without a mark at their end that ends a sentence are removed. "..." is no such mark in C4."""

    min_words_per_line: Annotated[Whole | None, OFF] = 3
    """Lines of fewer words are removed."""

    max_word_length: Annotated[Whole | None, OFF] = 1000
    """Lines with a longer word, in characters, are removed."""

    javascript: bool = True
    """Whether lines that say "javascript" are removed."""

    policy: bool = True
    """Whether lines that speak of terms of use, privacy policies or cookies are removed."""

    citations: bool = True
    """Whether the citation marks of Wikipedia are removed from lines, such as [1] and [edit]."""

    max_lorem_ipsum: Annotated[Whole | None, OFF] = 0
    """The largest number of lines with "lorem ipsum" of a text that is kept."""

    max_curly_bracket: Annotated[Whole | None, OFF] = 0
    """The largest number of lines with "{" of a text that is kept."""

    min_num_sentences: Annotated[Whole | None, OFF] = 5
    """The least number of sentences in the lines that are left."""

    bad_words: Annotated[leaves.Path | None, Unset("no list")] = None
    """A file with a word or phrase in each line; a text with one of them is rejected."""

    max_bad_words: Annotated[Whole | None, OFF] = 0
    """The largest number of places with bad words of a text that is kept."""


CHINESE = C4Limits(max_word_length=None, min_num_sentences=2)
"""Thresholds for Chinese, whose sentences are long: a piece of news may have two. Words are not what spaces part."""


@dataclass(frozen=True)
class C4(Quality, C4Limits):
    """Removes lines that are no sentences, and rejects texts of which too little is left.

    Lines are removed from plain text alone. Of conversations, whole texts are judged by the lines that would be left.
    Columns: c4_lines; the lines that are removed, each counted once: c4_too_long_word, c4_no_terminal_punct,
    c4_too_few_words, c4_javascript, c4_policy; of the lines left: c4_lorem_ipsum, c4_curly_bracket, c4_sentences; of
    the whole text: c4_bad_words.
    """

    rules: ClassVar = (
        Rule("lorem_ipsum", "c4_lorem_ipsum", "max_lorem_ipsum"),
        Rule("curly_bracket", "c4_curly_bracket", "max_curly_bracket"),
        Rule("bad_words", "c4_bad_words", "max_bad_words"),
        Rule("too_few_sentences", "c4_sentences", "min_num_sentences", is_least=True),
    )
    reasons: ClassVar = tuple(rule.reason for rule in rules)
    prefix: ClassVar = "c4"

    zh: C4Limits = CHINESE
    """Thresholds for Chinese."""

    def __call__(self, row: Row) -> Row | Rejected:
        """The row without the lines, with its measurements as columns, or the first rule that it breaks."""
        if (text := text_part(row.record, self.part)) is None:
            return row
        language = row.columns.get(LANGUAGE) or self.language
        left, measured = self.lines(text, language)
        judged = self.judge(row, measured, language)
        if isinstance(judged, Rejected) or self.report_only or row.record.get("kind") != "text" or left == text:
            return judged
        return judged.with_({**row.record, "text": left})

    def measure(self, text: str, language: str) -> dict[str, Number]:
        """The columns of a text."""
        return self.lines(text, language)[1]

    def lines(self, text: str, language: str) -> tuple[str, dict[str, Number]]:
        """The lines of a text that are left, and its columns."""
        limits, ends = self.limits(language), _line_end(language)
        counts, kept, all_lines = Counter(), [], text.splitlines()
        for line in map(str.strip, all_lines):
            found = line.split()
            if limits.citations:
                line = _CITATION.sub("", line)
            problem = _problem(line, found, limits, ends, language)
            counts[problem] += 1
            if problem not in REMOVED[:3]:
                counts["lorem_ipsum"] += "lorem ipsum" in line.lower()
                counts["curly_bracket"] += "{" in line and problem != "javascript"
            if problem is None:
                kept.append(line)
                counts["sentences"] += sentences(line)
        if limits.bad_words:
            counts["bad_words"] = len(_bad_words(limits.bad_words, language).findall(text.lower()))
        names = (*REMOVED, "lorem_ipsum", "curly_bracket", "sentences", "bad_words")
        measured = dict(c4_lines=len(all_lines), **{f"c4_{name}": counts[name] for name in names})
        return "\n".join(kept).strip(), measured


def _problem(line: str, found: list[str], limits: C4Limits, ends: Callable[[str], bool], language: str) -> str | None:
    """Why a line is removed, as a name of REMOVED; None: it stays.

    found: the parts of the line between spaces, citation marks included.
    """
    if limits.max_word_length is not None and any(len(word) > limits.max_word_length for word in found):
        return "too_long_word"
    if limits.terminal_punct and not ends(line):
        return "no_terminal_punct"
    if limits.min_words_per_line is not None:
        if _has_no_spaces(language):
            found = words.split(line[:100], language)  # enough to count a few words
        if len(found) < limits.min_words_per_line:
            return "too_few_words"
    lower = line.lower()
    if limits.javascript and "javascript" in lower:
        return "javascript"
    policies = tables()["c4"]["policy"] + (tables()["c4"]["policy_zh"] if words.is_chinese(language) else [])
    return "policy" if limits.policy and any(policy in lower for policy in policies) else None


def _has_no_spaces(language: str) -> bool:
    return words.is_chinese(language) or words.is_unsegmented(language)


def _line_end(language: str) -> Callable[[str], bool]:
    """Whether a line ends as C4 asks: with . ? ! or a quote but not with "...". In languages without spaces: with one
    of their marks."""
    if _has_no_spaces(language):
        return sentence_ends("zh")
    return lambda line: line.endswith((".", "?", "!", '"', "'")) and not line.endswith("...")


def sentences(line: str) -> int:
    """The number of sentences in a line: marks that end one, and what stands behind the last of them.

    A mark of Western scripts ends a sentence before a space or at the end, and not after an initial or one of the
    abbreviations of quality.toml.
    """
    count = end = 0
    for match in _END.finditer(line):
        word = _WORD_BEFORE.search(line, max(0, match.start() - 12), match.start())
        if match[0] == "." and word and (_INITIAL.fullmatch(word[0]) or word[0].lower() in _abbreviations()):
            continue
        count, end = count + 1, match.end()
    return count + bool(line[end:].strip())


_END = re.compile(r"[.?!]+[\"'”’)\]]*(?=\s|$)|[。！？｡…]+[”’」』）\"']*")
_WORD_BEFORE = re.compile(r"[\w.]+$")
_INITIAL = re.compile(r"(?:[A-Z]\.?)+")


@functools.cache
def _abbreviations() -> set[str]:
    return set(tables()["c4"]["abbreviations"])


@functools.cache
def _bad_words(path: str, language: str) -> re.Pattern:
    """The words of a file: anywhere in languages without spaces, between characters that are no letters in others."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"bad_words = {path!r} cannot be read: {error}") from None
    found = sorted({re.escape(line.strip().lower()) for line in lines} - {""})
    if not found:
        raise UserError(f"bad_words = {path!r} has no words: write one in each line, or leave it None")
    pattern = "|".join(found)
    return re.compile(pattern if _has_no_spaces(language) else rf"(?<!\w)(?:{pattern})(?!\w)")
