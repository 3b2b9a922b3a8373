"""Cuts a text before its first stop string: the whole text at once, or piece by piece while it is generated."""

from collections.abc import Sequence
from typing import NamedTuple


class _StopMatch(NamedTuple):
    """Where a stop string is in a text. Matches are ordered by their end, then by their start."""

    end: int  # one past its last character
    start: int  # its first character


def _first_stop(text: str, stops: Sequence[str]) -> _StopMatch | None:
    """The stop string in `text` that ends first; the longest if several end together. None if there is none."""
    places = [(text.find(stop), len(stop)) for stop in stops]
    return min((_StopMatch(start + length, start) for start, length in places if start >= 0), default=None)


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the beginning of the stop string that ends first; all of it if it holds no stop string."""
    found = _first_stop(text, stops)
    return text if found is None else text[: found.start]


class StopFilter:
    """Passes on a text piece by piece, up to the first stop string. The joined outputs equal `cut` of the whole text.

    Characters that may begin a stop string are held back until later text shows that they do not.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Takes the next piece; returns the text that can now be passed on, "" after a stop string."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = _first_stop(text, self._stops)
        if found is not None:
            self.stopped, self._held = True, ""
            return text[: found.start]
        told = len(text) - max((_partial_length(text, stop) for stop in self._stops), default=0)
        self._held = text[told:]
        return text[:told]

    def flush(self) -> str:
        """Ends the text; returns the characters that were held back."""
        held, self._held = self._held, ""
        return held


def _partial_length(text: str, stop: str) -> int:
    """Length of the longest proper beginning of `stop` with which `text` ends; 0 if there is none."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
