"""The layout of a page of a PDF: pieces of lines from characters, rows and columns, paragraphs and tables."""

import ctypes
import itertools
import re
import statistics
from collections import Counter
from dataclasses import dataclass, field

from .text import CJK, width_of

GAP = 1.4
"""A line is cut where two characters are so many times their height apart: at a gutter, or between cells."""

COLUMN_LINES = 4
"""The fewest lines of a column of text."""

FILL = 0.5
"""Lines of a column of text fill this share of its width, in the median."""

COLUMN_WIDTH = 20
"""The fewest letters of a line in a column of text, in the median; a Chinese character counts as two."""

LIST_ITEM = re.compile(r"(?:[•●○▪■◆–*·-]|\(?\d{1,2}[.)、）]|[（(][一二三四五六七八九十]+[）)])\s*\S")
WORD = r"[^\W_]+(?:-[^\W_]+)*"
"""A word, or several with hyphens between them, for a regex."""

COMPOUNDS = ("self", "well")
"""First words of compounds, which keep their hyphen at the end of a line if the document does not tell."""

HYPHENS = "\u00ad\x02\ufffe"
"""Hyphens at the end of a line, as pypdfium2 gives them. The first is in the file for this end alone."""


@dataclass(frozen=True)
class Line:
    """A piece of a line: characters without a gap. Coordinates are in points, from the lower left corner."""

    text: str
    left: float
    right: float
    bottom: float
    top: float
    bold: bool = False

    @property
    def size(self) -> float:
        """Height of its letters with their ascenders and descenders."""
        return self.top - self.bottom


@dataclass
class Row:
    """Pieces of lines at one height."""

    cells: list[Line]
    columns: list[tuple[float, float]] = field(default_factory=list)
    """Left and right ends of the columns of its table."""

    def texts(self) -> list[str]:
        """The texts of the row in each column of its table."""
        found = [""] * len(self.columns)
        for cell in self.cells:
            place = next(i for i, (left, right) in enumerate(self.columns) if left <= cell.left <= right)
            found[place] = f"{found[place]} {cell.text}".strip()
        return found

    @property
    def left(self) -> float:
        return min(cell.left for cell in self.cells)

    @property
    def right(self) -> float:
        return max(cell.right for cell in self.cells)

    @property
    def bottom(self) -> float:
        return min(cell.bottom for cell in self.cells)

    @property
    def top(self) -> float:
        return max(cell.top for cell in self.cells)


def read_lines(textpage) -> tuple[list[Line], bool, float]:
    """The pieces of lines of a page in the order of the file, whether it has text that is not upright, and the share of
    characters without a meaning."""
    from pypdfium2 import raw

    box, angle = raw.FS_RECTF(), 0.0
    lines, current, text, turned, unknown, total, bold = [], [], "", False, 0, 0, False

    def finish() -> None:
        nonlocal current, text
        if current and text.strip():
            words = re.sub(r"\s+", " ", text.strip())
            edges = [min(b[0] for b in current), max(b[1] for b in current)]
            heights = Counter((round(b[2], 1), round(b[3], 1)) for b in current).most_common(1)[0][0]
            lines.append(Line(words, *edges, *heights, bold))
        current, text = [], ""

    for index in range(raw.FPDFText_CountChars(textpage)):
        code = raw.FPDFText_GetUnicode(textpage, index)
        character = chr(code) if code < 0x110000 else "\ufffd"
        if raw.FPDFText_IsGenerated(textpage, index) == 1 and character in "\r\n":
            finish()
            continue
        if character.isspace() or code == 0:
            text += " " if current else ""
            continue
        angle = raw.FPDFText_GetCharAngle(textpage, index)
        if min(abs(angle), abs(angle - 6.2832)) > 0.1:
            turned = True
            continue
        raw.FPDFText_GetLooseCharBox(textpage, index, ctypes.byref(box))
        here = (box.left, box.right, box.bottom, box.top)
        total += 1
        unknown += character == "\ufffd" or "\ue000" <= character <= "\uf8ff"
        if current and not _adjoins(current[-1], here):
            finish()
        if not current:
            bold = _is_bold(textpage, index)
        current.append(here)
        text += character
    finish()
    return lines, turned, unknown / max(total, 1)


def read_fields(page, size: float) -> list[Line]:
    """The values of form fields of a page as lines where the page shows them: text, choices, and [x] for a mark.

    Args:
      page: a page of a document whose forms are initialised.
      size: the height of the lines in points.
    """
    from pypdfium2 import raw

    lines, box = [], raw.FS_RECTF()
    for index in range(raw.FPDFPage_GetAnnotCount(page)):
        field = raw.FPDFPage_GetAnnot(page, index)
        shown = not raw.FPDFAnnot_GetFlags(field) & (raw.FPDF_ANNOT_FLAG_HIDDEN | raw.FPDF_ANNOT_FLAG_NOVIEW)
        is_field = shown and raw.FPDFAnnot_GetSubtype(field) == raw.FPDF_ANNOT_WIDGET
        if is_field and raw.FPDFAnnot_GetRect(field, ctypes.byref(box)):
            kind = raw.FPDFAnnot_GetFormFieldType(page.formenv, field)
            value = ""
            if kind in (raw.FPDF_FORMFIELD_TEXTFIELD, raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX):
                value = " ".join(_value(page.formenv, field).split())
            elif kind in (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON):
                value = "[x]" if raw.FPDFAnnot_IsChecked(page.formenv, field) else ""
            bottom = (box.bottom + box.top - size) / 2
            lines += [Line(value, box.left, box.right, bottom, bottom + size)] if value else []
        raw.FPDFPage_CloseAnnot(field)
    return lines


