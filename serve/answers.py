"""Shows an answer while it comes: as Markdown on a terminal, as plain text elsewhere."""

import time
from collections.abc import Callable
from typing import Any

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from .status import AFTER, StatusLine

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])  # HTML is shown as it is written

CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}") | {9: "    ", 10: "\n", 13: ""}
"""For `str.translate`: replaces control characters, by which an answer could steer the terminal."""


class PlainAnswer:
    """Prints each piece as it is; before the first one, a status line on standard error says what is waited for."""

    def __init__(self, console: Console, waiting: Callable[[], str]):
        self._console, self._status, self._has_printed = console, StatusLine(waiting()), False

    def __enter__(self) -> "PlainAnswer":
        self._status.__enter__()
        return self

    def push(self, piece: str) -> None:
        """Shows a further piece."""
        if piece:
            self._status.end()
            piece = piece.translate(CONTROLS) if self._console.is_terminal else piece
            self._console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
            self._has_printed = True

    def __exit__(self, kind: type | None, *error: Any) -> None:
        self._status.end()
        if self._has_printed or kind is None:  # an answer may be empty, a refusal is none
            self._console.print()


class MarkdownAnswer:
    """Shows an answer as Markdown.

    Blocks that are complete, such as paragraphs, are printed for good. The last block, or as much of its end as the
    screen holds, is drawn anew eight times a second. Before the first text, and when no text comes for two seconds, a
    line says what is waited for.

    Args:
      console: the terminal.
      waiting: returns what is waited for.
    """

    def __init__(self, console: Console, waiting: Callable[[], str]):
        self._console, self._waiting = console, waiting
        self._block, self._has_printed, self._last = "", False, time.monotonic()
        self._live = Live(
            self, console=console, transient=True, refresh_per_second=8, redirect_stdout=False, redirect_stderr=True
        )

    def __enter__(self) -> "MarkdownAnswer":
        self._live.start(refresh=True)
        self._console.show_cursor(True)  # a signal during an import ends the process at once
        return self

    def push(self, piece: str) -> None:
        """Shows a further piece."""
        if not piece:
            return
        self._last = time.monotonic()
        text = self._block + piece.translate(CONTROLS)
        if "\n" in piece:
            done, self._block = split_blocks(text)
            if done.strip():
                self._live.refresh()
                self._print(done)
        else:
            self._block = text

    def __exit__(self, *error: Any) -> None:
        self._live.stop()
        if self._block.strip():
            self._print(self._block)

    def _print(self, text: str) -> None:
        if self._has_printed:
            self._console.print()
        self._console.print(markdown(text))
        self._has_printed = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The last block, or as much of its end as there is room for, and a line if nothing comes."""
        block, quiet = self._block, time.monotonic() - self._last
        if block.strip():
            lines = console.render_lines(markdown(block), options, pad=False)
            if self._has_printed:
                lines.insert(0, [])
            for line in lines[-max(console.height - 2, 1) :]:
                yield from line
                yield Segment.line()
        if quiet >= AFTER or not (block or self._has_printed):
            yield Text(f"{self._waiting()}, {quiet:.0f} s", style="dim", no_wrap=True, overflow="ellipsis")


def split_blocks(text: str) -> tuple[str, str]:
    """The blocks of a Markdown text that are complete, and the last one, to which further text may belong."""
    starts = [token.map[0] for token in _PARSER.parse(text) if token.level == 0 and token.map and token.nesting >= 0]
    lines = text.split("\n")
    last = starts[-1] if starts else 0
    return "\n".join(lines[:last]), "\n".join(lines[last:])


def markdown(text: str) -> Markdown:
    """A Markdown text, with its line breaks, as rich shows it."""
    shown = Markdown(text, hyperlinks=False)
    shown.parsed = _PARSER.parse(text)
    for token in shown.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return shown
