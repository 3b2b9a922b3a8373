"""Reads raw records from files, local or gs://: text, Markdown, JSON, JSON lines, CSV and TSV, each also gzipped, and
Parquet.

A reader yields pairs (place, record); the place is for messages, such as "chats.jsonl:7". If a record cannot be read, a
ValueError stands in for it, so one bad line does not end the reading of a file.
"""

import glob
import gzip
import itertools
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal

import numpy as np
from etils import epath

from .. import tasks
from ..errors import UserError, did_you_mean
from . import cards
from .json_values import MAX_RECORD_BYTES, RestTooLarge, RestUnreadable, TooLarge, Unreadable
from .tables import csv_rows

Row = tuple[str, object]

DOCUMENT_CHARACTERS = 2_000  # a text file is cut at the first blank line after this many characters
_MAX_EXPANSION = 100  # limit of unpacked size / stored size of .gz and .parquet; text has 3 to 20, a zip bomb 1,000
_CHUNK_BYTES = 2**20  # bytes read at a time
_BATCH_ROWS = 32  # rows of Parquet in memory at a time; each may have `max_record_bytes`
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # characters of a file name that no message or JSON can hold
METADATA_FILE = re.compile(
    r"(readme|licen[cs]e|copying|contributing|code_of_conduct|dataset_?card)([-_][-\w]+|\.[a-z]{2})?(\.(md|txt|rst|html?))?"
    r"|citation\.(cff|bib)|(dataset_infos?|dataset_dict|state)\.json",
    re.IGNORECASE,
)


def find_files(pattern: str) -> list[epath.Path]:
    """The files that a path, a glob or a folder names, local or gs://, sorted.

    A folder stands for all files below it, except hidden files and files about the data, such as README.md. The folder
    of a dataset with a card (`cards.py`), here or below, stands for the files of its split train.

    Raises:
      UserError: there is no such file, a file is of a kind that cannot be read, a dataset's card is damaged or missing,
        or a file of the dataset has another size than the card says.
    """
    if not pattern:
        raise UserError(
            "the source is empty: give a path, a glob, tfds:name:split or the records of a task, such as primer:chat"
        )
    try:
        path = epath.Path(pattern).expanduser()
        named = [path] if path.exists() else _glob(path)
        files = [file for one in named for file in (_files_of(one) if one.is_dir() else [one])]
    except UserError:
        raise
    except ImportError as problem:
        raise UserError(f"{shorten(pattern)}: gs:// needs the package gcsfs: pip install gcsfs") from problem
    except NotImplementedError as problem:
        raise UserError(f"{shorten(pattern)}: ** is not supported; write one * for each level of folders") from problem
    except (OSError, ValueError, RuntimeError) as problem:  # no permission; a name that no file can have; no such home
        raise UserError(f"{shorten(pattern)}: {problem}") from problem
    if not files:
        what = "no data files in this folder" if any(one.is_dir() for one in named) else "no such file"
        scheme, colon, _ = pattern.partition(":")
        near = did_you_mean(scheme, tasks.NAMES) if colon else ""
        raise UserError(f"{shorten(pattern)}: {what}{near}")
    for file in files:
        if _UNPRINTABLE.search(str(file)):
            raise UserError(f"{shorten(str(file))}: the name has control characters or is not UTF-8: rename the file")
        if _suffix(file) not in READERS:
            raise UserError(
                f"{shorten(str(file))}: cannot read this kind of file; give {', '.join(READERS)}, also with .gz "
                f"(a glob such as {file.parent}/*.txt selects files of a folder)"
            )
        _check_regular(file)
    return files


def shorten(name: str) -> str:
    """`name` for an error message: at most 200 characters, with unprintable ones escaped."""
    return name if len(name) < 200 and name.isprintable() else f"{name[:200]!r}"


