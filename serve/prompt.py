"""The line in which a user of the chat types a message: editing, several lines, a history that is kept in a file."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
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
    return session.prompt


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
