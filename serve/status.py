"""A status line on standard error for work that prints nothing for a while."""

import os
import sys
import threading
import time
from typing import Any

from rich.cells import cell_len, set_cell_size

AFTER = 2.0
"""Seconds without output after which a status line is shown."""


class StatusLine:
    """Says what is being done, and for how long, once nothing was printed for `after` seconds.

        with StatusLine("loading runs/sft"):
            ...

    The line is gone when the block ends, and while something else is printed on standard error. Where standard error is
    not a terminal, nothing is shown.

    Args:
      doing: the words.
      after: seconds without output before the line is shown.
    """

    def __init__(self, doing: str, after: float = AFTER):
        self._doing, self._after = doing, after
        self._lock, self._ended, self._is_shown = threading.RLock(), threading.Event(), False

    def __enter__(self) -> "StatusLine":
        self._began = self._quiet_since = time.monotonic()
        self._stream = sys.stderr
        if is_terminal(self._stream):
            sys.stderr = _Cleared(self)
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def say(self, doing: str) -> None:
        """Changes the words."""
        self._doing = doing

    def end(self) -> None:
        """Takes the line away for good."""
        self._ended.set()
        if isinstance(sys.stderr, _Cleared):
            sys.stderr = self._stream
            self._thread.join()
            self.clear()

    def clear(self) -> None:
        """Takes the line away until nothing was printed for `after` seconds again."""
        with self._lock:
            self._quiet_since = time.monotonic()
            if self._is_shown:
                self._is_shown = False
                self._stream.write("\r\x1b[K")
                self._stream.flush()

    def _run(self) -> None:
        wait = self._after
        while not self._ended.wait(wait):
            with self._lock:
                left = self._quiet_since + self._after - time.monotonic()
                if left <= 0 and not self._ended.is_set():
                    self._show()
            wait = max(left, 0.5)

    def _show(self) -> None:
        line = f"{self._doing}, {time.monotonic() - self._began:.0f} s"
        width = os.get_terminal_size(self._stream.fileno()).columns or 80  # 0: unknown
        line = line if cell_len(line) < width else set_cell_size(line, width - 1)
        self._stream.write(f"\r{line}\x1b[K")
        self._stream.flush()
        self._is_shown = True


class _Cleared:
    """Standard error while a status line may be shown: what is written takes the line away first."""

    def __init__(self, status: StatusLine):
        self._status = status

    def write(self, text: str) -> int:
        self._status.clear()
        return self._status._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._status._stream, name)


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal on which the cursor can be moved."""
    if stream is None or stream.closed:
        return False
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
