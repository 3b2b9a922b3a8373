"""Draws a report on judgments: win rates, mean scores and ratings with intervals, a panel for each table."""

import io
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .intervals import Estimate
from .judge_report import Report
from .judge_tables import Table


def draw(report: Report, kind: str) -> bytes | None:
    """A report as a picture; None if it has neither win rates, scores nor ratings.

    Args:
      report: the report.
      kind: svg or png.
    """
    tables = [table for table in report.tables if table.drawn and table.rows]
    if not tables:
        return None
    most = max(len(table.rows) for table in tables)
    columns = min(3, len(tables))
    lines = math.ceil(len(tables) / columns)
    figure = Figure(figsize=(5.5 * columns, lines * (1.3 + 0.35 * most)), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes in panels[len(tables) :]:
        axes.remove()
    for axes, table in zip(panels, tables, strict=False):
        _panel(axes, table)
    content = io.BytesIO()
    figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def _panel(axes: Axes, table: Table) -> None:
    """One table: a row for each model, a colour for each column that is drawn."""
    names, rows = list(table.columns), table.rows
    for place, column in enumerate(table.drawn):
        at = names.index(column)
        shift = 0.15 * (place - (len(table.drawn) - 1) / 2)
        points = [(row[at], height + shift) for height, row in enumerate(rows) if row[at] is not None]
        if points:
            _points(axes, points, f"C{place}", column)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(table.title, fontsize="small")
    if table.fair is not None:
        axes.axvline(table.fair, color="grey", linestyle=":")
    if len(axes.containers) > 1:
        axes.legend(frameon=False, fontsize="small")


def _points(axes: Axes, points: Sequence[tuple[Estimate, float]], colour: str, label: str) -> None:
    values = [found.value for found, _ in points]
    ends = [
        [0.0 if math.isnan(found.low) else max(0.0, found.value - found.low) for found, _ in points],
        [0.0 if math.isnan(found.high) else max(0.0, found.high - found.value) for found, _ in points],
    ]
    axes.errorbar(values, [height for _, height in points], xerr=ends, fmt=f"{colour}o", capsize=2, label=label)