def utf8_name(path: os.PathLike | str) -> str:
    """A path as text that UTF-8 can hold: a byte of a name that is not UTF-8 is written as \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _check_regular(file: epath.Path) -> None:
    """Raises UserError for a pipe, a socket or a device, which can be read only once or never end."""
    try:
        mode = os.stat(file).st_mode
    except (OSError, TypeError):  # gs://, or a missing file, for which reading gives the error
        return
    if not stat.S_ISREG(mode):
        raise UserError(f"{shorten(str(file))} is a pipe, a socket or a device: save its data to a file and give that")


def _files_of(folder: epath.Path, above: tuple[str, ...] = ()) -> list[epath.Path]:
    """The data files of a folder: all of them below it, or those of the split train of a dataset with a card. `above`
    holds the real paths of its parent folders; links to them are skipped."""
    cards.check_complete(folder)
    if cards.has_card(folder):
        card = cards.read_card(folder)
        card.check_sizes(folder)
        return [folder / name for name in card.files_of("train")]
    real = os.path.realpath(folder)
    if real in above:
        return []
    entries = sorted(
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and (entry.is_dir() or not METADATA_FILE.fullmatch(entry.name))
    )
    return [file for entry in entries for file in (_files_of(entry, (*above, real)) if entry.is_dir() else [entry])]


def _glob(path: epath.Path) -> list[epath.Path]:
    """The paths that match a glob, sorted."""
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    rest = path.parts[len(fixed) :]
    return sorted(epath.Path(*fixed).glob("/".join(rest))) if rest else []


def _is_gzipped(path: epath.Path) -> bool:
    return path.suffix.lower() == ".gz"


def _suffix(path: epath.Path) -> str:
    """The suffix of a file in small letters, without .gz."""
    return (epath.Path(path.stem) if _is_gzipped(path) else path).suffix.lower()


def file_rows(files: Iterable[epath.Path], max_record_bytes: int = MAX_RECORD_BYTES) -> Iterator[Row]:
    """Pairs (place, record) of all `files`, one file after the other; only a few records are in memory."""
    for path in files:
        yield from READERS[_suffix(path)](path, max_record_bytes)


_READ_ERRORS = (EOFError, OSError, UnicodeError, zlib.error)


def _chunks(path: epath.Path, limit: int) -> Iterator[bytes]:
    """The unpacked bytes of a file, without a byte order mark.

    Raises:
      TooLarge: the file unpacks to more than `limit` bytes and more than _MAX_EXPANSION times its size.
      UnicodeError: the byte order mark is that of UTF-16 or UTF-32.
    """
    with path.open("rb") as file:
        packed = _is_gzipped(path)
        room = _unpacked_limit(path, limit) if packed else math.inf
        if packed and not path.stat().length:
            raise EOFError("a gzip file of 0 bytes is truncated")
        read = gzip.GzipFile(fileobj=file).read1 if packed else file.read  # read1 returns the bytes before an error
        size = 0
        while chunk := read(_CHUNK_BYTES):
            if not size and chunk.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UnicodeError("it is in UTF-16 or UTF-32: save it as UTF-8")
            yield chunk if size else chunk.removeprefix(b"\xef\xbb\xbf")
            size += len(chunk)
            _check_size(size, room)


def _unpacked_limit(path: epath.Path, limit: int) -> int:
    """The most bytes that a file may unpack to."""
    return max(limit, _MAX_EXPANSION * path.stat().length)


def _check_size(size: int, room: float) -> None:
    if size > room:
        raise TooLarge(f"the file unpacks to more than {room:,} bytes, {_MAX_EXPANSION} times its stored size")


def _first_line(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def _unreadable(problem: Exception) -> ValueError:
    """The error that stands in for the rest of a file."""
    if isinstance(problem, TooLarge):
        return RestTooLarge(*problem.args)
    return RestUnreadable(f"the file cannot be read from here on: {_first_line(problem)}")


def _lines(path: epath.Path, limit: int) -> Iterator[tuple[int, str | ValueError]]:
    """The lines of a file, numbered from 1, each with a newline; a line that is not UTF-8 becomes a ValueError."""
    number, held, size = 1, [], 0  # number, chunks and bytes of the current line
    try:
        for chunk in _chunks(path, limit):
            if not size and not chunk.strip(b"\n"):  # a chunk of blank lines is yielded as one blank line
                number += len(chunk)
                yield number - 1, "\n"
                continue
            pieces = chunk.split(b"\n")
            for place, piece in enumerate(pieces, 1):
                before, size = size, size + len(piece)
                if before <= limit < size:
                    yield number, TooLarge(f"a line of more than {limit:,} bytes")
                    held = []
                elif size <= limit:
                    held.append(piece)
                if place < len(pieces):
                    if size <= limit:
                        yield number, _decode(b"".join((*held, b"\n")))
                    number, held, size = number + 1, [], 0
        if 0 < size <= limit:
            yield number, _decode(b"".join(held))
    except (*_READ_ERRORS, TooLarge) as problem:
        yield number, _unreadable(problem)


def _decode(line: bytes) -> str | ValueError:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as problem:
        return ValueError(f"not UTF-8: byte 0x{line[problem.start]:02x} at position {problem.start + 1} of the line")
    return text[:-2] + "\n" if text.endswith("\r\n") else text


def _text_rows(path: epath.Path, limit: int) -> Iterator[Row]:
    """A text file as documents of about DOCUMENT_CHARACTERS characters.

    A document ends at the first blank line after DOCUMENT_CHARACTERS; if none comes within twice that length, it ends
    at the end of a line. So poems, scenes and paragraphs stay whole, and one large file still has parts to hold out. A
    single line is never cut.
    """
    start, size, document = 1, 0, []
    for number, line in _lines(path, limit):
        if isinstance(line, ValueError):
            yield f"{path}:{number}", line
            continue
        blank = not line.strip()
        if size >= 2 * DOCUMENT_CHARACTERS or (blank and size >= DOCUMENT_CHARACTERS):
            yield f"{path}:{start}", {"text": "".join(document).strip("\n")}
            size, document = 0, []
        if document or not blank:
            start = start if document else number
            document.append(line)
            size += len(line)
    if document:
        yield f"{path}:{start}", {"text": "".join(document).strip("\n")}


def _jsonl_rows(path: epath.Path, limit: int) -> Iterator[Row]:
    """One JSON value per line; blank lines are skipped. A file that begins with "[" is read as .json."""
    if _first_line_of(path, limit).startswith("["):
        return _json_values(path, limit)
    return _json_lines(path, limit)


def _first_line_of(path: epath.Path, limit: int) -> str:
    """The first line of a file that is not blank; "" if there is none, or if it cannot be read."""
    line = next((line for _, line in _lines(path, limit) if isinstance(line, ValueError) or line.strip()), "")
    return line.lstrip() if isinstance(line, str) else ""


def _json_lines(path: epath.Path, limit: int) -> Iterator[Row]:
    for number, line in _lines(path, limit):
        if isinstance(line, ValueError):
            yield f"{path}:{number}", line
        elif line.strip():
            yield f"{path}:{number}", _json(line)


def _json(text: str) -> object:
    """The value of a JSON text, or a ValueError that says why it is invalid."""
    text = text.rstrip()  # otherwise an error at the end would be reported at column 1 of the next line
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer with more digits than Python converts
            return json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as problem:
        return ValueError(f"invalid JSON: {problem.msg.removesuffix(' at')} at column {problem.colno}")
    except RecursionError:
        return ValueError("invalid JSON: nested too deeply")


def _integer(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)


def _json_rows(path: epath.Path, limit: int) -> Iterator[Row]:
    """A JSON list of records, or one object. A .json file with one object per line, as many are, is read as .jsonl."""
    first = _first_line_of(path, limit)
    if first.startswith("{") and isinstance(_json(first), dict):
        return _json_lines(path, limit)
    return _json_values(path, limit)


def _json_values(path: epath.Path, limit: int) -> Iterator[Row]:
    number = 0
    try:
        for in_list, element in _elements(path, limit):
            number += 1
            text = element if isinstance(element, ValueError) else _decode(element)
            yield f"{path}, record {number}" if in_list else str(path), _json(text) if isinstance(text, str) else text
    except (*_READ_ERRORS, TooLarge) as problem:
        yield f"{path}, record {number + 1}", _unreadable(problem)


_JSON_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+("|\\?\Z)|[][{},]', re.DOTALL)


def _elements(path: epath.Path, limit: int) -> Iterator[tuple[bool, bytes | ValueError]]:
    """Pairs (whether the file holds a list, bytes of one element of the list or of the only value in the file).

    Elements are cut out one by one: a large file is never in memory as a whole, and a bad element affects no other.

    Raises:
      TooLarge: an element of more than `limit` bytes. A single object may be as large as the file.
    """
    held, at, depth, count, in_list, waiting = b"", 0, 0, 0, None, bytearray()
    for chunk in itertools.chain(_chunks(path, limit), [b""]):
        waiting += chunk
        if chunk and len(waiting) < len(held):
            continue  # a long element is scanned again when its length has doubled: linear cost, not quadratic
        held, waiting = held + waiting, bytearray()
        if in_list is None:
            held = held.lstrip()
            if not held:
                continue
            in_list, held = held.startswith(b"["), held.removeprefix(b"[")
            limit = limit if in_list or _is_gzipped(path) else max(limit, path.stat().length)
        begin = 0
        for token in _JSON_TOKEN.finditer(held, at) if in_list else ():
            if token[1] is not None and token[1] != b'"':  # a string that continues in the next chunk
                at = token.start()
                break
            at, character = token.end(), token[0]
            if depth == 0 and character in (b",", b"]"):
                element, begin = held[begin : token.start()].strip(), at
                if element or count or character == b",":
                    count += 1
                    yield True, element if len(element) <= limit else TooLarge(f"a record of more than {limit:,} bytes")
                if character == b"]":
                    if held[at:].strip():
                        yield True, ValueError("invalid JSON: there is text after the end of the list")
                    return
            depth += character in (b"[", b"{")
            depth -= character in (b"]", b"}") and depth > 0
        else:
            at = len(held)
        held, at = held[begin:], at - begin
        if len(held) > limit:
            raise TooLarge(f"a record of more than {limit:,} bytes; the rest of the file is left out")
    if in_list:
        yield True, RestUnreadable("invalid JSON: the file ends before the list is closed")
    elif held.strip():
        yield False, held.strip()


def _csv_rows(path: epath.Path, limit: int) -> Iterator[Row]:
    """The rows of a table under its header; the delimiter is found."""
    return csv_rows(_lines(path, limit), str(path), limit)


def _tsv_rows(path: epath.Path, limit: int) -> Iterator[Row]:
    return csv_rows(_lines(path, limit), str(path), limit, "\t")


def _parquet_rows(path: epath.Path, limit: int) -> Iterator[Row]:
    """The rows of a Parquet file, with _BATCH_ROWS of them in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    number, size = 0, 0
    try:
        with path.open("rb") as file:
            room = _unpacked_limit(path, limit)
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS):
                batch = _decoded(batch)
                size += batch.nbytes
                _check_size(size, room)
                for raw in _raw_rows(batch, limit):
                    number += 1
                    yield f"{path}, record {number}", raw
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as problem:
        yield f"{path}, record {number + 1}", _unreadable(problem)


