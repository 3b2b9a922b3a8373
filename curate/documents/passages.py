"""Passages of a document: pieces of about one size, cut at headings and paragraphs, never within a sentence.

A passage begins with the headings that stand right before it. A table stays whole, or is cut between rows and keeps its
header, where it is several times as long as a passage. Neighbouring sections that are short share a passage.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..words import HAN
from .files import HEADING, PARAGRAPH, TABLE, Block

HAN_LETTERS = 3
"""A Chinese character counts as so many letters: about as many tokens, and about as much meaning."""

LONGEST_TABLE = 4
"""A table of more than so many passages is cut between rows."""

ABBREVIATIONS = re.compile(
    "mr|mrs|ms|dr|prof|st|nos?|vs|etc|e\\.g|i\\.e|cf|al|figs?|eqs?|sec|ch|vol|pp?|eds?|inc|ltd|co|corp|jr|sr|dept|approx|"
    "est|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun|u\\.s|u\\.k|a\\.m|p\\.m|[a-z]"
)
"""Words, in small letters, whose full stop does not end a sentence."""

_STOP = re.compile(r"[。！？…]+[”’」』）)\"]*|[.!?]+[\"'”’)\]]*(?=\s)|\n")


@dataclass(frozen=True)
class Passage:
    """A piece of a document."""

    text: str
    """Its Markdown."""

    headings: tuple[str, ...]
    """The headings that it stands under, the outermost first."""

    page: int | None
    """The page that it begins on, from 1; None if the document has no pages."""

    last_page: int | None
    """The page that its last block begins on."""


@dataclass
class _Piece:
    """Blocks under one heading that fit into a passage."""

    headings: tuple[str, ...]
    texts: list[str] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    opens: bool = False
    """Whether it begins with the heading."""

    @property
    def size(self) -> int:
        return sum(map(size_of, self.texts))


def size_of(text: str) -> int:
    """The size of a text: its number of characters, where a Chinese character counts HAN_LETTERS."""
    return len(text) + (HAN_LETTERS - 1) * len(re.findall(f"[{HAN}]", text))


def passages_of(blocks: Sequence[Block], size: int) -> list[Passage]:
    """The passages of a document.

    Args:
      blocks: its blocks.
      size: the largest size of a passage (`size_of`); a longer sentence, code or table is a passage of its own.
    """
    pieces: list[_Piece] = []
    for piece in _pieces(blocks, size):
        last = pieces[-1] if pieces else None
        small = last and min(last.size, piece.size) < size / 2 and last.size + piece.size <= size
        if small and piece.opens and (shared := _shared(last.headings, piece.headings)):
            last.headings = shared
            last.texts += piece.texts
            last.pages += piece.pages
        else:
            pieces.append(piece)
    return [
        Passage(
            "\n\n".join(piece.texts), piece.headings, min(piece.pages, default=None), max(piece.pages, default=None)
        )
        for piece in pieces
    ]


def _shared(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """The headings that two paths have in common from the outermost on; () if they are of different chapters."""
    common = [a for a, b in zip(first, second, strict=False) if a == b]
    return tuple(common)


def _pieces(blocks: Sequence[Block], size: int) -> Iterator[_Piece]:
    """Pieces of sections, in order. Headings without text go to the piece that follows them."""
    path: list[tuple[int, str]] = []
    piece, waiting = _Piece(()), False
    for block in blocks:
        if block.kind == HEADING:
            if piece.texts and not waiting:
                yield piece
                piece = _Piece(())
            path = [each for each in path if each[0] < block.level] + [(block.level, block.text)]
            piece.headings, piece.opens, waiting = tuple(text for _, text in path), True, True
            piece.texts.append(f"{'#' * block.level} {block.text}")
            piece.pages += [block.page] if block.page is not None else []
            continue
        for text in _cut(block, size):
            if piece.texts and not waiting and piece.size + size_of(text) > size:
                yield piece
                piece = _Piece(tuple(text for _, text in path))
            piece.texts.append(text)
            piece.pages += [block.page] if block.page is not None else []
            waiting = False
    if piece.texts and not waiting:
        yield piece


def _cut(block: Block, size: int) -> Iterable[str]:
    """The text of a block in pieces of at most `size` where it may be cut."""
    if block.kind == PARAGRAPH and size_of(block.text) > size:
        return _filled(sentences(block.text), size, "")
    if block.kind == TABLE and size_of(block.text) > LONGEST_TABLE * size:
        header, rule, *rows = block.text.split("\n")
        return [f"{header}\n{rule}\n{part}" for part in _filled(rows, size, "\n")]
    return [block.text]


def _filled(parts: Sequence[str], size: int, between: str) -> list[str]:
    """The parts, joined as far as they fit into `size`."""
    found: list[str] = []
    for part in parts:
        if found and size_of(found[-1]) + size_of(part) <= size:
            found[-1] += between + part
        else:
            found.append(part)
    return [text.strip() for text in found]


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with the space behind it; together they are the text.

    A full stop of an abbreviation or an initial, or before a small letter, ends none.
    """
    found, begin = [], 0
    for stop in _STOP.finditer(text):
        if stop[0].startswith("."):
            word = re.search(r"[\w.]*$", text[begin : stop.start()])[0].lower()
            after = re.search(r"\S", text[stop.end() :])
            short = stop[0] == "." and ABBREVIATIONS.fullmatch(word)
            number = word not in ("no", "nos") or (after and after[0].isdigit())  # "No. 7", but not "He said no."
            if (short and number) or (after and after[0].islower()):
                continue
        end = stop.end() + len(re.match(r"\s*", text[stop.end() :])[0])
        found.append(text[begin:end])
        begin = end
    return [*found, text[begin:]] if begin < len(text) else found
