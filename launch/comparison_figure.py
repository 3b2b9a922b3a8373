"""Learning curves of runs: a line for each setting, with the 95% interval over its seeds as a band."""

import io
import itertools
import math
import warnings
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .comparison import SEED, Group, Metric
from .comparison_tables import short_names, shown

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colours that people with any kind of colour blindness can tell apart (M. Okabe and K. Ito, 2008)."""

STYLES = ("-", "--", ":", "-.")
"""Styles of lines, by which lines of one colour differ where there are more lines than colours."""

MOST_LINES = len(COLOURS) * len(STYLES)
"""The largest number of lines that can be told apart."""


def learning_curves(groups: Sequence[Group], metrics: Sequence[Metric]) -> Figure:
    """The course of metrics over the steps, a panel for each metric.

    Where there are more groups than lines that can be told apart, the groups after the first `MOST_LINES` are grey and
    have no name.

    Args:
      groups: the groups, in the order of their names in the legend.
      metrics: the metrics. Without any the figure has one empty panel.
    """
    number = max(1, len(metrics))
    columns = min(3 * number, 6)
    rows = -(-min(len(groups), MOST_LINES) // columns)
    figure = Figure(figsize=(5.2 * number + 0.4, 3.6 + 0.22 * rows), layout="constrained")
    panels = figure.subplots(1, number, squeeze=False)[0]
    names = labels(groups)
    for axes, metric in zip(panels, metrics, strict=False):
        for place, group in reversed(list(enumerate(groups))):  # the first ones lie on top
            _line(axes, group, metric.name, place, names[place])
        axes.set_title(metric.name, fontsize="medium")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    named = [name for name in names[:MOST_LINES] if name in lines]
    if len(groups) > 1 and named:
        columns = min(len(named), columns)
        figure.legend([lines[name] for name in named], named, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def draw(groups: Sequence[Group], metrics: Sequence[Metric], kind: str) -> bytes:
    """The figure of `learning_curves` as a file of the kind svg or png, with the same bytes for the same runs."""
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "camelid"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts have them
        options = {"metadata": {"Date": None}} if kind == "svg" else {"dpi": 150}
        learning_curves(groups, metrics).savefig(content, format=kind, **options)
    return content.getvalue()


def labels(groups: Sequence[Group]) -> list[str]:
    """A short name for each group: the leaves in which it differs from other groups, or the name of its first run."""
    short = short_names(list(dict.fromkeys(itertools.chain.from_iterable(group.leaves for group in groups))))
    names = [
        ", ".join(f"{short[name]}={shown(name, value)}" for name, value in group.leaves.items() if name != SEED)
        or group.runs[0].name
        for group in groups
    ]
    cut = [name if len(name) <= 60 else f"{name[:57]}..." for name in names]
    return [name if cut.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(cut)]


def _line(axes: Axes, group: Group, name: str, place: int, label: str) -> None:
    curve = [(step, estimate) for step, estimate in group.curve(name) if math.isfinite(estimate.value)]
    if not curve:
        return
    told = place < MOST_LINES
    colour = COLOURS[place % len(COLOURS)] if told else "#999999"
    style = STYLES[place // len(COLOURS)] if told else "-"
    steps = [step for step, _ in curve]
    marker = "o" if len(steps) == 1 else None
    values = [estimate.value for _, estimate in curve]
    axes.plot(steps, values, style, color=colour, label=label, marker=marker, linewidth=1.6 if told else 0.8)
    band = [(step, each.low, each.high) for step, each in curve if math.isfinite(each.low)]
    if band:
        axes.fill_between(*zip(*band, strict=True), color=colour, alpha=0.18, linewidth=0)
