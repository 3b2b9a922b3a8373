"""The keyboard of a terminal while nobody reads it: what is typed is not shown, and waits for the next prompt."""

import contextlib
import os
import signal
import termios
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IFLAG, LFLAG = 0, 3  # places in the list of `termios.tcgetattr`


@contextlib.contextmanager
def hidden_typing(terminal: TextIO) -> Iterator[None]:
    """Turns the echo of a terminal off, so that typing does not break what is written there.

    Keys are kept one by one as prompt_toolkit reads them: Enter, Backspace and Ctrl-D act in the next prompt. Ctrl-C
    and Ctrl-Z send their signals at once, and Ctrl-C drops the keys before it. The terminal's settings return when the
    block ends, and before a Python handler of SIGINT, SIGTERM or SIGHUP runs, which may end the process.

    Args:
      terminal: a stream of the terminal. A process in the background leaves the settings to the one in front.
    """
    number = terminal.fileno()
    before, hidden = termios.tcgetattr(number), termios.tcgetattr(number)
    hidden[LFLAG] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
    hidden[IFLAG] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR)
    wanted = hidden

    def restore_first(received: int, frame: FrameType | None) -> None:
        _set(number, before)
        try:
            handlers[received](received, frame)
        finally:
            _set(number, wanted)

    def hide_again(*_: object) -> None:  # after Ctrl-Z the shell has set the terminal as it likes
        _set(number, wanted)

    in_main = threading.current_thread() is threading.main_thread()
    handlers = {each: signal.getsignal(each) for each in ENDING if in_main and callable(signal.getsignal(each))}
    continued = signal.getsignal(signal.SIGCONT)
    try:
        for each in handlers:
            signal.signal(each, restore_first)
        if in_main:
            signal.signal(signal.SIGCONT, hide_again)
        _set(number, hidden)
        yield
    finally:
        wanted = before
        _set(number, before)
        for each, handler in handlers.items():
            signal.signal(each, handler)
        if in_main:
            signal.signal(signal.SIGCONT, continued)


def _set(number: int, settings: list) -> None:
    """Sets a terminal at once, keeping what was typed, unless it is gone or another process has it."""
    with contextlib.suppress(termios.error):
        if _in_front(number):
            termios.tcsetattr(number, termios.TCSANOW, settings)


def _in_front(number: int) -> bool:
    """Whether this process may set a terminal without being stopped by SIGTTOU."""
    try:
        return os.tcgetpgrp(number) == os.getpgrp()
    except OSError:  # the terminal controls no jobs of this process
        return True
