"""The table that closes every run: what each step changed and dropped, by reason and language, in rows and tokens."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..data.cards import Count
from .applying import RejectedRow
from .conversations.repair import REPAIRS
from .measure import Measure
from .rows import LANGUAGE, SPLIT, TRAIN, Row

_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")

UNKNOWN = "unknown"
"""The language of rows that no step has found a language of."""


class Table(NamedTuple):
    """A table of text and numbers."""

    title: str
    header: list[str]
    rows: list[list[str | int]]


@dataclass
class RunTable:
    """Counts of the rows of a run, added up while they are written."""

    measure: Measure = field(default_factory=Measure)
    """How the size of a row is measured."""

    kept: dict[tuple[str, str, str], Count] = field(default_factory=dict)
    """Rows that are kept, by split, source and language."""

    dropped: dict[tuple[str, str, str], Count] = field(default_factory=dict)
    """Rows that were rejected, by step, reason and language."""

    came: Counter[str] = field(default_factory=Counter)
    """Rows that came to each step."""

    changed: Counter[str] = field(default_factory=Counter)
    """Rows that each step changed."""

    repaired: Counter[str] = field(default_factory=Counter)
    """Rows that are kept and had repairs, by the column that counts these (`repair.REPAIRS`)."""

    repairs: Counter[str] = field(default_factory=Counter)
    """The repairs of these rows, by column."""

    _whole: str = ""
    """Id of the raw record that the last row is a part of."""

    def keep(self, row: Row) -> None:
        """Adds a row that is kept. Rows come in the order of their ids."""
        whole = row.id.partition("-")[0]
        if whole != self._whole:  # the parts of a row repeat its columns
            self._whole, found = whole, {name: n for name in REPAIRS if isinstance(n := row.columns.get(name), int)}
            self.repaired.update(found.keys())
            self.repairs.update(found)
        key = (split_of(row), row.source, language_of(row))
        self.kept[key] = _with(self.kept.get(key), self.measure.size(row))

    def drop(self, rejected: RejectedRow) -> None:
        """Adds a row that was rejected."""
        key = (rejected.step, rejected.reason, language_of(rejected.row))
        self.dropped[key] = _with(self.dropped.get(key), self.measure.size(rejected.row))

    def kept_by(self, position: int) -> dict[str, Count]:
        """Kept rows by split (0), source (1) or language (2), by name."""
        found: dict[str, Count] = {}
        for key, count in sorted(self.kept.items()):
            found[key[position]] = _sum(found.get(key[position], Count()), count)
        return found

    def rejected_of(self, step: str) -> dict[str, int]:
        """Number of rows that a step rejected, by reason."""
        found: Counter[str] = Counter()
        for (name, reason, _), count in sorted(self.dropped.items()):
            if name == step:
                found[reason] += count.rows
        return dict(found)

    def tables(self, steps: Mapping[str, object]) -> Iterator[Table]:
        """The tables of the run. steps: the names of its steps, in their order."""
        unit, order = self.measure.unit, {name: number for number, name in enumerate(steps)}
        yield Table(
            "What is kept",
            ["split", "source", "language", "rows", unit],
            [[*key, count.rows, count.tokens] for key, count in sorted(self.kept.items())],
        )
        if self.came:
            counts = [(self.came[name], self.changed[name], sum(self.rejected_of(name).values())) for name in steps]
            rows = [[name, *of_step] for name, of_step in zip(steps, counts, strict=True)]
            yield Table("What each step did", ["step", "rows in", "changed", "dropped"], rows)
        if self.repairs:
            rows = [[what, self.repaired[name], self.repairs[name]] for name, what in REPAIRS.items()]
            yield Table("Repairs in what is kept", ["repair", "rows", "number"], [row for row in rows if row[1]])
        lines = sorted(self.dropped.items(), key=lambda line: (order[line[0][0]], *line[0][1:]))
        yield Table(
            "What was dropped",
            ["step", "reason", "language", "rows", unit],
            [[*key, count.rows, count.tokens] for key, count in lines] + [self._total()],
        )

    def _total(self) -> list[str | int]:
        counts = list(self.dropped.values())
        return ["all", "", "", sum(count.rows for count in counts), sum(count.tokens for count in counts)]


def split_of(row: Row) -> str:
    """The split of a row."""
    return row.columns.get(SPLIT, TRAIN)


def language_of(row: Row) -> str:
    """The language of a row, as tables name it."""
    return row.columns.get(LANGUAGE) or UNKNOWN


def to_markdown(tables: Iterator[Table]) -> str:
    """Tables as Markdown."""
    parts = []
    for title, header, rows in tables:
        marks = ["---:" if rows and isinstance(cell, int) else "---" for cell in (rows or [header])[0]]
        lines = [header, marks, *rows]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n")
    return "\n".join(parts)


def to_rich(tables: Iterator[Table]):
    """Tables for the terminal."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = []
    for title, header, rows in tables:
        table = RichTable(title=title, title_justify="left")
        for number, name in enumerate(header):
            table.add_column(name, justify="right" if rows and isinstance(rows[0][number], int) else "left")
        for row in rows:
            table.add_row(*(escape(_cell(cell)) for cell in row))
        drawn.append(table)
    return Group(*drawn)


def _cell(value: str | int) -> str:
    """A cell on one line: control characters, as names of files may have, are written as escapes."""
    if isinstance(value, int):
        return f"{value:,}"
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], value).replace("|", "\\|")


def _with(count: Count | None, size: int) -> Count:
    return _sum(count or Count(), Count(1, size))


def _sum(one: Count, other: Count) -> Count:
    return Count(one.rows + other.rows, one.tokens + other.tokens)
