"""How diverse instructions are: their verbs and what these act on, languages, lengths, and likeness to each other.

    write_report("reports/alpaca", rows)

The folder then holds report.md, diversity.json with the numbers, and pictures: verbs.en.svg and verbs.zh.svg,
lengths.svg and rouge.svg. Pictures of verbs are two rings as in self-instruct (arXiv:2212.10560, figure 3): the most
frequent verbs inside, their nouns outside. Verbs are found by the rules of `root_verbs.py`, whose limits stand there.
"""

import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.checksums import write_whole
from ..rows import LANGUAGE, Row
from ..run_table import UNKNOWN, Table, to_markdown
from ..words import split
from .instruct import task_of
from .root_verbs import root_of

VERBS, NOUNS = 20, 4
"""Verbs in the inner ring, and nouns of each in the outer ring; as in self-instruct."""

PARTS = ("instruction", "input", "output")
"""Parts of a task whose lengths are counted."""

PERCENTILES = (5, 50, 95)
"""Percentiles of lengths in the report."""


@dataclass(frozen=True)
class Diversity:
    """Numbers about the tasks in a language."""

    rows: int
    """Number of tasks."""

    without_verb: int
    """Number of instructions in which no verb is found, such as questions."""

    verbs: list[tuple[str, int, list[tuple[str, int]]]]
    """(verb, instructions with it, [(noun, instructions with both)]), the most frequent first."""

    pairs: int
    """Number of different pairs of verb and noun."""

    lengths: dict[str, list[int]]
    """Words of each instruction, input and output, ascending. Tasks without an input are left out of "input"."""

    rouge: list[float]
    """ROUGE-L of each instruction with the most similar earlier one, ascending; [] where the rows do not know it."""


def diversity_of(rows: Iterable[Row]) -> dict[str, Diversity]:
    """The numbers of tasks by language. Rows are those of `instruct.instruct`, or any with one question and answer."""
    by_language: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_language[row.columns.get(LANGUAGE) or UNKNOWN].append(row)
    return {language: _of_language(language, found) for language, found in sorted(by_language.items())}


def _of_language(language: str, rows: Sequence[Row]) -> Diversity:
    tasks = [task_of(row.record) for row in rows]
    roots = [root for task in tasks if (root := root_of(task.instruction, language))]
    verbs, nouns = Counter(verb for verb, _ in roots), defaultdict(Counter)
    for verb, noun in roots:
        if noun is not None:
            nouns[verb][noun] += 1
    lengths = {}
    for part in PARTS:
        texts = [text for task in tasks if (text := getattr(task, part))]
        lengths[part] = sorted(len(split(text, language)) for text in texts)
    return Diversity(
        rows=len(rows),
        without_verb=len(rows) - len(roots),
        verbs=[(verb, count, _ordered(nouns[verb])) for verb, count in _ordered(verbs)],
        pairs=sum(map(len, nouns.values())),
        lengths=lengths,
        rouge=sorted(row.columns["rouge_l"] for row in rows if "rouge_l" in row.columns),
    )


