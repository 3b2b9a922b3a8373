"""Tables of files (.csv, .tsv, .xlsx): as records under their header, or as Markdown.

Cells of a workbook are read as they are shown (`number_formats.py`), formulas by the value that the program stored,
cells merged over rows in each of these rows. Hidden sheets and rows are left out.
"""

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...data.json_values import MAX_RECORD_BYTES
from ...data.tables import TableParts, csv_cells, split_table
from ...errors import UserError
from .files import PARAGRAPH, TABLE, Block, decode, markdown_table
from .number_formats import shown_value
from .office import check_package

Cells = tuple[str, list[str] | ValueError]
Record = tuple[str, dict[str, str] | ValueError]


@dataclass(frozen=True)
class Table:
    """A sheet of a workbook, or a file of rows."""

    name: str
    """Name of the sheet; "" for a file of rows."""

    rows: tuple[Cells, ...]
    """The cells of each row as text, with the place of the row; a ValueError for a row that cannot be read."""

    @functools.cached_property
    def parts(self) -> tuple[TableParts, list[Record]]:
        """The parts of the table, and the records below its header (`data/tables.py`)."""
        parts = split_table(self.rows)
        return parts, list(parts.records)

    @functools.cached_property
    def header(self) -> dict[str, None]:
        """The names of the columns that have a value in any row, in their order."""
        parts, records = self.parts
        used = set().union(*(record for _, record in records if isinstance(record, dict)))
        return dict.fromkeys(name for name in parts.names if name in used)

    def records(self) -> list[Record]:
        """Pairs (place, record) of the rows under the header, with an error for each row that cannot be read."""
        parts, records = self.parts
        bad = [row for row in parts.above if isinstance(row[1], ValueError)]
        return bad + records if bad else records

    def blocks(self) -> list[Block]:
        """The table as text: its titles, and a Markdown table from the header on. A table of one column is paragraphs.

        A header without rows gives no block. Rows that cannot be read are left out.
        """
        parts, records = self.parts
        texts = [" ".join(filter(None, map(str.strip, cells))) for _, cells in parts.above if isinstance(cells, list)]
        named = dict.fromkeys(name for name, cell in zip(parts.names, parts.header, strict=True) if cell.strip())
        columns = [name for name in parts.names if name in named or name in self.header]
        rows = [record for _, record in records if isinstance(record, dict)]
        if len(columns) == 1:
            texts += [cell.strip() for cell in parts.header if cell.strip()]
            texts += [text for record in rows for text in record.values()]
        blocks = [Block(PARAGRAPH, text) for text in texts]
        if len(columns) > 1 and rows:
            table = [columns, *([record.get(name, "") for name in columns] for record in rows)]
            blocks.append(Block(TABLE, markdown_table(table)))
        return blocks


def tables_of(path: Path, name: str, encoding: str | None = None, limit: int = MAX_RECORD_BYTES) -> list[Table]:
    """The tables of a file that are not empty.

    Args:
      path: the file.
      name: its name for places, such as "faq.xlsx".
      encoding: encoding of .csv and .tsv; None: UTF-8.
      limit: the most characters of a row.

    Raises:
      ValueError: the file is damaged or encrypted; the reason on one line.
      UserError: a package is not installed.
    """
    if path.suffix.lower() == ".xlsx":
        tables = list(_sheets(path, name))
    else:
        lines = enumerate(io.StringIO(decode(path.read_bytes(), encoding, text=False), newline="\n"), 1)
        tables = [Table("", tuple(csv_cells(lines, name, limit, "\t" if path.suffix.lower() == ".tsv" else None)))]
    return [table for table in tables if any(isinstance(cells, ValueError) or any(cells) for _, cells in table.rows)]


def _sheets(path: Path, name: str) -> Iterator[Table]:
    try:
        import openpyxl
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading it needs {error.name}: pip install 'camelid[curate]'") from None
    check_package(path, ".xlsx")
    try:
        values, formulas = (openpyxl.load_workbook(path, data_only=stored) for stored in (True, False))
    except (KeyError, ValueError, TypeError, SyntaxError, AttributeError) as error:  # of openpyxl on wrong parts
        raise ValueError(f"it is damaged, or no .xlsx: {' '.join(str(error).split())[:200]}") from None
    for sheet in values.worksheets:
        if sheet.sheet_state == "visible":
            rows = _rows(
                sheet, formulas[sheet.title], name if len(values.worksheets) == 1 else f"{name}, {sheet.title}"
            )
            yield Table(sheet.title, tuple(rows))


def _rows(sheet, formulas, name: str) -> Iterator[Cells]:
    """The cells of each visible row."""
    above = {}  # the cell whose value a merged one shows, for the first column of merged ranges
    for merged in sheet.merged_cells.ranges:
        for row in range(merged.min_row + 1, merged.max_row + 1):
            above[row, merged.min_col] = sheet.cell(merged.min_row, merged.min_col)
    for row in sheet.iter_rows():
        number = row[0].row
        if sheet.row_dimensions[number].hidden:
            continue
        cells: list[str] | ValueError = []
        for cell in row:
            cell = above.get((number, cell.column), cell)
            if cell.value is None and formulas[cell.coordinate].data_type == "f":
                cells = ValueError(
                    f"cell {cell.coordinate} has a formula without a stored value: open and save the file in a "
                    "program that computes it"
                )
                break
            if cell.data_type == "e":
                cells = ValueError(f"cell {cell.coordinate} shows the error {cell.value}: mend its formula")
                break
            cells.append(shown_value(cell.value, cell.number_format or "General"))
        yield f"{name}, row {number}", cells
