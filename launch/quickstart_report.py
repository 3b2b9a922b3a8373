"""Writes the quickstart's report: one self-contained HTML file with curves, scores and sample answers."""

import io
import json
from collections.abc import Mapping, Sequence

import jinja2
from etils import epath
from matplotlib.figure import Figure

from ..data.checksums import write_whole
from ..tasks import primer

STAGES = ("pretrain", "sft", "reward", "ppo")
TEMPLATE = epath.Path(__file__).parent / "report.html.jinja"


def write_report(
    workdir: epath.Path, results: Mapping, samples: Mapping[str, Sequence[Mapping[str, str]]], *, per_skill: int
) -> epath.Path:
    """Writes `workdir/report.html`.

    Args:
      workdir: the directory of the quickstart, whose stages' metrics.jsonl files are read.
      results: the content of `results.json`.
      samples: {stage: prompts with their answers and scores}.
      per_skill: number of prompts of each skill in each language.

    Returns:
      The path of the report.
    """
    stages = {name: _read(path) for name in STAGES if (path := workdir / name / "metrics.jsonl").exists()}
    page = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text())
    html = page.render(
        results=results,
        per_skill=per_skill,
        groups=["all", *primer.LANGUAGES, "greedy"],
        curves=[_loss_curve(name, stages[name]) for name in ("pretrain", "sft") if name in stages]
        + [_reward_model_curve(stages["reward"]), _rewards_against_kl(stages["ppo"]), _bars(results["primer"])],
        answers=_side_by_side(samples),
        stages=list(samples),
    )
    path = workdir / "report.html"
    write_whole(path, html)
    return path


def _read(path: epath.Path) -> list[dict]:
    """The records of a metrics.jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _loss_curve(stage: str, records: Sequence[Mapping]) -> str:
    """SVG of the training loss and the held-out loss of a stage by step."""
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


def _reward_model_curve(records: Sequence[Mapping]) -> str:
    """SVG of the reward model's accuracy on training pairs and held-out pairs by step."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(*_points(records, "step", "train/accuracy"), label="training")
    for source, label in (("own", "held out, own answers"), ("primer", "held out, the primer's pairs")):
        axes.plot(*_points(records, "step", f"eval/heldout/{source}/accuracy"), label=label, marker=".")
    axes.set(title="reward", xlabel="step", ylabel="pairs ranked as labelled", ylim=(0.4, 1))
    axes.legend(frameon=False)
    return _svg(figure)


def _rewards_against_kl(records: Sequence[Mapping]) -> str:
    """SVG of the reward model's score and the primer's score of PPO's held-out answers by KL to the tuned model."""
    steps: dict[int, dict] = {}
    for record in records:
        steps.setdefault(record["step"], {}).update(record)
    evaluated = list(steps.values())
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    proxy = axes.plot(*_points(evaluated, "eval/heldout/kl", "eval/heldout/scores"), "o-", label="reward model")
    axes.set(title="ppo", xlabel="KL to the tuned model, nats an answer", ylabel="reward model")
    right = axes.twinx()
    gold = right.plot(*_points(evaluated, "eval/heldout/kl", "eval/heldout/scores/gold"), "s--C1", label="primer")
    right.set(ylabel="score in the primer", ylim=(0, 1))
    axes.legend(handles=[*proxy, *gold], frameon=False)
    return _svg(figure)


def _points(records: Sequence[Mapping], x: str, y: str) -> tuple[list[float], list[float]]:
    """The values of the metrics `x` and `y` in the records that have both."""
    both = [record for record in records if x in record and y in record]
    return [record[x] for record in both], [record[y] for record in both]


def _bars(scores: Mapping[str, Mapping]) -> str:
    """SVG of each stage's score in the primer by skill."""
    figure = Figure(figsize=(10.6, 3.2), layout="constrained")
    axes = figure.subplots()
    skills = list(next(iter(scores.values()))["skills"])
    width = 0.8 / len(scores)
    for place, (stage, values) in enumerate(scores.items()):
        at = [i + place * width for i in range(len(skills))]
        axes.bar(at, [values["skills"][skill] for skill in skills], width, label=stage)
    axes.set_xticks([i + width * (len(scores) - 1) / 2 for i in range(len(skills))], skills)
    axes.set(title="score in the primer by skill, held-out prompts", ylim=(0, 1))
    axes.legend(frameon=False)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """A figure as an SVG element for HTML."""
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue().partition("<svg")[1] + text.getvalue().partition("<svg")[2]


def _side_by_side(samples: Mapping[str, Sequence[Mapping[str, str]]]) -> list[dict]:
    """One row per sampled prompt, with every stage's answer and score."""
    rows: dict[str, dict] = {}
    for stage, answers in samples.items():
        for answer in answers:
            row = rows.setdefault(
                answer["prompt"], {"skill": answer["skill"], "prompt": answer["prompt"], "answers": {}}
            )
            row["answers"][stage] = answer
    return list(rows.values())