def _value(forms, field) -> str:
    """The value of a form field."""
    from pypdfium2 import raw

    size = raw.FPDFAnnot_GetFormFieldValue(forms, field, None, 0)
    buffer = ctypes.create_string_buffer(size)
    raw.FPDFAnnot_GetFormFieldValue(forms, field, ctypes.cast(buffer, ctypes.POINTER(raw.FPDF_WCHAR)), size)
    return buffer.raw.decode("utf-16-le", "replace").rstrip("\0")


def _adjoins(before: tuple, here: tuple) -> bool:
    """Whether a character follows another in one piece of a line. Boxes are (left, right, bottom, top)."""
    height = max(before[3] - before[2], here[3] - here[2], 1.0)
    apart = abs((before[2] + before[3]) - (here[2] + here[3])) / 2
    return apart < 0.6 * height and -height < here[0] - before[1] < GAP * height


def _is_bold(textpage, index: int) -> bool:
    from pypdfium2 import raw

    name, flags = ctypes.create_string_buffer(128), ctypes.c_int()
    raw.FPDFText_GetFontInfo(textpage, index, name, 128, ctypes.byref(flags))
    return bool(re.search(rb"bold|black|heavy|cmbx|simhei", name.value, re.IGNORECASE)) or bool(flags.value & 1 << 18)


def blocks_of_page(lines: list[Line]) -> list[list[Row]]:
    """Rows that belong together, a paragraph, a heading or a table, in the order of reading."""
    return [block for column in _columns(lines) for block in _blocks(_rows(column))]


def _columns(lines: list[Line]) -> list[list[Line]]:
    """The lines of each column of text, in the order of reading; lines that cross a gutter part columns above from
    columns below."""
    if len(lines) < 2 * COLUMN_LINES:
        return [lines] if lines else []
    left, right = min(line.left for line in lines), max(line.right for line in lines)
    inner = {line.left - 1 for line in lines if 0.25 < (line.left - left) / (right - left + 1) < 0.75}
    found = [(_bands(lines, gutter), gutter) for gutter in sorted(inner)]
    found = [(sum(len(band) for band, columns in bands if columns), bands, gutter) for bands, gutter in found]
    if not any(count for count, _, _ in found):
        return [lines]
    _, bands, gutter = max(found, key=lambda each: each[0])
    parts: list[list[Line]] = [[]]
    for band, columns in bands:
        if columns:
            sides = [line for line in band if line.right <= gutter], [line for line in band if line.left >= gutter]
            parts += [part for side in sides for part in _columns(side)] + [[]]
        else:
            parts[-1] += band
    return [part for part in parts if part]


def _bands(lines: list[Line], gutter: float) -> list[tuple[list[Line], bool]]:
    """The lines from top to bottom in bands, and whether a band is two columns of text with a gutter between them.

    In one of the bands several lines stand on either side, and fill their column.
    """
    bands: list[list[Line]] = []
    before = None
    for line in sorted(lines, key=lambda line: -line.top):
        crosses = line.left < gutter < line.right
        if crosses != before:
            bands.append([])
        bands[-1].append(line)
        before = crosses

    def columns(band: list[Line], least: int) -> bool:
        sides = [line for line in band if line.right <= gutter], [line for line in band if line.left >= gutter]
        return min(map(len, sides)) >= least and sum(map(len, sides)) == len(band) and all(map(_is_text, sides))

    sure = any(columns(band, COLUMN_LINES) for band in bands)
    return [(band, sure and columns(band, 2)) for band in bands]


def _is_text(lines: list[Line]) -> bool:
    """Whether lines are a column of text: their rows fill its width, and have more words than cells of a table."""
    width = max(line.right for line in lines) - min(line.left for line in lines)
    rows = _rows(lines)
    columns = statistics.median(sum(width_of(cell.text) for cell in row.cells) for row in rows)
    return statistics.median(row.right - row.left for row in rows) >= FILL * width and columns >= COLUMN_WIDTH


def _rows(lines: list[Line]) -> list[Row]:
    """The lines of a column by height, from top to bottom; pieces at one height from left to right."""
    rows: list[Row] = []
    for line in sorted(lines, key=lambda line: -(line.top + line.bottom)):
        if rows and min(line.top, rows[-1].top) - max(line.bottom, rows[-1].bottom) > 0.5 * min(
            line.size, rows[-1].top - rows[-1].bottom
        ):
            rows[-1].cells.append(line)
        else:
            rows.append(Row([line]))
    for row in rows:
        row.cells.sort(key=lambda cell: cell.left)
    return rows


