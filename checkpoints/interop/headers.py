"""Reads fields of files in other formats, checked for type and range, and words what is wrong with such files."""

import contextlib
import json
import os
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from etils import epath

LARGEST = 2**31 - 1
"""The largest width, length or count that is accepted."""
MOST_LAYERS = 10_000
LARGEST_NUMBER = 1e30
LFS_POINTER = b"version https://git-lfs.github.com"
"""How a file begins that Git LFS left in place of the real one."""


class Header(Mapping):
    """The fields of a file's header, read by type.

    Each method returns a field, or `default` if the field is missing or null. It raises ValueError, with the file and
    the field, if the value is wrong or if it is missing and there is no default.
    """

    def __init__(self, fields: Any, where: str):
        if not isinstance(fields, Mapping):
            raise ValueError(f"{where} is {shown(fields)}, not an object with named fields")
        self._fields, self.where = fields, where

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = LARGEST) -> int:
        """A whole number from `low` to `high`."""
        value = self._given(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._refuse(name, value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float | None = None, *, low: float = 0.0) -> float:
        """A finite number greater than `low`."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < LARGEST_NUMBER:
            self._refuse(name, value, f"a number greater than {low:g}")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._given(name, default)
        if not isinstance(value, bool):
            self._refuse(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._given(name, default)
        if not isinstance(value, str):
            self._refuse(name, value, "a string")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings; empty where the field is not given."""
        value = self._given(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._refuse(name, value, "a list of strings")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers greater than 0."""
        value = self._given(name, None)
        if not isinstance(value, list) or not value:
            self._refuse(name, value, "a list of numbers")
        return tuple(Header({f"{name}[{i}]": each}, self.where).number(f"{name}[{i}]") for i, each in enumerate(value))

    def file_name(self, name: str) -> str:
        """The name of a file in the same folder; a path, which could lead out of the folder, is refused."""
        value = self.text(name)
        if value in ("", ".", "..") or len(value) > 255 or set(value) & set("/\\") or not value.isprintable():
            self._refuse(name, value, "the name of a file in this folder")
        return value

    def section(self, name: str) -> "Header":
        """The object in a field, as a Header; an empty one if the field is missing."""
        value = self._given(name, {})
        if not isinstance(value, Mapping):
            self._refuse(name, value, "an object with named fields")
        return Header(value, f"{self.where}: {name}")

    def _given(self, name: str, default: Any) -> Any:
        value = self._fields.get(name)
        if value is None:
            value = default
        if value is None:
            raise ValueError(f"{self.where} has no {name}")
        return value

    def _refuse(self, name: str, value: Any, wanted: str) -> NoReturn:
        raise ValueError(f"{self.where}: {name} is {shown(value)}, not {wanted}")

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def exists_or_broken_link(path: epath.Path) -> bool:
    """Whether a path exists or is a broken link; reading a broken link then fails with a message of its own."""
    return path.exists() or os.path.islink(path)


def missing_message(path: epath.Path) -> str:
    """The message for a file that does not exist, or whose link is broken, as in a cache that was cleaned up."""
    if os.path.islink(path):
        return f"{path} is a link to {os.readlink(path)}, which does not exist"
    return f"{path}: no such file"


def unreadable_error(path: epath.PathLike, kind: str, error: Exception) -> ValueError:
    """The error to raise for a file that a library cannot read.

    Args:
      path: the file.
      kind: what the file should be, for the message.
      error: what the library raised.
    """
    if isinstance(error, FileNotFoundError):
        return ValueError(missing_message(epath.Path(path)))
    return ValueError(f"{path}: no whole {kind} ({_why(path, error)})")


def _why(path: epath.PathLike, error: Exception) -> str:
    """Why a file cannot be read: the library's message, or that the file is only a pointer of Git LFS."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return "it is a pointer of Git LFS: fetch the file with `git lfs pull`"
    return " ".join(f"{error}".split())[:300] or type(error).__name__


_short = reprlib.Repr()
_short.maxstring = 200  # enough for names of classes and messages of libraries


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Puts the name of a file before the message of a ValueError, unless the message has it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from None


def shown(value: Any) -> str:
    """A value from a file, shortened for an error message of one line."""
    return " ".join(_short.repr(value).split())[:500]


def read_json(path: epath.Path) -> Header:
    """Reads the object in a JSON file. Raises ValueError if the file is missing or unreadable or holds no object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(missing_message(path)) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ValueError(f"{path}: its objects and lists are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {_why(path, error)}") from None
    return Header(value, str(path))
