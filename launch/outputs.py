"""Where a command is to write: what can be known of it before anything is read or computed."""

import os
from pathlib import Path

from ..errors import UserError


def check_writable(folder: str | os.PathLike, flag: str = "--workdir") -> None:
    """Raises an error where a folder on a file system of this machine can be neither made nor written, before anything
    is done for nothing: UserError where a file is in its place, PermissionError where it must not be written."""
    if "://" in os.fspath(folder):
        return
    there = Path(folder).expanduser().absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        what = "a link to nothing" if there.is_symlink() and not there.exists() else "a file, not a folder"
        raise UserError(f"{flag}={folder}: {there} is {what}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{flag}={folder}: no permission to write in {there}")


def check_new_file(path: str | os.PathLike, flag: str = "--output") -> None:
    """As `check_writable`, of a file that is to be written or overwritten."""
    if Path(path).is_dir():
        raise UserError(f"{flag}={path}: this is a folder; give the name of a file")
    check_writable(Path(path).parent, flag)
