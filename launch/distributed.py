"""Joins the processes that train together, and ends this process with one line when another one dies.

JAX's coordination service watches the processes. When one is lost, it calls abort() after pages of log; here that
becomes one line and exit code 1. A collective operation may fail first, which gives the same line.
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

HEARTBEAT_SECONDS = 15  # a process that is silent for so long counts as dead
SHUTDOWN_SECONDS = 10  # a process that ends waits so long for the others
LOST = re.compile(
    r"gloo|nccl|peer|connection (closed|reset)|unavailable|deadline|heartbeat|barrier|coordination", re.IGNORECASE
)
RECORD = re.compile(rb"[IWEF]\d{4} ")  # the beginning of a record in XLA's log
OF_COORDINATION = re.compile(rb"[IWEF]\d{4} .*(coordination|preemption_sync|distributed)")
DIED = "another process of this run died or cannot be reached: start all again to resume from the last checkpoint"


@contextlib.contextmanager
def joined(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Iterator[None]:
    """Joins the processes of a run, and leaves them at the end.

    Meanwhile the death of another process ends this one within 30 seconds, with one line and exit code 1. So does an
    OSError in this process, because the others wait for it.

    Args:
      coordinator: address HOST:PORT of process 0.
      num_processes: number of processes in the run.
      process_id: number of this process, from 0.

    JAX finds an argument that is None by itself, on TPU VMs, Slurm and Kubernetes.
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
    except (UserError, Interrupted, TrainingStopped):  # all processes raise this at the same step
        raise
    except Exception as error:
        if isinstance(error, OSError):
            _end(str(error))
        if not LOST.search(str(error)):
            raise
        _end(DIED)


def _end(words: str) -> None:
    """Prints a line and exits at once; JAX's own exit would wait for the other processes, which wait for this one."""
    print(f"camelid: {' '.join(words.split())}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(1)


def _one_line_instead_of_abort() -> None:
    """Makes abort() after a lost process print `DIED` and exit with 1, and hides the coordination service's log."""
    real, lost = os.dup(2), threading.Event()

    def end(_: int) -> None:
        if not lost.wait(2.0):  # abort() has another reason
            libc.signal(signal.SIGABRT, None)
            return
        os.write(real, f"camelid: {DIED}\n".encode())
        os._exit(1)

    global _handler  # must outlive this call: C keeps its address
    _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, _handler)  # abort() does not wait for Python's own handlers
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(write)
    threading.Thread(target=_copy_log, args=(read, real, lost), daemon=True).start()
    sys.stderr = os.fdopen(os.dup(real), "w", buffering=1, errors="backslashreplace")


def _copy_log(read: int, real: int, lost: threading.Event) -> None:
    """Copies the log of C++ code without the records of the coordination service.

    Args:
      read: file descriptor of the log.
      real: file descriptor of the real standard error.
      lost: is set at a fatal record of the coordination service.
    """
    left_out = False
    with os.fdopen(read, "rb") as lines:
        for line in lines:
            if RECORD.match(line):
                left_out = bool(OF_COORDINATION.match(line))
                if left_out and line.startswith(b"F"):
                    lost.set()
            if not left_out:
                os.write(real, line)
