"""A comparison of runs as a table on the terminal, as Markdown, as CSV and as JSON."""

import csv
import functools
import io
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from ..evals.intervals import Estimate
from .comparison import CODE, SEED, ComparedRun, Group, Metric, Point, differing_leaves, groups

MOST_COLUMNS = 12
"""Number of leaves that a table shows; CSV and JSON have all."""


@dataclass(frozen=True)
class Row:
    """One line of a comparison: a group, or one run of a group of several."""

    label: str
    """The name of a run; of several runs what their names have in common."""

    runs: Sequence[ComparedRun]
    """The runs."""

    repeats_another: bool = False
    """Whether it is a single run that does not count, because another one with its seed does."""

    @property
    def counted(self) -> Sequence[ComparedRun]:
        """The runs that count, one for each seed."""
        return self.group.counted

    @property
    def seeds(self) -> str:
        """The seeds, each once."""
        return ", ".join(str(run.seed) for run in self.counted)

    @property
    def repeats(self) -> int:
        """Number of runs that do not count."""
        return 1 if self.repeats_another else len(self.runs) - len(self.counted)

    @property
    def seeds_and_repeats(self) -> str:
        """The seeds, each once, and how many runs repeat others."""
        if self.repeats_another:
            return f"{self.seeds} (repeat)"
        return f"{self.seeds} (+{_count(self.repeats, 'repeat')})" if self.repeats else self.seeds

    @property
    def status(self) -> str:
        """The status that all runs have which count, or how many runs have each."""
        counts = Counter(run.status for run in self.counted)
        return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {status}" for status, n in counts.items())

    @property
    def step(self) -> str:
        """The last step that was done, or the lowest and the highest one of several runs."""
        steps = sorted({run.step for run in self.counted})
        return str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"

    @property
    def goodput(self) -> float | None:
        """The mean goodput of the runs that know it."""
        known = [run.goodput for run in self.counted if run.goodput is not None]
        return math.fsum(known) / len(known) if known else None

    @functools.cached_property
    def group(self) -> Group:
        """The runs as a group."""
        return Group({}, self.runs)

    def leaf(self, name: str) -> list[Any]:
        """The values of a leaf in the runs, each once; empty where no run has the leaf."""
        found = []
        for run in self.runs:
            if name in run.leaves and run.leaves[name] not in found:
                found.append(run.leaves[name])
        return found

    def best_point(self, metric: Metric) -> Point | None:
        """The best value with its step, of a single run that counts; None for several."""
        return self.counted[0].best(metric) if len(self.counted) == 1 else None


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, those with the best values of the first metric first."""

    runs: Sequence[ComparedRun]
    """The runs."""

    metrics: Sequence[Metric]
    """The metrics that are compared."""

    asked: Sequence[str] = ()
    """Names or globs of leaves that are shown beside those that differ."""

    each: bool = False
    """Whether every run of a group has a line below that of the group."""

    goodput: bool = False
    """Whether the share of time in training steps is shown."""

    @functools.cached_property
    def groups(self) -> list[Group]:
        """The groups from the best to the worst."""
        found = groups(self.runs)
        if self.metrics:
            first = self.metrics[0]
            found.sort(key=lambda group: first.sorts(best.value if (best := group.best(first)) else math.nan))
        return found

    @functools.cached_property
    def leaves(self) -> list[str]:
        """The leaves that are shown."""
        return [name for name in differing_leaves(self.runs, self.asked) if name != SEED or SEED in self.asked]

    @functools.cached_property
    def rows(self) -> list[Row]:
        """The lines in their order."""
        return list(self._rows())

    def _rows(self) -> Iterator[Row]:
        for group in self.groups:
            yield Row(_label(group.runs), group.runs)
            for run in group.runs if self.each and len(group.runs) > 1 else ():
                yield Row(f"  {run.name}", [run], repeats_another=run not in group.counted)

    def title(self) -> str:
        """What is compared, in words."""
        largest = max(len(group.counted) for group in self.groups)
        seeds = "; mean ± half of the 95% interval over seeds" if largest > 1 else ""
        return f"{_count(len(self.runs), 'run')}, {_count(len(self.groups), 'setting')}{seeds}"

    def _columns(self) -> tuple[list[str], list[list[str]]]:
        """The head of the table and the cells of each line, as texts. The last columns are two for each metric."""
        leaves = self.leaves[:MOST_COLUMNS]
        with_seeds = any(len(group.runs) > 1 for group in self.groups) or len({str(run.seed) for run in self.runs}) > 1
        short = short_names(self.leaves)
        head = [
            "run",
            *(printable(short[name]) for name in leaves),
            *(["seeds"] if with_seeds else []),
            "status",
            "step",
        ]
        head += ["goodput"] if self.goodput else []
        for metric in self.metrics:
            name = printable(metric.name)
            head += [f"{name}\nbest ({metric.mode})", f"{name}\nlast"]
        body = []
        for row in self.rows:
            cells = [row.label, *(", ".join(shown(name, value) for value in row.leaf(name)) for name in leaves)]
            cells = list(map(printable, cells))
            cells += [row.seeds_and_repeats] if with_seeds else []
            cells += [row.status, row.step]
            cells += [] if not self.goodput else ["" if row.goodput is None else f"{row.goodput:.1%}"]
            for metric in self.metrics:
                point = row.best_point(metric)
                cells.append(f"{point.value:.4g} at {point.step}" if point else estimated(row.group.best(metric)))
                cells.append(estimated(row.group.last(metric)))
            body.append(cells)
        return head, body

    def table(self) -> Table:
        """The comparison for a terminal: the best and the last value of a metric stand under one head."""
        head, body = self._columns()
        first = len(head) - 2 * len(self.metrics)
        lines = [line[:first] for line in (head, *body)]
        for metric, place in zip(self.metrics, range(first, len(head), 2), strict=True):
            pairs = [[f"best ({metric.mode})", "last"], *(cells[place : place + 2] for cells in body)]
            width = max(len(best) for best, _ in pairs)
            joined = [f"{best:{width}}  {last}" for best, last in pairs]
            for line, cell in zip(lines, [f"{printable(metric.name)}\n{joined[0]}", *joined[1:]], strict=True):
                line.append(cell)
        table = Table()
        for name in lines[0]:
            table.add_column(Text(name), overflow="fold")
        for cells in lines[1:]:
            table.add_row(*map(Text, cells))
        return table

    def blocks(self) -> str:
        """The comparison for a narrow terminal: a block for each line of the table, with a line for each column."""
        head, body = self._columns()
        names = [name.replace("\n", " ") for name in head]
        blocks = [[cells[0].strip(), *map("  {}: {}".format, names[1:], cells[1:])] for cells in body]
        return "\n\n".join("\n".join(lines) for lines in blocks)

    def markdown(self) -> str:
        """The comparison as a table of Markdown."""
        head, body = self._columns()
        lines = [head, ["---"] * len(head), *body]
        escaped = [[cell.strip().replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in lines]
        return f"{self.title()}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)

    def csv(self) -> str:
        """The lines of the table with all leaves by their full names and all digits.

        A cell is empty where there is no value; the ends of an interval are empty for a single seed.
        """
        head = ["run", "n", "seeds", "repeats", *self.leaves, "status", "step", "goodput"]
        ends = ("", " low", " high")
        for metric in self.metrics:
            head += [f"{metric.name} best{end}" for end in (*ends, " step")] + [f"{metric.name} last{e}" for e in ends]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(head)
        for row in self.rows:
            cells = [row.label.strip(), len(row.counted), row.seeds, row.repeats]
            cells += [_joined(row.leaf(name)) for name in self.leaves]
            cells += [row.status, row.step, row.goodput]
            for metric in self.metrics:
                point = row.best_point(metric)
                cells += [*_ends(row.group.best(metric)), point and point.step, *_ends(row.group.last(metric))]
            writer.writerow("" if cell is None else cell for cell in cells)
        return text.getvalue()

    def json(self) -> str:
        """Everything that is compared: groups with their estimates, and the runs of each with their own values.

        Numbers that are not finite are the strings nan, inf and -inf, as in metrics.jsonl.
        """
        found = {
            "metrics": [metric._asdict() for metric in self.metrics],
            "leaves": self.leaves,
            "groups": [
                {
                    "leaves": dict(group.leaves),
                    "metrics": {
                        metric.name: {"best": _fields(group.best(metric)), "last": _fields(group.last(metric))}
                        for metric in self.metrics
                    },
                    "runs": [self._run(run) | {"counts": run in group.counted} for run in group.runs],
                }
                for group in self.groups
            ],
        }
        return json.dumps(finite(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def _run(self, run: ComparedRun) -> dict[str, Any]:
        values = {
            metric.name: {"best": _fields(run.best(metric)), "last": _fields(run.last(metric))}
            for metric in self.metrics
        }
        leaves = {name: run.leaves[name] for name in self.leaves if name in run.leaves}
        about = {"path": os.fspath(run.path), "name": run.name, "seed": run.seed, "status": run.status}
        about |= {"versions": list(run.versions)}
        return about | {"step": run.step, "goodput": run.goodput, "leaves": leaves, "metrics": values}


def short_names(leaves: Sequence[str]) -> dict[str, str]:
    """Each leaf's name without the sections that nobody needs to tell it from the other leaves.

    The section in which a leaf stands is kept, for the last part alone says little: optim.lr, checkpoint.best. Of the
    path of a file of own code the name of the file is kept.
    """
    ends = {name: _ends_of(name) for name in leaves}
    taken = Counter(end for each in ends.values() for end in each)
    return {name: next((end for end in each if taken[end] == 1), name) for name, each in ends.items()}


def _ends_of(name: str) -> list[str]:
    """The names by which a leaf may be called, the shortest first."""
    if name.startswith(CODE):
        parts = name.removeprefix(CODE).split("/")
        return [CODE + "/".join(parts[i:]) for i in reversed(range(len(parts)))]
    parts = name.split(".")
    return [".".join(parts[i:]) for i in reversed(range(max(1, len(parts) - 1)))]


def printable(text: str) -> str:
    """A text with escapes in place of characters that would move the cursor, colour the terminal or be no UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(name: str, value: Any) -> str:
    """A value of a leaf in a table: numbers and hashes of own code in few digits, everything else as it is."""
    if name.startswith(CODE):
        return ", ".join(each[:7] for each in value.split(", "))
    if isinstance(value, bool) or not isinstance(value, float):
        return value if isinstance(value, str) else str(value)
    return f"{value:g}"


