"""Functions, classes and values that a user names as "package.module:name" or "file.py:name"."""

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError, did_you_mean
from . import files

FORMS = "package.module:name or file.py:name"
"""How something of the user's own is named, for messages and help."""


def is_function(name: str) -> bool:
    """Whether a string has the form "package.module:name" or "file.py:name"."""
    module, _, attribute = name.rpartition(":")
    return bool(module.strip()) and attribute.isidentifier() and "\0" not in module


def find_function(name: str, where: str, form: str, *arguments: Any) -> Callable[..., Any]:
    """Imports the function "package.module:name" or "file.py:name", as `find` does.

    Args:
      name: the name.
      where: what an error begins with, such as the setting that has the name.
      form: how the function is called, for messages, such as "reward(record, answer)".
      *arguments: examples of its positional arguments, by which its signature is checked.

    Raises:
      UserError: it cannot be imported, or takes other arguments.
    """
    function = find(name, where)
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:  # a function written in C may have no signature
        pass
    except TypeError as error:
        raise UserError(f"{where}: {name!r} cannot be called as {form}: {error}") from None
    return function


def find(name: str, where: str) -> Any:
    """Imports what "package.module:name" or "file.py:name" names.

    Modules and files may lie in the current folder and in the folder of the config, which `settings.config_files`
    makes importable.

    Raises:
      UserError: there is no such module, file or name, or the code fails while it is imported. It begins with `where`.
    """
    module, _, attribute = name.rpartition(":")
    files.make_importable(os.getcwd())  # the installed command does not look there, as `python -m` does
    try:
        found = _load(module)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise UserError(f"{where}: {name!r} is no function as {FORMS} ({_problem(error)})") from error
    if not hasattr(found, attribute):
        raise UserError(f"{where}: {name!r} is no function as {FORMS} ({_no_attribute(found, attribute)})")
    if file := getattr(found, "__file__", None):
        _FILES[name] = file
    return getattr(found, attribute)


def first_annotation(train: Callable[..., Any], name: str) -> Any:
    """The annotation of a recipe's first argument, such as `Run[MyConfig]`; None where it has none.

    Raises UserError where annotations cannot be read. name: what `config.recipe` is.
    """
    argument = next(iter(inspect.signature(train).parameters), None)
    try:
        return typing.get_type_hints(train).get(argument)
    except Exception as error:  # an annotation that is a string may be anything
        raise UserError(f"config.recipe: {name!r}: its annotations cannot be read: {raised(error)}") from error


def file_of(name: str) -> Path | None:
    """The file that "file.py:name" names: in the current folder, else in a folder of `sys.path`, the last one first.

    None for the name of a module, and for a file that is not there. Folders of installed packages are not searched.
    Raises UserError where the current folder and another one hold different files of this name.
    """
    path = name.rpartition(":")[0]
    if not path.endswith(".py"):
        return None
    file = Path(path).expanduser()
    beside = (Path(folder, file) for folder in _folders() if os.path.abspath(folder) != os.getcwd())
    there = next((each for each in beside if each.is_file()), None)
    if not file.is_file():
        return there
    if there is not None and not _same(file, there):
        raise UserError(f"there are {file.absolute()} and {there}: give the path of the one that is meant")
    return file.absolute()


def source_of(name: str) -> Path | None:
    """The source file of "package.module:name" or "file.py:name", without running it; None where there is none."""
    module = name.rpartition(":")[0]
    if module.endswith(".py"):
        return file_of(name)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = None if spec is None or spec.origin is None else Path(spec.origin)
    return origin if origin is not None and origin.is_file() else None


def code_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of the file of each function that a config names, {"loss.py:make_loss": hash}, in hexadecimal.

    Names count that have been found by now, as those of a config are when it is read. Of what a file imports nothing is
    known here.
    """
    names = {value for value in _values(config) if isinstance(value, str) and value in _FILES}
    return {name: hashlib.sha256(Path(_FILES[name]).read_bytes()).hexdigest() for name in sorted(names)}


_FILES: dict[str, str] = {}
"""The file of each function that was found, by its name in the config."""


def _values(config: Any) -> Iterator[Any]:
    """All values in nested mappings."""
    for value in config.values():
        if hasattr(value, "values"):
            yield from _values(value)
        else:
            yield value


def raised(error: BaseException) -> str:
    """An exception in one line: type, message, and the first line of the user's code in its traceback."""
    try:
        message = str(error)
    except Exception:  # a class of the user's own may have any __str__
        message = "its message cannot be shown"
    said = f"{type(error).__name__}: {' '.join(message.split())}"
    return f"{said} ({place})" if (place := _place(error)) else said


def is_users(module: str) -> bool:
    """Whether a module of this name is no part of this package nor of Python's import system.

    By its name, not by its file: a user's file may lie in the folder of a checkout.
    """
    return module.startswith(files.PREFIX) or module.partition(".")[0] not in (__name__.partition(".")[0], "importlib")


def _place(error: BaseException) -> str:
    """File and line of the first frame of the user's code in a traceback; "" where there is none."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if is_users(str(frame.f_globals.get("__name__"))):
            return f"{frame.f_code.co_filename}, line {line}"
    return ""


def _problem(error: BaseException) -> str:
    """What went wrong while a module was imported: the message alone where no code of the user ran."""
    is_told = isinstance(error, UserError) or (isinstance(error, ImportError) and not _place(error))
    return str(error) if is_told else raised(error)


def _load(module: str) -> ModuleType:
    if not module.endswith(".py"):
        if not all(module.split(".")):
            raise ImportError(f"{module!r} is no module" if module else "the module is missing")
        return importlib.import_module(module)
    if (file := file_of(f"{module}:")) is None:
        within = os.path.dirname(module)
        there = [each for folder in ("", *_folders()) for each in Path(folder, within).glob("*.py")]
        raise ImportError(
            f"no file {module}{did_you_mean(module, {os.path.join(within, each.name) for each in there})}"
        )
    return files.load_file(file)


def _folders() -> list[str]:
    """The folders of `sys.path` that hold no installed packages, the last one first."""
    installed = {os.path.abspath(path) for path in sysconfig.get_paths().values()}
    return [path for path in reversed(sys.path) if path and os.path.abspath(path) not in installed]


def _same(one: Path, other: Path) -> bool:
    return one.samefile(other) or one.read_bytes() == other.read_bytes()


def _no_attribute(module: ModuleType, name: str) -> str:
    """That a module has nothing of this name; which names are near, and where the module lies."""
    place = getattr(module, "__file__", None)
    said = f"{place or module.__name__} has no {name!r}{did_you_mean(name, dir(module))}"
    neighbour = Path(f"{module.__name__.replace('.', '/')}.py")
    if place and neighbour.is_file() and not neighbour.samefile(place):
        said += f"; {neighbour} of this folder is named as {neighbour}:{name}"
    return said
