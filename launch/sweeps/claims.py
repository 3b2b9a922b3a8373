"""Locks of a sweep: one for its study, and one for each trial that runs.

On one machine the operating system's locks decide, which end with their process however it dies. Some file systems of
clusters have no such locks, or have them for each machine alone (Lustre with `localflock`). Between machines a file
that is touched every few seconds decides therefore: who has not touched it for `STALE` seconds is gone.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import socket
import time
from pathlib import Path

STALE = 120.0
"""Seconds after which the holder of a trial on another machine is taken for gone."""

_HELD: set[str] = set()
"""Lock files of trials that this process holds."""

UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a folder in which no file can be made."""

STUDY_STALE = 30.0
"""Seconds after which the holder of the study on another machine is taken for gone. It is held for milliseconds."""


@functools.cache
def machine() -> str:
    """A name of this machine, which it does not share with another one of the same host name."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}/{boot[:8]}"
    return socket.gethostname()


class StudyLock:
    """A lock on a sweep's study, for `with`; the process that holds it may take it again.

    Args:
      folder: the sweep's folder.
      only_reads: whether the study is not changed under the lock. It is then also read where no lock can be made, such
        as on a full disk: a line that another process is just writing is not read.
    """

    def __init__(self, folder: Path, *, only_reads: bool = False):
        self._only_reads = only_reads
        self._path, self._owner = folder / ".study.lock", folder / ".study.owner"
        self._depth, self._file, self._locked = 0, None, False

    def __enter__(self) -> "StudyLock":
        if self._depth == 0:
            try:
                self._take()
            except OSError as error:
                if not self._only_reads or error.errno not in UNWRITABLE:
                    raise
                self._file = None
        self._depth += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self._file is not None:
            with contextlib.suppress(OSError):
                self._owner.unlink()
            os.close(self._file)

    def _take(self) -> None:
        """Waits for the lock."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._locked = _flock(self._file, fcntl.LOCK_EX)
            self._own()
        except BaseException:
            os.close(self._file)
            raise

    def _own(self) -> None:
        """Waits until no other machine holds the study."""
        wait = 0.002
        while True:
            with contextlib.suppress(FileExistsError):
                owner = os.open(self._owner, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                try:
                    os.write(owner, machine().encode())
                except OSError:  # a full disk
                    self._owner.unlink()
                    raise
                finally:
                    os.close(owner)
                return
            with contextlib.suppress(FileNotFoundError):
                here = self._locked and self._owner.read_text() == machine()  # left by a process that was killed
                if here or _age(self._owner) > STUDY_STALE:
                    taken = _own_file(self._owner)  # of several processes that see it, one can rename it
                    self._owner.rename(taken)
                    taken.unlink()
                    continue
            time.sleep(wait)
            wait = min(2 * wait, 0.1)


class Claim:
    """The right to run a trial. It ends with `release`, and with the last process that has the file open.

    A trial's process inherits the file: where the worker is killed and its trial trains on for a moment, nobody else
    begins the trial before that process has ended too.
    """

    def __init__(self, path: Path, file: int, lost: bool):
        self.file = file
        """The descriptor that a trial's process inherits."""
        self.lost = lost
        """Whether the holder before was killed: it did not give the trial back."""
        self._path, self._touched = path, 0.0

    def touch(self) -> None:
        """Says that the holder is alive; to be called at least every second."""
        if time.monotonic() - self._touched > STALE / 12:
            with contextlib.suppress(OSError):
                os.utime(self._path)
            self._touched = time.monotonic()

    def release(self) -> None:
        """Gives the trial back."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.file, 0)
        os.close(self.file)
        _HELD.discard(os.fspath(self._path))


def claim(path: Path) -> Claim | None:
    """Takes the lock of a trial; None where another process holds it.

    Args:
      path: the lock file; its folder is made.
    """
    if os.fspath(path) in _HELD:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        locked = _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _held_elsewhere(path, locked):
            os.close(file)
            return None
        lost = bool(_content(path))
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"machine": machine(), "pid": os.getpid()}).encode(), 0)
    except BlockingIOError:
        os.close(file)
        return None
    _HELD.add(os.fspath(path))
    return Claim(path, file, lost)


def holder(path: Path) -> str | None:
    """Who holds the lock of a trial, in words; None where nobody does."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        locked = _flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        held = _held_elsewhere(path, locked)
    except BlockingIOError:
        held = True
    finally:
        os.close(file)
    content = _content(path)
    if not held:
        return None
    host = str(content.get("machine", "")).partition("/")[0]
    return f"process {content.get('pid')} on {host}" if host else "another process"


def _held_elsewhere(path: Path, locked: bool) -> bool:
    """Whether a process holds a trial of which the locks of this machine do not tell.

    locked: whether this process has the lock, and the file system has locks at all.
    """
    content = _content(path)
    if not content or (locked and content.get("machine") == machine()):
        return False
    return _age(path) < STALE


def _content(path: Path) -> dict:
    try:
        found = json.loads(path.read_bytes() or b"{}")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _flock(file: int, how: int) -> bool:
    """Locks a file; False where the file system has no locks. Raises BlockingIOError where it is locked."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def _age(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system."""
    probe = _own_file(path.with_name(".now"))
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    except OSError:  # of a folder that cannot be written
        now = time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    with contextlib.suppress(FileNotFoundError):
        return now - path.stat().st_mtime
    return 0.0


def _own_file(path: Path) -> Path:
    """A name beside `path` that no other process uses."""
    return path.with_name(f"{path.name}.{machine().replace('/', '-')}.{os.getpid()}")
