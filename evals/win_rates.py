"""Win rates and mean scores of models, from a judge's verdicts on their answers.

A pair of answers that was judged in both orders is one comparison: a verdict that flips between the orders is a tie
(Zheng et al., arXiv:2306.05685, section 3.4). Intervals are clustered by question. Controls never count as models.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from . import intervals
from .intervals import Estimate
from .judgments import Judgment

CONTROL = "control:"
"""How the names of authors begin that are no models: answers made to test the judge."""


@dataclass(frozen=True)
class Comparison:
    """Two models' answers to one turn of a question, as one judge compared them."""

    question: str
    """Id of the question."""

    turn: int
    """The turn of the conversation, from 1."""

    category: str
    """Category of the question."""

    judge: str
    """Name of the judge."""

    models: tuple[str, str]
    """The two authors in alphabetical order, a control last."""

    outcome: float | None
    """1: the first author won, 0: the second, 0.5: a tie or verdicts that flip. None: a verdict could not be read."""

    probability: float | None
    """The judge's probability that the first author's answer is better, the mean over orders; None: not given."""

    lengths: tuple[int, int] | None
    """Length of each author's answer in characters; None: unknown."""

    verdicts: tuple[float | None, ...]
    """The outcome for the first author in each order that was judged. Of both orders, the first is the one in which the
    judge saw the first author's answer first."""

    @property
    def both_orders(self) -> bool:
        """Whether the judge saw the pair in both orders and both verdicts can be read."""
        return len(self.verdicts) == 2 and None not in self.verdicts

    @property
    def flipped(self) -> bool:
        """Whether the verdicts of the two orders differ."""
        return self.both_orders and self.verdicts[0] != self.verdicts[1]

    def of(self, model: str) -> tuple[float, float]:
        """The outcome and the probability from the side of one of the two models; nan where there is none."""
        found = [math.nan if value is None else value for value in (self.outcome, self.probability)]
        return tuple(found if model == self.models[0] else [1 - value for value in found])

    def longer(self, model: str) -> int:
        """How many characters longer the model's answer is than the other. Lengths must be known."""
        first, second = self.lengths
        return first - second if model == self.models[0] else second - first


def is_control(author: str) -> bool:
    """Whether an author is no model but a control of the judge."""
    return author.startswith(CONTROL)


def comparisons(judgments: Iterable[Judgment]) -> list[Comparison]:
    """The comparisons in judgments of pairs: both orders of a pair joined, in the order of their first appearance.

    The k-th judgment of one order is joined with the k-th of the other. A comparison of which one order cannot be read
    is missing as a whole, because the order that is left may owe its verdict to the position.
    """
    orders: dict[tuple, tuple[list[Judgment], list[Judgment]]] = {}
    for each in judgments:
        if each.is_pair:
            models = _sorted(each.models)
            key = (each.judge, each.question, each.turn, models)
            orders.setdefault(key, ([], []))[int(each.models != models)].append(each)
    found = []
    for (_, _, _, models), (forward, backward) in orders.items():
        for place in range(max(len(forward), len(backward))):
            found.append(_joined(models, [side[place] for side in (forward, backward) if place < len(side)]))
    return found


def win_rate(
    comparisons: Iterable[Comparison], model: str, against: str | None = None, *, weighted: bool = False
) -> Estimate | None:
    """The share of comparisons that a model wins; a tie counts half.

    Args:
      comparisons: those of one judge.
      model: the model.
      against: the other model; None: all other models.
      weighted: take the judge's probabilities instead of its verdicts.

    Returns:
      The rate from 0 to 1, with an interval clustered by question; None if no comparison has what is asked for.
    """
    values, questions = [], []
    for each in comparisons:
        other = _other(each, model)
        if other is None or (is_control(other) if against is None else other != against):
            continue
        value = each.of(model)[weighted]
        if not math.isnan(value):
            values.append(value)
            questions.append(each.question)
    return mean_outcome(values, questions) if values else None


