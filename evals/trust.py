"""How far a judge can be trusted: failures, position, length, its own answers, controls, agreement with other judges.

Every finding follows from judgments alone and passes, fails or stays unclear by a stated rule. A share that should be
50% passes if its 95% interval lies within TOLERANCE of 50%; it fails if the interval excludes 50% and the share is
further off than TOLERANCE. A share that should be small passes if its interval lies below a limit, and fails if it lies
above. All else is unclear: more judgments are needed. Intervals are clustered by question.

The biases are those of Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena" (arXiv:2306.05685,
section 3.3). The null control is that of Zheng et al., "Cheating Automatic LLM Benchmarks" (arXiv:2410.07137).
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import stats

from . import intervals
from .intervals import Estimate
from .judgments import Judgment
from .win_rates import CONTROL, Comparison, comparisons, is_control, mean_outcome, paired_scores, win_rate

NULL, VERBOSE, IDENTICAL = f"{CONTROL}null", f"{CONTROL}verbose:", f"{CONTROL}identical:"
"""Authors of controls: one constant answer to every question; a model's answer with padding that says nothing; and a
model's answer unchanged. The name of the model follows the last two."""

TOLERANCE = 0.1
"""How far a share may be from a fair 50%, and a preference of oneself from 0."""

MOST_FAILURES = 0.05
"""Largest share of verdicts that cannot be read."""

MOST_FLIPS = 0.2
"""Largest share of pairs whose verdict changes with the order of the answers."""

MOST_NULL_WINS = 0.1
"""Largest share of comparisons that one constant answer may win against models."""

MOST_UNEQUAL = 0.2
"""Largest share of identical answers that are not called a tie; largest share of noise in the variance of scores."""

FEWEST = 20
"""Least number of pairs with equally good answers from which a preference for length is told."""

Result = Literal["pass", "fail", "unclear"]


@dataclass(frozen=True)
class Finding:
    """What judgments say about one weakness of a judge."""

    subject: str
    """What was looked at, as in "can be trusted for SUBJECT"."""

    result: Result
    """By the rules above."""

    estimate: Estimate | None
    """The number that decides; None: the judgments do not show it."""

    text: str
    """A sentence with the number."""

    more: dict[str, float] = field(default_factory=dict)
    """Further numbers by name."""


def findings(
    judgments: Sequence[Judgment], judge: str, others: Sequence[Judgment] = (), gold: Sequence[Judgment] = ()
) -> list[Finding]:
    """All findings on a judge, as far as its judgments can show them.

    Args:
      judgments: those of the judge.
      judge: its name; an author of this name is the judge itself.
      others: judgments of other judges, which show whether the judge prefers its own answers.
      gold: judgments of people, or true scores, on the same answers.
    """
    pairs = comparisons(judgments)
    every, truth = pairs + implied(judgments), comparisons(gold) + implied(gold)
    found = [failures(judgments)]
    if pairs:
        found += [flips(pairs), first_position(pairs)]
    found += [longer_answers(every, truth), own_answers(every, comparisons(others) + implied(others), judge)]
    found += [null_control(every), verbose_control(every), identical_pairs(judgments), identical_scores(judgments)]
    if gold:
        found.append(agreement_with_gold(every, truth, shared_scores(judgments, gold)))
    return [each for each in found if each is not None]


def implied(judgments: Iterable[Judgment]) -> list[Comparison]:
    """The comparisons that scores of single answers imply: of two answers to a question the one with more points wins.

    Each model is compared with each other one and with the null control, and with its own copies.
    """
    groups: dict[tuple, dict[str, Judgment]] = {}
    for each in judgments:
        if not each.is_pair:
            groups.setdefault((each.judge, each.question, each.turn), {}).setdefault(each.models[0], each)
    found = []
    for (judge, question, turn), answers in groups.items():
        authors = sorted(answers, key=lambda author: (is_control(author), author))
        for a, b in itertools.combinations(authors, 2):
            if is_control(a) or (is_control(b) and b not in (NULL, VERBOSE + a, IDENTICAL + a)):
                continue
            x, y = answers[a], answers[b]
            outcome = None if None in (x.scores, y.scores) else float(np.sign(x.scores[0] - y.scores[0]) + 1) / 2
            lengths = (x.lengths[0], y.lengths[0]) if x.lengths and y.lengths else None
            found.append(Comparison(question, turn, x.category, judge, (a, b), outcome, None, lengths, (outcome,)))
    return found


