"""What an evaluation finds: items, each a question with its scores, and the metrics that follow from them.

An evaluation is a function `evaluate(model, **settings)` that returns items. Everything else derives from them: means
with clustered standard errors, metrics of groups, paired differences between two models, the report in training.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import intervals
from .intervals import Estimate, Score


@dataclass(frozen=True)
class Item:
    """One question, or text, and what the model got for it."""

    id: str
    """Names the item in its evaluation; the same for every model that is asked."""

    scores: Mapping[str, Score]
    """Its scores by the name of the metric, such as {"acc": 1.0} or {"bits_per_byte": (bits, bytes)}."""

    cluster: str = ""
    """What it shares with items that are not independent of it, such as a text or a question. "": nothing."""

    groups: Sequence[str] = ("",)
    """Groups whose metrics it counts in: "" for the metric over all, "en" for "acc/en"."""

    subject: str = ""
    """The subject, such as that of an exam: it is a group, and "acc/macro" is the mean over subjects."""

    shown: Mapping[str, Any] = field(default_factory=dict)
    """What people look at: the prompt, the answer, the reference."""

    sample: bool = False
    """Whether it is among the few items that a report of a training run shows."""


Evaluator = Callable[..., Iterable[Item]]
"""evaluate(model, **settings) -> items. Settings are checked by their annotations (`settings.leaves`)."""


def metrics_of(items: Iterable[Item]) -> dict[str, Estimate]:
    """The metrics of items: of each score over all items, each group and each subject, and the mean over subjects.

    "loss" in nats per token is also given as "perplexity". Names are "score/group"; the score "" has the group's name
    alone.
    """
    found: dict[str, tuple[list[Score], list[str]]] = {}
    subjects: dict[str, list[str]] = {}
    for item in items:
        groups = [*item.groups, *([item.subject] if item.subject else [])]
        for score, value in item.scores.items():
            for group in groups:
                values, clusters = found.setdefault(_name(score, group), ([], []))
                values.append(value)
                clusters.append(item.cluster or item.id)
            if item.subject and _name(score, item.subject) not in subjects.setdefault(score, []):
                subjects[score].append(_name(score, item.subject))
    metrics = {name: estimate(*each) for name, each in found.items()}
    for score, names in subjects.items():
        if len(names) == 1:
            continue
        metrics[_name(score, "macro")] = _mean_of([metrics[name] for name in names])
    return metrics | {
        name.replace("loss", "perplexity", 1): _exp(each)
        for name, each in metrics.items()
        if name == "loss" or name.startswith("loss/")
    }


def estimate(values: Sequence[Score], clusters: Sequence[str]) -> Estimate:
    """The mean of the scores of items, or the ratio of their sums."""
    if isinstance(values[0], tuple | list):
        return intervals.ratio(*zip(*values, strict=True), clusters)
    return intervals.mean(values, clusters)


def in_training(evaluate: Evaluator) -> Callable[..., tuple[dict[str, float], list[dict[str, str]]]]:
    """The evaluation as a run takes it: it returns metrics as numbers, and what is shown of its samples.

    Settings, and the attribute `metrics` where the evaluation has one, stay.
    """

    @functools.wraps(evaluate)
    def run(model: Any, **settings: Any) -> tuple[dict[str, float], list[dict[str, str]]]:
        items = list(evaluate(model, **settings))
        rows = [{name: str(value) for name, value in item.shown.items()} for item in items if item.sample]
        return {name: each.value for name, each in metrics_of(items).items()}, rows

    return run


def _name(score: str, group: str) -> str:
    return "/".join(part for part in (score, group) if part)


def _mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates. One of a single cluster has no standard error, and then the mean has none."""
    count = len(estimates)
    value = sum(each.value for each in estimates) / count
    stderr = math.sqrt(sum(each.stderr**2 for each in estimates)) / count
    half = 1.959963984540054 * stderr
    n, clusters = sum(each.n for each in estimates), sum(each.clusters for each in estimates)
    low, high = value - half, value + half
    if all(each.low >= 0 and each.high <= 1 for each in estimates):  # of proportions
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(value, stderr, low, high, n, clusters)


def _exp(loss: Estimate) -> Estimate:
    value, low, high = (math.exp(min(x, 700.0)) for x in (loss.value, loss.low, loss.high))
    return loss._replace(value=value, stderr=value * loss.stderr, low=low, high=high)
