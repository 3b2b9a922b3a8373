"""The pictures of a sweep's page as SVG that takes the colours and fonts of the page around it."""

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
INK = "#0a0b0c"
"""The colour in which text and axes are drawn; in the page it is that of the page's text."""

BEST = "#e8590c"
SCALE = LinearSegmentedColormap.from_list("sweep", ["#98a2b3", "#2f7df6"])
"""Colours of bad and good points, which are both seen on a light and on a dark page."""

STATES = {
    "finished": {"color": "#2f7df6", "linewidth": 1.0},
    "best": {"color": BEST, "linewidth": 2.4, "zorder": 5},
    "pruned": {"color": "#98a2b3", "linewidth": 0.9, "linestyle": (0, (3, 2))},
    "failed": {"color": "#d6336c", "linewidth": 0.9, "linestyle": (0, (1, 2))},
    "running": {"color": "#2b9348", "linewidth": 1.2},
    "waiting": {"color": "#2b9348", "linewidth": 1.2, "linestyle": (0, (1, 1))},
}
"""How the curve of a trial is drawn by its state."""

POINTS = ("#e8590c", "#2f7df6", "#2b9348", "#9c36b5", "#0c8599", "#d9a400", "#d6336c", "#868e96")
"""Colours of the curves of each point, the best point first, where there are no more points than colours."""

MOST_POINTS = 200
"""A curve with more points is thinned out."""

LARGEST = 1.4
"""Pixels on the page of a unit of a picture, at most: text of 10 units has 14 pixels, as the page's own has."""