def estimated(estimate: Estimate | None) -> str:
    """An estimate in a table, with half of its interval; empty for None."""
    if estimate is None:
        return ""
    if math.isnan(estimate.low):
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} ± {estimate.high - estimate.value:.2g}"


def _label(runs: Sequence[ComparedRun]) -> str:
    if len(runs) == 1:
        return runs[0].name
    letters = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*(run.name for run in runs), strict=False))
    start = "".join(column[0] for column in letters)
    return f"{start}*" if start else f"{len(runs)} runs"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _joined(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else "; ".join(map(str, values)) if values else None


def _ends(estimate: Estimate | None) -> list[float | None]:
    """The value of an estimate and the ends of its interval; None for what it does not have."""
    if estimate is None:
        return [None] * 3
    return [estimate.value, *(None if math.isnan(end) else end for end in (estimate.low, estimate.high))]


def _fields(value: Estimate | Point | None) -> dict[str, Any] | None:
    """An estimate or a point as JSON has it. An estimate from one seed has no interval."""
    if value is None:
        return None
    if isinstance(value, Point):
        return value._asdict()
    low, high = _ends(value)[1:]
    return {"value": value.value, "low": low, "high": high, "n": value.n}


def finite(value: Any) -> Any:
    """Nested JSON with numbers that are not finite as the strings nan, inf and -inf."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list) else value
