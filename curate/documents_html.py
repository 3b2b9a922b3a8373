"""Web pages as blocks: what a page is about, without its menus, scripts and forms."""

from pathlib import Path

from .documents import HEADING, Block, Document, decode
from .documents_text import blocks_of

AROUND = ("script", "style", "noscript", "template", "iframe", "svg", "canvas", "nav", "form", "button", "dialog")
"""Elements that are no text of the page."""

LANDMARKS = ("banner", "navigation", "contentinfo", "search", "complementary")
"""Roles of WAI-ARIA for what stands around the content."""


def read_html(path: Path, encoding: str | None) -> Document:
    """The content of a page: of <main> or of the only <article>, or else of <body> without header and footer."""
    import bs4
    from bs4.dammit import EncodingDetector
    from markdownify import MarkdownConverter

    raw = path.read_bytes()
    encoding = encoding or EncodingDetector.find_declared_encoding(raw, is_html=True)
    soup = bs4.BeautifulSoup(raw if encoding else decode(raw, None), "html.parser", from_encoding=encoding)
    content = soup.find("main") or soup.find(attrs={"role": "main"})
    articles = soup.find_all("article")
    content = content or (articles[0] if len(articles) == 1 else None)
    around = [*AROUND, *(() if content else ("header", "footer", "aside"))]
    content = content or soup.body or soup
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for element in [*content.find_all(around), *content.find_all(attrs={"role": LANDMARKS})]:
        element.decompose()
    for comment in content.find_all(string=lambda text: isinstance(text, bs4.Comment)):
        comment.extract()
    _fill_merged(content)
    options = {"heading_style": "ATX", "bullets": "-", "table_infer_header": True, "strip": ["img", "a"]}
    text = MarkdownConverter(**options, code_language_callback=_language_of).convert_soup(content)
    blocks = blocks_of(text)
    if title and not any(block.kind == HEADING and block.level == 1 for block in blocks):
        blocks.insert(0, Block(HEADING, title, level=1))
    notes = ("characters could not be decoded: give --encoding",) if soup.contains_replacement_characters else ()
    return Document(tuple(blocks), notes)


def _language_of(element) -> str:
    """The language of a block of code, from a class such as "language-python"."""
    names = [*(element.get("class") or ()), *((element.code.get("class") or ()) if element.code else ())]
    return next((name.partition("-")[2] for name in names if name.startswith(("language-", "lang-"))), "")


def _fill_merged(content) -> None:
    """Repeats the cells of tables that stand for several rows, so that each row is whole."""
    import copy

    for cell in content.find_all(["td", "th"], rowspan=True):
        rows = int(cell["rowspan"]) if cell["rowspan"].isdecimal() else 1
        place = len(cell.find_previous_siblings(["td", "th"]))
        del cell["rowspan"]
        for row, _ in zip(cell.parent.find_next_siblings("tr"), range(rows - 1), strict=False):
            cells = row.find_all(["td", "th"], recursive=False)
            copied = copy.copy(cell)
            cells[place].insert_before(copied) if place < len(cells) else row.append(copied)