SETTINGS = {"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "camelid", "font.size": 10}
LONGEST_LABEL = 26
FITTING_NAME = 19
"""Characters of an axis' name that have room between two axes."""


class Line(NamedTuple):
    """A point in parallel coordinates."""

    heights: list[float]
    """Its height on each axis, from 0 to 1."""
    goodness: float
    """Its place among all points, from 1 for the best to 0."""
    title: str
    """What is said of it where the pointer rests."""


class Curve(NamedTuple):
    """A learning curve."""

    points: list[tuple[int, float]]
    """(step, value), in order."""
    state: str
    """A key of `STATES`."""
    title: str
    """What is said of it where the pointer rests."""
    color: str | None = None
    """Its colour; None for that of its state."""


def parallel_figure(axes: Mapping[str, Mapping[float, str]], lines: Sequence[Line]) -> str:
    """SVG of parallel coordinates: an axis for each setting and one for the objective, and a line for each point.

    Args:
      axes: {name: {height from 0 to 1: label}}.
      lines: the points, the best first.
    """
    with matplotlib.rc_context(SETTINGS):
        width = 1.5 * len(axes) + 1.1  # inches, of which the labels of the last axis take the last 1.6
        figure = Figure(figsize=(width, 3.9))
        plot = figure.add_axes((0.2 / width, 0.22, 1 - 0.2 / width, 0.73))
        plot.axis("off")
        plot.set(xlim=(-0.1, len(axes) - 0.1 + 0.6), ylim=(-0.06, 1.06))
        titles, slope = {}, 0 if max(map(len, axes)) <= FITTING_NAME else -18
        for number, line in reversed(list(enumerate(lines))):
            best = number == 0
            look = {"color": BEST if best else to_hex(SCALE(line.goodness)), "linewidth": 2.4 if best else 1.1}
            look["alpha"] = 1.0 if best else _alpha(len(lines)) * (0.5 + line.goodness / 2)
            marker = "o" if len(axes) == 1 or best else None
            [drawn] = plot.plot(range(len(axes)), line.heights, marker=marker, markersize=4, **look)
            drawn.set_gid(name := f"point-{number}")
            titles[name] = line.title
        for x, (name, ticks) in enumerate(axes.items()):
            plot.plot([x, x], [0, 1], color=INK, linewidth=1, zorder=6)
            for height, label in _spread(ticks).items():
                plot.plot([x - 0.02, x], [height, height], color=INK, linewidth=1, zorder=6)
                plot.text(x + 0.04, height, cut(label), va="center", color=INK, fontsize=9, zorder=7)
            plot.text(x, -0.09, cut(name), ha="left", va="top", color=INK, rotation=slope, rotation_mode="anchor")
        return _svg(figure, titles)


def curves_figure(curves: Sequence[Curve], metric: str) -> str:
    """SVG of learning curves: the best one stands out, those of pruned trials end in a cross.

    Args:
      curves: the curves, each with at least one point.
      metric: name of the metric.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        plot = figure.subplots()
        titles = {}
        for number, curve in enumerate(curves):
            points = thinned(curve.points)
            marker = "." if len(points) == 1 else None
            look = STATES[curve.state] | ({} if curve.color is None else {"color": curve.color})
            if curve.state in ("finished", "pruned"):
                look["alpha"] = _alpha(len(curves)) * (0.7 if curve.state == "finished" and not curve.color else 0.9)
            [drawn] = plot.plot(*zip(*points, strict=True), marker=marker, **look)
            drawn.set_gid(name := f"curve-{number}")
            titles[name] = curve.title
            if curve.state in ("pruned", "failed"):
                plot.plot(*points[-1], marker="x", markersize=4, color=look["color"], alpha=look.get("alpha"))
        plot.set(xlabel="step", ylabel=cut(metric, 60), ylim=_limits(curves))
        plot.ticklabel_format(useOffset=False, style="plain", axis="x")
        plot.spines[["top", "right"]].set_visible(False)
        for part in (*plot.spines.values(), plot.xaxis.label, plot.yaxis.label):
            part.set_color(INK)
        plot.tick_params(color=INK, labelcolor=INK)
        plot.patch.set_visible(False)
        return _svg(figure, titles)


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about `MOST_POINTS` points at equal distances, the last one always among them."""
    every = -(-len(points) // MOST_POINTS)
    return [*points[:-1:every], points[-1]]


def cut(text: str, longest: int = LONGEST_LABEL) -> str:
    """A label of at most so many characters, without line breaks; of a long one the beginning and the end."""
    text = " ".join(text.split())
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def _alpha(count: int) -> float:
    """How opaque one of so many lines is."""
    return max(0.25, min(0.9, 12 / count))


def _spread(ticks: Mapping[float, str]) -> dict[float, str]:
    """Those labels of an axis that do not overlap each other; the lowest and the highest are kept."""
    kept: dict[float, str] = {}
    for height in sorted(ticks):
        if not kept or height - max(kept) >= 0.05 or height == max(ticks):
            kept[height] = ticks[height]
    return kept


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """The range of values that is shown: without the beginning of runs, where a loss is large, and without outliers."""
    late = [value for curve in curves for _, value in curve.points[len(curve.points) // 4 :]]
    ordered = sorted(late)
    low, high = (ordered[round((len(ordered) - 1) * share)] for share in (0.02, 0.98))
    best = [value for curve in curves if curve.state == "best" for _, value in curve.points[-1:]]
    low, high = min([low, *best]), max([high, *best])
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _svg(figure: Figure, titles: Mapping[str, str]) -> str:
    """A figure as an SVG element.

    Args:
      figure: the figure.
      titles: {gid of a line: what is said of it where the pointer rests}.
    """
    figure.patch.set_visible(False)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's own font has it
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(file.getvalue())
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for group in root.iter(f"{{{SVG}}}g"):
        if (title := titles.get(group.get("id"))) is not None:
            said = ElementTree.Element(f"{{{SVG}}}title")
            said.text = re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", title)
            group.insert(0, said)
    for style in root.iter(f"{{{SVG}}}style"):
        style.text = ""  # matplotlib's own, which would hold for the whole page
    root.attrib.pop("width"), root.attrib.pop("height")
    width = float(root.get("viewBox").split()[2])
    root.set("style", f"min-width: {0.9 * width:.0f}px; max-width: {LARGEST * width:.0f}px")
    root.set("aria-hidden", "true")
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?px) [^;\"]*", r"font-size: \1", text).replace(INK, "currentColor")
