"""Texts cut before the first stop string, all at once or while they are being said."""

from collections.abc import Sequence
from typing import NamedTuple


class _Found(NamedTuple):
    end: int
    start: int


def _first(text: str, stops: Sequence[str]) -> _Found | None:
    """The stop string that is complete first, and of several that end together the longest."""
    places = [(text.find(stop), len(stop)) for stop in stops]
    return min((_Found(start + length, start) for start, length in places if start >= 0), default=None)


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to where the stop string begins that is complete first, or all of it."""
    found = _first(text, stops)
    return text if found is None else text[: found.start]


class StopFilter:
    """Passes a text on piece by piece, up to a stop string: its outputs, joined, are `cut` of the whole text.

    What could be the beginning of a stop string is held back until it is known not to be one.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What may be told of the text so far and was not told yet; nothing after a stop string."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = _first(text, self._stops)
        if found is not None:
            self.stopped, self._held = True, ""
            return text[: found.start]
        told = len(text) - max((_begun(text, stop) for stop in self._stops), default=0)
        self._held = text[told:]
        return text[:told]

    def flush(self) -> str:
        """What was held back, where the text ends without a stop string."""
        held, self._held = self._held, ""
        return held


def _begun(text: str, stop: str) -> int:
    """How many characters of `stop` stand at the end of `text`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
