"""PDF files as blocks: lines from the positions of characters, columns in the order of reading, headings by their size.

Values of form fields stand where the page shows them. Mended are what printing adds: running heads and page numbers,
words hyphenated at the ends of lines, paragraphs that go on in the next column or page. Aligned cells become tables. A
file without a text layer, a scan, is an error.
"""

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from .files import HEADING, PARAGRAPH, TABLE, Block, Document, markdown_table
from .pdf_layout import LIST_ITEM, WORD, Line, Row, blocks_of_page, join_lines
from .text import width_of

HEADING_SIZE = 1.12
"""A line is a heading if its letters are so many times as large as those of the text."""

LONGEST_HEADING = 120
"""Characters of the longest heading."""

MARGIN = 0.12
"""Share of a page's height, at its top and at its bottom, in which running heads and page numbers stand."""

TEXT_SIZE = 12.0
"""Height in points of the values of form fields on a page without other text."""

UNKNOWN = 0.2
"""A page of which this share of characters has no meaning (a font without its table of characters) has no text."""

NUMBERED = re.compile(
    r"(?:\d+(?:\.\d+)*\.?|[A-Z]\.|第\s*[一二三四五六七八九十百\d]+\s*[章节節篇]|[一二三四五六七八九十]+、)\s*\S"
)
PAGE_NUMBER = re.compile(
    r"[-–—·\s]*(?:page|p\.|第|页码)?\s*(\d{1,4}|[ivxlc]{1,6})\s*(?:页)?(?:\s*(?:of|/|,?\s*共)\s*\d+\s*页?)?[-–—·\s]*",
    re.I,
)
LEADERS = re.compile(r"(?:[.·…]\s*){5,}[\divxlc]*$", re.IGNORECASE)
"""Dots that lead to a page number in a table of contents."""

ENDS = re.compile(r"[.!?:;。！？：；…][\"'”’）)」』]*$")


