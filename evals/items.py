"""What an evaluation finds: items, each a question with its scores, and the metrics that follow from them.

An evaluation is a function `evaluate(model, **settings)` that returns items. Everything else derives from them: means
with clustered standard errors, metrics of groups, paired differences between two models, the report in training.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import UserError, shown
from ..settings import functions
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


MACRO = "macro"
"""The name of the group for the mean over subjects, in which each subject weighs the same."""

Evaluator = Callable[..., Iterable[Item]]
"""evaluate(model, **settings) -> items. Settings are checked by their annotations (`settings.leaves`)."""


def metrics_of(items: Iterable[Item]) -> dict[str, Estimate]:
    """The metrics of items: of each score over all items, each group and each subject, and the mean over subjects.

    "loss" in nats per token is also given as "perplexity". Names are "score/group"; the score "" has the group's name
    alone.
    """
    items = list(items)
    sizes = Counter(item.subject for item in items if item.subject)
    found: dict[str, tuple[list[Score], list[str], list[float]]] = {}

    def count(item: Item, score: str, group: str, weight: float = 1.0) -> None:
        values, clusters, weights = found.setdefault(_name(score, group), ([], [], []))
        values.append(item.scores[score])
        clusters.append(item.cluster or item.id)
        weights.append(weight)

    for item in items:
        for score in item.scores:
            for group in groups_of(item):
                count(item, score, group)
    for item in items if len(sizes) > 1 else ():
        for score, value in item.scores.items():
            if item.subject and not isinstance(value, tuple | list):
                count(item, score, MACRO, 1 / sizes[item.subject])
    metrics = {name: estimate(*each) for name, each in found.items()}
    return metrics | {
        name.replace("loss", "perplexity", 1): _exp(each)
        for name, each in metrics.items()
        if name == "loss" or name.startswith("loss/")
    }


def groups_of(item: Item) -> list[str]:
    """The groups whose metrics an item counts in, its subject among them, each once."""
    return list(dict.fromkeys([*item.groups, *([item.subject] if item.subject else [])]))


def checked(found: Any, name: str) -> list[Item]:
    """What an evaluation returned, if it is items with finite scores and ids of their own. Raises UserError if not."""
    try:
        items = list(found)
    except TypeError:
        raise UserError(f"evaluation {name} returned {shown(found)}: give a list of items (evals.items.Item)") from None
    ids = set()
    for item in items:
        if not isinstance(item, Item):
            raise UserError(f"evaluation {name} returned {shown(item)}: give items (evals.items.Item)")
        for score, value in item.scores.items():
            numbers = value if isinstance(value, tuple | list) and len(value) == 2 else [value]
            if not all(isinstance(x, int | float | np.number) and math.isfinite(x) for x in numbers):
                raise UserError(f"evaluation {name}: item {item.id} has {score} = {shown(value)}: give a finite number")
        if item.id in ids:
            raise UserError(f"evaluation {name}: two items have the id {shown(item.id)}: give each its own")
        ids.add(item.id)
    if not items:
        raise UserError(f"evaluation {name} found no items")
    return items


def run_checked(evaluate: Evaluator, name: str, model: Any, settings: Mapping[str, Any]) -> list[Item]:
    """The items of an evaluation. Raises UserError where an evaluation of the user's fails."""
    try:
        return checked(evaluate(model, **settings), name)
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        if ":" not in name:
            raise
        raise UserError(f"evaluation {name}: {functions.raised(error)}") from error


def estimate(values: Sequence[Score], clusters: Sequence[str], weights: Sequence[float] | None = None) -> Estimate:
    """The mean of the scores of items, or the ratio of their sums."""
    if isinstance(values[0], tuple | list):
        return intervals.ratio(*intervals.parts(values), clusters)
    return intervals.mean(values, clusters, weights)


def in_training(evaluate: Evaluator, name: str) -> Callable[..., tuple[dict[str, float], list[dict[str, str]]]]:
    """The evaluation as a run takes it: it returns metrics as numbers, and what is shown of its samples.

    Settings, and the attribute `metrics` where the evaluation has one, stay.
    """

    @functools.wraps(evaluate)
    def run(model: Any, **settings: Any) -> tuple[dict[str, float], list[dict[str, str]]]:
        items = run_checked(evaluate, name, model, settings)
        rows = [{name: str(value) for name, value in item.shown.items()} for item in items if item.sample]
        return {name: each.value for name, each in metrics_of(items).items()}, rows

    return run


def _name(score: str, group: str) -> str:
    return "/".join(part for part in (score, group) if part)


def _exp(loss: Estimate) -> Estimate:
    value, low, high = (math.exp(min(x, 700.0)) for x in (loss.value, loss.low, loss.high))
    return loss._replace(value=value, stderr=value * loss.stderr, low=low, high=high)
