"""Functions that a user names as "package.module:name"."""

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from ..errors import UserError


def find_function(name: str, where: str, form: str, *arguments: Any) -> Callable[..., Any]:
    """Imports the function "package.module:name", which may be in the current folder.

    Args:
      name: the name.
      where: what an error begins with, such as the setting that has the name.
      form: how the function is called, for messages, such as "reward(record, answer)".
      *arguments: examples of its positional arguments, by which its signature is checked.

    Raises:
      UserError: it cannot be imported, or takes other arguments.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # the installed command does not look there, as `python -m` does
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        problem = str(error) if isinstance(error, ImportError | AttributeError) else raised(error)
        raise UserError(f"{where}: {name!r} is no function as package.module:name ({problem})") from error
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:  # a function written in C may have no signature
        pass
    except TypeError as error:
        raise UserError(f"{where}: {name!r} cannot be called as {form}: {error}") from None
    return function


def raised(error: Exception) -> str:
    """An exception in one line: type, message, and the first line of the user's code in its traceback."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    own = __name__.partition(".")[0]  # by module, not by file: a user's file may lie in the folder of a checkout
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__")).partition(".")[0]
        if module not in (own, "importlib"):
            return f"{said} ({frame.f_code.co_filename}, line {line})"
    return said
