"""The tables of a report on judgments: win rates, ratings, scores, agreement between judges, and counts."""

import dataclasses
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from . import intervals, published, ratings, trust
from .intervals import Estimate
from .judgments import Judgment
from .length_control import difficulties, length_controlled
from .win_rates import (
    Comparison,
    common_opponent,
    comparisons,
    is_control,
    mean_score,
    models_of,
    score_difference,
    win_rate,
)

MOST_PAIRS = 28
"""Most differences between models in a table without a baseline: those of eight models."""

RIDGE = 0.5
"""Ridge of ratings where a model won or lost every battle."""

MANY_MODELS = 20
"""With more models, each one's own outcomes are part of the difficulty of questions: one among many."""


@dataclass(frozen=True)
class Table:
    """Numbers of the report."""

    title: str
    """Its heading, which is unique in the report."""

    columns: Mapping[str, Callable[[Any], str]]
    """{heading: how a value of the column is written}."""

    rows: Sequence[Sequence[Any]]
    """Values; None: there is none."""

    notes: Sequence[str] = ()
    """Sentences below the table."""

    drawn: Sequence[str] = ()
    """Columns of estimates that a plot shows; the first column names the rows."""

    fair: float | None = None
    """The value of a fair match, which a plot marks."""

    def texts(self) -> list[list[str]]:
        """The headings and the rows as text, without columns that are empty; [] if there are no rows."""
        kept = [place for place in range(len(self.columns)) if any(row[place] is not None for row in self.rows)]
        names, writers = list(self.columns), list(self.columns.values())
        lines = [["–" if row[i] is None else writers[i](row[i]) for i in kept] for row in self.rows]
        return [[names[i] for i in kept], *lines] if lines else []

    def records(self) -> list[dict[str, Any]]:
        """The rows by heading."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def judge_tables(judge: str, own: Sequence[Judgment], baseline: str | None) -> list[Table]:
    """What one judge says about the models."""
    found, singles = comparisons(own), [each for each in own if not each.is_pair]
    tables = []
    if found:
        models = models_of(each for each in own if each.is_pair)
        against = baseline if baseline in models else common_opponent(found)
        if against is None and len(models) == 2:
            against = models[1]
        tables.append(_win_table(judge, found, against))
        if against and any(against not in each.models for each in trust.models_only(found)):
            tables.append(_win_table(judge, found, None))

        def rate(part: Sequence[Comparison], model: str) -> Estimate | None:
            return win_rate(part, model, against)

        tables += _breakdowns(f"Win rates by {judge} {_against(against)}", found, rate, models, percent)
        if len(models) > 2:
            tables.append(_rating_table(judge, found))
    if singles:
        models = models_of(singles)
        tables.append(_score_table(judge, singles))
        tables += _breakdowns(f"Mean scores by {judge}", singles, mean_score, models, number)
        if len(models) > 1:
            tables.append(_difference_table(judge, singles, baseline))
    return tables


def _win_table(judge: str, found: Sequence[Comparison], baseline: str | None) -> Table:
    """Win rates against the baseline, or against all others, by count, by weights and length-controlled."""
    models = sorted({m for each in found for m in each.models if not is_control(m) and m != baseline})
    rows, notes = [], {}
    shared = difficulties(found, baseline) if baseline and len(models) > MANY_MODELS else None
    for model in models:
        plain = win_rate(found, model, baseline)
        if plain is None:
            continue
        weighted = win_rate(found, model, baseline, weighted=True)
        controlled = None
        if baseline is not None:
            difficulty = shared or difficulties(found, baseline, without=model)
            fitted = length_controlled(found, model, baseline, difficulty=difficulty)
            controlled = fitted.rate
            for note in fitted.notes:
                notes.setdefault(note, []).append(model)
        rows.append([model, plain.n, plain, weighted, controlled])
    rows.sort(key=lambda row: -row[2].value)
    columns = {
        "model": str,
        "pairs": count_of,
        "by count": percent,
        "by weights": percent,
        "length-controlled": percent,
    }
    said = [f"Length control: {note} ({', '.join(models)})." for note, models in notes.items()]
    if baseline is None and any(each.lengths for each in found):
        said.append("Length-controlled win rates need a baseline: give --baseline=NAME.")
    drawn = ("by count", "length-controlled")
    return Table(f"Win rates by {judge} {_against(baseline)}", columns, rows, said, drawn, 0.5)


def _against(baseline: str | None) -> str:
    return f"against {baseline}" if baseline else "against all others"


def _rating_table(judge: str, found: Sequence[Comparison]) -> Table:
    """Bradley-Terry ratings with sandwich intervals by question, and which models cannot be told apart."""
    own = [each for each in trust.models_only(found) if each.outcome is not None]
    title, ridge, notes = f"Ratings by {judge}", 0.0, []
    battles = [(*each.models, {1.0: "a", 0.5: "tie", 0.0: "b"}[each.outcome]) for each in own]
    try:
        plain = ratings.bradley_terry(battles)
    except UserError as problem:
        ridge = RIDGE
        try:
            plain = ratings.bradley_terry(battles, ridge=ridge)
        except UserError:  # no ridge joins models that never met
            return Table(title, {}, [], [f"There are no ratings: {problem}."])
        notes.append(f"Some models won or lost every battle: a ridge of {RIDGE} keeps their ratings finite.")
    questions = [each.question for each in own]
    ends = ratings.sandwich(battles, clusters=questions, ridge=ridge)
    places = ratings.ranks(battles, clusters=questions, ridge=ridge)
    equal, said = _at_equal_length(own, battles, questions)
    rows = []
    for model, rating in plain.items():
        at, place, asked = ends[model], places[model], [each.question for each in own if model in each.models]
        estimate = Estimate(rating, at.stderr, at.low, at.high, len(asked), len(set(asked)))
        rows.append(
            [model, len(asked), estimate, [place.rank, place.worst], ", ".join(place.tied) or None, equal.get(model)]
        )
    if any(math.isnan(each.low) for each in ends.values()):
        notes.append("One question, or several that agree exactly, have no intervals and tell no models apart.")
    if apart := [group for group in ratings.groups(places) if len(group) > 1]:
        notes.append(f"Groups that cannot be told apart: {'; '.join(', '.join(group) for group in apart)}.")
    else:
        notes.append("All models can be told apart.")
    notes += said
    notes.append("Bradley-Terry, mean 1,000; 400 points are odds of 10. Sandwich intervals are clustered by question.")
    columns = {"model": str, "battles": count_of, "rating": _rating, "rank": _rank, "cannot be told from": str}
    columns["rating at equal length"] = _rating
    return Table(title, columns, rows, notes, ("rating",))


def _at_equal_length(
    own: Sequence[Comparison], battles: Sequence[ratings.Battle], questions: Sequence[str]
) -> tuple[dict[str, Estimate], list[str]]:
    """Ratings with the influence of length taken out, with sandwich intervals; and sentences on them."""
    if any(each.lengths is None for each in own):
        return {}, ["Ratings at equal length need the lengths of all answers."]
    features = {"length": ratings.relative_difference(*zip(*(each.lengths for each in own), strict=True))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a dropped feature is said below
        found = ratings.style_control(battles, features, ridge=RIDGE, center=False)
        ends = ratings.sandwich(battles, clusters=questions, features=features, center=False, ridge=RIDGE)
    if found.dropped:
        return {}, ["All answers of a pair are equally long, or differ alike: there is nothing to control for."]
    rated = {
        model: Estimate(rating, ends[model].stderr, ends[model].low, ends[model].high, len(own), len(set(questions)))
        for model, rating in found.items()
    }
    said = f"A standard deviation of length adds {found.coefficients['length']:.2f} to the log-odds of a win."
    return rated, [said]


def _score_table(judge: str, singles: Sequence[Judgment]) -> Table:
    rows = [[model, found.n, found] for model in models_of(singles) if (found := mean_score(singles, model))]
    rows.sort(key=lambda row: -row[2].value)
    columns = {"model": str, "answers": count_of, "mean score": number}
    return Table(f"Mean scores by {judge}", columns, rows, drawn=("mean score",))


def _difference_table(judge: str, singles: Sequence[Judgment], baseline: str | None) -> Table:
    """Paired differences in score: from the baseline, or between all models, or from the best one."""
    models = models_of(singles)
    if baseline in models:
        pairs = [(model, baseline) for model in models if model != baseline]
    else:
        pairs = list(itertools.combinations(models, 2))
    if len(pairs) > MOST_PAIRS:
        best = _score_table(judge, singles).rows[0][0]
        pairs = [(model, best) for model in models if model != best]
    rows = []
    for a, b in pairs:
        if found := score_difference(singles, a, b):
            rows.append([a, b, found.n, found, intervals.in_words(found)])
    columns = {"model": str, "less": str, "turns": count_of, "difference": number, "in words": str}
    return Table(f"Differences in score by {judge}", columns, rows, ["Differences are of scores for the same turns."])


def _breakdowns(title: str, found: Sequence, measure: Callable, models: Sequence[str], write: Callable) -> list[Table]:
    """A table by category and one by turn, where there is more than one."""
    tables = []
    for what in ("category", "turn"):
        names = sorted({getattr(each, what) for each in found})
        if len(names) < 2:
            continue
        parts = {name: [each for each in found if getattr(each, what) == name] for name in names}
        values = {name: {model: measure(part, model) for model in models} for name, part in parts.items()}
        kept = [model for model in models if any(values[name][model] for name in names)]
        if len(kept) <= len(names):
            rows = [[str(name) or "–", *(values[name][model] for model in kept)] for name in names]
            columns = {what: str} | dict.fromkeys(kept, write)
        else:
            rows = [[model, *(values[name][model] for name in names)] for model in kept]
            columns = {"model": str} | {str(name) or "–": write for name in names}
        tables.append(Table(f"{title} and {what}", columns, rows))
    return tables


def sums_tables(judgments: Sequence[Judgment]) -> list[Table]:
    """Sums of the scores of pairs and their ratio, by category, for each two models and over all judges.

    "92% of ChatGPT's quality" was such a ratio (FastChat's blog post of March 2023): it is no share of wins. Models
    with scores of 0 or less, such as those of reward models, have none.
    """
    pairs: dict[tuple[str, str], list[Judgment]] = {}
    for each in judgments:
        if each.is_pair and each.scores is not None and not any(map(is_control, each.models)):
            models = tuple(sorted(each.models))
            same = each.models == models
            turned = each if same else dataclasses.replace(each, models=models, scores=each.scores[::-1], winner=None)
            pairs.setdefault(models, []).append(turned)
    tables = []
    for (a, b), scored in pairs.items():
        if min(min(each.scores) for each in scored) <= 0:
            continue
        found = published.totals(scored)
        names = ["", *sorted(name for name in found if name)]
        rows = [[name or "all", found[name].first, found[name].second, found[name].ratio] for name in names]
        columns = {"category": str, a: _sum, b: _sum, f"{b} / {a}": percent}
        tables.append(Table(f"Sums of scores of {a} and {b}", columns, rows))
    return tables


def agreement_table(by_judge: Mapping[str, Sequence[Judgment]]) -> list[Table]:
    """Agreement of each two judges, by the setups of arXiv:2306.05685, section 4.2."""
    every = {judge: trust.models_only(comparisons(own) + trust.implied(own)) for judge, own in by_judge.items()}
    rows = []
    for a, b in itertools.combinations(by_judge, 2):
        found = trust.agreement(every[a], every[b])
        if found.with_ties is not None:
            scores = list(trust.shared_scores(by_judge[a], by_judge[b]).values())
            alpha = trust.krippendorff_alpha(scores) if scores else None
            rows.append([a, b, found.with_ties.n, found.with_ties, found.without_ties, found.kappa, alpha])
    columns = {
        "judge": str,
        "other judge": str,
        "comparisons": count_of,
        "agree, with ties": percent,
        "agree, both name a winner": percent,
        "Cohen's kappa": _decimal,
        "Krippendorff's alpha of scores": _decimal,
    }
    notes = ["Chance is 33% with ties and 50% where both name a winner. A verdict that flips is a tie."]
    return [Table("Agreement between judges", columns, rows, notes)] if rows else []


def data_table(by_judge: Mapping[str, Sequence[Judgment]]) -> Table:
    rows = []
    for judge, own in by_judge.items():
        kinds = Counter((each.is_pair, any(map(is_control, each.models))) for each in own)
        found = comparisons(own)
        rows.append(
            [
                judge,
                len(own),
                sum(each.failed for each in own),
                len({each.question for each in own}),
                len(models_of(own)),
                kinds[False, False],
                kinds[True, False],
                sum(len(each.verdicts) == 2 for each in found),
                kinds[False, True] + kinds[True, True],
            ]
        )
    names = [
        "judgments",
        "missing",
        "questions",
        "models",
        "of single answers",
        "of pairs",
        "pairs in both orders",
        "of controls",
    ]
    return Table("Judgments", {"judge": str} | dict.fromkeys(names, count_of), rows)


def percent(share: Estimate) -> str:
    return trust.percent(share)


def number(found: Estimate) -> str:
    if math.isnan(found.low):
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _rating(found: Estimate) -> str:
    if math.isnan(found.low):
        return f"{found.value:.0f}"
    return f"{found.value:.0f} ({found.low:.0f} to {found.high:.0f})"


def _rank(place: Sequence[int]) -> str:
    return f"{place[0]}" if place[0] == place[1] else f"{place[0]} to {place[1]}"


def count_of(value: int) -> str:
    return f"{value:,}"


def _sum(value: float) -> str:
    return f"{value:g}"


def _decimal(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
