"""Rows of a folder of documents: passages of text, and the records of its tables.

A table whose columns are those of a format, such as questions and answers, gives a record for each row. Other tables
become Markdown in passages. Every file is accounted for: read, left out with a reason, or an error that names it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ...data.columns import absent, check_columns, rename
from ...data.conversation_fields import FIELDS
from ...data.files import METADATA_FILE, utf8_name
from ...data.formats import FORMATS, parse
from ...errors import DataError, UserError, bad_record
from ...settings.leaves import Count, OneOf, Unset
from ..applying import RejectedRow
from ..rows import LANGUAGE, Row, id_of
from ..teachers.seeds import language_of
from .files import HEADING, READERS, TABLES, Block, check_kind, decode, hash_of, read_document
from .passages import Passage, passages_of
from .tables import Table, tables_of

TELL_ROWS = 100_000
"""Rows of a table that are read between two lines about how far it is; so many take about 5 s."""

READ = "read"
"""Name of the step that rejects files and rows of tables."""

REASONS = ("unreadable", "copy", "malformed")
"""Its reasons: a file that cannot be read, a copy of another file, a row of a table that is no record."""


@dataclass(frozen=True)
class Reading:
    """How a folder of documents is read."""

    passage: Count = 1200
    """Size of the largest passages in characters; a Chinese character counts as three."""

    columns: dict[str, str] = field(default_factory=dict)
    """Names of columns of tables under which they have fields of a format, such as {"instruction": "question"}."""

    encoding: Annotated[str | None, Unset("UTF-8")] = None
    """Encoding of text, CSV, TSV and HTML files."""

    on_error: Annotated[str, OneOf("raise", "skip")] = "raise"
    """What happens at a file, or a row of a table, that cannot be read: raise ends the command, skip rejects it."""

    def check(self, where: str) -> None:
        """Raises UserError for a map with unknown fields, and an unknown encoding."""
        decode(b"", self.encoding)
        check_columns(self.columns, FIELDS.union(*(each.fields for each in FORMATS.values())))


@dataclass
class FileReport:
    """What became of a file."""

    name: str
    """Its path below the folder."""

    passages: int = 0
    """Number of its passages."""

    records: int = 0
    """Number of records in its tables."""

    pages: int | None = None
    """Number of the last page with text; None if it has no pages."""

    notes: list[str] = field(default_factory=list)
    """What was left out of it, or why it was not read."""


@dataclass
class Documents:
    """What a folder holds."""

    passages: list[Row] = field(default_factory=list)
    """Rows of text, with the columns file, file_hash, heading, page, last_page, passage and language."""

    records: list[Row] = field(default_factory=list)
    """Rows of the records in tables, with the columns file, file_hash, sheet and language."""

    rejected: list[RejectedRow] = field(default_factory=list)
    """Files and rows of tables that could not be read, and copies of files."""

    files: list[FileReport] = field(default_factory=list)
    """What became of each file, in the order of their names."""


def read_documents(
    folder: Path, settings: Reading, source: str = "documents", tell: Callable[[str], None] = lambda line: None
) -> Documents:
    """Reads all documents below a folder, or one file.

    Args:
      folder: the folder or file. Hidden files and files about the data, such as README.md, are left out of a folder.
      settings: how it is read.
      source: name of the source, which is part of the rows' ids.
      tell: takes a line about how far a large table is read.

    Raises:
      UserError: there is no file; with on_error="raise", a file or a row that cannot be read; with on_error="skip",
        none can.
    """
    found, seen = Documents(), {}
    unseen, first = set(settings.columns.values()), {}  # columns that no table had so far, and the first table's
    for path in files_below(folder):
        name = utf8_name(path.relative_to(folder).as_posix() if folder.is_dir() else path.name)
        report = FileReport(name)
        found.files.append(report)
        try:
            check_kind(path)
            key = hash_of(path)
            if key in seen:
                report.notes.append(f"a copy of {seen[key]}")
                found.rejected.append(_rejected_file(source, name, key, "copy", seen[key]))
                continue
            seen[key] = name
            about = {"file": name, "file_hash": key}
            if path.suffix.lower() in TABLES:
                for table in tables_of(path, name, settings.encoding):
                    unseen, first = unseen - table.header.keys(), first or table.header
                    _add_table(found, report, table, about, settings, source, tell)
            else:
                document = read_document(path, settings.encoding)
                report.notes += document.notes
                report.pages = max((block.page for block in document.blocks if block.page), default=None)
                _add_passages(found, report, passages_of(document.blocks, settings.passage), about, source)
            if not report.passages and not report.records:
                raise ValueError("it holds no text" if not report.notes else report.notes[-1])
        except ValueError as problem:
            if isinstance(problem, UserError):  # such as a package that is missing
                raise
            if settings.on_error == "raise":
                raise DataError(
                    f"{path}: {problem}", "on_error=skip", "leaves such files out and lists them"
                ) from problem
            report.notes.append(str(problem))
            found.rejected.append(_rejected_file(source, name, "", "unreadable", str(problem)))
    if unseen and first:
        raise UserError(f"--columns: {absent({'': min(unseen)}, first)}")
    if not found.passages and not found.records:
        raise UserError(f"{folder}: none of {len(found.files)} files could be read: {found.files[0].notes[-1]}")
    return found


def files_below(folder: Path) -> list[Path]:
    """The files below a folder, or a file itself. Raises UserError if there is none."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder or file")
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith((".", "~$")) for part in path.relative_to(folder).parts)
        and not METADATA_FILE.fullmatch(path.name)
    ]
    if not found:
        raise UserError(f"{folder}: no files in this folder; give one with {', '.join([*READERS, *TABLES])}")
    return found


