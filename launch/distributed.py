"""Joins the processes that train together, and ends this process with one line when another one dies.

JAX's coordination service watches the processes. When one is lost, it calls abort() after pages of log; here that
becomes one line and exit code 1. A collective operation may fail first, which gives the same line.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping

from ..errors import UserError
from .launching.verdict import LOST as LOST_PEER
from .launching.verdict import write_exit

HEARTBEAT_SECONDS = 15  # a process that is silent for so long counts as dead
SHUTDOWN_SECONDS = 10  # a process that ends waits so long for the others
JOIN_SECONDS = 300  # a process waits so long at the start for the others
LOST = re.compile(
    r"gloo|nccl|peer|connection (closed|reset)|unavailable|deadline|heartbeat|barrier|coordination", re.IGNORECASE
)
LOST_IN_A_SAVE = re.compile(r"CoordinationService|gloo", re.IGNORECASE)  # a file's error may speak of peers of its own
RECORD = re.compile(rb"[IWEF]\d{4} ")  # the beginning of a record in XLA's log
OF_COORDINATION = re.compile(rb"[IWEF]\d{4} .*(coordination|preemption|distributed)")
DIED = "another process of this run died or cannot be reached: start all again to resume from the last checkpoint"
APART = (
    "the processes of this run did not find each other within {} seconds: start all of them, with a "
    "coordinator address at which the others reach process 0"
)

_ENDING = threading.Lock()
"""Held by the thread that ends this process: the others wait, so that one line is printed."""


@contextlib.contextmanager
def joined(
    coordinator: str | None, num_processes: int | None, process_id: int | None, *, seconds: int = JOIN_SECONDS
) -> Iterator[None]:
    """Joins the processes of a run, and leaves them at the end.

    Meanwhile the death of another process ends this one within 30 seconds, with one line and exit code 1. So does an
    OSError in this process, because the others wait for it.

    Args:
      coordinator: address HOST:PORT of process 0.
      num_processes: number of processes in the run.
      process_id: number of this process, from 0.
      seconds: time that a process waits at the start for the others.

    JAX finds an argument that is None by itself, on TPU VMs, Slurm and Kubernetes.

    Raises UserError if another program listens on the port of the coordinator, or the arguments contradict each other.
    """
    import jax

    from ..train.loop import Interrupted, TrainingStopped

    check_group(coordinator, num_processes, process_id)
    _check_port(coordinator, process_id)
    words = [APART.format(seconds)]
    _one_line_instead_of_abort(words)
    if jax.config.jax_platforms == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            local_device_ids=devices_of_task(os.environ),
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except ValueError as error:  # nothing tells what is not given
        options = "give --coordinator=HOST:PORT, --num_processes=N and --process_id=I"
        raise UserError(f"--distributed: JAX finds no cluster here ({error}): {options}") from None
    words[0] = DIED
    try:
        yield
    except (UserError, Interrupted, TrainingStopped):  # all processes raise this at the same step
        raise
    except Exception as error:
        failed_file = isinstance(error, OSError)
        if (LOST_IN_A_SAVE if failed_file else LOST).search(str(error)):
            write_exit(LOST_PEER)
            _end(DIED)
        if failed_file:
            _end(str(error))
        raise


def check_group(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Raises UserError for arguments of `joined` that are wrong or contradict each other."""
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not _is_port(port):
            raise UserError(f"--coordinator={coordinator}: give HOST:PORT of process 0, as in 10.0.0.1:8476")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: give 1 or more")
    if process_id is not None and (process_id < 0 or process_id >= (num_processes or process_id + 1)):
        most = "0 or more" if num_processes is None else f"0 to {num_processes - 1}"
        raise UserError(f"--process_id={process_id}: give {most}, to each process another one")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < int(text) < 65536


def devices_of_task(environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs that a task of Slurm uses, among those that it sees; empty: all of them. None: JAX decides.

    JAX gives each task on a node the GPU of its number: one task on a node with eight GPUs would use one of them, and
    tasks that Slurm bound to a GPU each would look for a second one.

    Args:
      environment: the variables of the process.
    """
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if tasks is None or "SLURM_LOCALID" not in environment or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    per_node, number = int(tasks[0]), int(environment["SLURM_LOCALID"])
    seen = [part for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if per_node == 1 or (seen and len(seen) % per_node):
        return []
    each = len(seen) // per_node
    return list(range(number * each, (number + 1) * each)) if seen else None


def _check_port(coordinator: str | None, process_id: int | None) -> None:
    """Raises UserError in process 0 if its port as the coordinator is taken, at which JAX would crash."""
    number = os.environ.get("SLURM_PROCID") if process_id is None else process_id
    port = os.environ.get("JAX_COORDINATOR_PORT", "") if coordinator is None else coordinator.rpartition(":")[2]
    if str(number) != "0" or not _is_port(port):
        return
    with contextlib.closing(socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", int(port)))
        except OSError as error:
            place = f"port {port} of {socket.gethostname()}"
            raise UserError(f"{place} cannot be the coordinator's: {error.strerror}: give another one") from None


def _end(words: str) -> None:
    """Prints a line and exits at once; JAX's own exit would wait for the other processes, which wait for this one."""
    with _ENDING:
        print(f"camelid: {' '.join(words.split())}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(1)


def _one_line_instead_of_abort(words: list[str]) -> None:
    """Makes abort() after a lost process print words[0] and exit with 1, and hides the coordination service's log."""
    real, lost = os.dup(2), threading.Event()

    def end(_: int) -> None:
        if not lost.wait(2.0):  # abort() has another reason
            libc.signal(signal.SIGABRT, None)
            return
        with _ENDING:
            write_exit(LOST_PEER)
            os.write(real, f"camelid: {words[0]}\n".encode())
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