def _ordered(counts: Counter[str]) -> list[tuple[str, int]]:
    """Names and counts, the largest count first, equal ones by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def write_report(folder: str | os.PathLike, rows: Iterable[Row]) -> dict[str, Diversity]:
    """Writes the report on rows into a folder, and returns its numbers. Files of an earlier report are replaced."""
    found, folder = diversity_of(rows), Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    for language, each in found.items():
        if each.verbs:
            _save(_rings(each), folder / f"verbs.{language}.svg")
    histograms = {part: {name: each.lengths[part] for name, each in found.items()} for part in PARTS}
    _save(_histograms(histograms, "words"), folder / "lengths.svg")
    rouge = {name: each.rouge for name, each in found.items() if each.rouge}
    if rouge:
        _save(_histograms({"instruction": rouge}, "ROUGE-L with the most similar earlier one"), folder / "rouge.svg")
    numbers = {language: asdict(each) for language, each in found.items()}
    write_whole(folder / "diversity.json", json.dumps(numbers, ensure_ascii=False) + "\n")
    write_whole(folder / "report.md", _markdown(found, bool(rouge)))
    return found


def _markdown(found: dict[str, Diversity], has_rouge: bool) -> str:
    """The content of report.md."""
    verbs = [
        [name, each.rows, each.rows - each.without_verb, len(each.verbs), each.pairs] for name, each in found.items()
    ]
    tables = [
        Table("Languages and verbs", ["language", "rows", "with a verb", "verbs", "pairs of verb and noun"], verbs),
        Table(
            "Words of each part",
            ["language", "part", "rows", "mean", *(f"{p}%" for p in PERCENTILES)],
            [
                [name, part, len(lengths), f"{np.mean(lengths):.1f}", *_percentiles(lengths)]
                for name, each in found.items()
                for part, lengths in each.lengths.items()
                if lengths
            ],
        ),
    ]
    for name, each in found.items():
        rows = [[verb, count, _said(nouns)] for verb, count, nouns in each.verbs[:VERBS]]
        tables.append(Table(f"The most frequent verbs ({name})", ["verb", "rows", "nouns"], rows))
    pictures = [f"verbs.{name}.svg" for name, each in found.items() if each.verbs] + ["lengths.svg"]
    pictures += ["rouge.svg"] if has_rouge else []
    shown = "\n".join(f"![{picture}]({picture})" for picture in pictures)
    limits = "Verbs and nouns are found by rules for orders, without a parser; questions have none."
    return f"# Diversity of instructions\n\n{limits}\n\n{to_markdown(iter(tables))}\n{shown}\n"


def _percentiles(lengths: Sequence[int]) -> list[str]:
    return [f"{value:.0f}" for value in np.percentile(lengths, PERCENTILES)]


def _said(nouns: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{noun} {count}" for noun, count in nouns[:NOUNS])


def _rings(found: Diversity):
    """The most frequent verbs inside, and their most frequent nouns outside."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    verbs = [(verb, nouns[:NOUNS]) for verb, _, nouns in found.verbs[:VERBS] if nouns]
    figure = Figure(figsize=(9, 9))
    axes = figure.add_axes((0.05, 0.05, 0.9, 0.9))
    colours = [colormaps["tab20"](i % 20) for i in range(len(verbs))]
    inner = [sum(count for _, count in nouns) for _, nouns in verbs]
    outer = [count for _, nouns in verbs for _, count in nouns]
    if inner:
        edge = dict(width=0.33, edgecolor="white", linewidth=0.5)
        _label(axes, axes.pie(inner, radius=0.67, colors=colours, wedgeprops=edge)[0], [v for v, _ in verbs], 0.5)
        faded = [(*colour[:3], 0.6) for colour, (_, nouns) in zip(colours, verbs, strict=True) for _ in nouns]
        wedges = axes.pie(outer, radius=1.0, colors=faded, wedgeprops=edge)[0]
        _label(axes, wedges, [noun for _, nouns in verbs for noun, _ in nouns], 0.83)
    axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
    return figure


def _label(axes, wedges: Sequence[Any], names: Sequence[str], radius: float) -> None:
    """Writes a name into each wedge, along its radius. Wedges of less than 1.5 degrees have none."""
    for wedge, name in zip(wedges, names, strict=True):
        degrees = (wedge.theta1 + wedge.theta2) / 2
        if wedge.theta2 - wedge.theta1 >= 1.5:
            x, y = radius * np.cos(np.radians(degrees)), radius * np.sin(np.radians(degrees))
            upright = degrees if np.cos(np.radians(degrees)) >= 0 else degrees - 180
            axes.text(x, y, name, rotation=upright, ha="center", va="center", fontsize=8)


def _histograms(panels: dict[str, dict[str, list[float]]], unit: str):
    """A histogram for each panel, with a line for each language."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(panels) + 1, 3.2), layout="constrained")
    for axes, (title, by_language) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        values = [value for each in by_language.values() for value in each]
        if values:
            edges = np.linspace(min(values), max(np.percentile(values, 99), min(values) + 1e-9), 31)
            for name, each in by_language.items():
                axes.hist(np.clip(each, None, edges[-1]), edges, histtype="step", label=name)
            axes.legend()
        axes.set(title=title, xlabel=unit, ylabel="rows")
    return figure


def _save(figure, path: Path) -> None:
    """Writes a picture, with text as text, so that the viewer's fonts show Chinese. Equal figures have equal bytes."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "camelid"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, format="svg", metadata={"Date": None})
