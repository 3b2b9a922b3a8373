"""What a judge said about answers: one record for each request, whoever wrote it.

`camelid judge grade` writes them as JSON lines, `published.py` reads those of others, and reports are made from them
alone.
"""

from dataclasses import dataclass
from typing import Literal

Winner = Literal["a", "b", "tie"]


@dataclass(frozen=True)
class Judgment:
    """A judge's verdict on one answer, or on a pair of answers in one order."""

    question: str
    """Id of the question."""

    models: tuple[str, ...]
    """The authors of the answers in the order in which the judge saw them: one, or two for a pair."""

    judge: str
    """Name of the judge."""

    scores: tuple[float, ...] | None = None
    """A score for each answer. None: the judge gave none, or it could not be read."""

    winner: Winner | None = None
    """Of a pair: the better answer, a for the first that the judge saw. Where the judge gave scores, the higher one.
    None: a single answer, or a verdict that could not be read."""

    category: str = ""
    """Category of the question, such as "math"."""

    turn: int = 1
    """The turn of the conversation whose answer is graded, from 1."""

    lengths: tuple[int, ...] = ()
    """Length of each answer in characters; () if unknown."""

    text: str = ""
    """What the judge wrote."""

    weight: float | None = None
    """Of a pair: the judge's probability that the second answer is better, where it gives one."""

    @property
    def is_pair(self) -> bool:
        return len(self.models) == 2

    @property
    def failed(self) -> bool:
        """Whether the verdict is missing: such a judgment is counted, and is part of no mean."""
        return self.scores is None and self.winner is None
