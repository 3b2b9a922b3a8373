"""Lock files between processes. The operating system releases a lock when its process ends in any way."""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .console import LOGGER


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Holds an exclusive lock on the file `path` for the length of a `with` block.

    On a file system without locks it holds none, and says so on stderr.

    Args:
      path: the lock file; it is created with its folder, and removed at the end.
      busy: called with a description of the process that holds the lock already. It may raise; if it returns, `locked`
        waits for that process.
    """
    file = _take(path, busy)
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):  # the folder may be read-only by now; closing the file ends the lock
                path.unlink()  # before the lock ends: `_take` checks that its file still exists
            os.close(file)


def _take(path: Path, busy: Callable[[str], None]) -> int | None:
    """Locks the file `path` and returns its descriptor; None if the file system has no locks."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            if path.parent.exists():
                raise
            continue  # the previous holder has just removed the empty folder
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy(_describe(os.pread(file, 4096, 0)))
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            os.close(file)
            reason = f"cannot be locked ({error.strerror})"
            LOGGER.warning("%s: %s: start no second process that writes there", path, reason)
            return None
        except BaseException:
            os.close(file)
            raise
        if _lies_at(file, path):
            break
        os.close(file)  # the previous holder has just removed the file
    me = {"pid": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv)}
    with contextlib.suppress(OSError):  # on a full disk the lock holds without a description
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(me).encode(), 0)
    return file


def _lies_at(file: int, path: Path) -> bool:
    """Whether an open file is the one at `path`, which another process may remove at any time."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _describe(content: bytes) -> str:
    """The process that the content of a lock file names, in words."""
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']} ({holder['command']})"
    except (ValueError, KeyError, TypeError):  # the holder has not written its description yet
        return "another process"
