"""The quickstart's report: one HTML file with curves, scores and sample answers, readable without a network."""

import io
import json
from collections.abc import Mapping, Sequence

import jinja2
from etils import epath
from matplotlib.figure import Figure

from ..data import primer

TEMPLATE = epath.Path(__file__).parent / "report.html.jinja"


def write_report(
    workdir: epath.Path, results: Mapping, samples: Mapping[str, Sequence[Mapping[str, str]]]
) -> epath.Path:
    """Writes `workdir/report.html` from the results, the samples of each stage and each stage's metrics.jsonl."""
    stages = {path.parent.name: _read(path) for path in sorted(workdir.glob("*/metrics.jsonl"))}
    page = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text())
    html = page.render(
        results=results,
        groups=["all", *primer.LANGUAGES],
        curves=[_loss_curve(name, records) for name, records in stages.items()] + [_gold_bars(results["gold"])],
        answers=_side_by_side(samples),
        stages=list(samples),
    )
    path = workdir / "report.html"
    path.write_text(html)
    return path


def _read(path: epath.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _loss_curve(stage: str, records: Sequence[Mapping]) -> str:
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    curves = {"train/loss": "training", "eval/heldout/primer/loss": "held out"}
    for name, label in curves.items():
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if "eval" in name else None)
    axes.set(title=stage, xlabel="step", ylabel="loss, nats per token", ylim=(0, None))
    axes.legend(frameon=False)
    return _svg(figure)


def _gold_bars(scores: Mapping[str, Mapping]) -> str:
    figure = Figure(figsize=(10.6, 3.2), layout="constrained")
    axes = figure.subplots()
    skills = list(next(iter(scores.values()))["skills"])
    width = 0.8 / len(scores)
    for place, (stage, values) in enumerate(scores.items()):
        at = [i + place * width for i in range(len(skills))]
        axes.bar(at, [values["skills"][skill] for skill in skills], width, label=stage)
    axes.set_xticks([i + width * (len(scores) - 1) / 2 for i in range(len(skills))], skills)
    axes.set(title="gold score by skill, held-out prompts", ylim=(0, 1))
    axes.legend(frameon=False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def _side_by_side(samples: Mapping[str, Sequence[Mapping[str, str]]]) -> list[dict]:
    """Each sampled prompt once, with every stage's answer and score."""
    rows: dict[str, dict] = {}
    for stage, answers in samples.items():
        for answer in answers:
            row = rows.setdefault(
                answer["prompt"], {"skill": answer["skill"], "prompt": answer["prompt"], "answers": {}}
            )
            row["answers"][stage] = answer
    return list(rows.values())
