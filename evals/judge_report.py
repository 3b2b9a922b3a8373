"""The report on judgments: what they say about models, and first of all how far their judges can be trusted.

`make_report` computes everything from judgments alone; a `Report` is shown as Markdown, on a terminal and as JSON.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from ..errors import UserError, did_you_mean
from . import trust
from .intervals import Estimate
from .judge_tables import Table, agreement_table, count_of, data_table, judge_tables, sums_tables
from .judgment_files import read_judgments
from .judgments import Judgment
from .win_rates import models_of


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
        tables += judge_tables(judge, own, baseline, rounds, seed)
    tables += [*sums_tables(unique), *agreement_table(by_judge), data_table(by_judge, len(judgments) - len(unique))]
    if sources:
        rows = [[each.path, each.judgments, each.sha256] for each in sources]
        tables.append(Table("Files", {"file": str, "judgments": count_of, "SHA-256": str}, rows))
    return Report(findings, [each for each in tables if each.rows or each.notes])


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
