"""Checks of the file system of a work directory: space, speed, locks, and its clock."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .finding import Finding, size

LEAST_FREE, LITTLE_FREE = 1e9, 20e9
BYTES = 128 << 20
SMALL_FILES = 10
SLOW_WRITE, SLOW_SYNC = 50e6, 0.2
SKEW, GREAT_SKEW = 1.0, 60.0
"""Seconds between the clocks of this host and of the file system, from which on one is told, and modes of work fail."""
NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb", "fuse", "9p", "weka")
_TRY_LOCK = """import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "w"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("held")
else:
    print("free")"""


def check_storage(workdir: str | os.PathLike) -> Iterator[Finding]:
    """All checks in a temporary folder inside of the work directory, or of the nearest folder that exists."""
    if "://" in os.fspath(workdir):
        yield Finding("disk", "warn", f"{workdir} is not checked: it is no folder of this host")
        return
    place = Path(workdir).expanduser().absolute()
    while not place.exists():
        place = place.parent
    yield from _space(place)
    try:
        folder = tempfile.mkdtemp(prefix=".camelid-doctor-", dir=place)
    except OSError as error:
        yield Finding("disk", "fail", f"{place} cannot be written: {error.strerror}", "give another --workdir")
        return
    try:
        yield from _clock(Path(folder))
        yield from _locks(Path(folder))
        yield from _speed(Path(folder), place)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        yield Finding("disk", "fail", f"{place} is full: {error.strerror}", "delete what is not needed")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _space(place: Path) -> Iterator[Finding]:
    """Free space and free files."""
    usage, files = shutil.disk_usage(place), os.statvfs(place)
    kind = file_system(place)
    text = f"{size(usage.free)} of {size(usage.total)} free at {place} ({kind})"
    if usage.free < LEAST_FREE:
        yield Finding("disk", "fail", text, "delete what is not needed, or give another --workdir")
    elif usage.free < LITTLE_FREE:
        yield Finding("disk", "warn", text, "a run keeps several checkpoints, of 12 bytes for each parameter")
    else:
        yield Finding("disk", "ok", text)
    if files.f_files and files.f_favail < 10_000:
        yield Finding("disk", "warn", f"only {files.f_favail:,} more files fit there", "delete small files")


def _speed(folder: Path, place: Path) -> Iterator[Finding]:
    """Speed of a large file, written and read back from the disk, and the time until a small file is safe."""
    block = os.urandom(1 << 20)
    count = BYTES // len(block)
    large = folder / "large"
    begin = time.perf_counter()
    with large.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(block)
        os.fsync(file.fileno())
    writing = BYTES / (time.perf_counter() - begin)
    with large.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # else it is read from memory
        begin = time.perf_counter()
        same = all(file.read(len(block)) == block for _ in range(count))
        reading = BYTES / (time.perf_counter() - begin)
    waits = []
    for number in range(SMALL_FILES):
        begin = time.perf_counter()
        with (folder / str(number)).open("wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        waits.append(time.perf_counter() - begin)
    sync = sorted(waits)[SMALL_FILES // 2]
    text = f"writes {size(writing)}/s, reads {size(reading)}/s, a small file is safe after {sync * 1000:.1f} ms"
    if not same:
        yield Finding("disk", "fail", f"{place}: a file was read back with other bytes", "do not use this disk")
    elif writing < SLOW_WRITE or sync > SLOW_SYNC:
        yield Finding("disk", "warn", text, "save checkpoints less often, or give a faster --workdir")
    else:
        yield Finding("disk", "ok", text)


def _locks(folder: Path) -> Iterator[Finding]:
    """Whether a lock of this process is seen by another one."""
    file = folder / "lock"
    with file.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            advice = "never start two runs in one work directory: nothing there refuses the second"
            yield Finding("locks", "warn", f"files cannot be locked: {error.strerror}", advice)
            return
        said = subprocess.run([sys.executable, "-c", _TRY_LOCK, str(file)], capture_output=True, text=True, timeout=30)
    if said.stdout.strip() == "held":
        yield Finding("locks", "ok", "a second process sees the lock of a file")
    else:
        text = "a second process does not see the lock of a file"
        yield Finding("locks", "fail", text, "mount the file system with locks, or give another --workdir")


def _clock(folder: Path) -> Iterator[Finding]:
    """The clock of the file system, which may be that of a server, against this host's."""
    file = folder / "clock"
    before = time.time()
    file.write_bytes(b"x")
    after, there = time.time(), file.stat().st_mtime
    skew = max(0.0, before - there - 0.02, there - after - 0.02)  # the kernel notes times up to 10 ms late
    text = f"{skew:.2f} s between this host and the file system"
    advice = "synchronise both clocks (NTP): ages of files and heartbeats are wrong by so much"
    status = "ok" if skew < SKEW else "warn" if skew < GREAT_SKEW else "fail"
    yield Finding("clock", status, text, "" if status == "ok" else advice)


def file_system(place: Path) -> str:
    """The kind of file system at a path, such as "ext4" or "nfs4, over the network"."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        mount = mount.replace("\\040", " ")
        inside = place == Path(mount) or Path(mount) in place.parents
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return f"{kind}, over the network" if kind.startswith(NETWORK) else kind
