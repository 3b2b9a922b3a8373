"""Asks the workers of a sweep to end, on whatever machine they are: `camelid sweep --stop`."""

import contextlib
import os
from pathlib import Path

NAME = ".stop"

MARK = "CAMELID_STOP_MARK"
"""The variable by which a command tells the one that goes on in the background what was asked before it began."""


def ask(folder: Path) -> None:
    """Asks all workers that work on the sweep in a folder now to save their trials and end."""
    path = folder / NAME
    before = last_asked(folder)
    path.touch()
    while last_asked(folder) == before:  # a file system may count in seconds
        path.touch()


def asked_before(folder: Path) -> int:
    """`last_asked` when the command that is running was given, be it in the foreground. To be called once."""
    mark = os.environ.pop(MARK, None)
    return last_asked(folder) if mark is None else int(mark)


def last_asked(folder: Path) -> int:
    """A mark of the last time that the workers were asked; a worker ends when it is another one than at its start."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return (folder / NAME).stat().st_mtime_ns
    return 0
