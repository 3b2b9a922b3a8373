"""Python files of users as modules, wherever they lie.

The module of /home/me/loss.py is called `camelid.settings.files.%2Fhome%2Fme%2Floss%2Epy`. No installed module has such
a name. Since the name holds the path, worker processes import the module by its name alone, so what it defines can be
pickled.
"""

import importlib
import importlib.util
import os
import sys
import urllib.parse
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__path__: list[str] = []  # Python looks for submodules only in a module that has a path

PREFIX = f"{__name__}."
"""What the names of all these modules begin with."""


def load_file(path: str | os.PathLike, *, anew: bool = False) -> ModuleType:
    """The module of a Python file, which runs when it is loaded for the first time.

    The folder of the file is appended to `sys.path`, so that the file can import its neighbours, which go before those
    of the current folder. Whatever the file raises is passed on.

    anew: whether the file runs again, since its text may have changed.
    """
    name = PREFIX + urllib.parse.quote(os.path.abspath(path), safe="").replace(".", "%2E")
    if anew:
        sys.modules.pop(name, None)
    return importlib.import_module(name)


def make_importable(folder: str | os.PathLike, *, first: bool = False) -> None:
    """Appends a folder to `sys.path`. It stands last, so that no file in it hides an installed module.

    first: whether it goes before all other folders that were appended, because a file in it is about to run, which
    means its neighbours by what it imports.
    """
    folder = os.path.abspath(folder)
    if first and folder in _APPENDED and folder in sys.path:
        sys.path.remove(folder)
    if folder not in map(os.path.abspath, sys.path):
        places = [sys.path.index(each) for each in _APPENDED if each in sys.path]
        sys.path.insert(min(places, default=len(sys.path)) if first else len(sys.path), folder)
        _APPENDED.add(folder)


_APPENDED: set[str] = set()
"""The folders that `make_importable` has appended."""


class _Finder:
    """Finds the file of a module that `load_file` has named."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(PREFIX):
            return None
        file = urllib.parse.unquote(name.removeprefix(PREFIX))
        if not os.path.isabs(file):  # `from .loss import x` in a user's file, which is in no package
            raise ImportError(f"a file that is named by its path has no package: write `import {file}` without a dot")
        make_importable(os.path.dirname(file), first=True)
        return importlib.util.spec_from_file_location(name, file)


sys.meta_path.append(_Finder)
