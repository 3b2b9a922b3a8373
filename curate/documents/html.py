"""Web pages as blocks: what a page is about, without its menus, scripts and fields of forms."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.tables import CONTROL
from ..conversations.export_html import MOST_LEVELS
from ..conversations.markdown import MOST_COLUMNS, markdown_of, whole
from .files import HEADING, Block, Document, decode
from .text import blocks_of

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

AROUND = ("noscript", "template", "iframe", "canvas", "nav", "dialog", "select", "textarea", "datalist")
"""Elements that are no text of the page; scripts, styles, drawings and buttons are no part of Markdown anyway."""

OF_THE_PAGE = ("header", "footer", "aside")
"""Elements that stand around the content of the page, unless a part of the content has them (SECTIONS)."""

SECTIONS = ("article", "section", "main")

LANDMARKS = ("banner", "navigation", "contentinfo", "search")
"""Roles of WAI-ARIA for what stands around the content."""

BOXES = ("summary", "details", "form", "fieldset", "legend", "address", "figure", "hgroup", "center", "dialog")
"""Elements on lines of their own that Markdown does not know; a <div> is converted in place of them."""


def read_html(path: Path, encoding: str | None) -> Document:
    """The content of a page: of its <main>, or else of <body> without header, footer and sidebar of the page.

    Raises ValueError if its elements are nested too deeply.
    """
    import bs4

    characters, notes = _decoded(path.read_bytes(), encoding)
    soup = bs4.BeautifulSoup(characters, "lxml")
    if (levels := _levels(soup)) > MOST_LEVELS:
        raise ValueError(f"its elements are nested {levels:,} levels deep; at most {MOST_LEVELS} are read")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    content = _content(soup)
    notes += ("formulas without TeX are read as their characters",) if _has_plain_maths(content) else ()
    for table in content.find_all("table"):
        _prepare(table)
    for link in content.find_all("a"):
        link.unwrap()
    for box in content.find_all([*BOXES, *OF_THE_PAGE, *SECTIONS]):
        box.name = "div"
    blocks = blocks_of(CONTROL.sub("", markdown_of(content, images="drop")))
    if title and not any(block.kind == HEADING and block.level == 1 for block in blocks):
        blocks.insert(0, Block(HEADING, title, level=1))
    return Document(tuple(blocks), notes)


def _decoded(raw: bytes, encoding: str | None) -> tuple[str, tuple[str, ...]]:
    """The characters of a page, by the encoding that is given or that the page says, and notes."""
    from bs4.dammit import EncodingDetector, UnicodeDammit

    said = EncodingDetector.find_declared_encoding(raw, is_html=True)
    if encoding or not said:
        return decode(raw, encoding, text=False), ()
    found = UnicodeDammit(raw, [said], is_html=True)
    if found.unicode_markup is None or found.contains_replacement_characters:
        raise ValueError(f"it is not {said.upper()}, as it says: give --encoding")
    other = (found.original_encoding or said).lower()
    note = (f"it says {said} and is no such file: read as {other}",) if found.tried_encodings[1:] else ()
    return found.unicode_markup, note


def _levels(soup: "BeautifulSoup") -> int:
    """How deep elements are nested."""
    import bs4

    most, waiting = 0, [(soup, 0)]
    while waiting:
        element, level = waiting.pop()
        most = max(most, level)
        waiting += [(child, level + 1) for child in element.children if isinstance(child, bs4.Tag)]
    return most


def _content(soup: "BeautifulSoup") -> "BeautifulSoup":
    """The elements of the content, as a document of their own."""
    import bs4

    mains = soup.find_all(lambda tag: tag.name == "main" or tag.get("role") == "main")
    outer = [main for main in mains if not any(around in mains for around in main.parents)]
    content = bs4.BeautifulSoup("", "lxml")
    for element in outer or [soup.body or soup]:
        element.name = "div"
        content.append(element.extract() if element is not soup else copy.copy(soup))
    inputs = [each for each in content.find_all("input") if each.get("type") not in ("checkbox", "radio")]
    page = [
        each
        for each in content.find_all(lambda tag: tag.name in OF_THE_PAGE or tag.get("role") == "complementary")
        if not outer and not each.find_parent(SECTIONS)
    ]
    scripts = [each for each in content.find_all("script") if "math/tex" not in each.get("type", "")]
    for element in [*inputs, *scripts, *page, *content.find_all(AROUND), *content.find_all(attrs={"role": LANDMARKS})]:
        if not element.decomposed:
            element.decompose()
    return content


def _has_plain_maths(content: "BeautifulSoup") -> bool:
    """Puts its characters in place of each formula that has no TeX, and tells whether there is any."""
    found = False
    for maths in content.find_all(lambda tag: tag.name in ("math", "mjx-container") or "katex" in tag.get("class", ())):
        if maths.decomposed or maths.get("alttext") or maths.find("math", alttext=True):
            continue
        tex = [script for script in maths.find_all("script") if "math/tex" in script.get("type", "")]
        if not tex and not maths.find("annotation", encoding="application/x-tex"):
            maths.replace_with(maths.get_text())
            found = True
    return found


def _prepare(table: "Tag") -> None:
    """Makes a table plain: a table around other tables is layout, and no table; a first row without <th> is its header;
    cells that stand for several rows are repeated in each, so that each row is whole."""
    rows = [row for row in table.find_all("tr") if row.find_parent("table") is table]
    if table.find("table"):
        for element in [table, *table.find_all(["thead", "tbody", "tfoot"], recursive=False), *rows]:
            cells = element.find_all(["td", "th"], recursive=False) if element.name == "tr" else []
            for each in [element, *cells]:
                each.name = "div"
        return
    first = next((row for row in rows if row.find(["td", "th"])), None)
    for cell in first.find_all("td", recursive=False) if first is not None and not table.find("th") else ():
        cell.name = "th"
    _repeat_merged(rows)


def _repeat_merged(rows: "Sequence[Tag]") -> None:
    """Puts cells that stand for several rows into each of the rows."""
    import bs4

    reach: dict[int, tuple[Tag, int]] = {}  # by column: the cell from above, and in how many rows it still stands
    for row in rows:
        cells, grid, further, place = row.find_all(["td", "th"], recursive=False), [], {}, 0
        while (cells or reach) and place < MOST_COLUMNS:
            if place in reach:
                above, count = reach.pop(place)
                cell = copy.copy(above)
            elif cells:
                cell = cells.pop(0)
                count = whole(cell.attrs.pop("rowspan", None), 1) or len(rows)
            else:
                cell, count = bs4.Tag(name="td"), 1
            grid.append(cell)
            further |= {place: (cell, count - 1)} if count > 1 else {}
            place += max(1, whole(cell.get("colspan"), 1))
            reach = {column: value for column, value in reach.items() if column >= place}
        reach = further
        for cell in grid:
            row.append(cell)
        for cell in cells:  # beyond the last column
            row.append(cell)
