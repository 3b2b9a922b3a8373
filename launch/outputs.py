"""Checks that a command can write its output, before anything is read or computed."""

import importlib.util
import os
import tempfile
from pathlib import Path

import fsspec
from etils import epath

from ..errors import UserError


def output_folder(path: str, flag: str = "--workdir") -> epath.Path:
    """The folder that an option names, on this machine or in an object store.

    Args:
      path: the option's value.
      flag: the option, for the message.

    Raises:
      UserError: nothing, or an address of another kind, such as that of a web page.
    """
    if not path.strip():
        raise UserError(f"{flag}={path}: the name is empty: give a folder")
    try:
        folder = epath.Path(path)
    except KeyError:
        kind = path.partition("://")[0]
        raise UserError(f"{flag}={path}: {kind}:// cannot be written: give a folder, or gs:// or s3://") from None
    check_address(path, f"{flag}={path}")
    return folder


def check_address(path: str, name: str) -> None:
    """Raises UserError if the package that opens an address such as gs://bucket/run is missing; folders need none.

    Args:
      path: a folder or an address.
      name: what the message begins with.
    """
    kind, sign, _ = path.partition("://")
    if not sign or importlib.util.find_spec("tensorflow") is not None:  # etils then opens addresses by TensorFlow
        return
    try:
        fsspec.get_filesystem_class(kind)
    except (ImportError, ValueError) as error:
        raise UserError(f"{name}: {error}") from None


def check_home(folder: str | os.PathLike, flag: str = "--workdir") -> None:
    """Raises UserError for a path that begins with `~` and a name that is no user's.

    Args:
      folder: the path.
      flag: the option that named it, for the message.
    """
    try:
        Path(folder).expanduser()
    except RuntimeError:
        raise UserError(f"{flag}={folder}: {Path(folder).parts[0]} is no user's home: give another folder") from None


def check_writable(folder: str | os.PathLike, flag: str = "--workdir") -> None:
    """Raises an error if a folder cannot be created or written; of URLs only the name is checked.

    Args:
      folder: the folder, which need not exist.
      flag: the option that named it, for the message.

    Raises:
      UserError: a file or a broken link stands in its place, no file can be made there, or the bytes of its absolute
        path are not UTF-8, which checkpoints cannot be written to.
      PermissionError: the user may not write there.
    """
    try:
        os.path.abspath(folder).encode()
    except UnicodeEncodeError:
        shown = os.path.abspath(folder).encode(errors="backslashreplace").decode()
        raise UserError(f"{flag}={shown}: the name is not UTF-8: give or rename a folder") from None
    if "://" in os.fspath(folder):
        return
    check_home(folder, flag)
    there = Path(folder).expanduser().absolute()
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        what = "a broken link" if there.is_symlink() and not there.exists() else "a file, not a folder"
        raise UserError(f"{flag}={folder}: {there} is {what}: give another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{flag}={folder}: no permission to write in {there}")
    try:
        tempfile.TemporaryFile(dir=there).close()  # folders of /proc refuse what their permissions allow
    except OSError as error:
        raise UserError(
            f"{flag}={folder}: no file can be made in {there}: {error.strerror}; give another folder"
        ) from None


def check_new_file(path: str | os.PathLike, flag: str = "--output") -> None:
    """Raises an error if a file cannot be written; an existing file would be overwritten.

    Args:
      path: the file.
      flag: the option that named it, for the message.

    Raises:
      UserError: the path is a folder, or its folder is a file.
      PermissionError: the user may not write there.
    """
    if Path(path).is_dir():
        raise UserError(f"{flag}={path} is a folder: give the name of a file")
    check_writable(Path(path).parent, flag)