def _decoded(batch):
    """The batch with dictionary-encoded columns decoded, so that its size is that of its rows."""
    import pyarrow

    columns = [c.dictionary_decode() if isinstance(c, pyarrow.DictionaryArray) else c for c in batch.columns]
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _raw_rows(batch, limit: int) -> Iterator[object]:
    """The rows of an Arrow batch; one by one if the batch has more than `limit` bytes."""
    if batch.nbytes <= limit:
        columns = [_cells(column) for column in batch.columns]
        for row in zip(*columns, strict=True):
            yield json_value(dict(zip(batch.schema.names, row, strict=True)))
    elif batch.num_rows == 1:
        yield TooLarge(f"a row of more than {limit:,} bytes")
    else:
        for row in range(batch.num_rows):
            yield from _raw_rows(batch.slice(row, 1), limit)


def _cells(column) -> list:
    """The values of an Arrow column as Python objects, with an Unreadable for each value that cannot be converted."""
    try:
        return column.to_pylist()
    except Exception:  # each type's constructor raises its own errors: dates after year 9999, bad UTF-8
        return [_cell(scalar) for scalar in column]


def _cell(scalar):
    import pyarrow

    try:
        return scalar.as_py()
    except Exception as problem:
        if isinstance(scalar, pyarrow.StructScalar):
            return {name: _cell(item) for name, item in scalar.items()}
        if isinstance(scalar, pyarrow.ListScalar):
            return [_cell(item) for item in scalar.values]
        return Unreadable(_first_line(problem))


Reader = Callable[[epath.Path, int], Iterator[Row]]
READERS: dict[str, Reader] = {
    ".txt": _text_rows,
    ".md": _text_rows,
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
}


def json_value(value) -> object:
    """A row of Parquet or TFDS as JSON values: bytes become text, arrays become lists, and null fields are dropped.

    Bytes that are not UTF-8 become an `Unreadable`.
    """
    if isinstance(value, dict):
        return {name: json_value(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return json_value(value.tolist())
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return Unreadable("bytes that are not UTF-8 text")
    return value if value is None or isinstance(value, str | bool | int | float | Unreadable) else str(value)
