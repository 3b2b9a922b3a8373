"""Finds phrases in what an assistant says by itself: outside of code, of quotations and of quoted lines."""

import functools
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .code_blocks import without_code

_QUOTED = re.compile(
    r'"[^"\n]{13,}"|“[^“”\n]{13,}”|“(?=[^“”\n]*[\u4e00-\u9fff])[^“”\n]{6,}”'
    r"|「[^「」\n]{6,}」|『[^『』\n]{6,}』|^[ \t]*>.*$",
    re.MULTILINE,
)
_SENTENCE = re.compile(r"(?:[^.!?。！？\n]|[.!?](?=[\w)\"']))+[.!?。！？]*")
_MARKS = re.compile(r"[\s*_#>\-–—•]*")


@functools.cache
def tables(name: str) -> Mapping[str, Any]:
    """The tables of phrases in a TOML file of this folder."""
    return tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


def pattern(text: str, words: Mapping[str, str], flags: int = 0) -> re.Pattern[str]:
    """The compiled pattern of a table. Line breaks and the indentation behind them only lay it out.

    words: what stands for each {name} in the pattern; it may hold further ones.
    """
    place = re.compile(r"\{([a-z_]+)\}")
    while place.search(text):
        text = place.sub(lambda match: f"(?:{words[match[1]]})", text)
    return re.compile(re.sub(r"\n\s*", "", text), flags)


def own_words(text: str) -> str:
    """The text with spaces in place of code and quotations, so that places in it stay the same.

    A quotation is a line that begins with ">", or 13 or more characters between quotation marks (in Chinese 6).
    Apostrophes become straight.
    """
    text = without_code(text, fill=" ")
    return _QUOTED.sub(lambda match: " " * len(match[0]), text).replace("’", "'").replace("‘", "'")


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Where each sentence of a text begins, behind marks of Markdown, and where it ends."""
    for match in _SENTENCE.finditer(text):
        start = _MARKS.match(text, match.start(), match.end()).end()
        if start < match.end():
            yield start, match.end()
