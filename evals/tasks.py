"""Evaluates a model by its answers to held-out prompts of a task: mean scores by group, and sample answers."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache

from .. import tasks
from ..checkpoints.language_model import LanguageModel
from ..data.prompts import prompt_of
from ..errors import UserError
from ..settings.leaves import Count, NotNegative, Whole
from ..tasks.groups import group_of, metric_names

UNFILTERED = dict(top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)  # ignores the checkpoint's filters


def evaluator(name: str) -> Callable[..., tuple[dict[str, float], list[dict[str, str]]]]:
    """The function that evaluates models by the task called `name`; its attribute `metrics` lists their names."""
    task = tasks.find(name)

    def evaluate(
        llama: LanguageModel,
        *,
        per_group: Count = 20,
        max_tokens: Count = 48,
        temperature: NotNegative = 0.0,
        shown: Whole = 1,
    ) -> tuple[dict[str, float], list[dict[str, str]]]:
        """Answers held-out prompts of each group and scores the answers.

        Args:
          llama: the model.
          per_group: number of prompts in each group.
          max_tokens: the most tokens in an answer.
          temperature: of sampling; 0 takes the likeliest token.
          shown: number of answers of each group among the rows.

        Returns:
          (metrics, rows). Metrics are mean rewards under the names of `task.metrics`, and means of other scores with
          the name of the score in front, such as "cost/all". Each row is a sample: its group, prompt, answer and
          scores.
        """
        records = _prompts(name, per_group)
        prompts = [record["messages"] for record in records]
        answers = llama.chat_batch(prompts, max_tokens=max_tokens, temperature=temperature, **UNFILTERED)
        scores = {score: list(map(getattr(task, score), records, answers)) for score in task.SCORES}
        metrics = {
            _metric(score, group): mean
            for score, values in scores.items()
            for group, mean in task.metrics(records, values).items()
        }
        rows = [
            {field: record["meta"][field] for field in task.GROUPS}
            | {"prompt": record["messages"][-1]["content"], "answer": answer}
            | {score: f"{values[place]:.2f}" for score, values in scores.items()}
            for place, (record, answer) in enumerate(zip(records, answers, strict=True))
            if place % per_group < shown  # the prompts of a group are adjacent
        ]
        return metrics, rows

    evaluate.metrics = [_metric(score, group) for score in task.SCORES for group in metric_names(task.GROUPS)]
    return evaluate


def evaluators() -> dict[str, Callable]:
    """The evaluation of each task by its name. Runs take them for `config.evals.<task>`."""
    return {name: evaluator(name) for name in tasks.NAMES}


def _metric(score: str, group: str) -> str:
    """The name of a metric: that of the group for the reward, else "score/group"."""
    return group if score == "reward" else f"{score}/{group}"


def _prompts(name: str, per_group: int) -> list[Mapping]:
    """The first `per_group` held-out prompts of each group. Raises UserError if a group has fewer."""
    groups = _heldout(name)
    group, found = min(groups.items(), key=lambda item: len(item[1]))
    if len(found) < per_group:
        there_are = f"{len(found)} held-out prompts{f' of {group}' if group else ''}"
        raise UserError(f"per_group is {per_group}: {name} has {there_are}; give at most {len(found)}")
    return [record for records in groups.values() for record in records[:per_group]]


@cache
def _heldout(name: str) -> dict[str, list[Mapping]]:
    """The held-out prompts of a task by group, in the order of its records."""
    task, groups = tasks.find(name), defaultdict(list)
    for record in task.records("chat", "heldout"):
        messages, reference = prompt_of(record)
        prompt = {"messages": messages, "reference": reference, "meta": record["meta"]}
        groups[group_of(task.GROUPS, record)].append(prompt)
    return groups