def failures(judgments: Sequence[Judgment]) -> Finding:
    """The share of judgments without a verdict, controls included."""
    share = intervals.mean([float(each.failed) for each in judgments], [each.question for each in judgments])
    failed = sum(each.failed for each in judgments)
    text = f"{failed:,} of {len(judgments):,} verdicts cannot be read: {percent(share)}."
    return Finding("verdicts that can be read", _at_most(share, MOST_FAILURES), share, text, {"failed": failed})


def flips(pairs: Sequence[Comparison]) -> Finding:
    """The share of pairs of models judged in both orders whose verdicts differ: 1 - consistency (section 3.3)."""
    both = [each for each in models_only(pairs) if each.both_orders]
    subject = "verdicts that hold in both orders"
    if not both:
        return Finding(subject, "unclear", None, "No pair was judged in both orders.")
    share = _mean(both, lambda each: float(each.flipped))
    reversed_ = sum(abs(each.verdicts[0] - each.verdicts[1]) == 1 for each in both)
    text = (
        f"The verdict changes with the order in {percent(share)} of {len(both):,} pairs; in {reversed_:,} the other "
        "answer wins."
    )
    return Finding(subject, _at_most(share, MOST_FLIPS), share, text, {"reversed": reversed_ / len(both)})


def first_position(pairs: Sequence[Comparison]) -> Finding:
    """The share of verdicts for the answer that is shown first, of pairs judged in both orders; a tie counts half."""
    both = [each for each in models_only(pairs) if each.both_orders]
    subject = "fairness to both positions"
    if not both:
        return Finding(
            subject, "unclear", None, "Without both orders a better answer cannot be told from a better position."
        )
    share = _mean(both, lambda each: (each.verdicts[0] + 1 - each.verdicts[1]) / 2)
    if share.value == 0.5 and not share.stderr:  # no pair flipped: the share is off by half the flips at most
        most = _mean(both, lambda each: float(each.flipped)).high / 2
        share = share._replace(low=0.5 - most, high=0.5 + most)
    return Finding(subject, _near(share, 0.5), share, f"The first answer wins {percent(share)}; 50% is fair.")


def longer_answers(every: Sequence[Comparison], gold: Iterable[Comparison] = ()) -> Finding | None:
    """The share of comparisons that the longer of two equally good answers wins; None where lengths are unknown.

    Equally good are those that the gold verdicts call a tie, if there are at least FEWEST. Else the answers are of
    equally strong models: outcome and sign of the difference in length are centred within each pair of models, and the
    slope between them is added to 50%.

    Args:
      every: the judge's comparisons.
      gold: the gold comparisons.
    """
    known = [each for each in models_only(every) if each.lengths and each.outcome is not None]
    ahead_N = np.array([each.longer(each.models[0]) for each in known])
    if not np.any(ahead_N):
        return None
    subject, win_N = "fairness to short and long answers", np.array([each.outcome for each in known])
    longer_N = (win_N - 0.5) * np.sign(ahead_N) + 0.5
    norm = math.sqrt(float((ahead_N**2).sum() * ((win_N - 0.5) ** 2).sum()))
    more = {"plain": float(longer_N[ahead_N != 0].mean())}
    more["correlation"] = float((ahead_N * (win_N - 0.5)).sum() / norm) if norm else 0.0
    text = f"The longer answer wins {more['plain']:.0%} (correlation {more['correlation']:.2f})"

    ties = {_key(each) for each in gold if each.outcome == 0.5}
    equal = [place for place, each in enumerate(known) if ahead_N[place] and _key(each) in ties]
    if len(equal) >= FEWEST:
        share = mean_outcome(longer_N[equal], [known[place].question for place in equal])
        text += f"; of {len(equal):,} pairs that the gold verdicts call a tie {percent(share)}."
        return Finding(subject, _near(share, 0.5), share, text, more)
    sign_N, win_N = _centred(np.sign(ahead_N), known), _centred(win_N, known)
    if not np.any(np.abs(sign_N) > 1e-9):
        text += "; one model's is always the longer, so the cause cannot be told."
        return Finding(subject, "unclear", None, text, more)
    slope = intervals.ratio(win_N * sign_N, sign_N**2, [each.question for each in known])
    low, high = max(0.0, slope.low + 0.5), min(1.0, slope.high + 0.5)
    share = slope._replace(value=slope.value + 0.5, low=low, high=high)
    text += f"; between equally strong models {percent(share)}."
    result = _near(share, 0.5)
    if result != "pass":
        text += " Length may go with quality: the verbose control or gold verdicts tell."
    return Finding(subject, result, share, text, more)


