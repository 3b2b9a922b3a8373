"""Word files (.docx) as blocks: headings by their styles, numbered lists, tables with merged cells, footnotes.

Text that was deleted with tracked changes is left out, inserted text is kept. Pages are those at which Word last broke
the text; a file that no Word has laid out has none.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .documents import HEADING, PARAGRAPH, TABLE, Block, Document, markdown_table

OLE = bytes.fromhex("d0cf11e0a1b11ae1")
"""How old office files begin, and encrypted new ones."""

LEFT_OUT = ("w:del", "w:moveFrom", "mc:Fallback", "w:instrText", "w:delText", "w:pPr", "w:rPr")
"""Elements whose text is no text of the document."""


def check_package(path: Path, kind: str) -> None:
    """Raises ValueError if an office file is encrypted or no whole zip file. kind: its suffix."""
    with path.open("rb") as file:
        head = file.read(8)
    if head == OLE:
        raise ValueError(f"it is encrypted, or an old office file under the name of a {kind}: save it without password")
    try:
        with zipfile.ZipFile(path) as package:
            damaged = package.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is damaged, or no {kind}: {error}") from None
    if damaged:
        raise ValueError(f"it is damaged: the part {damaged} has a wrong checksum")


def read_docx(path: Path, encoding: str | None) -> Document:
    """The blocks of a Word file."""
    import docx

    check_package(path, ".docx")
    try:
        return _Reader(docx.Document(str(path))).document()
    except (KeyError, ValueError, SyntaxError, AttributeError) as error:  # of python-docx and lxml on wrong parts
        raise ValueError(f"it is damaged, or no .docx: {' '.join(str(error).split())[:200]}") from None


class _Reader:
    """Reads the elements of one Word file in their order."""

    def __init__(self, document):
        from docx.oxml.ns import nsmap, qn

        nsmap.setdefault("mc", "http://schemas.openxmlformats.org/markup-compatibility/2006")
        self._qn, self._document = qn, document
        self._left_out = {qn(name) for name in LEFT_OUT}
        self._page, self._paged, self._boxes = 1, False, []
        self._begun: int | None = None  # the page of the first words of a paragraph
        self._counts: Counter[tuple[str, int]] = Counter()

    def document(self) -> Document:
        found = [(self._page, block) for block in self._blocks(self._document.element.body)]
        notes = [(self._page, Block(PARAGRAPH, text)) for text in self._footnotes()]
        blocks = [block for _, block in found + notes if block.text.strip()]
        if not self._paged:
            blocks = [Block(block.kind, block.text, None, block.level) for block in blocks]
        titled = any(block.kind == HEADING and not block.level for block in blocks)
        return Document(
            tuple(Block(b.kind, b.text, b.page, b.level + titled) if b.kind == HEADING else b for b in blocks)
        )

    def _blocks(self, parent) -> Iterator[Block]:
        qn = self._qn
        for element in parent:
            if element.tag == qn("w:p"):
                yield from self._paragraph(element)
            elif element.tag == qn("w:tbl"):
                yield from self._table(element)
            elif element.tag == qn("w:sdt"):
                content = element.find(qn("w:sdtContent"))
                yield from self._blocks(content if content is not None else [])
            elif element.tag in (qn("w:ins"), qn("w:customXml")):
                yield from self._blocks(element)

    def _paragraph(self, element) -> Iterator[Block]:
        self._begun = None
        text = self._text(element).strip()
        page = self._begun or self._page
        level = self._level(element)
        if text and level is not None:
            yield Block(HEADING, " ".join(text.split()), page, level)
        elif text:
            yield Block(PARAGRAPH, self._bullet(element) + text, page)
        boxes, self._boxes = self._boxes, []
        for box in boxes:
            yield from self._blocks(box)

    def _text(self, element) -> str:
        qn, parts = self._qn, []
        for child in element:
            tag = child.tag
            if tag in self._left_out:
                continue
            if tag in (qn("w:t"), qn("m:t")):
                parts.append(child.text or "")
                self._begun = self._begun or self._page
            elif tag == qn("w:tab"):
                parts.append(" ")
            elif tag == qn("w:noBreakHyphen"):
                parts.append("-")
            elif tag == qn("w:footnoteReference"):
                parts.append(f"[^{child.get(qn('w:id'))}]")
            elif tag == qn("w:lastRenderedPageBreak"):
                self._page, self._paged = self._page + 1, True
            elif tag in (qn("w:br"), qn("w:cr")):
                parts.append("" if child.get(qn("w:type")) == "page" else "\n")
            elif tag == qn("w:txbxContent"):
                self._boxes.append(child)
            else:
                parts.append(self._text(child))
        return "".join(parts)

    def _style(self, element):
        """The style of a paragraph, and of the styles that it is based on."""
        style = element.pPr.pStyle if element.pPr is not None else None
        found = self._document.styles.element.get_by_id(style.val) if style is not None else None
        while found is not None:
            yield found
            found = found.base_style

    def _level(self, element) -> int | None:
        """The level of a heading, 0 for the title; None for other paragraphs."""
        for style in self._style(element):
            name = (style.name_val or "").lower()
            if name == "title":
                return 0
            if match := re.fullmatch(r"heading (\d)", name):
                return int(match[1])
        for holder in [element, *self._style(element)]:
            outline = holder.find(f"{self._qn('w:pPr')}/{self._qn('w:outlineLvl')}")
            if outline is not None and int(outline.get(self._qn("w:val"))) < 9:
                return int(outline.get(self._qn("w:val"))) + 1
        return None

    def _bullet(self, element) -> str:
        """What stands before an item of a list: its number, or a dash; "" for other paragraphs."""
        qn = self._qn
        properties = next(
            (
                p
                for holder in [element, *self._style(element)]
                if (p := holder.find(f"{qn('w:pPr')}/{qn('w:numPr')}")) is not None
            ),
            None,
        )
        number = properties.find(qn("w:numId")) if properties is not None else None
        if number is None or number.get(qn("w:val")) == "0":
            return ""
        level = properties.find(qn("w:ilvl"))
        depth = int(level.get(qn("w:val"))) if level is not None else 0
        name, indent = number.get(qn("w:val")), "  " * depth
        if self._format(name, depth) in ("bullet", "none", None):
            return f"{indent}- "
        self._counts[name, depth] += 1
        for deeper in [key for key in self._counts if key[0] == name and key[1] > depth]:
            del self._counts[deeper]
        return f"{indent}{self._counts[name, depth]}. "

    def _format(self, name: str, depth: int) -> str | None:
        """The format of a list's numbers, such as "decimal" or "bullet"."""
        qn = self._qn
        try:
            numbering = self._document.part.numbering_part.element
        except (KeyError, NotImplementedError):
            return None
        for number in numbering.iterfind(qn("w:num")):
            if number.get(qn("w:numId")) == name:
                abstract = number.find(qn("w:abstractNumId")).get(qn("w:val"))
                kind = f"{qn('w:abstractNum')}[@{qn('w:abstractNumId')}='{abstract}']"
                found = numbering.find(f"{kind}/{qn('w:lvl')}[@{qn('w:ilvl')}='{depth}']/{qn('w:numFmt')}")
                return None if found is None else found.get(qn("w:val"))
        return None

    def _table(self, element) -> Iterator[Block]:
        qn, page, rows = self._qn, self._page, []
        for row in element.iter(qn("w:tr")):
            if next(row.iterancestors(qn("w:tbl"))) is not element:
                continue  # of a table within a cell
            cells = []
            for cell in row.iterfind(f"./{qn('w:tc')}"):
                span, merge = (cell.find(f"{qn('w:tcPr')}/{qn(name)}") for name in ("w:gridSpan", "w:vMerge"))
                text = "\n".join(filter(None, (self._text(p).strip() for p in cell.iter(qn("w:p")))))
                if merge is not None and merge.get(qn("w:val")) != "restart" and rows and len(cells) < len(rows[-1]):
                    text = rows[-1][len(cells)]
                cells += [text] + [""] * (int(span.get(qn("w:val"))) - 1 if span is not None else 0)
            rows.append(cells)
        rows = [row for row in rows if any(row)]
        if rows and max(map(len, rows)) > 1:
            yield Block(TABLE, markdown_table(rows), page)
        else:
            yield from (Block(PARAGRAPH, row[0], page) for row in rows)

    def _footnotes(self) -> Iterator[str]:
        from docx.oxml import parse_xml

        for relation in self._document.part.rels.values():
            if relation.reltype.endswith("/footnotes"):
                for note in parse_xml(relation.target_part.blob):
                    if text := " ".join(self._text(note).split()):
                        yield f"[^{note.get(self._qn('w:id'))}]: {text}"
