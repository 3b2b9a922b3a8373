"""Goodput: where the wall time of a run goes, in buckets that sum to it.

A `Clock` has one current bucket at a time, so that its buckets sum to the time since it began. What each bucket holds:

    start       from the creation of the process to the first step: imports, data, the checkpoint that is read
    compile     tracing and compiling programs, or reading them from the compilation cache
    data        waiting for a batch
    checkpoint  waiting for a save, and the end of the process
    evaluation  evaluating, without compiling
    stall       what a step takes beyond the median, where it takes more than `STALL` times the median
    training    steps
    lost        whatever an attempt did after the checkpoint from which the next attempt resumed

Goodput is the share of `training`.
"""

import contextlib
import itertools
import math
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

BUCKETS = ("start", "compile", "data", "checkpoint", "evaluation", "lost", "stall", "training")

DOING = {"start": "starting", "data": "waiting for data", "checkpoint": "saving", "evaluation": "evaluating"}
"""What a run is doing, by the current bucket; the name of the bucket where it is not listed."""

STALL = 3.0
"""A step that takes so many times the median of the steps before it has stalled."""

JUDGED_FROM = 8
"""Steps of an attempt before the first that may have stalled: their median has to mean something."""

COMPILING = "/jax/core/compile/"
"""JAX's events of tracing, lowering and compiling begin with this."""


def now() -> float:
    """Seconds on a clock that is never set back and goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


_imported = now()
_attempts = itertools.count()


def process_begin() -> float:
    """When this process was created, by `now`. Where the system does not tell, when this module was imported."""
    created = process_created(os.getpid())
    return _imported if created is None else created


def process_created(pid: int) -> float | None:
    """When a process of this host was created, by `now`; infinity where it does not run any more, also where nobody has
    asked for its exit code yet. None where the system does not tell."""
    if not Path("/proc/self/stat").exists():
        return None
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return math.inf if after_name[0] in "ZX" else float(after_name[19]) / os.sysconf("SC_CLK_TCK")  # since the boot
    except (FileNotFoundError, ProcessLookupError):
        return math.inf
    except (OSError, ValueError, IndexError):
        return None


def attempt_begin() -> float:
    """When an attempt that begins now began, by `now`: for the first of a process, when the process was created."""
    return process_begin() if next(_attempts) == 0 else now()


class Clock:
    """Divides the time since `begin` into buckets.

    Args:
      begin: when the attempt began, by `now`; default: now.

    Attributes:
      step: number of steps that are done.
    """

    def __init__(self, begin: float | None = None):
        self.step = 0
        self._lock = threading.Lock()  # the heartbeat reads while the run goes on
        self._thread = threading.get_ident()
        self._seconds = dict.fromkeys(BUCKETS, 0.0)
        self._bucket, self._doing = "start", "starting"
        self._counted_to = self._progress = now() if begin is None else begin
        self._compiled: list[tuple[float, float]] = []  # intervals that may lie in a longer one
        self._steps: deque[float] = deque(maxlen=100)  # seconds of training in the last steps
        self._trained = 0.0  # seconds of training up to the last step

    def seconds(self) -> dict[str, float]:
        """The seconds in each bucket until now."""
        with self._lock:
            self._count()
            return dict(self._seconds)

    def doing(self) -> tuple[str, float]:
        """What the run is doing, and the seconds since it last began something else or finished a step."""
        with self._lock:
            return self._doing, now() - self._progress

    def enter(self, bucket: str, doing: str | None = None) -> tuple[str, str]:
        """Makes a bucket the current one. Returns the one before, with what the run was doing."""
        with self._lock:
            self._count()
            before = self._bucket, self._doing
            self._bucket, self._doing = bucket, doing or DOING.get(bucket, bucket)
            self._progress = self._counted_to
        return before

    @contextlib.contextmanager
    def time(self, bucket: str, doing: str | None = None) -> Iterator[None]:
        """Counts the time inside to a bucket. Contexts may be nested; the inner one counts."""
        before = self.enter(bucket, doing)
        try:
            yield
        finally:
            self.enter(*before)

    def step_done(self, step: int) -> None:
        """Says that `step` steps are done, and counts the excess of one that stalled."""
        with self._lock:
            self._count()
            self.step, self._progress = step, self._counted_to
            took, self._trained = self._seconds["training"] - self._trained, self._seconds["training"]
            if len(self._steps) >= JUDGED_FROM:
                median = statistics.median(self._steps)
                if took > STALL * median:
                    self._move("stall", took - median)
                    self._trained = self._seconds["training"]
            self._steps.append(took)

    def move(self, bucket: str, seconds: float) -> None:
        """Moves seconds from the current bucket, as many as it has, to another one: what others did while this run
        waited for them."""
        with self._lock:
            self._count()
            self._move(bucket, seconds)

    @contextlib.contextmanager
    def watching_compiler(self) -> Iterator[None]:
        """Moves the time in which this thread compiles, wherever it does, to the bucket "compile"."""
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        try:
            yield
        finally:
            with contextlib.suppress(AssertionError):  # somebody has removed all listeners
                jax.monitoring.unregister_event_duration_listener(self._on_event)

    def _on_event(self, event: str, seconds: float, **_) -> None:
        if not event.startswith(COMPILING) or threading.get_ident() != self._thread:
            return
        with self._lock:
            self._count()
            end = self._counted_to
            inside = [each for each in self._compiled if each[0] >= end - seconds]  # tracing may compile constants
            self._compiled = [*(each for each in self._compiled if each not in inside), (end - seconds, end)][-100:]
            if self._bucket != "compile":
                self._move("compile", max(seconds - sum(b - a for a, b in inside), 0.0))

    def _count(self) -> None:
        """Adds the time since the last call to the current bucket."""
        at = now()
        self._seconds[self._bucket] += at - self._counted_to
        self._counted_to = at

    def _move(self, bucket: str, seconds: float) -> None:
        """Moves seconds from the current bucket, as many as it has, to another one."""
        seconds = min(seconds, self._seconds[self._bucket])
        self._seconds[self._bucket] -= seconds
        self._seconds[bucket] += seconds


def goodput(seconds: Mapping[str, float]) -> float:
    """The share of training in the seconds of all buckets; 0 where there are none."""
    total = sum(seconds.values())
    return seconds.get("training", 0.0) / total if total else 0.0
