"""Finds texts that are too similar to earlier ones by ROUGE-L, without comparing all pairs.

The result equals that of comparing each text with every one that is kept. Two texts with overlap o, the number of words
that they share, counted with repetitions, and m and n words have a ROUGE-L of at most 2 o / (m + n). An inverted index
gives all overlaps of a text; the longest common subsequence is computed only where that bound does not decide.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .rouge import f_measure, lcs, positions_of

SLACK = 1e-9
"""Bounds are compared with this tolerance, since F-measures are rounded in another way."""

FIRST = 8
"""Number of texts with the highest bounds that are compared first; their ROUGE-L rules out most others."""


@dataclass(frozen=True)
class Similar:
    """An earlier text that is similar to another one."""

    place: int
    """Number of the earlier text, from 0, in the order in which texts were kept."""

    score: float
    """Their ROUGE-L."""


class Novelty:
    """Keeps texts that are new: those whose ROUGE-L with every kept one is at most a threshold.

    Texts are lists of words, such as `rouge.rouge_words` gives. A text without words is always new.

    Args:
      threshold: the highest ROUGE-L of two kept texts, as 0.7 in self-instruct.
    """

    def __init__(self, threshold: float = 0.7):
        self.threshold = threshold
        self._texts: list[tuple[str, ...]] = []
        self._lengths = np.zeros(1024, np.int32)
        self._index: dict[tuple[str, int], array] = {}  # texts by word and the number of the word's repetition

    def __len__(self) -> int:
        """Number of kept texts."""
        return len(self._texts)

    def add(self, words: Sequence[str]) -> Similar | None:
        """Keeps a text if it is new. Returns None then, and else the most similar text, the first of several."""
        similar = self.nearest(words, self.threshold)
        if similar is None:
            self.keep(words)
        return similar

    def keep(self, words: Sequence[str]) -> None:
        """Keeps a text without asking whether it is new, as the seeds of self-instruct are."""
        place = len(self._texts)
        if place == len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        self._lengths[place] = len(words)
        self._texts.append(tuple(words))
        for key in _numbered(words):
            self._index.setdefault(key, array("i")).append(place)

    def nearest(self, words: Sequence[str], above: float = 0.0) -> Similar | None:
        """The kept text with the highest ROUGE-L, the first of several; None if no ROUGE-L is greater than `above`."""
        if not words or not self._texts:
            return None
        bounds_N = self._bounds(words)
        positions, best = positions_of(words), Similar(-1, above)

        def compare(place: int) -> None:
            nonlocal best
            other = self._texts[place]
            score = f_measure(lcs(positions, len(words), other), len(words), len(other))
            if score > best.score or (score == best.score and 0 <= place < best.place):
                best = Similar(place, score)

        first = np.argpartition(-bounds_N, FIRST)[:FIRST] if len(bounds_N) > FIRST else np.arange(len(bounds_N))
        for place in first.tolist():
            if bounds_N[place] > above - SLACK:
                compare(place)
        bounds_N[first] = -1.0
        left = np.flatnonzero(bounds_N > best.score - SLACK)
        for place in left[np.argsort(-bounds_N[left], kind="stable")].tolist():
            if bounds_N[place] < best.score - SLACK:
                break
            compare(place)
        return best if best.place >= 0 else None

    def _bounds(self, words: Sequence[str]) -> np.ndarray:
        """For each kept text an upper bound of its ROUGE-L."""
        overlaps_N = np.zeros(len(self._texts), np.int32)
        for key in _numbered(words):
            if places := self._index.get(key):
                overlaps_N[np.frombuffer(places, np.int32)] += 1
        return overlaps_N * 2.0 / (self._lengths[: len(self._texts)] + len(words))


def _numbered(words: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Each word with the number of its repetition, so that shared pairs are shared words with repetitions."""
    seen: dict[str, int] = {}
    for word in words:
        seen[word] = number = seen.get(word, -1) + 1
        yield word, number