def read_pdf(path: Path, encoding: str | None) -> Document:
    """The blocks of a PDF file."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(path)
        pdf.init_forms()
        pages = [_page(pdf[number]) for number in range(len(pdf))]
        pdf.close()
    except pypdfium2.PdfiumError as error:
        if "assword" in str(error):
            raise ValueError("it is protected by a password: save it without one") from None
        raise ValueError(f"it is damaged, or no PDF ({error})") from None
    notes = [*_scans(pages)]
    heads = _running_heads(pages, HEADING_SIZE * _text_size([page.lines for page in pages]))
    if heads:
        examples = ", ".join(repr(text) for text in list(dict.fromkeys(text for _, text in heads))[:3])
        notes.append(f"{len(heads)} lines of running heads and page numbers left out, such as {examples}")
    leaders = sum(bool(LEADERS.search(line.text)) for page in pages for line in page.lines)
    if leaders:
        notes.append(f"{leaders} lines of a table of contents left out")
    if turned := [number for number, page in enumerate(pages, 1) if page.turned]:
        notes.append(f"text that is not upright left out on pages {_numbers(turned)}")
    kept = [
        [
            line
            for line in page.lines
            if not LEADERS.search(line.text) and ((number, line.text) not in heads or not _in_margin(line, page))
        ]
        for number, page in enumerate(pages)
    ]
    size = _text_size(kept)
    levels = _levels(kept, size)
    blocks: list[Block] = []
    for number, lines in enumerate(kept, 1):
        for group in blocks_of_page(lines):
            blocks += _block(group, number, size, levels)
    words = Counter(re.findall(WORD, " ".join(line.text for lines in kept for line in lines).lower()))
    return Document(tuple(_renumbered(_continued(blocks, words))), tuple(notes))


@dataclass(frozen=True)
class Page:
    """The lines of a page."""

    lines: list[Line]
    """Its pieces of lines, in the order of the file."""

    height: float
    """Its height in points."""

    turned: bool = False
    """Whether it has text that is not upright, which is no part of `lines`."""

    pictures: int = 0
    """Number of its pictures."""

    unknown: float = 0.0
    """Share of its characters that have no meaning."""


def _page(page) -> Page:
    from .pdf_layout import read_fields, read_lines

    lines, turned, unknown = read_lines(page.get_textpage())
    lines += read_fields(page, _text_size([lines]) or TEXT_SIZE) if page.formenv else []
    pictures = (
        sum(1 for _ in page.get_objects(filter=[3])) if not lines or unknown > UNKNOWN else 0
    )  # FPDF_PAGEOBJ_IMAGE
    return Page(lines if unknown <= UNKNOWN else [], page.get_height(), turned, pictures, unknown)


def _scans(pages: list[Page]) -> list[str]:
    """Notes on pages without text. Raises ValueError if no page has text."""
    scanned = [number for number, page in enumerate(pages, 1) if not page.lines and page.pictures]
    unknown = [number for number, page in enumerate(pages, 1) if page.unknown > UNKNOWN]
    if not any(page.lines for page in pages):
        if unknown:
            raise ValueError("its fonts do not say which characters they show: make a text layer by OCR")
        if scanned:
            count = f"{len(pages)} page{'s' * (len(pages) > 1)}"
            raise ValueError(f"a scan of {count} without a text layer: make one by OCR (such as ocrmypdf)")
        raise ValueError("it has no text")
    notes = [f"pictures without text, which OCR would read, on pages {_numbers(scanned)}"] if scanned else []
    return notes + ([f"fonts that do not say what they show on pages {_numbers(unknown)}"] if unknown else [])


def _numbers(pages: list[int]) -> str:
    return ", ".join(map(str, pages[:10])) + (", ..." if len(pages) > 10 else "")


def _in_margin(line: Line, page: Page) -> bool:
    return line.bottom > (1 - MARGIN) * page.height or line.top < MARGIN * page.height


def _running_heads(pages: list[Page], largest: float) -> dict[tuple[int, str], None]:
    """Pairs (index of the page, text), in their order, of lines in the margins that repeat on pages, or count them.

    A line repeats if it stands on three pages, or on all of two, at one height, with any digits. A line whose size is
    `largest` or more is a heading.
    """
    found = defaultdict(list)
    for number, page in enumerate(pages):
        for line in page.lines:
            if _in_margin(line, page) and line.size < largest:
                found[re.sub(r"\d+", "#", line.text), round(line.bottom / 4)].append((number, line.text))
    enough = max(2, min(3, len(pages)))
    repeated = [group for group in found.values() if len({number for number, _ in group}) >= enough]
    heads = dict.fromkeys(each for group in repeated for each in group)
    for number, page in enumerate(pages):
        edge = [line for line in page.lines if _in_margin(line, page)]
        for line in (min(edge, key=lambda line: line.bottom), max(edge, key=lambda line: line.top)) if edge else ():
            match = PAGE_NUMBER.fullmatch(line.text)
            if match and (match[1] == str(number + 1) or not line.text.strip().isdigit()):
                heads[number, line.text] = None
    return heads


def _text_size(pages: list[list[Line]]) -> float:
    """The size of most characters."""
    sizes = Counter()
    for lines in pages:
        for line in lines:
            sizes[round(line.size * 2) / 2] += len(line.text)
    return sizes.most_common(1)[0][0] if sizes else 0.0


def _levels(pages: list[list[Line]], size: float) -> dict[float, int]:
    """The level of each size of headings, the largest first."""
    larger = {round(line.size * 2) / 2 for lines in pages for line in lines if line.size >= HEADING_SIZE * size}
    return {each: level for level, each in enumerate(sorted(larger, reverse=True), 1)}


def _block(rows: list[Row], page: int, size: float, levels: dict[float, int]) -> list[Block]:
    """The blocks of rows that belong together."""
    if len(rows[0].cells) > 1 and len(rows) > 1:
        return [Block(TABLE, markdown_table([row.texts() for row in rows]), page)]
    lines = [cell for row in rows for cell in row.cells]
    text = join_lines([line.text for line in lines], Counter())
    largest = round(lines[0].size * 2) / 2
    if len(text) <= LONGEST_HEADING and largest in levels and not LIST_ITEM.match(text):
        return [Block(HEADING, text, page, min(levels[largest], 6))]
    bold = all(line.bold for line in lines) and len(lines) <= 2
    if bold and len(text) <= LONGEST_HEADING and (NUMBERED.match(text) or not ENDS.search(text)):
        depth = len(re.findall(r"\d+", match[0])) if (match := re.match(r"[\d.]+", text)) else 1
        return [Block(HEADING, text, page, min(len(levels) + depth, 6))]
    return [Block(PARAGRAPH, "\n".join(line.text for line in lines), page)]


def _continued(blocks: list[Block], words: Counter) -> list[Block]:
    """The blocks, with paragraphs joined that go on in the next column or page, and their lines made one text."""
    joined: list[Block] = []
    for block in blocks:
        if joined and _goes_on(joined[-1], block):
            joined[-1] = replace(joined[-1], text=f"{joined[-1].text}\n{block.text}")
        else:
            joined.append(block)
    return [
        replace(block, text=join_lines(block.text.split("\n"), words)) if block.kind == PARAGRAPH else block
        for block in joined
    ]


def _goes_on(before: Block, block: Block) -> bool:
    """Whether a paragraph goes on with the one before it: that ends in a full line, and in no end of a sentence."""
    if not before.kind == block.kind == PARAGRAPH or ENDS.search(before.text) or LIST_ITEM.match(block.text):
        return False
    widths = [width_of(line) for line in before.text.split("\n")]
    return bool(re.match(r"[a-z\u4e00-\u9fff(]", block.text)) and widths[-1] > 0.75 * max(widths) and max(widths) > 20


def _renumbered(blocks: list[Block]) -> list[Block]:
    """The blocks, with levels of headings from 1 up without gaps."""
    used = {level: number for number, level in enumerate(sorted({block.level for block in blocks if block.level}), 1)}
    return [replace(block, level=used[block.level]) if block.level else block for block in blocks]
