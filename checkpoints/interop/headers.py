"""The numbers and names in the headers of others' files, checked for type and range before anything is made of them."""

import contextlib
import json
import os
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from etils import epath

LARGEST = 2**31 - 1
"""No width, length or count of a network is larger."""
MOST_LAYERS = 10_000
LARGEST_NUMBER = 1e30
LFS_POINTER = b"version https://git-lfs.github.com"


class Header(Mapping):
    """The fields of a header, read by type. A field that is missing, or null, counts as not given.

    Each reader returns the field, or `default` where it is not given; without a default a missing field is an error.
    Raises ValueError that names the file, the field and what it should be.
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
        """The name of a file in the same folder: no path, which could lead out of it."""
        value = self.text(name)
        if value in ("", ".", "..") or len(value) > 255 or set(value) & set("/\\") or not value.isprintable():
            self._refuse(name, value, "the name of a file in this folder")
        return value

    def section(self, name: str) -> "Header":
        """The fields of an object; none where it is not given."""
        value = self._given(name, {})
        if not isinstance(value, Mapping):
            self._refuse(name, value, "an object with named fields")
        return Header(value, f"{self.where}: {name}")

    def _given(self, name: str, default: Any) -> Any:
        value = self._fields.get(name)
        if value is None:
            value = default
        if value is None:
            raise ValueError(f"{self.where} does not say {name}")
        return value

    def _refuse(self, name: str, value: Any, wanted: str) -> NoReturn:
        raise ValueError(f"{self.where}: {name} is {shown(value)}, not {wanted}")

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def is_named(path: epath.Path) -> bool:
    """Whether there is a file of this name, or a link to one that is gone, which reading it then says."""
    return path.exists() or os.path.islink(path)


def absent(path: epath.Path) -> str:
    """What to say of a file that is not there, or whose link leads nowhere, as in a cache that was cleaned up."""
    if os.path.islink(path):
        return f"{path} is a link to {os.readlink(path)}, which is not there"
    return f"{path}: no such file"


def unreadable(path: epath.PathLike, kind: str, error: Exception) -> ValueError:
    """What to raise of a file that does not hold what its name says, such as what Git left in place of a large one."""
    if isinstance(error, FileNotFoundError):
        return ValueError(absent(epath.Path(path)))
    return ValueError(f"{path}: no whole {kind} ({_why(path, error)})")


def _why(path: epath.PathLike, error: Exception) -> str:
    """What a library said of a file, or that it is a pointer of Git's."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return "Git LFS keeps its place until `git lfs pull` fetches it"
    return " ".join(f"{error}".split())[:300] or type(error).__name__


_short = reprlib.Repr()
_short.maxstring = 200  # the names of classes and what libraries say


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Puts the name of a file before what a ValueError says, unless it is said there."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from None


def shown(value: Any) -> str:
    """A value of a file for an error message: never longer than a line."""
    return " ".join(_short.repr(value).split())[:500]


def read_json(path: epath.Path) -> Header:
    """The object in a JSON file. Raises ValueError for a file that is missing, unreadable or holds anything else."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(absent(path)) from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ValueError(f"{path}: its objects and lists are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {_why(path, error)}") from None
    return Header(value, str(path))
