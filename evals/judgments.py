"""What a judge said about answers: one record for each request, whoever wrote it.

`camelid judge grade` writes them as JSON lines, `published.py` reads those of others, and reports are made from them
alone.
"""

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError, shown

LARGEST = 1e100
"""Largest size of a score: squares of larger ones would be infinite."""

ROUNDING = 1e-4
"""Scores of a reward model that differ by less may be a tie: batches of other shapes round differently."""

Winner = Literal["a", "b", "tie"]


@dataclass(frozen=True)
class Judgment:
    """A judge's verdict on one answer, or on a pair of answers in one order.

    A pair that has scores and no winner is won by the higher score.

    Raises:
      UserError: fields contradict each other, or a value is out of its range.
    """

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

    def __post_init__(self):
        for name in (self.question, *self.models, self.judge, self.category):
            if not _is_unicode(name):
                raise UserError(f"the name {name!a} has half of a surrogate pair, which is no character")
        answers = len(self.models)
        if answers not in (1, 2) or len(set(self.models)) < answers or not all(self.models):
            raise UserError(f"models are {shown(self.models)}: give the name of one model, or of two different ones")
        if self.turn < 1:
            raise UserError(f"turn is {self.turn}: turns count from 1")
        for name, values in (("scores", self.scores), ("lengths", self.lengths or None)):
            if values is not None and len(values) != answers:
                raise UserError(f"there are {len(values)} {name} for {answers} models: give one for each, or none")
        if not all(abs(score) <= LARGEST for score in self.scores or ()):  # also false of nan
            raise UserError(f"scores are {shown(self.scores)}: give numbers from {-LARGEST:g} to {LARGEST:g}")
        if min(self.lengths, default=0) < 0:
            raise UserError(f"lengths are {shown(self.lengths)}: give 0 or more")
        if not self.is_pair and (self.winner, self.weight) != (None, None):
            raise UserError("a single answer has no winner and no weight: give two models, or leave these fields out")
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise UserError(f"weight is {self.weight}: give a probability from 0 to 1")
        if self.is_pair and self.scores is not None:
            first, second = self.scores
            winner = self.winner or higher(first, second)
            if winner != higher(first, second) and (winner != "tie" or abs(first - second) >= ROUNDING):
                raise UserError(
                    f"winner is {self.winner} and scores are {shown(self.scores)}: they contradict each other"
                )
            object.__setattr__(self, "winner", winner)

    @property
    def is_pair(self) -> bool:
        return len(self.models) == 2

    @property
    def failed(self) -> bool:
        """Whether the verdict is missing: such a judgment is counted, and is part of no mean."""
        return self.scores is None and self.winner is None


def higher(first: float, second: float) -> Winner:
    """The winner of a pair by the scores of its answers."""
    return "tie" if first == second else "a" if first > second else "b"


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
