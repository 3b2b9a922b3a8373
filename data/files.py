"""Files of raw records: text, Markdown, JSON, JSON lines, each also gzipped, and Parquet; local or gs://.

A reader yields rows: where a record stands, for messages, and the raw record, or, in its place, a ValueError that
says why it cannot be read. So one bad line does not end the reading of a file.
"""

import glob
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath

from .errors import UserError

Row = tuple[str, object]

DOCUMENT_CHARACTERS = 2_000


def find_files(pattern: str) -> list[epath.Path]:
    """The files that a path or glob names, local or gs://, sorted; of a folder all that are in it and in its folders,
    but for hidden ones. UserError where there is none, or one that cannot be read."""
    path = epath.Path(pattern).expanduser()
    try:
        named = [path] if path.exists() else _glob(path)
        files = [file for one in named for file in (_below(one) if one.is_dir() else [one])]
    except ImportError as problem:
        raise UserError(f"{pattern}: reading gs:// needs the package gcsfs: pip install gcsfs") from problem
    except NotImplementedError as problem:
        raise UserError(f"{pattern}: ** is not supported; write a * for each level of folders") from problem
    if not files:
        raise UserError(f"{pattern}: no such file")
    for file in files:
        if _suffix(file) not in READERS:
            raise UserError(
                f"{file}: cannot read this kind of file; known are {', '.join(READERS)}, also with .gz (a glob such as "
                f"{file.parent}/*.txt names some files of a folder)"
            )
    return files


def _below(folder: epath.Path) -> list[epath.Path]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return [file for entry in entries for file in (_below(entry) if entry.is_dir() else [entry])]


def _glob(path: epath.Path) -> list[epath.Path]:
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    rest = path.parts[len(fixed) :]
    return sorted(epath.Path(*fixed).glob("/".join(rest))) if rest else []


def _suffix(path: epath.Path) -> str:
    return epath.Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def file_rows(files: Iterable[epath.Path]) -> Iterator[Row]:
    """The rows of all `files`, one file after the other; never more than a few in memory, .json lists excepted."""
    for path in files:
        yield from READERS[_suffix(path)](path)


def _lines(path: epath.Path) -> Iterator[tuple[int, str | ValueError]]:
    """Numbered lines, "\\n" at their end, without a byte order mark; ValueError in place of one that cannot be read."""
    number = 0
    try:
        with path.open("rb") as file, gzip.open(file) if path.suffix == ".gz" else file as stream:
            for number, line in enumerate(stream, 1):
                yield number, _decode(line, "utf-8-sig" if number == 1 else "utf-8")
    except (EOFError, OSError, zlib.error) as problem:
        yield number + 1, ValueError(f"the file cannot be read from here on: {problem}")


def _decode(line: bytes, encoding: str) -> str | ValueError:
    try:
        text = line.decode(encoding)
    except UnicodeDecodeError as problem:
        return ValueError(f"not UTF-8: byte 0x{line[problem.start]:02x} at position {problem.start + 1} of the line")
    return text[:-2] + "\n" if text.endswith("\r\n") else text


def _text_rows(path: epath.Path) -> Iterator[Row]:
    """A text file as documents that end at blank lines.

    A short file is one document. A long one is cut at the first blank line after DOCUMENT_CHARACTERS, and where there
    is no blank line for as long again, at the end of a line. So poems, scenes and paragraphs stay whole, and one large
    file still has parts to hold out. A single line is never cut.
    """
    start, size, document = 1, 0, []
    for number, line in _lines(path):
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


def _jsonl_rows(path: epath.Path) -> Iterator[Row]:
    """One JSON value a line; blank lines say nothing."""
    for number, line in _lines(path):
        if isinstance(line, ValueError):
            yield f"{path}:{number}", line
        elif line.strip():
            yield f"{path}:{number}", _json(line)


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        return ValueError(f"invalid JSON: {problem.msg} at column {problem.colno}")
    except RecursionError:
        return ValueError("invalid JSON: nested too deeply")


def _json_rows(path: epath.Path) -> Iterator[Row]:
    """A JSON list of records, or one object. Many public .json files hold an object a line: they are read as .jsonl."""
    first = next((line for _, line in _lines(path) if isinstance(line, ValueError) or line.strip()), "")
    if isinstance(first, str) and first.lstrip().startswith("{") and isinstance(_json(first), dict):
        yield from _jsonl_rows(path)
        return
    lines = []
    for number, line in _lines(path):
        if isinstance(line, ValueError):
            yield f"{path}:{number}", line
            return
        lines.append(line)
    try:
        value = json.loads("".join(lines))
    except json.JSONDecodeError as problem:
        fault = f"invalid JSON: {problem.msg} at column {problem.colno}; nothing of the file can be read"
        yield f"{path}:{problem.lineno}", ValueError(fault)
        return
    if not isinstance(value, list):
        yield str(path), value
        return
    for number, raw in enumerate(value, 1):
        yield f"{path}, record {number}", raw


def _parquet_rows(path: epath.Path) -> Iterator[Row]:
    """The rows of a Parquet file, a few hundred in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with path.open("rb") as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=256):
                for raw in batch.to_pylist():
                    number += 1
                    yield f"{path}, record {number}", json_value(raw)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as problem:
        fault = ValueError(f"the file cannot be read from here on: {problem}")
        yield f"{path}, record {number + 1}", fault


READERS = {".txt": _text_rows, ".md": _text_rows, ".json": _json_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def json_value(value) -> object:
    """A row of Parquet or TFDS as JSON could have held it: bytes as text, arrays as lists; or a ValueError."""
    try:
        return _json_value(value)
    except UnicodeDecodeError:
        return ValueError("holds bytes that are not UTF-8 text")


def _json_value(value) -> object:
    if isinstance(value, dict):
        return {name: _json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _json_value(value.tolist())
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
