"""One's own documents as blocks of Markdown: headings, paragraphs, tables, each with its page.

`read_document` reads a PDF, DOCX, HTML, Markdown or text file. What cannot be read is an error of one line that names
the file: nothing is silently empty. `passages.py` makes passages of the blocks.
"""

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...data.tables import CONTROL
from ...errors import UserError

HEADING, PARAGRAPH, TABLE, VERBATIM = "heading", "paragraph", "table", "verbatim"


@dataclass(frozen=True)
class Block:
    """A piece of a document in the order of reading."""

    kind: Literal["heading", "paragraph", "table", "verbatim"]
    """What it is. Only a paragraph may be cut, between sentences, and a long table, between rows."""

    text: str
    """Its Markdown; of a heading, its words alone."""

    page: int | None = None
    """The page that it begins on, from 1; None if the document has no pages."""

    level: int = 0
    """Level of a heading, from 1; 0 for other kinds."""


@dataclass(frozen=True)
class Document:
    """What a file holds."""

    blocks: tuple[Block, ...]
    """Its blocks in the order of reading."""

    notes: tuple[str, ...] = ()
    """What was left out on purpose or could not be read, such as "pages 3, 4: pictures without text"."""


READERS = {
    ".pdf": ("pdf", "read_pdf"),
    ".docx": ("office", "read_docx"),
    ".html": ("html", "read_html"),
    ".htm": ("html", "read_html"),
    ".md": ("text", "read_markdown"),
    ".markdown": ("text", "read_markdown"),
    ".txt": ("text", "read_text"),
}
"""The module of this folder and the function that reads each kind of file: function(path, encoding) -> Document."""

TABLES = (".csv", ".tsv", ".xlsx")
"""Files of tables, which `tables.py` reads."""

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".webp")
OLD_OFFICE = {".doc": ".docx", ".xls": ".xlsx", ".ppt": ".pdf", ".pptx": ".pdf", ".odt": ".docx", ".ods": ".xlsx"}
OLD_OFFICE |= {".rtf": ".docx", ".pages": ".docx", ".numbers": ".xlsx", ".epub": ".html", ".wps": ".docx"}


def read_document(path: Path, encoding: str | None = None) -> Document:
    """The blocks of a file.

    Args:
      path: the file.
      encoding: encoding of text and HTML; None: UTF-8, or what an HTML file says.

    Raises:
      ValueError: the file is empty, damaged, encrypted, of another kind, or has no text; the reason on one line.
      UserError: a package that reads such files is not installed.
    """
    check_kind(path)
    module, name = READERS[path.suffix.lower()]
    try:
        document = getattr(importlib.import_module(f".{module}", __package__), name)(path, encoding)
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading it needs {error.name}: pip install 'camelid[curate]'") from None
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror or error}") from None
    if not any(block.kind != HEADING and block.text.strip() for block in document.blocks):
        raise ValueError("it holds no text" if not document.blocks else "it holds headings alone, and no text")
    return document


def check_kind(path: Path) -> None:
    """Raises ValueError if a file is of no kind that is read, or empty."""
    suffix = path.suffix.lower()
    if suffix in IMAGES:
        raise ValueError("it is a picture: make a PDF with a text layer of it by OCR (such as ocrmypdf)")
    if suffix in OLD_OFFICE:
        raise ValueError(f"{suffix} is not read: save it as {OLD_OFFICE[suffix]}")
    if suffix not in READERS and suffix not in TABLES:
        raise ValueError(f"this kind of file is not read; give {', '.join([*READERS, *TABLES])}")
    if not path.stat().st_size:
        raise ValueError("it is empty (0 bytes)")


def hash_of(path: Path) -> str:
    """A hash of a file's content, BLAKE2b in 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def decode(content: bytes, encoding: str | None, *, text: bool = True) -> str:
    """The characters of a file, with "\\n" at the ends of lines.

    Args:
      content: the bytes.
      encoding: name of their encoding; None is UTF-8, or UTF-16 with a byte order mark.
      text: whether control characters are refused.

    Raises:
      ValueError: the bytes are of another encoding, or no text; with advice.
      UserError: there is no such encoding.
    """
    marked = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        characters = content.decode(encoding or ("utf-16" if marked else "utf-8-sig"))
    except LookupError:
        raise UserError(f"--encoding={encoding}: there is no such encoding; gb18030 and cp1252 are two") from None
    except UnicodeDecodeError as error:
        name = error.encoding.upper()
        advice = "--encoding=gb18030 reads files of Chinese systems; or save it as UTF-8"
        raise ValueError(f"it is not {name} at byte {error.start + 1:,} ({advice})") from None
    if text and (bad := CONTROL.search(characters)):
        where = f"character {bad.start() + 1:,} is the control character U+{ord(bad[0]):04X}"
        raise ValueError(f"it is no text: {where}, which no text has")
    return characters.replace("\r\n", "\n").replace("\r", "\n")


def markdown_table(rows: list[list[str]]) -> str:
    """A Markdown table whose header is the first row. Line breaks in cells become <br>, and | is escaped."""
    width = max(map(len, rows))
    cells = [[*(_cell(cell) for cell in row), *[""] * (width - len(row))] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"|{' --- |' * width}", *lines[1:]])


def _cell(text: str) -> str:
    return "<br>".join(" ".join(line.split()) for line in text.strip().split("\n") if line.strip()).replace("|", "\\|")