def _rejected_file(source: str, name: str, key: str, reason: str, detail: str) -> RejectedRow:
    raw = {"file": name, "file_hash": key}
    return RejectedRow(Row(id_of(source, raw), raw, source, name), READ, reason, detail)


def _add_passages(found: Documents, report: FileReport, passages: list[Passage], about: dict, source: str) -> None:
    for number, passage in enumerate(passages, 1):
        pages = {name: page for name in ("page", "last_page") if (page := getattr(passage, name)) is not None}
        columns = {**about, "passage": number, "heading": list(passage.headings), **pages}
        columns[LANGUAGE] = language_of(passage.text) or "unknown"
        record = {"kind": "text", "text": passage.text}
        where = f"{about['file']}, page {passage.page}" if passage.page else f"{about['file']}, passage {number}"
        found.passages.append(
            Row(id_of(source, {**about, **record, "passage": number}), record, source, where, columns)
        )
    report.passages += len(passages)


def _add_table(
    found: Documents,
    report: FileReport,
    table: Table,
    about: dict,
    settings: Reading,
    source: str,
    tell: Callable[[str], None],
) -> None:
    """Adds a table as records, if its columns are those of a format, else as passages. Bad rows are rejected."""
    about = {**about, **({"sheet": table.name} if table.name else {})}
    columns = settings.columns if set(settings.columns.values()) <= table.header.keys() else {}
    is_records = any(_fits(raw, columns) for _, raw in table.records())
    if not is_records:
        heading = [Block(HEADING, table.name, level=1)] if table.name else []
        if blocks := table.blocks():
            _add_passages(found, report, passages_of([*heading, *blocks], settings.passage), about, source)
            if len(table.header) > 1 and not settings.columns:
                report.notes.append(_note_of(table))
        elif not table.records():
            report.notes.append(f"{f'sheet {table.name}: ' if table.name else ''}a header without rows")
    for number, (place, raw) in enumerate(table.records(), 1):
        if is_records and number % TELL_ROWS == 0:
            tell(f"{about['file']}: {number:,} of {len(table.records()):,} rows read")
        if not is_records and isinstance(raw, dict):
            continue
        given = raw if isinstance(raw, dict) else {}
        row = Row(id_of(source, {**about, "row": number, "raw": given}), given, source, place, about)
        try:
            record = _record(raw, columns)
        except ValueError as problem:
            if settings.on_error == "raise":
                raise bad_record(f"{place}: {problem}") from problem
            found.rejected.append(RejectedRow(row, READ, "malformed", str(problem)))
            continue
        row = row.with_(record, **{LANGUAGE: language_of(" ".join(given.values())) or "unknown"})
        (found.passages if record["kind"] == "text" else found.records).append(row)
        report.records += 1


def _note_of(table: Table) -> str:
    """What tells the reader of a table that became text how it would become records."""
    names = list(table.header)
    columns = json.dumps(dict(zip(("instruction", "output"), names, strict=False)), ensure_ascii=False)
    sheet = f"sheet {table.name}: " if table.name else ""
    what = f"{sheet}read as text, as no format has the columns {', '.join(names[:8])}{', ...' if names[8:] else ''}"
    return f"{what}; if they are questions and answers, give --columns='{columns}'"


def _fits(raw: dict | ValueError, columns: dict[str, str]) -> bool:
    """Whether a row of a table is a record."""
    try:
        _record(raw, columns)
    except ValueError:
        return False
    return True


def _record(raw: dict | ValueError, columns: dict[str, str]) -> dict:
    """The record in a row of a table. Raises ValueError as `formats.parse` does."""
    if isinstance(raw, ValueError):
        raise raw
    try:
        return parse(rename(raw, columns))
    except ValueError as problem:
        clause = absent(columns, raw)
        raise ValueError(f"{problem}: {clause}" if clause else str(problem)) from None
