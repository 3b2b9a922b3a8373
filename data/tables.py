"""Records in the rows of a table, from CSV, TSV or a worksheet: a header names the fields, and each row is a record.

Tables of office programs are taken as they are: blank rows, a title above the header, any of four delimiters, a byte
order mark, cells of several lines. An empty cell is a field that the record does not have.
"""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .json_values import TooLarge

DELIMITERS = ",;\t|"
"""What may stand between two cells. Which of them it is, the first lines of a file decide."""

HEADER_WITHIN = 20
"""The header is looked for among so many rows, blank ones aside."""

SAMPLE_LINES = 200
"""Lines of a file that decide its delimiter."""

CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x7f]")
"""Control characters that no text has: those of ASCII but for white space and escape, with which terminals colour."""

ENCODING_ADVICE = (
    "save the file as CSV UTF-8; for one of Excel on a Chinese system, iconv -f GB18030 -t UTF-8 FILE converts it"
)

Line = tuple[int, str | ValueError]
Cells = tuple[str, list[str] | ValueError]


def csv_rows(lines: Iterable[Line], where: str, limit: int, delimiter: str | None = None) -> Iterator[tuple]:
    """Pairs (place, record) of a file with a row of cells in each line.

    Args:
      lines: the lines with their numbers, each with its newline, or a ValueError for one that cannot be read.
      where: name of the file, for places.
      limit: the most characters of a row.
      delimiter: what stands between two cells; None: the one of DELIMITERS that gives the most regular rows.
    """
    return table_records(csv_cells(lines, where, limit, delimiter))


class TableParts(NamedTuple):
    """A table, taken apart."""

    above: list[Cells]
    """The rows above the header: titles, and rows that cannot be read."""

    header: list[str]
    """The cells of the header; [] if no row can be read."""

    names: list[str]
    """The names of the fields, each another one, as many as the header has cells."""

    records: Iterator[tuple[str, dict[str, str] | ValueError]]
    """Pairs (place, record) of the rows below the header, which are made as they are asked for."""


def split_table(rows: Iterable[Cells]) -> TableParts:
    """The parts of a table. rows: the cells of each row, as text, with the place of the row. Blank rows are left out.

    The header is the first row with at least two filled cells and half as many as the fullest of the first rows. A
    second field of one name is called "name (2)", and one without a name "column 3". A row with more cells than the
    header is an error, since its delimiter probably stands in a text.
    """
    rows = ((place, cells) for place, cells in rows if isinstance(cells, ValueError) or any(map(str.strip, cells)))
    first, counts = [], []
    for place, cells in rows:
        first.append((place, cells))
        counts.append(0 if isinstance(cells, ValueError) else sum(map(bool, map(str.strip, cells))))
        if sum(map(bool, counts)) == HEADER_WITHIN:
            break
    most = max(counts, default=0)
    enough = max(min(2, most), most / 2, 1)
    at = next((number for number, count in enumerate(counts) if count >= enough), len(first))
    header = first[at][1] if at < len(first) else []
    names = _names(header)
    records = (
        (place, cells if isinstance(cells, ValueError) else _record(names, cells))
        for place, cells in itertools.chain(first[at + 1 :], rows)
    )
    return TableParts(first[:at], header, names, records)


def table_records(rows: Iterable[Cells]) -> Iterator[tuple]:
    """Pairs (place, record) of a table (`split_table`), with an error for each row that cannot be read. The titles
    above the header are left out."""
    parts = split_table(rows)
    yield from (row for row in parts.above if isinstance(row[1], ValueError))
    yield from parts.records


def _names(cells: list[str]) -> list[str]:
    """The names of the fields, each another one."""
    names = [" ".join(cell.split()) or f"column {number}" for number, cell in enumerate(cells, 1)]
    found: Counter[str] = Counter()
    for number, name in enumerate(names):
        found[name] += 1
        if found[name] > 1:
            names[number] = f"{name} ({found[name]})"
    return names


def _record(names: list[str], cells: list[str]) -> dict[str, str] | ValueError:
    if any(map(str.strip, cells[len(names) :])):
        more = (
            f"the row has {len(cells)} cells and the header {len(names)}: put cells that hold the delimiter in quotes"
        )
        return ValueError(more)
    return {name: cell.strip() for name, cell in zip(names, cells, strict=False) if cell.strip()}


class _Feed:
    """The lines of a file for `csv.reader`; it knows where a row began, and goes on after a bad line."""

    def __init__(self, lines: Iterator[Line]):
        self._lines, self.begin = lines, None

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        self.begin = number if self.begin is None else self.begin
        if isinstance(line, ValueError):
            raise line
        return line


def csv_cells(lines: Iterable[Line], where: str, limit: int, delimiter: str | None = None) -> Iterator[Cells]:
    """The cells of each row of a file, with the place where the row begins. Arguments are those of `csv_rows`."""
    lines = iter(lines)
    sample = list(itertools.islice(lines, SAMPLE_LINES))
    texts = [line for _, line in sample if isinstance(line, str)]
    if texts and (said := re.fullmatch(r'"?sep=(.)"?\s*', texts[0], re.IGNORECASE)):  # Excel's own first line
        delimiter = said[1]
        sample = [line for line in sample if line[1] is not texts[0]]
    csv.field_size_limit(min(limit, 2**31 - 1))  # the module's own limit is 131,072 characters
    feed = _Feed(itertools.chain(sample, lines))
    reader = csv.reader(feed, delimiter=delimiter or _delimiter_of(texts), strict=True)
    while True:
        feed.begin, cells = None, None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:
            cells = _explained(problem, limit)
        except ValueError as problem:
            advice = f"; {ENCODING_ADVICE}" if "UTF-8" in str(problem) else ""
            cells = problem if isinstance(problem, TooLarge) else ValueError(f"{problem}{advice}")
        if not isinstance(cells, ValueError):
            cells = _checked(cells, limit)
        yield f"{where}:{feed.begin}", cells


def _checked(cells: list[str], limit: int) -> list[str] | ValueError:
    """The cells of a row, or why they cannot be text."""
    row = "".join(cells)
    if len(row) > limit:
        return TooLarge(f"a row of more than {limit:,} characters")
    if bad := CONTROL.search(row):
        return ValueError(f"the row has the control character U+{ord(bad[0]):04X}, which no text has: take it out")
    return cells


def _explained(problem: csv.Error, limit: int) -> ValueError:
    if "field limit" in str(problem):
        return TooLarge(f"a cell of more than {limit:,} characters; perhaps a quotation mark is not closed")
    if "unexpected end" in str(problem):
        return ValueError("a quotation mark at the beginning of a cell is not closed before the file ends")
    if "expected after" in str(problem):
        return ValueError("a quoted cell goes on behind its last quotation mark: write those within the cell twice")
    return ValueError(f"no row of a table: {problem}")


def _delimiter_of(lines: list[str]) -> str:
    """The delimiter with which the largest share of rows has the same number of cells, and at least two."""

    def regularity(delimiter: str) -> tuple[float, int]:
        try:
            widths = [len(cells) for cells in csv.reader(lines, delimiter=delimiter) if any(cells)]
        except csv.Error:
            return 0.0, 0
        most = Counter(width for width in widths if width > 1).most_common(1)
        return (most[0][1] / len(widths), most[0][0]) if most else (0.0, 0)

    return max(DELIMITERS, key=regularity)
