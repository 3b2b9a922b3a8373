"""A thread that calls a function again and again, beside whatever the process does."""

import threading
from collections.abc import Callable

from ..data.console import tell


class Heartbeat:
    """Calls `beat` at once and then every `seconds`, until `stop`.

    A beat must not end a run: if it cannot write its file (OSError), one line on standard error says so, and the next
    beat tries again.
    """

    def __init__(self, beat: Callable[[], None], seconds: float):
        self._beat, self._seconds = beat, seconds
        self._failed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread can be started
            tell(f"this run has no heartbeat: {error}")

    def stop(self) -> None:
        """Ends the thread. One that hangs in a write is left alone after 5 seconds; it ends with the process."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while True:
            try:
                self._beat()
            except OSError as error:
                if not self._failed:
                    tell(f"the heartbeat cannot be written, and the run goes on: {error}")
                self._failed = True
            if self._stop.wait(self._seconds):
                return
