"""The line in which a user of the chat types a message: editing, several lines, a history that is kept in a file."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

KEYS = (
    "Enter sends; Alt+Enter, or a backslash at the end, adds a line. Tab completes a command, the arrows recall "
    "earlier messages. Ctrl-C stops an answer, clears the line, or ends the chat; Ctrl-D ends it."
)


def make_prompt(history: Path, commands: Sequence[str] = (), **streams: Any) -> Callable[[str], str]:
    """A function that shows a prompt and returns the user's message, which may have several lines.

    It raises EOFError after Ctrl-D, and KeyboardInterrupt after Ctrl-C on an empty line.

    Args:
      history: the file of earlier messages, readable by its user alone.
      commands: the commands that Tab completes.
      **streams: `input` and `output` of prompt_toolkit; default: the terminal.
    """
    session = PromptSession(
        history=_History(history),
        key_bindings=_keys(),
        multiline=True,
        prompt_continuation="  ",
        completer=WordCompleter(commands, sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        enable_suspend=True,
        **streams,
    )

    def ask(text: str) -> str:
        with _signals_after(session) as received:
            return session.prompt(text, pre_run=lambda: received and _exit(session))

    return ask


@contextlib.contextmanager
def _signals_after(session: PromptSession) -> Iterator[list[int]]:
    """Lets SIGTERM and SIGHUP end the prompt first, and handles them then as before. Gives the signals received.

    An exception that a signal's handler raises inside of prompt_toolkit's event loop would be lost.
    """
    received: list[int] = []

    def leave(number: int, _: FrameType | None) -> None:
        received.append(number)
        if session.app.loop is not None:
            session.app.loop.call_soon_threadsafe(_exit, session)

    handled = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in handled}
    before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, leave)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            before[received[0]](received[0], None)


def _exit(session: PromptSession) -> None:
    if session.app.is_running and not session.app.is_done:
        session.app.exit(exception=EOFError)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _add_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _clear_or_end(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


class _History(FileHistory):
    """A history that goes on in memory where its file cannot be read or written: it must not end a conversation."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            yield from super().load_history_strings()
        except OSError:
            return

    def store_string(self, string: str) -> None:
        try:
            string.encode()
            path = Path(self.filename)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            super().store_string(string)
        except (OSError, UnicodeEncodeError):  # a message that is not UTF-8 is refused by the chat
            return
