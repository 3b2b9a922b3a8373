"""Markdown and plain text as blocks."""

import re
import unicodedata
from pathlib import Path

from .files import HEADING, PARAGRAPH, TABLE, VERBATIM, Block, Document, decode

CJK = r"\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\u3000-\u303f\U00020000-\U000323af"
"""Characters between which no space is written: Chinese and Japanese ones with their punctuation, for a regex."""

CHAPTER = re.compile(
    r"(?:第\s*[一二三四五六七八九十百零〇\d]+\s*[章节節篇部编編卷回](?=[\s　:：、.]|$)"
    r"|(?:chapter|part|section|appendix)\s+[\divxlc]+\b).{0,80}",
    re.IGNORECASE,
)
"""A line of plain text that is a heading by its words."""

NARROWEST = 40
"""A paragraph whose longest line has fewer columns is a list or a poem: its lines are kept."""


KEY = re.compile(r"[\w\"'][\w \"'.-]*:(?:\s|$)")
"""The beginning of a line of metadata in YAML."""


def read_markdown(path: Path, encoding: str | None) -> Document:
    """A Markdown file. Metadata in YAML at its beginning are left out."""
    return Document(tuple(blocks_of(_without_metadata(decode(path.read_bytes(), encoding)))))


def _without_metadata(text: str) -> str:
    """The text without metadata: a line ---, lines of YAML of which the first has a key, and a line --- or ....

    A first line --- above anything else is a rule of Markdown.
    """
    lines = text.split("\n")
    if lines[0].rstrip() != "---" or len(lines) < 2 or not (KEY.match(lines[1]) or lines[1].startswith("#")):
        return text
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() in ("---", "..."):
            return "\n".join(lines[number + 1 :])
        if line.strip() and not (KEY.match(line) or line.startswith((" ", "\t", "#", "- ", "]", "}"))):
            return text
    return text


def blocks_of(text: str) -> list[Block]:
    """The blocks of Markdown (CommonMark with tables). Lists, code, quotations and definitions stay as they are."""
    from markdown_it import MarkdownIt

    lines, blocks = text.split("\n"), []
    tokens = MarkdownIt("commonmark").enable("table").disable("reference").parse(text)
    for number, token in enumerate(tokens):
        if token.level or token.nesting < 0 or token.map is None:
            continue
        source = "\n".join(lines[slice(*token.map)]).strip("\n")
        if token.type == "heading_open":
            blocks.append(Block(HEADING, " ".join(tokens[number + 1].content.split()), level=int(token.tag[1])))
        elif token.type == "paragraph_open":
            blocks.append(Block(PARAGRAPH, source.strip()))
        elif token.type == "table_open":
            blocks.append(Block(TABLE, source))
        elif token.type in ("fence", "code_block"):
            blocks.append(Block(VERBATIM, source.rstrip()))
        elif token.type in ("bullet_list_open", "ordered_list_open", "blockquote_open"):
            blocks += [Block(PARAGRAPH, part) for part in _items(source)]
        elif token.type == "html_block" and (words := re.sub(r"<!--.*?-->", "", source, flags=re.DOTALL).strip()):
            blocks.append(Block(VERBATIM, words))
    return [block for block in blocks if block.text]


def _items(source: str) -> list[str]:
    """A list or quotation: whole, or its outer items if it is long."""
    return [source] if len(source) < 600 else [part for part in re.split(r"\n(?=\S)", source) if part.strip()]


def read_text(path: Path, encoding: str | None) -> Document:
    """A text file. Blank lines part paragraphs, form feeds pages, and lines of equal width are joined."""
    blocks, pages = [], decode(path.read_bytes(), encoding).split("\f")
    for number, page in enumerate(pages, 1):
        for part in re.split(r"\n[ \t　]*\n", page):
            lines = [line.rstrip() for line in part.strip("\n").split("\n")]
            at = number if len(pages) > 1 else None
            if CHAPTER.fullmatch(lines[0].strip()):
                blocks.append(Block(HEADING, lines.pop(0).strip(), at, 1))
            if text := unwrap(lines):
                blocks.append(Block(PARAGRAPH, text, at))
    return Document(tuple(blocks))


def width_of(text: str) -> int:
    """Columns of a text on a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def unwrap(lines: list[str]) -> str:
    """The text of lines: joined if they were wrapped at one width, else as they are."""
    widths = [width_of(line) for line in lines]
    if len(lines) < 2 or max(widths) < NARROWEST or min(widths[:-1]) < 0.75 * max(widths):
        return "\n".join(lines).strip()
    return join(lines)


def join(lines: list[str]) -> str:
    """One text of the lines of a paragraph: a space between words, none between Chinese characters."""
    text = ""
    for line in map(str.strip, lines):
        between = re.search(f"[{CJK}]$", text) and re.match(f"[{CJK}]", line)
        text += line if not text or between else f" {line}"
    return text.strip()