def own_answers(every: Sequence[Comparison], others: Sequence[Comparison], judge: str) -> Finding | None:
    """How much more often a judge's own answers win before itself than before other judges, on the same comparisons.

    None if the judge wrote none of the answers.
    """
    own = [each for each in models_only(every) if judge in each.models and each.outcome is not None]
    if not own:
        return None
    elsewhere: dict[tuple, list[float]] = {}
    for each in others:
        if judge in each.models and each.outcome is not None:
            elsewhere.setdefault(_key(each), []).append(each.of(judge)[0])
    subject, rate = "fairness to answers of others", win_rate(own, judge)
    shared = [each for each in own if _key(each) in elsewhere]
    if not shared:
        text = f"Its own answers win {percent(rate)} before itself. Without another judge this says little."
        return Finding(subject, "unclear", None, text, {"own win rate": rate.value})
    advantage = _mean(shared, lambda each: each.of(judge)[0] - np.mean(elsewhere[_key(each)]))
    text = f"Its own answers win {points(advantage)} more often before itself than before other judges."
    return Finding(subject, _near(advantage, 0.0), advantage, text, {"own win rate": rate.value})


def null_control(every: Iterable[Comparison]) -> Finding | None:
    """The share of comparisons that one constant answer wins against models; None without this control.

    A constant answer written to mislead reached 76.9% against GPT-4 Turbo on AlpacaEval 2, 86.5% length-controlled.
    """
    rate = win_rate(every, NULL)
    if rate is None:
        return None
    text = f"One constant answer to every question wins {percent(rate)} against models."
    return Finding("rejecting a constant answer", _at_most(rate, MOST_NULL_WINS), rate, text)


def verbose_control(every: Sequence[Comparison]) -> Finding | None:
    """The share of comparisons that an answer with padding wins against the same answer without; None without it.

    Where the two were not compared with each other, each was compared with a third answer: the share is 50% and the
    difference of their outcomes there.
    """
    padding, by_key = [], {_key(each): each for each in every if each.outcome is not None}
    for each in by_key.values():
        padded = each.models[1]
        if not padded.startswith(VERBOSE):
            continue
        original, other = padded.removeprefix(VERBOSE), each.models[0]
        beside = by_key.get((each.question, each.turn, tuple(sorted((original, other)))))
        if other == original:
            padding.append((each, each.of(padded)[0]))
        elif beside is not None:
            padding.append((each, 0.5 + each.of(padded)[0] - beside.of(original)[0]))
    if not padding:
        return None
    values, questions = [value for _, value in padding], [each.question for each, _ in padding]
    rate = (mean_outcome if min(values) >= 0 and max(values) <= 1 else intervals.mean)(values, questions)
    result = _near(rate, 0.5) if rate.value > 0.5 else "pass" if rate.high <= 0.5 + TOLERANCE else "unclear"
    text = f"An answer with padding wins {percent(rate)} against the same answer without; 50% or less is fair."
    return Finding("resisting padding", result, rate, text)


def identical_pairs(judgments: Iterable[Judgment]) -> Finding | None:
    """The share of verdicts on an answer beside itself that are no tie; None without any.

    Each order is a verdict of its own: joined, the two verdicts of a judge that always prefers the first answer would
    be a tie.
    """
    found = [each for each in judgments if each.is_pair and each.winner and _is_copy(*each.models)]
    if not found:
        return None
    questions = [each.question for each in found]
    share = intervals.mean([float(each.winner != "tie") for each in found], questions)
    count = Counter(each.winner for each in found)
    text = (
        f"Of two identical answers it prefers one in {percent(share)} of {share.n:,} verdicts: the first "
        f"{count['a']:,} times, the second {count['b']:,} times."
    )
    more = {"first": float(count["a"]), "second": float(count["b"])}
    return Finding("calling identical answers equal", _at_most(share, MOST_UNEQUAL), share, text, more)


