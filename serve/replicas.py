"""Several servers of one model as child processes: they are started, started again when they end, and ended.

A child listens on a free port of the loopback address and prints it. Its standard input is a pipe that ends with the
parent process, however that ends, and `end_with_parent` ends the child then. Children are in process groups of their
own: Ctrl-C reaches the parent alone, which lets answers end first.
"""

import collections
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from .backends import Backend
from .listen import say

PYTHON = (sys.executable, "-P")
"""Python that does not import from the folder it is started in."""
READY = "ready: "
"""What precedes the address in the line that a server prints once it takes requests."""
MOST_HELD = 200
"""Lines that are kept of a server that is not ready."""
FIRST_WAIT = 1.0
"""Time before a server that has ended is started again; the time doubles as long as the server keeps ending."""
LONGEST_WAIT = 60.0
"""Longest time before a server is started again. One that lived longer is started again after `FIRST_WAIT`."""
HANG_SECONDS = 60.0
"""Time for which a server that was well may fail its health checks until it is ended and started again."""
END_SECONDS = 5.0
"""Time in which a server must end after SIGTERM, once it has no more answers to write."""


def end_with_parent() -> None:
    """Ends this process once its standard input ends, which a parent holds open as long as it lives."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


class Replica(threading.Thread):
    """A thread that keeps a server running.

    Args:
      number: its number, from 0.
      command: the command of the server, which prints "ready: URL" once it takes requests.
      environment: variables beside those of this process.
      backend: what the router knows of the server.
      failed: called with the exit code and the last line if the server ends before it was ever ready.

    Attributes:
      ready: set once the server was ready for the first time.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        backend: Backend,
        failed: Callable[[int, str], None],
    ):
        super().__init__(name=f"replica {number}", daemon=True)
        self.number, self.backend, self.ready = number, backend, threading.Event()
        self._command, self._environment, self._failed = command, environment, failed
        self._process: subprocess.Popen | None = None
        self._ending, self._lock = threading.Event(), threading.Lock()

    def run(self) -> None:
        """Starts the server, and again whenever it ends."""
        wait = FIRST_WAIT
        while not self._ending.is_set():
            begin = time.monotonic()
            code, held = self._run_once()
            if self._ending.is_set():
                return
            for line in held[:-1]:
                self._say(line)
            last = held[-1] if held else ""
            if not self.ready.is_set():
                return self._failed(code, last)
            if last:
                self._say(last)
            wait = FIRST_WAIT if time.monotonic() - begin > LONGEST_WAIT else wait
            say(f"camelid: replica {self.number} ended by {_how(code)}: it is started again in {wait:g} s")
            self._ending.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _run_once(self) -> tuple[int, list[str]]:
        """Runs the server to its end.

        Returns:
          Its exit code; and the lines that were not passed on, since it was not ready: all, and of the first replica
          the last one.
        """
        with self._lock:
            if self._ending.is_set():
                return 0, []
            try:
                self._process = process = subprocess.Popen(
                    self._command, env=os.environ | self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, text=True, errors="replace", process_group=0,
                )  # fmt: skip
            except OSError as error:  # the machine has no memory or process left
                return 1, [f"camelid: no process can be started: {error}"]
        held: collections.deque[str] | None = collections.deque(maxlen=MOST_HELD)
        speaks = self.number == 0 and not self.ready.is_set()
        for line in map(str.rstrip, process.stdout):
            if held is None:
                self._say(line)
            elif line.startswith(READY):
                if speaks:
                    for each in held:
                        self._say(each)
                held, self.backend.url = None, line.removeprefix(READY)
                self.ready.set()
            else:
                held.append(line)
                if speaks and len(held) > 1:
                    self._say(held.popleft())
        code = process.wait()
        self.backend.leave()
        process.stdin.close()
        return code, list(held or ())

    def _say(self, line: str) -> None:
        if not self._ending.is_set():
            say(f"[{self.number}] {line}")

    def kill(self) -> None:
        """Ends the server at once; it is started again unless `end` was called."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def end(self) -> None:
        """Lets the server end; `join` waits until it has."""
        with self._lock:
            self._ending.set()
            if self._process is not None:
                self._process.terminate()


class Replicas:
    """Servers of one model behind a router.

    The first is started alone, so that the others read what it has compiled, and a wrong setting is said once.

    Args:
      command: the command of a server, which prints "ready: URL" once it takes requests.
      environments: variables of each server.
      backends: what the router knows of each server.
      failed: called if a server ends before all were ready.
      ready: called once all servers are well.

    Attributes:
      failure: exit code and last line of a server that ended before all were ready; None without one.
    """

    def __init__(
        self,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        backends: Sequence[Backend],
        failed: Callable[[], None],
        ready: Callable[[], None],
    ):
        self.failure: tuple[int, str] | None = None
        self._on_failure, self._on_ready, self._ending = failed, ready, threading.Event()
        each = zip(environments, backends, strict=True)
        self._replicas = [Replica(i, command, *both, self._fail) for i, both in enumerate(each)]

    def start(self) -> None:
        """Begins to start the servers."""
        threading.Thread(target=self._start, name="replicas", daemon=True).start()

    def _fail(self, code: int, last: str) -> None:
        self.failure = self.failure or (code, last)
        self._ending.set()
        self._on_failure()

    def _start(self) -> None:
        for replicas in (self._replicas[:1], self._replicas[1:]):
            for replica in replicas:
                replica.start()
            while not all(replica.ready.is_set() for replica in replicas):
                if self._ending.wait(0.05):
                    return
        while not all(replica.backend.well for replica in self._replicas):
            if self._ending.wait(0.05):
                return
        self._on_ready()
        self._watch()

    def _watch(self) -> None:
        """Ends servers that hang or have failed, so that they are started again."""
        since = {}
        while not self._ending.wait(1):
            for replica in self._replicas:
                if replica.backend.well or replica.backend.url is None:
                    since.pop(replica, None)
                elif time.monotonic() - since.setdefault(replica, time.monotonic()) > HANG_SECONDS:
                    say(f"camelid: replica {replica.number} was not well for {HANG_SECONDS:g} s: it is ended")
                    self.kill(replica.number)
                    del since[replica]

    def kill(self, number: int) -> None:
        """Ends a server at once, so that it is started again."""
        self._replicas[number].kill()

    def stop(self, *, at_once: bool) -> None:
        """Ends all servers. at_once: whether answers that are being written are cut off."""
        self._ending.set()
        started = [replica for replica in self._replicas if replica.ident is not None]
        for replica in started:
            replica.end()
        until = time.monotonic() + (0 if at_once else END_SECONDS)
        for replica in started:
            replica.join(max(0, until - time.monotonic()))
            replica.kill()
        for replica in started:
            replica.join()


def _how(code: int) -> str:
    """An exit code in words."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def reason(failure: tuple[int, str]) -> str:
    """Why a server could not be started, in one line."""
    code, last = failure
    return last.removeprefix("camelid: ") or f"a replica ended by {_how(code)} before it was ready"
