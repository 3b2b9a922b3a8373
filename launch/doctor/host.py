"""Checks of the host: cores, memory, limits, the clock, and the driver of its GPUs."""

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .finding import Finding, size

LEAST_MEMORY = 4e9
LEAST_SHARED = 64e6
LEAST_FILES = 4096
LEAST_PROCESSES = 4096
CGROUP = Path("/sys/fs/cgroup")


def check_cores() -> Iterator[Finding]:
    """The cores that this process may use, and how busy they are."""
    cores, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota = _quota(CGROUP / "cpu.max")
    load = os.getloadavg()[0]
    text = f"{usable} of {cores} cores, load {load:.1f}"
    if quota is not None and quota < usable:
        text += f", of which a limit of this container leaves {quota:g}"
    if load > 1.5 * usable:
        yield Finding("cores", "warn", text, "other processes use the cores: figures below are lower for it")
    else:
        yield Finding("cores", "ok", text)


def _quota(file: Path) -> float | None:
    """The cores that a cgroup's cpu.max allows; None without a limit."""
    words = file.read_text().split() if file.exists() else []
    return float(words[0]) / float(words[1]) if len(words) == 2 and words[0] != "max" else None


def check_memory() -> Iterator[Finding]:
    """Memory of the host that is free, within the limit of a container, and shared memory."""
    lines = re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text())
    info = {name: int(value) * 1024 for name, value in lines}
    total, available = info["MemTotal"], info["MemAvailable"]
    limit = CGROUP / "memory.max"
    if limit.exists() and (text := limit.read_text().strip()).isdecimal() and int(text) < total:
        used = int((CGROUP / "memory.current").read_text())
        total, available = int(text), min(available, int(text) - used)
    text = f"{size(available)} of {size(total)} are available"
    if available < LEAST_MEMORY:
        yield Finding("memory", "warn", text, "end other processes, or ask for more: a checkpoint is read into it")
    else:
        yield Finding("memory", "ok", text)
    if os.path.isdir("/dev/shm") and (free := shutil.disk_usage("/dev/shm").free) < LEAST_SHARED:
        advice = "start the container with a larger one (docker run --shm-size=1g): NCCL uses it"
        yield Finding("memory", "warn", f"shared memory (/dev/shm) has {size(free)} left", advice)


def check_limits() -> Iterator[Finding]:
    """Limits of the operating system for one process."""
    found = []
    for name, kind, least, flag in (
        ("open files", resource.RLIMIT_NOFILE, LEAST_FILES, "-n"),
        ("processes", resource.RLIMIT_NPROC, LEAST_PROCESSES, "-u"),
    ):
        soft, hard = resource.getrlimit(kind)
        said = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
        found.append(f"{name} {said}")
        if soft != resource.RLIM_INFINITY and soft < least:
            most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
            enough = hard == resource.RLIM_INFINITY or hard >= least
            advice = f"ulimit {flag} {most}" if enough else f"ask for {least:,}"
            yield Finding("limits", "warn", f"only {said} {name} are allowed", advice)
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge.exists() and (chosen := re.search(r"\[(\w+)\]", huge.read_text())):
        found.append(f"transparent huge pages {chosen[1]}")
    yield Finding("limits", "ok", ", ".join(found))


def check_ntp() -> Iterator[Finding]:
    """Whether the clock is synchronised over the network, where `timedatectl` knows."""
    if shutil.which("timedatectl") is None:
        return
    words = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL).stdout.strip()
    if said == "yes":
        yield Finding("clock", "ok", "synchronised over the network (NTP)")
    elif said == "no":
        yield Finding("clock", "warn", "not synchronised over the network", "start chrony or systemd-timesyncd")


def check_driver() -> Iterator[Finding]:
    """The GPUs that the driver knows, and memory that other processes hold.

    It is asked before JAX takes memory, and before the processes of a group are joined, which do so afterwards.
    """
    if shutil.which("nvidia-smi") is None:
        return
    query = "--query-gpu=name,driver_version,memory.used,memory.total,ecc.errors.uncorrected.volatile.total"
    words = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    if said.returncode:
        text = f"nvidia-smi fails: {' '.join((said.stderr or said.stdout).split())[:200]}"
        yield Finding("driver", "fail", text, "load the driver, or ask whoever runs the machine")
        return
    rows = [[part.strip() for part in line.split(",")] for line in said.stdout.splitlines()]
    for number, (name, _, used, total, errors) in enumerate(rows):
        if errors.isdecimal() and int(errors):
            text = f"GPU {number} ({name}) has had {errors} uncorrectable memory errors"
            yield Finding("driver", "fail", text, "have the GPU reset or replaced")
        if used.isdecimal() and total.isdecimal() and int(used) > 0.1 * int(total):  # [N/A] where memory is the host's
            text = f"GPU {number} ({name}) has {used} of {total} MiB in use by other processes"
            yield Finding("driver", "warn", text, "see them with nvidia-smi; JAX needs most of the memory")
    yield Finding("driver", "ok", f"{len(rows)} × {rows[0][0]}, driver {rows[0][1]}")
