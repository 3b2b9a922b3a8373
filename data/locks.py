"""Locks among processes: files that the system unlocks when their holder dies, however that ends."""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock file `path`, which is made with its folder, and removed at the end.

    busy(holder): called where another process holds it; raises, or returns to wait for that process. On a file system
    without locks there is none, which is told in a line.
    """
    file = _take(path, busy)
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):  # a folder that has become read-only, say: the lock ends all the same
                path.unlink()  # while it is held: `_take` looks whether it is still there
            os.close(file)


def _take(path: Path, busy: Callable[[str], None]) -> int | None:
    """The descriptor of the locked file; None where there are no locks."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            if path.parent.exists():
                raise
            continue  # its last holder has just removed the folder, which was empty
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy(_describe(os.pread(file, 4096, 0)))
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            os.close(file)
            print(
                f"camelid: {path}: cannot be locked ({error.strerror}); nothing keeps a second process out",
                file=sys.stderr,
            )
            return None
        except BaseException:
            os.close(file)
            raise
        if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
            break
        os.close(file)  # its last holder has just removed it
    me = {"pid": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv)}
    with contextlib.suppress(OSError):  # a full disk: it is a lock all the same
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(me).encode(), 0)
    return file


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['pid']} on {holder['host']} ({holder['command']})"
    except (ValueError, KeyError, TypeError):  # it has not written it yet
        return "another process"
