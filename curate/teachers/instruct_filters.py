"""Rules by which tasks that a teacher wrote are kept, those of self-instruct and Alpaca with variants for Chinese.

Sources: self-instruct (arXiv:2212.10560, section 2.2 and its public code), Stanford Alpaca's public code. Where Alpaca
drops each instruction that holds a word such as "file" or "music", the patterns of `instruct_filters.toml` look at
the words around it, so that fewer tasks are lost that a model of text can do.
"""

import functools
import re
import string
import tomllib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...errors import UserError
from ...settings.leaves import Count, Share, Unset, Whole
from ..rows import Rejected
from ..words import HAN, split
from .seeds import LANGUAGES, Task, language_of

FILE = Path(__file__).with_name("instruct_filters.toml")

OPENING = {"Ps", "Pi"}
"""Unicode categories of opening brackets and quotation marks, with which a Chinese instruction may begin."""

_LETTER = re.compile(r"[^\W\d_]")
_KNOWN = re.compile(f"[A-Za-zÀ-ɏ{HAN}]")


@dataclass(frozen=True)
class Filters:
    """Which tasks are kept. Words of an instruction are what spaces separate; Chinese ones are split by jieba."""

    least_words: Whole = 4
    """Words of the shortest English instruction that is kept; 4 in self-instruct and Alpaca."""

    least_words_zh: Whole = 2
    """Words of the shortest Chinese instruction that is kept."""

    most_words: Count = 150
    """Words of the longest instruction that is kept; 150 in self-instruct and Alpaca."""

    most_output: Annotated[int | None, Unset("no limit")] = None
    """Characters of the longest output that is kept."""

    other_script: Share = 0.2
    """Share of letters that are neither Latin nor Chinese above which an instruction is in another language."""

    lists: Annotated[str | None, Unset("the project's own patterns")] = None
    """TOML file with patterns in the form of `instruct_filters.toml`."""

    banned: Annotated[str | None, Unset("no banned phrases")] = None
    """Text file with a phrase on each line. A task that holds one, as whole words in any case, is dropped."""

    reasons = (
        *("other_language", "too_short", "too_long", "punctuation", "beyond_text", "attached", "begin"),
        *("output_too_long", "echo", "banned"),
    )

    def check(self, where: str) -> None:
        """Raises UserError if a file of patterns or of banned phrases is wrong."""
        for language in LANGUAGES:
            _patterns(str(self.lists or FILE), language)
        if self.banned is not None:
            _banned(self.banned)

    def __call__(self, task: Task, language: str) -> Rejected | None:
        """Why a task is dropped that was asked for in a language, "en" or "zh"; None if it is kept."""
        return self.of_instruction(task.instruction, language) or self._of_rest(task, language)

    def of_instruction(self, text: str, language: str) -> Rejected | None:
        """Why an instruction is dropped; None if it is kept."""
        letters = _LETTER.findall(text)
        other = sum(not _KNOWN.match(letter) for letter in letters)
        if language_of(text) != language or other > self.other_script * len(letters):
            return Rejected("other_language", f"asked for {language}")
        words = len(split(text, "zh") if language == "zh" else text.split())
        if words < (self.least_words_zh if language == "zh" else self.least_words):
            return Rejected("too_short", f"{words} words")
        if words > self.most_words:
            return Rejected("too_long", f"{words} words")
        if _is_punctuation(text[0], language):
            return Rejected("punctuation", text[0])
        patterns = _patterns(str(self.lists or FILE), language)
        if found := patterns.beyond.search(patterns.within.sub(" ", text)):
            return Rejected("beyond_text", found[0])
        if text.lower().startswith(patterns.begins):
            return Rejected("begin", text[:40])
        return self._banned_in(text)

    def _of_rest(self, task: Task, language: str) -> Rejected | None:
        """Why input and output of a task are dropped."""
        if found := _patterns(str(self.lists or FILE), language).attached.search(task.input):
            return Rejected("attached", found[0])
        if self.most_output is not None and len(task.output) > self.most_output:
            return Rejected("output_too_long", f"{len(task.output)} characters")
        if task.output in (task.input, task.instruction):
            return Rejected("echo", "the output repeats the input or the instruction")
        return self._banned_in(task.input) or self._banned_in(task.output)

    def _banned_in(self, text: str) -> Rejected | None:
        found = _banned(self.banned).search(text) if self.banned else None
        return Rejected("banned", found[0]) if found else None


def _is_punctuation(character: str, language: str) -> bool:
    """Whether no instruction begins with a character."""
    if language == "zh" and (unicodedata.category(character) in OPENING or character in "\"'"):
        return False
    return character in string.punctuation or unicodedata.category(character)[0] in "PS"


@dataclass(frozen=True)
class _Patterns:
    """The lists of a language, compiled."""

    beyond: re.Pattern
    within: re.Pattern
    attached: re.Pattern
    begins: tuple[str, ...]


@functools.cache
def _patterns(path: str, language: str) -> _Patterns:
    """The patterns of a file for a language. Raises UserError if the file is not in the form of FILE."""
    try:
        found = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: no TOML in UTF-8 ({error}): mend the file") from None
    lists = found.get(language, {})
    for name in ("beyond", "within", "attached", "begins"):
        if not isinstance(lists.get(name), list) or not all(isinstance(each, str) for each in lists[name]):
            raise UserError(f"{path}: [{language}] has no list `{name}` of strings: add one, [] if it is to be empty")
    whole = (lambda each: rf"(?<!\w)(?:{each})(?!\w)") if language == "en" else (lambda each: f"(?:{each})")
    compiled = []
    for name, form in (("beyond", whole), ("within", whole), ("attached", lambda each: f"(?:{each})")):
        for each in lists[name]:
            try:
                re.compile(form(each))
            except re.error as error:
                raise UserError(f"{path}: [{language}] {name}: {each!r} is no regular expression ({error})") from None
        compiled.append(re.compile("|".join(map(form, lists[name])) or r"(?!)", re.IGNORECASE))
    return _Patterns(*compiled, tuple(each.lower() for each in lists["begins"]))


@functools.cache
def _banned(path: str) -> re.Pattern:
    """A pattern of the phrases in a file. Raises UserError if the file cannot be read or has none."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8: convert it") from None
    phrases = [line.strip() for line in lines if line.strip()]
    if not phrases:
        raise UserError(f"{path} has no phrases: add some, or leave filters.banned None")

    def form(phrase: str) -> str:
        """A phrase as whole words; Chinese has no spaces at its ends."""
        escaped = re.escape(phrase)
        begin = r"(?<![^\W_])" if phrase[0].isascii() else ""
        return begin + escaped + (r"(?![^\W_])" if phrase[-1].isascii() else "")

    return re.compile("|".join(map(form, sorted(phrases, key=len, reverse=True))), re.IGNORECASE)
