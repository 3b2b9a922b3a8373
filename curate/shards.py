"""Units of work on disk: folders of JSON lines that appear when they are complete, with checksums of every block.

A unit is written into a hidden folder, which is renamed when all of it is on disk. So a unit that exists is complete,
and one that was killed leaves nothing that is read. Its marker holds the bytes of each file and the CRC-32 of each
block of BLOCK_BYTES, and in its last line its own CRC-32; a reader compares them before it hands out a line.
"""

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..data.checksums import write_whole, writing
from ..errors import UserError

MARKER = "done"
BLOCK_BYTES = 1 << 18
"""Bytes whose checksum is compared at a time; a file that is being written holds as many in memory."""

_UTF_8, _ASCII = (
    json.JSONEncoder(ensure_ascii=ascii, separators=(",", ":"), allow_nan=False) for ascii in (False, True)
)


def encode(value: Any) -> bytes:
    """A line of JSON in UTF-8. A value with a lone surrogate, which UTF-8 cannot write, is escaped as ASCII.

    Raises TypeError, ValueError or RecursionError for a value that JSON cannot hold (`values.problem_of`)."""
    try:
        return _UTF_8.encode(value).encode() + b"\n"
    except UnicodeEncodeError:
        return _ASCII.encode(value).encode() + b"\n"


class _File:
    """A file of a unit that is being written."""

    def __init__(self, path: Path):
        self._path, self._held, self._size, self._blocks = path, bytearray(), 0, []
        self._file = path.open("wb")

    def write(self, line: bytes) -> None:
        self._held += line
        while len(self._held) >= BLOCK_BYTES:
            self._flush(BLOCK_BYTES)

    def close(self) -> dict[str, Any]:
        """Bytes and checksums of the whole file, which is on disk afterwards."""
        if self._held:
            self._flush(len(self._held))
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self._size, "blocks": self._blocks}

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _flush(self, size: int) -> None:
        block = bytes(self._held[:size])
        with writing(self._path):
            self._file.write(block)
        del self._held[:size]
        self._size += size
        self._blocks.append(f"{zlib.crc32(block):08x}")


class UnitWriter:
    """The files of a unit that is being written."""

    def __init__(self, folder: Path):
        self.facts: dict[str, Any] = {}
        """What the marker says about the unit, such as counts, as JSON can hold it."""
        self._folder, self._files = folder, {}

    def write(self, name: str, line: bytes) -> None:
        """Adds a line to a file of the unit."""
        if name not in self._files:
            self._files[name] = _File(self._folder / name)
        self._files[name].write(line)

    def close(self) -> None:
        """Writes the marker."""
        files = {name: file.close() for name, file in sorted(self._files.items())}
        content = json.dumps({"files": files, "facts": self.facts}).encode()
        write_whole(self._folder / MARKER, b"%s\n%08x\n" % (content, zlib.crc32(content)))

    def abandon(self) -> None:
        for file in self._files.values():
            file.abandon()


@contextlib.contextmanager
def new_unit(unit: Path) -> Iterator[UnitWriter]:
    """Writes a unit in a `with` block. It appears at the path `unit` at the end of the block, unless an error ends it.

    If another process completes the same unit first, that one stays.
    """
    folder = unit.with_name(f".{unit.name}.{os.getpid()}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    writer = UnitWriter(folder)
    try:
        yield writer
        writer.close()
        try:
            folder.rename(unit)
        except OSError:
            if not is_done(unit):  # no process has completed the unit: its marker is lost
                shutil.rmtree(unit, ignore_errors=True)
                folder.rename(unit)
    finally:
        writer.abandon()
        shutil.rmtree(folder, ignore_errors=True)


def is_done(unit: Path) -> bool:
    """Whether a unit is complete."""
    return (unit / MARKER).exists()


def facts_of(unit: Path) -> dict[str, Any]:
    """What the marker of a unit says about it. Raises UserError if the marker is missing or damaged."""
    return _marker(unit)["facts"]


def read_lines(unit: Path, name: str) -> Iterator[bytes]:
    """The lines of a file of a unit, each with its newline; none if the unit has no such file.

    Raises:
      UserError: the file is missing, shorter, longer or other than it was written. The message names the file and the
        byte at which the damage begins.
    """
    found: Mapping[str, Any] | None = _marker(unit)["files"].get(name)
    if found is None:
        return
    path, begun = unit / name, []
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise _damaged(path, 0, "the file is missing") from None
    with file:
        for number, expected in enumerate(found["blocks"]):
            offset = number * BLOCK_BYTES
            size = min(BLOCK_BYTES, found["bytes"] - offset)
            block = file.read(size)
            if len(block) < size:
                raise _damaged(path, offset + len(block), f"it ends there instead of at byte {found['bytes']:,}")
            if f"{zlib.crc32(block):08x}" != expected:
                raise _damaged(path, offset, f"the {size:,} bytes from there are not those that were written")
            if b"\n" not in block:
                begun.append(block)
                continue
            lines = b"".join((*begun, block)).splitlines(keepends=True)
            begun = [] if lines[-1].endswith(b"\n") else [lines.pop()]
            yield from lines
        if file.read(1):
            raise _damaged(path, found["bytes"], "it goes on there, behind its end")


def _marker(unit: Path) -> dict[str, Any]:
    path = unit / MARKER
    try:
        content, _, crc = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise _damaged(path, 0, "the file is missing") from None
    if crc != b"%08x\n" % zlib.crc32(content):
        raise _damaged(path, 0, "its bytes are not those that were written")
    return json.loads(content)


def _damaged(path: Path, offset: int, problem: str) -> UserError:
    return UserError(
        f"{path} is damaged at byte {offset:,}: {problem}; remove the folder {path.parent} and give the command again, "
        "which makes that part anew"
    )