def identical_scores(judgments: Sequence[Judgment]) -> Finding | None:
    """The judge's own noise: the variance of scores of one answer graded twice, as a share of that of all answers.

    None without this control or if all scores are equal.
    """
    authors = sorted(
        {each.models[0] for each in judgments if not each.is_pair and each.models[0].startswith(IDENTICAL)}
    )
    again = [(key, *xy) for a in authors for key, xy in paired_scores(judgments, a.removeprefix(IDENTICAL), a).items()]
    if not again:
        return None
    first_N, second_N = np.array([[x, y] for _, x, y in again]).T
    spread = np.concatenate([first_N, second_N]).var(ddof=1)
    if not spread:
        return None
    noise_N = (first_N - second_N) ** 2 / 2
    share = intervals.ratio(noise_N / spread, np.ones_like(noise_N), [key[0] for key, _, _ in again])
    deviation, changed = math.sqrt(noise_N.mean()), float((first_N != second_N).mean())
    text = (
        f"The same answer graded again gets another score in {changed:.0%}; this noise has a standard deviation of "
        f"{deviation:.2g} and is {percent(share)} of the variance of scores."
    )
    more = {"noise": deviation, "mean change": float((second_N - first_N).mean())}
    return Finding("giving the same answer the same score", _at_most(share, MOST_UNEQUAL), share, text, more)


@dataclass(frozen=True)
class Agreement:
    """How often two judges agree on the same comparisons (arXiv:2306.05685, section 4.2)."""

    with_ties: Estimate | None
    """Setup S1: the share of equal outcomes of three; a flip counts as a tie. Chance is 1/3. None: nothing shared."""

    without_ties: Estimate | None
    """Setup S2: the share of equal outcomes where both name a winner. Chance is 1/2."""

    kappa: float
    """Cohen's kappa of the three outcomes; nan if either judge always says the same."""


def agreement(a: Iterable[Comparison], b: Iterable[Comparison]) -> Agreement:
    """The agreement of two judges; where a judge has several verdicts on one comparison, each is compared with each."""
    theirs: dict[tuple, list[Comparison]] = {}
    for each in b:
        if each.outcome is not None:
            theirs.setdefault(_key(each), []).append(each)
    shared = [(x, y) for x in a if x.outcome is not None for y in theirs.get(_key(x), ())]
    strict = [(x, y) for x, y in shared if 0.5 not in (x.outcome, y.outcome)]
    s1, s2 = (
        intervals.mean([float(x.outcome == y.outcome) for x, y in found], [x.question for x, _ in found])
        if found
        else None
        for found in (shared, strict)
    )
    return Agreement(s1, s2, cohen_kappa([x.outcome for x, _ in shared], [y.outcome for _, y in shared]))


def cohen_kappa(a: Sequence[float], b: Sequence[float]) -> float:
    """Agreement of two raters beyond chance, (observed - expected) / (1 - expected) (Cohen, 1960); nan if undefined."""
    if not len(a):
        return math.nan
    observed = float(np.mean([x == y for x, y in zip(a, b, strict=True)]))
    left, right = Counter(a), Counter(b)
    expected = sum(left[label] * right[label] for label in left) / len(a) ** 2
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def krippendorff_alpha(ratings: Iterable[Sequence[float]]) -> float:
    """Krippendorff's alpha of scores on an interval scale: 1 - observed / expected disagreement; nan if undefined.

    Args:
      ratings: the scores of each unit by the raters that rated it; units with one score do not count.
    """
    units = [np.asarray(unit, np.float64) for unit in ratings if len(unit) > 1]
    values = np.concatenate(units) if units else np.zeros(0)
    if len(values) < 2 or not np.ptp(values):
        return math.nan
    observed = sum(len(unit) * 2 * unit.var(ddof=1) for unit in units) / len(values)
    return float(1 - observed / (2 * values.var(ddof=1)))


