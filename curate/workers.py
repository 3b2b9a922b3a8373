"""Worker processes that compute units of work, and end with the command."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")

_AHEAD = 2
"""Calls per worker that are begun before the result of an earlier one is taken."""


class Workers:
    """Processes that call functions. With a count of 1 this process calls them itself.

    Used in a `with` block; at its end, also by an error or a signal, the processes are killed. A unit of work that they
    had begun is lost, and nothing else.
    """

    def __init__(self, count: int, start: Callable[..., None], *arguments: Any):
        """Says how the processes begin.

        Args:
          count: number of processes, which begin with the first call.
          start: called in each process before anything else, and in this one if there is no other.
          arguments: what it is called with.
        """
        self.count, self._start, self._pool = count, (start, arguments), None
        if count == 1:
            start(*arguments)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            others = {child.pid for child in self._others}
            for child in multiprocessing.active_children():
                if child.pid not in others:
                    child.kill()
            # The pool's thread sees that and ends. Python, which wakes it at exit, would find its pipe half closed.
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[..., T], calls: Iterable[tuple]) -> Iterator[T]:
        """The results of a function for the arguments of each call, in their order.

        Raises what the function raises, and ChildProcessError if a process is killed.
        """
        if self.count == 1:
            yield from (function(*arguments) for arguments in calls)
            return
        waiting: deque[Future[T]] = deque()
        calls = iter(calls)
        try:
            with _without_ctrl_c():  # the first calls start the processes
                waiting += [self._submit(function, call) for call in islice(calls, _AHEAD * self.count)]
            while waiting:
                result = waiting.popleft().result()
                waiting += [self._submit(function, call) for call in islice(calls, 1)]
                yield result
        except BrokenProcessPool:
            raise ChildProcessError(
                "a worker process was killed, perhaps for lack of memory: lower --workers or raise config.partitions, "
                "and give the command again to go on from the finished parts"
            ) from None

    def _submit(self, function: Callable[..., T], arguments: tuple) -> Future[T]:
        if self._pool is None:
            self._others = multiprocessing.active_children()
            start, given = self._start
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, context, _begin, (start, given))
        return self._pool.submit(function, *arguments)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes that start here never see SIGINT: a terminal sends Ctrl-C to all, and the first process ends others."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(start: Callable[..., None], arguments: tuple) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*arguments)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is killed."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
