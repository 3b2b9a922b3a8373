"""The report on judgments: what they say about models, and first of all how far their judges can be trusted.

`make_report` computes everything from judgments alone; a `Report` is shown as Markdown, on a terminal and as JSON.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ..data.files import find_files
from ..errors import UserError, did_you_mean
from . import trust
from .intervals import Estimate
from .judge_tables import Table, agreement_table, count_of, data_table, judge_tables, sums_tables
from .judgment_files import read_judgments
from .judgments import Judgment
from .win_rates import models_of

MOST_JUDGES = 20
"""Most judges that are reported on one by one."""


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
        parts = ["# Judge report", *map(_markdown, self.headlines)]
        for table in self.shown():
            lines = table.texts()
            lines[1:1] = [["---"] * len(lines[0])] if lines else []
            rows = ["| " + " | ".join(map(_markdown, line)) + " |" for line in lines]
            parts += [
                f"## {_markdown(table.title)}",
                *(["\n".join(rows)] if rows else []),
                *map(_markdown, table.notes),
            ]
        return "\n\n".join(parts) + "\n"

    def show(self, console: Console) -> None:
        """Prints the report on a terminal."""
        for line in self.headlines:
            console.print(_terminal(line))
        for table in self.shown():
            headings, *lines = table.texts() or [[]]
            drawn = RichTable(title=_terminal(table.title), title_justify="left")
            for heading in headings:
                drawn.add_column(_terminal(heading))
            for line in lines:
                drawn.add_row(*map(_terminal, line))
            console.print(drawn if lines else _terminal(table.title))
            for note in table.notes:
                console.print(_terminal(note))

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
    """The judgments of files, globs or folders, and what the files are.

    Args:
      paths: the files.
      questions: a file of questions, as `read_judgments` takes it.

    Raises:
      UserError: a file is missing, cannot be read, or stands twice among the files.
    """
    judgments, sources = [], []
    for path in (file for each in paths for file in find_files(each)):
        found = list(read_judgments(path, questions))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if twin := next((each.path for each in sources if each.sha256 == digest), None):
            raise UserError(f"{path} is the same file as {twin}: its judgments would count twice; leave one out")
        sources.append(Source(str(path), digest, len(found)))
        judgments += found
    return judgments, sources


def make_report(
    judgments: Sequence[Judgment],
    *,
    sources: Sequence[Source] = (),
    gold: Sequence[Judgment] = (),
    baseline: str | None = None,
) -> Report:
    """The report on judgments.

    Args:
      judgments: of one judge or several.
      sources: the files that they and the gold verdicts come from.
      gold: judgments of people, or true scores, of the same answers.
      baseline: the model that others are compared with; None: the one that is part of every pair, if there is one.

    Raises:
      UserError: there is no judgment, or none of the baseline.
    """
    if not judgments:
        raise UserError("there are no judgments to report on")
    models = models_of(judgments)
    if baseline is not None and baseline not in models:
        near = did_you_mean(baseline, models)
        raise UserError(f"no judgment has the baseline {baseline}{near}: give one of {', '.join(models)}")
    by_judge = _by_judge(judgments)
    findings = {}
    for judge, own in by_judge.items():
        others = [each for name, theirs in by_judge.items() if name != judge for each in theirs]
        findings[judge] = trust.findings(own, judge, others, gold)
    tables = []
    for judge, own in by_judge.items():
        tables += judge_tables(judge, own, baseline)
    tables += [*sums_tables(judgments), *agreement_table(by_judge), data_table(by_judge)]
    if sources:
        rows = [[each.path, each.judgments, each.sha256] for each in sources]
        tables.append(Table("Files", {"file": str, "judgments": count_of, "SHA-256": str}, rows))
    return Report(findings, [each for each in tables if each.rows or each.notes])


def one_line(text: str) -> str:
    """The text with a space for each line break and control character."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", " ", text)


def _markdown(text: str) -> str:
    """The text as one line of Markdown: characters that a name may have and that Markdown or HTML reads are escaped."""
    return re.sub(r"([\\|`*\[\]]|(?<!\w)_|_(?!\w)|<(?=[A-Za-z/!?]))", r"\\\1", one_line(text))


def _terminal(text: str) -> Text:
    """The text as a terminal shows it: brackets are no markup, and control characters do nothing."""
    return Text(one_line(text))


def _by_judge(judgments: Sequence[Judgment]) -> dict[str, list[Judgment]]:
    """The judgments of each judge by name; more than MOST_JUDGES, such as people who vote, are one."""
    found: dict[str, list[Judgment]] = {}
    for each in judgments:
        found.setdefault(each.judge or "unnamed judge", []).append(each)
    if len(found) > MOST_JUDGES:
        return {f"{len(found):,} judges together": list(judgments)}
    return dict(sorted(found.items()))


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