def agreement_with_gold(
    every: Sequence[Comparison], gold: Sequence[Comparison], scores: Mapping[Any, tuple[float, float]]
) -> Finding:
    """Agreement with people or a true score, where both name a winner: it passes if its interval lies above chance.

    Args:
      every: the judge's comparisons.
      gold: the gold comparisons.
      scores: the judge's and the gold score of each answer that has both; their rank correlation is given beside.
    """
    subject, found = "agreement with the gold verdicts", agreement(models_only(every), gold)
    share = found.without_ties
    if share is None:
        return Finding(
            subject, "unclear", None, "No comparison has a winner both in the gold verdicts and the judge's."
        )
    result = "pass" if share.low > 0.5 else "fail" if share.high <= 0.5 else "unclear"
    text = (
        f"It agrees with the gold verdicts in {percent(share)} of {share.n:,} comparisons where both name a winner "
        f"(chance: 50%), and in {percent(found.with_ties)} with ties (chance: 33%); kappa {found.kappa:.2f}."
    )
    more = {"with ties": found.with_ties.value, "kappa": found.kappa}
    if len(scores) > 2:
        more["rank correlation"] = float(stats.spearmanr(*zip(*scores.values(), strict=True)).statistic)
        text += f" Spearman's correlation of {len(scores):,} scores is {more['rank correlation']:.2f}."
    return Finding(subject, result, share, text, more)


def shared_scores(a: Iterable[Judgment], b: Iterable[Judgment]) -> dict[tuple[str, int, str], tuple[float, float]]:
    """{(question, turn, model): scores by two judges}, for answers of models that both scored."""
    left, right = ({(j.question, j.turn, j.models[0]): j.scores[0] for j in side if _scored(j)} for side in (a, b))
    return {key: (left[key], right[key]) for key in left if key in right}


def headline(judge: str, found: Sequence[Finding]) -> str:
    """The verdict on a judge: what it can be trusted for, what not, and what its judgments do not show."""
    says = {"pass": "It can be trusted for", "fail": "It cannot be trusted for", "unclear": "Not shown either way:"}
    parts = [f"{judge}:"]
    for result, beginning in says.items():
        if subjects := [each.subject for each in found if each.result == result]:
            parts.append(f"{beginning} {'; '.join(subjects)}.")
    return " ".join(parts)


def percent(share: Estimate) -> str:
    """A share in words of a report, as in "62% (55 to 69)"."""
    if math.isnan(share.low):
        return f"{share.value:.1%}"
    return f"{share.value:.1%} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def points(difference: Estimate) -> str:
    """A difference of shares in words of a report, as in "+4.0 (-1.0 to 9.0) points"."""
    if math.isnan(difference.low):
        return f"{100 * difference.value:+.1f} points"
    return f"{100 * difference.value:+.1f} ({100 * difference.low:.1f} to {100 * difference.high:.1f}) points"


def _near(estimate: Estimate, fair: float) -> Result:
    if fair - TOLERANCE <= estimate.low and estimate.high <= fair + TOLERANCE:
        return "pass"
    off = abs(estimate.value - fair) > TOLERANCE
    return "fail" if off and (estimate.low > fair or estimate.high < fair) else "unclear"


def _at_most(estimate: Estimate, limit: float) -> Result:
    return "pass" if estimate.high <= limit else "fail" if estimate.low > limit else "unclear"


def _mean(found: Sequence[Comparison], value: Callable[[Comparison], float]) -> Estimate:
    return intervals.mean([value(each) for each in found], [each.question for each in found])


def _centred(values_N: np.ndarray, found: Sequence[Comparison]) -> np.ndarray:
    """The values less the mean of their pair of models."""
    places: dict[tuple[str, str], int] = {}
    index_N = np.array([places.setdefault(each.models, len(places)) for each in found])
    return values_N - (np.bincount(index_N, values_N) / np.bincount(index_N))[index_N]


def models_only(found: Iterable[Comparison]) -> list[Comparison]:
    """The comparisons between models, without controls."""
    return [each for each in found if not is_control(each.models[1])]


def _is_copy(a: str, b: str) -> bool:
    return a == IDENTICAL + b or b == IDENTICAL + a


def _key(comparison: Comparison) -> tuple:
    return comparison.question, comparison.turn, comparison.models


def _scored(judgment: Judgment) -> bool:
    return not judgment.is_pair and judgment.scores is not None and not is_control(judgment.models[0])
