"""Files of results side by side: a table, Markdown and a figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .intervals import Estimate
from .results import Result, Row, compare

if TYPE_CHECKING:
    from rich.table import Table


def table(results: Sequence[Result]) -> "Table":
    """A table of the metrics of results, with differences to the first one."""
    from rich.table import Table
    from rich.text import Text

    found = Table()
    for name in _header(results):
        found.add_column(Text(name))
    for row in compare(results):
        found.add_row(*map(Text, _cells(row)))
    return found


def markdown(results: Sequence[Result]) -> str:
    """The metrics of results in Markdown, and what decides them."""
    lines = ["# Results", ""]
    for name, each in zip(_names(results), results, strict=True):
        model = each.content["model"]
        stops = ", ".join(f"`{piece}`" for piece in model.get("stop_tokens") or ())
        versions = ", ".join(f"{name} {version}" for name, version in each.content["versions"].items())
        lines += [
            f"- **{name}**: `{model['name']}`" + (f" at step {model['step']}" if model.get("step") else ""),
            f"  - command: `{' '.join(each.content['command'])}`",
            f"  - {each.content['date']}; {versions}",
            f"  - template {(model.get('template') or {}).get('name', 'none')}; answers end with {stops or 'eos'}",
        ]
    lines += ["", "Values stand with their 95% intervals, clustered where items share a text or a question."]
    if len(results) > 1:
        lines += [f"Differences are to {_names(results)[0]}, paired on the same items."]
    header = _header(results)
    lines += ["", _line(header), "| --- " * len(header) + "|", *(_line(_cells(row)) for row in compare(results))]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', BAR) for cell in cells)} |"


BAR = "\\|"


def _names(results: Sequence[Result]) -> list[str]:
    """The names of files without what they share, or their paths where two names are the same."""
    names = [each.name for each in results]
    return names if len(set(names)) == len(names) else [each.path for each in results]


def _header(results: Sequence[Result]) -> list[str]:
    first, *others = _names(results)
    return ["metric", "items", first, *(title for name in others for title in (name, f"{name} - {first}"))]


def _cells(row: Row) -> list[str]:
    """The cells of a metric's row."""
    first, *others = (_value(each) for each in row.values)
    cells = [f"{row.evaluation}/{row.metric}", str(next(each.n for each in row.values if each is not None)), first]
    for value, found in zip(others, row.differences, strict=True):
        cells += [value, "" if found is None else f"{_signed(found[0])}: {found[1]}"]
    return cells


def _value(estimate: Estimate | None) -> str:
    return "" if estimate is None else str(estimate)


def _signed(difference: Estimate) -> str:
    if math.isnan(difference.low):
        return f"{difference.value:+.4g}"
    return f"{difference.value:+.4g} ({difference.low:+.4g} to {difference.high:+.4g})"


def plot(results: Sequence[Result], path: str, most: int = 40) -> None:
    """Draws the metrics of results with their intervals, a panel for each metric, at most `most`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = compare(results)[:most]
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    size = (3.2 * columns, (0.9 + 0.28 * len(results)) * lines + 0.4)
    figure, axes = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, row in zip(axes.flat, rows, strict=False):
        for place, value in enumerate(row.values):
            if value is not None:
                ends = [[value.value - value.low], [value.high - value.value]]
                axis.errorbar(value.value, place, xerr=None if math.isnan(value.low) else ends, fmt="o", capsize=3)
        axis.set_yticks(range(len(results)), _names(results))
        axis.set_ylim(len(results) - 0.5, -0.5)
        axis.set_title(f"{row.evaluation}/{row.metric}", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    figure.savefig(Path(path))
    pyplot.close(figure)
