"""Runs programs that a model wrote, each in a locked process of its own, and computes pass@k.

A program passes if it comes to its end: its tests are assertions at its end. What it cannot do is in `code_sandbox.py`.
A program that searches the memory of its own process could still forge its result: this is no defence against a model
that cheats. Only Linux on x86_64 or aarch64 has the means; elsewhere nothing is run.
"""

import contextlib
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

SANDBOX = Path(__file__).with_name("code_sandbox.py")
START_SECONDS = 20.0
"""Time that the interpreter may take to start, which is not the time of the program."""

MOST_BYTES = 1 << 16
"""Bytes that are read from a program's process; its result is one line."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    """Whether it came to its end."""

    error: str = ""
    """Why it did not: the exception, "time limit", or "ended early" where the process stopped without a result."""


def run_program(program: str, *, seconds: float = 3.0, memory: int = 1 << 30) -> Outcome:
    """Runs a Python program that ends with its tests.

    Args:
      program: the source text.
      seconds: its time, of the processor and of the clock.
      memory: its address space in bytes.

    Raises:
      UserError: this machine has no means to lock the program in.
    """
    if sys.platform != "linux":
        raise UserError(f"programs of a model run only on Linux, which can lock them in; this is {sys.platform}")
    token = secrets.token_hex(16)
    asked = json.dumps({"program": program, "seconds": seconds, "memory": memory, "token": token})
    with tempfile.TemporaryDirectory(prefix="camelid-program-") as empty:
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", "-B", str(SANDBOX)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=empty,
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        said = _answer(process, asked.encode(), seconds)
    found = _result(said, token)
    if found is None:
        ran_out = process.returncode in (-signal.SIGXCPU, -signal.SIGKILL) and len(said) < MOST_BYTES
        return Outcome(False, "time limit" if ran_out else "ended early")
    if "refused" in found:
        raise UserError(f"programs of a model cannot be locked in on this machine: {found['refused']}")
    return Outcome(found["error"] is None, found["error"] or "")


def run_programs(programs: Sequence[str], *, workers: int | None = None, **limits: float) -> list[Outcome]:
    """Runs programs side by side.

    Args:
      programs: their source texts.
      workers: processes at a time; None: one for each processor.
      **limits: those of `run_program`.

    Returns:
      The outcomes in the order of the programs.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return list(pool.map(lambda program: run_program(program, **limits), programs))


def pass_at_k(n: int, passed: int, k: int) -> float:
    """Unbiased estimate of the probability that one of k samples passes (Chen et al. 2021, arXiv:2107.03374, eq. 1).

    1 - C(n - passed, k) / C(n, k), the share of draws of k among n samples with one that passes.

    Args:
      n: number of samples.
      passed: number of those that passed.
      k: number of samples that a user would try, at most n.
    """
    if not 0 <= passed <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {passed} among {n} samples: give 1 <= k <= n and 0 <= passed <= n")
    return 1.0 - math.comb(n - passed, k) / math.comb(n, k)


def _answer(process: subprocess.Popen, asked: bytes, seconds: float) -> bytes:
    """What the process writes until it ends. It is killed if it does not start, or `seconds` after it started."""
    with process:
        try:
            with _at_most(START_SECONDS, process):
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(asked)
                    process.stdin.close()
                first = process.stdout.readline(MOST_BYTES)
            with _at_most(seconds, process):
                return first + process.stdout.read(MOST_BYTES)
        finally:
            _kill(process)


@contextlib.contextmanager
def _at_most(seconds: float, process: subprocess.Popen) -> Iterator[None]:
    """Kills the process and its group if the block takes longer."""
    timer = threading.Timer(seconds, _kill, [process])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _result(said: bytes, token: str) -> dict | None:
    """The result with the right token, which a program does not know. None: there is none."""
    start = said.rfind(b'{"token": "')
    try:
        found = json.loads(said[start:]) if start >= 0 else {}
    except ValueError:
        return None
    return found if found.get("token") == token else None