def mean_outcome(values: Sequence[float], questions: Sequence[str]) -> Estimate:
    """The mean of values from 0 to 1, such as outcomes, clustered by question.

    The interval is Wilson's, with as many outcomes of 0 or 1 as would have the same standard error, and Student's t of
    one degree of freedom less than questions. It stays within 0 and 1, and has a width even where all values are equal.
    """
    found = intervals.mean(values, questions)
    if found.clusters < 2:
        return found
    variance = found.value * (1 - found.value)
    independent = variance / found.stderr**2 if variance and found.stderr else found.clusters
    low, high = intervals.wilson(found.value, independent, intervals.quantile(found.clusters))
    return found._replace(low=low, high=high)


def mean_score(judgments: Iterable[Judgment], model: str) -> Estimate | None:
    """The mean of a model's scores in judgments of single answers, clustered by question; None if there are none."""
    found = [each for each in judgments if _is_scored(each) and each.models[0] == model]
    return intervals.mean([each.scores[0] for each in found], [each.question for each in found]) if found else None


def score_difference(judgments: Iterable[Judgment], a: str, b: str) -> Estimate | None:
    """The mean difference a - b of the scores that two authors got for the same turn of a question from one judge.

    Returns:
      The difference with an interval clustered by question; None if the authors share no question.
    """
    sides = paired_scores(judgments, a, b)
    return intervals.difference(*zip(*sides.values(), strict=True), [key[0] for key in sides]) if sides else None


def paired_scores(judgments: Iterable[Judgment], a: str, b: str) -> dict[tuple[str, int, str], tuple[float, float]]:
    """{(question, turn, judge): scores of author a and author b}, where both have one; repeated scores are averaged."""
    scores: dict[tuple[str, int, str], tuple[list[float], list[float]]] = {}
    for each in judgments:
        if _is_scored(each) and each.models[0] in (a, b):
            key = (each.question, each.turn, each.judge)
            scores.setdefault(key, ([], []))[each.models[0] == b].append(each.scores[0])
    return {key: (statistics.fmean(x), statistics.fmean(y)) for key, (x, y) in scores.items() if x and y}


def models_of(judgments: Iterable[Judgment]) -> list[str]:
    """The models whose answers were judged, without controls, in alphabetical order."""
    return sorted({model for each in judgments for model in each.models if not is_control(model)})


def common_opponent(comparisons: Iterable[Comparison]) -> str | None:
    """The model that takes part in every comparison between models, if there is exactly one."""
    pairs = [set(each.models) for each in comparisons if not any(map(is_control, each.models))]
    shared = set.intersection(*pairs) if pairs else set()
    return shared.pop() if len(shared) == 1 else None


def _joined(models: tuple[str, str], judged: Sequence[Judgment]) -> Comparison:
    verdicts, probabilities, lengths = [], [], None
    for each in judged:
        turned = each.models != models
        value = {"a": 1.0, "b": 0.0, "tie": 0.5, None: None}[each.winner]
        verdicts.append(1 - value if turned and value is not None else value)
        if each.weight is not None:
            probabilities.append(each.weight if turned else 1 - each.weight)
        if len(each.lengths) == 2:
            lengths = each.lengths[::-1] if turned else each.lengths
    first = judged[0]
    return Comparison(
        question=first.question,
        turn=first.turn,
        category=first.category,
        judge=first.judge,
        models=models,
        outcome=None if None in verdicts else verdicts[0] if len(set(verdicts)) == 1 else 0.5,
        probability=statistics.fmean(probabilities) if len(probabilities) == len(judged) else None,
        lengths=lengths,
        verdicts=tuple(verdicts),
    )


def _sorted(models: tuple[str, ...]) -> tuple[str, str]:
    first, second = sorted(models, key=lambda model: (is_control(model), model))
    return first, second


def _other(comparison: Comparison, model: str) -> str | None:
    first, second = comparison.models
    return {first: second, second: first}.get(model)


def _is_scored(judgment: Judgment) -> bool:
    return not judgment.is_pair and judgment.scores is not None
