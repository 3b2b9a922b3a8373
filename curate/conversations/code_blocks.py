"""Finds the code in Markdown: fenced blocks and code spans, by CommonMark's rules of how they open and close."""

import re
from collections.abc import Sequence

_FENCE = re.compile(r"[ \t]*(?P<fence>`{3,}|~{3,})(?P<info>.*)", re.DOTALL)
_SPAN = re.compile(r"(?<!`)(`{1,2})(?!`)[^`\n]+(?<!`)\1(?!`)")


def code_blocks(lines: Sequence[str]) -> list[tuple[int, int]]:
    """The fenced blocks of code in a text: the line of the opening fence, and one past the line of the closing one.

    A block that is not closed ends with the text. Source: CommonMark 0.31, section 4.5; blocks in items of lists are
    found whatever their indentation.
    """
    found: list[tuple[int, int]] = []
    opening, start = "", 0
    for place, line in enumerate(lines):
        match = _FENCE.fullmatch(line) if "```" in line or "~~~" in line else None
        if match and opening:
            if match["fence"].startswith(opening) and not match["info"].strip():
                found.append((start, place + 1))
                opening = ""
        elif match and not (match["fence"][0] == "`" and "`" in match["info"]):
            opening, start = match["fence"], place
    return [*found, (start, len(lines))] if opening else found


def split_fence(line: str) -> tuple[str, str]:
    """The line of an opening fence as the fence, with what stands before it, and the text behind the fence."""
    start = _FENCE.fullmatch(line).start("info")
    return line[:start], line[start:]


def without_code(text: str, *, fill: str | None = None) -> str:
    """Text without its fenced blocks and code spans.

    fill: a character that stands for each character of code, so that places stay the same; by default a block is left
    out with its lines, and a span becomes a space.
    """
    if "`" not in text and "~~~" not in text:
        return text
    lines = text.split("\n")
    for start, stop in code_blocks(lines):
        lines[start:stop] = [None if fill is None else fill * len(line) for line in lines[start:stop]]
    text = "\n".join(line for line in lines if line is not None)
    return _SPAN.sub(" " if fill is None else lambda match: fill * len(match[0]), text)