def _blocks(rows: list[Row]) -> list[list[Row]]:
    """Paragraphs, headings and tables of a column."""
    blocks: list[list[Row]] = []
    gaps = [a.bottom - b.top for a, b in itertools.pairwise(rows)]
    leading = statistics.median(gaps) if gaps else 0.0
    edges = min((row.left for row in rows), default=0), max((row.right for row in rows), default=0)
    place = 0
    while place < len(rows):
        if (table := _table(rows[place:])) is not None:
            blocks.append(table[0])
            place += table[1]
            continue
        row = rows[place]
        if len(row.cells) > 1:
            row = Row([_joined(row.cells)])
        if blocks and len(blocks[-1][0].columns) == 0 and _goes_on(blocks[-1], row, leading, edges):
            blocks[-1].append(row)
        else:
            blocks.append([row])
        place += 1
    return blocks


def _joined(cells: list[Line]) -> Line:
    first, last = cells[0], cells[-1]
    text = "  ".join(cell.text for cell in cells)
    return Line(text, first.left, last.right, first.bottom, first.top, first.bold)


def _goes_on(block: list[Row], row: Row, leading: float, edges: tuple[float, float]) -> bool:
    """Whether a row goes on with a paragraph."""
    last, line = block[-1], row.cells[0]
    before, size, width = last.cells[0], row.top - row.bottom, edges[1] - edges[0]
    if abs(before.size - line.size) > 0.08 * size or LIST_ITEM.match(line.text):
        return False
    if last.bottom - row.top > max(leading, 0) * 1.35 + 0.15 * size:
        return False
    if before.bold != line.bold and (before.bold and len(block) <= 2 and before.right < edges[1] - 0.1 * width):
        return False
    indented = row.left > edges[0] + 0.8 * size and abs(last.left - edges[0]) < 0.5 * size
    if indented and not LIST_ITEM.match(block[0].cells[0].text):
        return False
    return last.right > edges[1] - 0.3 * width or not re.search(r"[.!?。！？:：][\"'”’）)」』]*$", before.text)


def _table(rows: list[Row]) -> tuple[list[Row], int] | None:
    """A table at the beginning of rows, and how many of them it takes; None if there is none.

    It has at least three rows of several cells whose columns are apart. A row of one cell in another column than the
    first goes on with the cell above it.
    """
    taken, columns, whole = 0, [], 0
    for row in rows:
        merged = _merge([*columns, *((cell.left, cell.right) for cell in row.cells)])
        several = len(row.cells) > 1
        if several and (not columns or (len(merged) >= len(columns) and len(merged) > 1)):
            columns, whole = merged, whole + 1
        elif not (columns and not several and len(merged) == len(columns) and row.left > columns[0][1]):
            break
        taken += 1
    if whole < 3 or len(columns) < 2:
        return None
    table: list[Row] = []
    for row in rows[:taken]:
        if len(row.cells) == 1 and table:
            table[-1].cells.append(row.cells[0])
        else:
            table.append(Row(list(row.cells), columns))
    return table, taken


def _merge(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The unions of overlapping spans, from left to right."""
    merged: list[tuple[float, float]] = []
    for left, right in sorted(spans):
        if merged and left <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(right, merged[-1][1])
        else:
            merged.append((left, right))
    return merged


def join_lines(lines: list[str], words: Counter) -> str:
    """One text of the lines of a paragraph: a space between words, none between Chinese characters.

    A word that a hyphen cuts at the end of a line is made whole. The hyphen stays if the document has the word with it
    more often than without it. If it has neither, the hyphen stays behind a compound, one of COMPOUNDS, and a single
    letter, since no word is cut there (TeX's \\lefthyphenmin is 2).

    Args:
      lines: the lines.
      words: how often the document has each word, in small letters (WORD).
    """
    text = ""
    for line in map(str.strip, lines):
        hyphen = re.search(rf"({WORD})([-‐{HYPHENS}])$", text)
        rest = re.match(WORD, line)
        if hyphen and rest:
            first, second = hyphen[1].lower(), rest[0].lower()
            proper = not (hyphen[1][-1].isalpha() and rest[0].partition("-")[0].isalpha() and rest[0][0].islower())
            with_it, whole = words[f"{first}-{second}"], words[first + second]
            compound = "-" in first or len(first) == 1 or first in COMPOUNDS
            keep = hyphen[2] != "\u00ad" and (proper or with_it > whole or (compound and with_it == whole))
            text = text[:-1] + ("-" if keep else "") + line
        elif not text or (re.search(f"[{CJK}]$", text) and re.match(f"[{CJK}]", line)):
            text += line
        else:
            text += f" {line}"
    return re.sub(f"[{HYPHENS}]", "-", text)
