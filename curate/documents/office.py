"""Word files (.docx) as blocks: headings by their styles, numbered lists, tables with merged cells, notes.

Hidden text and text that was deleted with tracked changes are left out, inserted text is kept. Pages are those at which
Word last broke the text; a file that no Word has laid out has none.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .files import HEADING, PARAGRAPH, TABLE, Block, Document, markdown_table

MOST_COLUMNS = 1000
"""Columns of the widest table; Word has at most 63."""

OLE = bytes.fromhex("d0cf11e0a1b11ae1")
"""How old office files begin, and encrypted new ones."""

CONTENTS = "[Content_Types].xml"
"""The file that every new office file has in it."""

AROUND = ("w:sdt", "w:sdtContent", "w:ins", "w:moveTo", "w:customXml", "w:smartTag")
"""Elements that stand around blocks, rows or cells: content controls, tracked changes, marks of programs."""

NOTES = {"footnotes": "", "endnotes": "e"}
"""The parts of a file that hold notes, and the letter before their numbers."""

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
            damaged, is_office = package.testzip(), CONTENTS in package.namelist()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:  # also unknown compression
        raise ValueError(f"it is damaged, or no {kind}: {error}") from None
    if damaged:
        raise ValueError(f"it is damaged: the part {damaged} has a wrong checksum")
    if not is_office:
        raise ValueError(f"it is no {kind}, but another zip file")


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
        self._left_out, self._around = ({qn(name) for name in names} for names in (LEFT_OUT, AROUND))
        self._page, self._paged, self._boxes = 1, False, []
        self._begun: int | None = None  # the page of the first words of a paragraph
        self._held = ""  # text before a paragraph mark that was deleted, which goes on in the next paragraph
        self._counts: Counter[tuple[str, int]] = Counter()

    def document(self) -> Document:
        found = [(self._page, block) for block in self._blocks(self._document.element.body)]
        notes = [(self._page, Block(PARAGRAPH, text)) for text in self._notes()]
        blocks = [block for _, block in found + notes if block.text.strip()]
        if not self._paged:
            blocks = [Block(block.kind, block.text, None, block.level) for block in blocks]
        titled = any(block.kind == HEADING and not block.level for block in blocks)
        return Document(
            tuple(Block(b.kind, b.text, b.page, b.level + titled) if b.kind == HEADING else b for b in blocks)
        )

    def _within(self, parent) -> Iterator:
        """The elements of a parent, and in place of those of AROUND what they hold."""
        for element in parent:
            if element.tag in self._around:
                yield from self._within(element)
            else:
                yield element

    def _blocks(self, parent) -> Iterator[Block]:
        for element in self._within(parent):
            if element.tag == self._qn("w:p"):
                yield from self._paragraph(element)
            elif element.tag == self._qn("w:tbl"):
                yield from self._table(element)

    def _paragraph(self, element) -> Iterator[Block]:
        qn, self._begun = self._qn, None
        text, after = self._held + self._text(element), element.getnext()
        mark = element.find(f"{qn('w:pPr')}/{qn('w:rPr')}")
        deleted = mark is not None and any(mark.find(qn(name)) is not None for name in ("w:del", "w:moveFrom"))
        if deleted and after is not None and after.tag == qn("w:p"):
            self._held = text
            return
        self._held, text, page = "", text.strip(), self._begun or self._page
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
            elif tag in (qn("w:footnoteReference"), qn("w:endnoteReference")):
                letter = NOTES["endnotes" if tag == qn("w:endnoteReference") else "footnotes"]
                parts.append(f"[^{letter}{child.get(qn('w:id'))}]")
            elif tag == qn("w:r") and self._is_hidden(child):
                continue
            elif tag == qn("w:lastRenderedPageBreak"):
                self._page, self._paged = self._page + 1, True
            elif tag in (qn("w:br"), qn("w:cr")):
                parts.append("" if child.get(qn("w:type")) == "page" else "\n")
            elif tag == qn("w:txbxContent"):
                self._boxes.append(child)
            else:
                parts.append(self._text(child))
        return "".join(parts)

    def _is_hidden(self, run) -> bool:
        """Whether the text of a run is hidden."""
        hidden = run.find(f"{self._qn('w:rPr')}/{self._qn('w:vanish')}")
        return hidden is not None and hidden.get(self._qn("w:val"), "true") not in ("0", "false", "off")

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
        except (KeyError, NotImplementedError):  # python-docx, for a document that numbers no lists
            return None
        for number in numbering.iterfind(qn("w:num")):
            if number.get(qn("w:numId")) == name:
                abstract = number.find(qn("w:abstractNumId")).get(qn("w:val"))
                kind = f"{qn('w:abstractNum')}[@{qn('w:abstractNumId')}='{abstract}']"
                found = numbering.find(f"{kind}/{qn('w:lvl')}[@{qn('w:ilvl')}='{depth}']/{qn('w:numFmt')}")
                return None if found is None else found.get(qn("w:val"))
        return None

    def _table(self, element) -> Iterator[Block]:
        page, rows = self._page, self._rows(element)
        if rows and max(map(len, rows)) > 1:
            yield Block(TABLE, markdown_table(rows), page)
        else:
            yield from (Block(PARAGRAPH, row[0], page) for row in rows)

    def _rows(self, element) -> list[list[str]]:
        """The texts of the cells of a table, in rows that have any."""
        qn, rows = self._qn, []
        for row in self._within(element):
            if row.tag != qn("w:tr"):
                continue
            cells = [""] * self._number(row, "w:trPr/w:gridBefore", 0)
            for cell in self._within(row):
                if cell.tag != qn("w:tc"):
                    continue
                text = self._cell(cell)
                merge = cell.find(f"{qn('w:tcPr')}/{qn('w:vMerge')}")
                if merge is not None and merge.get(qn("w:val")) != "restart" and rows and len(cells) < len(rows[-1]):
                    text = rows[-1][len(cells)]
                cells += [text] + [""] * (self._number(cell, "w:tcPr/w:gridSpan", 1) - 1)
            rows.append(cells)
        return [row for row in rows if any(row)]

    def _number(self, element, path: str, default: int) -> int:
        """The number that a property of an element gives."""
        found = element.find("/".join(map(self._qn, path.split("/"))))
        return default if found is None else min(int(found.get(self._qn("w:val"))), MOST_COLUMNS)

    def _cell(self, cell) -> str:
        """The text of a cell: its paragraphs and text boxes, and the rows of tables within it, on lines."""
        lines = []
        for element in self._within(cell):
            if element.tag == self._qn("w:tbl"):
                lines += [", ".join(filter(None, row)) for row in self._rows(element)]
            elif element.tag == self._qn("w:p"):
                lines += [block.text for block in self._paragraph(element)]
        return "\n".join(lines)

    def _notes(self) -> Iterator[str]:
        """The footnotes and endnotes."""
        from docx.oxml import parse_xml

        for relation in self._document.part.rels.values():
            letter = NOTES.get(relation.reltype.rpartition("/")[2])
            for note in parse_xml(relation.target_part.blob) if letter is not None else ():
                if text := " ".join(block.text for block in self._blocks(note)):
                    yield f"[^{letter}{note.get(self._qn('w:id'))}]: {' '.join(text.split())}"
