"""One of the processes that train together: joining them, and ending well when another one dies.

JAX's coordination watches over the processes. What it does when it has lost one is abort(), after pages of its own log;
here that becomes a line and exit code 1. A collective operation may notice first, which is the same line.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator

from ..errors import UserError

HEARTBEAT_SECONDS = 15  # a process that has not been heard of for so long counts as dead
SHUTDOWN_SECONDS = 10  # that one which ends waits for the others
LOST = re.compile(
    r"gloo|nccl|peer|connection (closed|reset)|unavailable|deadline|heartbeat|barrier|coordination", re.IGNORECASE
)
RECORD = re.compile(rb"[IWEF]\d{4} ")  # how a record of XLA's log begins
OF_COORDINATION = re.compile(rb"[IWEF]\d{4} .*(coordination|preemption_sync|distributed)")
DIED = "another process of this run died or cannot be reached; start all again, they go on from the last checkpoint"


@contextlib.contextmanager
def joined(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Iterator[None]:
    """Joins the processes of a run (None: as JAX finds them), and leaves them at the end.

    Within it the death of another process ends this one, in less than 30 seconds, with a line and exit code 1; so does
    an error that this process alone has, since the others wait for it.
    """
    import jax

    from ..train.loop import Interrupted, TrainingStopped

    _one_line_instead_of_abort()
    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    seconds = dict(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=SHUTDOWN_SECONDS)
    jax.distributed.initialize(coordinator, num_processes, process_id, **seconds)
    try:
        yield
    except (UserError, Interrupted, TrainingStopped):  # all processes have it, at the same step
        raise
    except Exception as error:
        if isinstance(error, OSError):
            _end(str(error))
        if not LOST.search(str(error)):
            raise
        _end(DIED)


def _end(words: str) -> None:
    """Ends the process at once: JAX would wait for the others, who wait for this one."""
    print(f"camelid: {' '.join(words.split())}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(1)


def _one_line_instead_of_abort() -> None:
    """From now on abort() for a lost process is `DIED` and exit code 1, and the coordination's log is not shown."""
    real, lost = os.dup(2), threading.Event()

    def end(_: int) -> None:
        if not lost.wait(2.0):  # something else aborts
            libc.signal(signal.SIGABRT, None)
            return
        os.write(real, f"camelid: {DIED}\n".encode())
        os._exit(1)

    global _handler  # C keeps its address
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, _handler)  # abort() does not wait for Python's own handlers
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    threading.Thread(target=_copy_log, args=(read, real, lost), daemon=True).start()
    sys.stderr = os.fdopen(os.dup(real), "w", buffering=1, errors="backslashreplace")


def _copy_log(read: int, real: int, lost: threading.Event) -> None:
    """Copies what C++ code says, but for the records of the coordination, each of which may have several lines."""
    left_out = False
    with os.fdopen(read, "rb") as lines:
        for line in lines:
            if RECORD.match(line):
                left_out = bool(OF_COORDINATION.match(line))
                if left_out and line.startswith(b"F"):
                    lost.set()
            if not left_out:
                os.write(real, line)
