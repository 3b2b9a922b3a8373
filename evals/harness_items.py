"""What lm-evaluation-harness found, as items with scores.

A metric that is a mean over documents becomes a score of each document, and gets clustered standard errors. Others,
such as bleu, stay as the library computes them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import intervals
from .intervals import Estimate
from .items import Item, metrics_of

SAMPLES = 2
"""Documents of each task that a run shows."""

NORMAL = 1.959963984540054
"""Half the width of a 95% interval of the normal distribution, in standard errors."""


@dataclass(frozen=True)
class TaskResults:
    """What tasks of lm-evaluation-harness found."""

    items: list[Item]
    """The documents with their scores, and one item for each task or group with metrics that are no means."""

    corpus: dict[str, Estimate] = field(default_factory=dict)
    """The metrics that are no means over documents, with the library's bootstrap standard errors, where it has any;
    perplexities have those of their losses."""

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of each task: its version, the number of examples in the prompt, and the data set."""

    library: str = ""
    """Version of lm-evaluation-harness."""

    def metrics(self) -> dict[str, Estimate]:
        """All metrics, as "acc/piqa". A filter of answers that has a name is part of it: "exact_match,strict/gsm8k"."""
        return metrics_of(self.items) | self.corpus


def results_of(found: Mapping[str, Any], loaded: Mapping[str, Any], library: str) -> TaskResults:
    """The results of `lm_eval.evaluator.simple_evaluate`.

    Args:
      found: what it returned, with samples.
      loaded: the tasks and groups, as `lm_eval.tasks.TaskManager.load` returned them.
      library: version of lm-evaluation-harness.
    """
    given, pooled = _groups(loaded.get("groups", {}))
    items: list[Item] = []
    others: dict[str, dict[str, Estimate]] = {}
    for name, task in loaded["tasks"].items():
        items += _items(name, task, found["samples"][name], (name, *pooled.get(name, ())))
        others[name] = _others(task, found["results"][name], found["samples"][name])
    for name in given:
        others[name] = _aggregated(found["results"][name])
    for name, metrics in others.items():
        if metrics:
            items.append(Item(name, {metric: each.value for metric, each in metrics.items()}, groups=(name,)))
    corpus = {f"{metric}/{name}": each for name, metrics in others.items() for metric, each in metrics.items()}
    tasks = {
        name: {
            "version": found["versions"][name],
            "shots": found["n-shot"][name],
            "data": [task.config.dataset_path, task.config.dataset_name],
        }
        for name, task in loaded["tasks"].items()
    }
    return TaskResults(items, corpus, tasks, library)


def _kind(task, metric: str) -> str:
    """How a metric follows from documents: "mean", "ratio" of sums, or "other"."""
    from lm_eval.api import metrics

    how = task.aggregation().get(metric, metrics.mean)  # the library's own default
    return {metrics.mean: "mean", metrics.bits_per_byte: "ratio"}.get(how, "other")


def _groups(groups: Mapping[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
    """Groups whose metrics are taken from the library, and of each task the groups whose metrics follow from items.

    The latter weight tasks by their documents and aggregate nothing but means.
    """
    given, pooled = [], {}
    for name, group in groups.items():
        if not group.aggregate_metric_list:
            continue
        tasks = group.get_all_tasks()
        if all(
            each.weight_by_size and all(_kind(task, each.metric) == "mean" for task in tasks)
            for each in group.aggregate_metric_list
        ):
            for task in tasks:
                pooled.setdefault(task.task_name, []).append(name)
        else:
            given.append(name)
    return given, pooled


def _items(name: str, task, samples: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> list[Item]:
    """An item for each document, with its scores under every filter of answers."""
    cluster_by = (task.config.metadata or {}).get("cluster")
    found: dict[int, Item] = {}
    for sample in samples:
        number = sample["doc_id"]
        if number not in found:
            shared = f"{name}/{sample['doc'][cluster_by]}" if cluster_by else ""
            about = dict(cluster=shared, groups=tuple(groups), shown=_shown(sample), sample=number < SAMPLES)
            found[number] = Item(f"{name}/{number}", {}, **about)
        for metric in sample["metrics"]:
            if (kind := _kind(task, metric)) != "other":
                found[number].scores[_named(metric, sample["filter"])] = _score(sample[metric], kind)
    return [item for item in found.values() if item.scores]


def _named(metric: str, filtered: str) -> str:
    return metric if filtered == "none" else f"{metric},{filtered}"


def _score(value: Any, kind: str) -> float | tuple[float, float]:
    """A document's score; of a log-probability and a number of bytes its bits and the bytes."""
    if kind == "ratio":
        logp, size = value
        return -float(logp) / math.log(2), float(size)
    return float(value)


def _shown(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt, the continuations that were compared, what the model said, and the reference."""
    arguments = sample["arguments"]
    answers = [resps[0] if len(resps) == 1 else list(resps) for resps in sample["resps"]]
    return {
        "prompt": arguments[0][0],
        "choices": [each[1] for each in arguments if len(each) > 1 and isinstance(each[1], str)],
        "answer": answers[0] if len(answers) == 1 else answers,
        "reference": sample["target"],
    }


def _others(task, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """A task's metrics that are no means over its documents."""
    from lm_eval.api.metrics import perplexity, weighted_perplexity

    found = {}
    for metric, filtered, value in _metrics(results):
        if _kind(task, metric) != "other":
            continue
        values = [each[metric] for each in samples if each["filter"] == filtered and metric in each]
        if task.aggregation()[metric] is weighted_perplexity:
            estimate = _perplexity(*zip(*values, strict=True))
        elif task.aggregation()[metric] is perplexity:
            estimate = _perplexity(values, [1.0] * len(values))
        else:
            estimate = _estimate(value, results.get(f"{metric}_stderr,{filtered}"), len(values))
        found[_named(metric, filtered)] = estimate
    return found


def _aggregated(results: Mapping[str, Any]) -> dict[str, Estimate]:
    """A group's metrics as the library aggregates them."""
    return {
        _named(metric, filtered): _estimate(value, results.get(f"{metric}_stderr,{filtered}"), results["sample_len"])
        for metric, filtered, value in _metrics(results)
    }


def _metrics(results: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """(metric, filter, value) of the library's keys "metric,filter"."""
    split = [(*key.rsplit(",", 1), value) for key, value in results.items() if "," in key]
    return [each for each in split if not each[0].endswith("_stderr")]


def _perplexity(logp: Sequence[float], sizes: Sequence[float]) -> Estimate:
    """exp of the loss per unit, such as a document or a word, over all documents."""
    loss = intervals.ratio([-x for x in logp], sizes)
    value, low, high = (math.exp(min(x, 700.0)) for x in (loss.value, loss.low, loss.high))
    return loss._replace(value=value, stderr=value * loss.stderr, low=low, high=high)


def _estimate(value: Any, stderr: Any, n: int) -> Estimate:
    """A metric with its standard error, which may be missing, and the normal interval that follows."""
    value, spread = float(value), float(stderr) if isinstance(stderr, int | float) else math.nan
    return Estimate(value, spread, value - NORMAL * spread, value + NORMAL * spread, n, n)
