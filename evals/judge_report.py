"""The report on judgments: what they say about models, and first of all how far their judges can be trusted.

`make_report` computes everything from judgments alone; a `Report` is shown as Markdown, on a terminal and as JSON.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from ..errors import UserError, did_you_mean
from . import intervals, ratings, trust
from .intervals import Estimate
from .judgment_files import read_judgments
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


@dataclass(frozen=True)
class Source:
    """A file that judgments were read from."""

    path: str
    """As it was given."""

    sha256: str
    """Hash of its bytes."""

    judgments: int
    """How many it has."""


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
        """The rows as text."""
        return [
            ["–" if value is None else write(value) for value, write in zip(row, self.columns.values(), strict=True)]
            for row in self.rows
        ]

    def records(self) -> list[dict[str, Any]]:
        """The rows by heading."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


@dataclass(frozen=True)
class Report:
    """A report on judgments."""

    findings: Mapping[str, Sequence[trust.Finding]]
    """What was found on each judge."""

    tables: Sequence[Table]
    """All numbers on models and on the judgments, in the order in which they are shown."""

    @property
    def headlines(self) -> list[str]:
        """The verdict on each judge."""
        return [trust.headline(judge, found) for judge, found in self.findings.items()]

    def table(self, title: str) -> Table:
        """The table with a title."""
        return next(each for each in self.tables if each.title == title)

    def shown(self) -> list[Table]:
        """What is shown: the findings on each judge, then the tables."""
        columns = {"subject": str, "result": str, "what was found": str}
        found = {
            judge: [[each.subject, each.result, each.text] for each in own] for judge, own in self.findings.items()
        }
        return [*(Table(f"Trust in {judge}", columns, rows) for judge, rows in found.items()), *self.tables]

    def markdown(self) -> str:
        """The report as Markdown."""
        parts = ["# Judge report", *self.headlines]
        for table in self.shown():
            lines = [list(table.columns), ["---"] * len(table.columns), *table.texts()] if table.rows else []
            rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
            parts += [f"## {table.title}", *(["\n".join(rows)] if rows else []), *table.notes]
        return "\n\n".join(parts) + "\n"

    def show(self, console: Console) -> None:
        """Prints the report on a terminal."""
        for line in self.headlines:
            console.print(escape(line))
        for table in self.shown():
            drawn = RichTable(*map(escape, table.columns), title=escape(table.title), title_justify="left")
            for line in table.texts():
                drawn.add_row(*map(escape, line))
            console.print(drawn if table.rows else escape(table.title))
            for note in table.notes:
                console.print(escape(note))

    def json(self) -> str:
        """All numbers as JSON: estimates as objects, what is undefined as null."""
        findings = {
            judge: [{field.name: getattr(each, field.name) for field in dataclasses.fields(each)} for each in own]
            for judge, own in self.findings.items()
        }
        tables = {each.title: {"rows": each.records(), "notes": list(each.notes)} for each in self.tables}
        content = {"verdicts": self.headlines, "findings": findings, "tables": tables}
        return json.dumps(_plain(content), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def read_files(paths: Iterable[str], questions: str | None = None) -> tuple[list[Judgment], list[Source]]:
    """The judgments of files, and what the files are. Arguments and errors are those of `read_judgments`."""
    judgments, sources = [], []
    for path in paths:
        found = list(read_judgments(path, questions))
        digest = hashlib.sha256(epath.Path(path).expanduser().read_bytes()).hexdigest()
        sources.append(Source(str(path), digest, len(found)))
        judgments += found
    return judgments, sources


def make_report(
    judgments: Sequence[Judgment],
    *,
    sources: Sequence[Source] = (),
    gold: Sequence[Judgment] = (),
    baseline: str | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> Report:
    """The report on judgments. A judgment that is there twice, text and all, counts once.

    Args:
      judgments: of one judge or several.
      sources: the files that they and the gold verdicts come from.
      gold: judgments of people, or true scores, of the same answers.
      baseline: the model that others are compared with; None: the one that is part of every pair, if there is one.
      rounds: number of bootstrap samples behind the intervals of ratings.
      seed: of the bootstrap.

    Raises:
      UserError: there is no judgment, or none of the baseline.
    """
    if not judgments:
        raise UserError("there are no judgments to report on")
    unique, models = list(dict.fromkeys(judgments)), models_of(judgments)
    if baseline is not None and baseline not in models:
        near = did_you_mean(baseline, models)
        raise UserError(f"no judgment has the baseline {baseline}{near}: give one of {', '.join(models)}")
    by_judge = {judge: [each for each in unique if each.judge == judge] for judge in sorted({j.judge for j in unique})}
    findings = {judge: trust.findings(unique, judge, gold) for judge in by_judge}
    tables = []
    for judge, own in by_judge.items():
        tables += _judge_tables(judge, own, baseline, rounds, seed)
    tables += [*_agreement_table(by_judge), _data_table(by_judge, len(judgments) - len(unique))]
    if sources:
        rows = [[each.path, each.judgments, each.sha256] for each in sources]
        tables.append(Table("Files", {"file": str, "judgments": _count, "SHA-256": str}, rows))
    return Report(findings, [each for each in tables if each.rows or each.notes])


def _judge_tables(judge: str, own: Sequence[Judgment], baseline: str | None, rounds: int, seed: int) -> list[Table]:
    """What one judge says about the models."""
    found, singles = comparisons(own), [each for each in own if not each.is_pair]
    tables = []
    if found:
        models = models_of(each for each in own if each.is_pair)
        against = baseline or common_opponent(found) or (models[1] if len(models) == 2 else None)
        tables.append(_win_table(judge, found, against))
        if against and any(against not in each.models for each in trust.models_only(found)):
            tables.append(_win_table(judge, found, None))

        def rate(part: Sequence[Comparison], model: str) -> Estimate | None:
            return win_rate(part, model, against)

        tables += _breakdowns(f"Win rates by {judge} {_against(against)}", found, rate, models, percent)
        if len(models) > 2:
            tables.append(_rating_table(judge, found, rounds, seed))
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
    rows, notes = [], []
    for model in models:
        plain = win_rate(found, model, baseline)
        if plain is None:
            continue
        weighted = win_rate(found, model, baseline, weighted=True)
        controlled = None
        if baseline is not None:
            difficulty = difficulties(found, baseline, without=model)
            fitted = length_controlled(found, model, baseline, difficulty=difficulty)
            controlled = fitted.rate
            notes += [f"{model}, length-controlled: {note}." for note in fitted.notes]
        rows.append([model, plain.n, plain, weighted, controlled])
    rows.sort(key=lambda row: -row[2].value)
    columns = {"model": str, "pairs": _count, "by count": percent, "by weights": percent, "length-controlled": percent}
    if baseline is None:
        notes.append("Length-controlled win rates need a baseline: give --baseline=NAME.")
    return Table(
        f"Win rates by {judge} {_against(baseline)}", columns, rows, notes, ("by count", "length-controlled"), 0.5
    )


def _against(baseline: str | None) -> str:
    return f"against {baseline}" if baseline else "against all others"


def _rating_table(judge: str, found: Sequence[Comparison], rounds: int, seed: int) -> Table:
    """Bradley-Terry ratings with intervals over resampled questions, and which models cannot be told apart."""
    own = [each for each in trust.models_only(found) if each.outcome is not None]
    title, ridge, notes = f"Ratings by {judge}", 0.0, []
    battles = [(*each.models, {1.0: "a", 0.5: "tie", 0.0: "b"}[each.outcome]) for each in own]
    try:
        plain = ratings.bradley_terry(battles)
    except UserError as problem:
        notes.append(f"Without a ridge there are no ratings: {problem}. With one, of {RIDGE}:")
        ridge = RIDGE
        try:
            plain = ratings.bradley_terry(battles, ridge=ridge)
        except UserError:  # no ridge joins models that never met
            return Table(title, {}, [], [f"There are no ratings: {problem}."])
    questions = [each.question for each in own]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ends = ratings.bootstrap(battles, rounds=rounds, seed=seed, clusters=questions, ridge=ridge)
    places = ratings.ranks(battles, clusters=questions, ridge=ridge)
    rows = []
    for model, rating in plain.items():
        at, place, asked = ends[model], places[model], [each.question for each in own if model in each.models]
        estimate = Estimate(rating, at.stderr, at.low, at.high, len(asked), len(set(asked)))
        rows.append([model, len(asked), estimate, [place.rank, place.worst], ", ".join(place.tied) or None])
    if apart := [group for group in ratings.groups(places) if len(group) > 1]:
        notes.append(f"Groups that cannot be told apart: {'; '.join(', '.join(group) for group in apart)}.")
    else:
        notes.append("All models can be told apart.")
    notes += [f"{each.message}." for each in caught]
    notes.append(
        f"Bradley-Terry, mean 1,000; 400 points are odds of 10. Intervals are of {rounds:,} bootstrap samples of "
        f"questions with the seed {seed}."
    )
    columns = {"model": str, "battles": _count, "rating": _rating, "rank": _rank, "cannot be told from": str}
    return Table(title, columns, rows, notes, ("rating",))


def _score_table(judge: str, singles: Sequence[Judgment]) -> Table:
    rows = [[model, found.n, found] for model in models_of(singles) if (found := mean_score(singles, model))]
    rows.sort(key=lambda row: -row[2].value)
    columns = {"model": str, "answers": _count, "mean score": number}
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
    columns = {"model": str, "less": str, "turns": _count, "difference": number, "in words": str}
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


def _agreement_table(by_judge: Mapping[str, Sequence[Judgment]]) -> list[Table]:
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
        "comparisons": _count,
        "agree, with ties": percent,
        "agree, both name a winner": percent,
        "Cohen's kappa": _decimal,
        "Krippendorff's alpha of scores": _decimal,
    }
    notes = ["Chance is 33% with ties and 50% where both name a winner. A verdict that flips is a tie."]
    return [Table("Agreement between judges", columns, rows, notes)] if rows else []


def _data_table(by_judge: Mapping[str, Sequence[Judgment]], repeated: int) -> Table:
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
    notes = [f"{repeated:,} repeated judgments were left out."] if repeated else []
    return Table("Judgments", {"judge": str} | dict.fromkeys(names, _count), rows, notes)


def percent(share: Estimate) -> str:
    return trust.percent(share)


def number(found: Estimate) -> str:
    if math.isnan(found.low):
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _rating(found: Estimate) -> str:
    return f"{found.value:.0f} ({found.low:.0f} to {found.high:.0f})"


def _rank(place: Sequence[int]) -> str:
    return f"{place[0]}" if place[0] == place[1] else f"{place[0]} to {place[1]}"


def _count(value: int) -> str:
    return f"{value:,}"


def _decimal(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
