"""Checks of the host: cores, memory, limits and the clock."""

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
