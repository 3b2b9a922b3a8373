"""Evaluates a model by its answers to held-out prompts of a task."""

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Annotated

from .. import tasks
from ..checkpoints.language_model import LanguageModel
from ..data.prompts import prompt_of
from ..errors import UserError
from ..settings.leaves import Count, NotNegative, Unset, Whole
from ..tasks.groups import group_of, metric_names
from .items import Evaluator, Item
from .lm import LM, as_lm


def evaluator(name: str) -> Evaluator:
    """The function that evaluates models by the task called `name`; its attribute `metrics` lists their names,
    `version` is that of the questions."""
    task = tasks.find(name)

    def evaluate(
        model: LanguageModel | LM,
        *,
        per_group: Count = 20,
        max_tokens: Count = 48,
        temperature: NotNegative = 0.0,
        shown: Whole = 1,
        batch_size: Annotated[Count | None, Unset("64")] = None,
    ) -> list[Item]:
        """Answers held-out prompts of each group and scores the answers.

        Args:
          model: the model.
          per_group: number of prompts in each group.
          max_tokens: the most tokens in an answer.
          temperature: temperature of sampling; 0 takes the likeliest token.
          shown: number of answers of each group that a report of a training run shows.
          batch_size: number of prompts that are answered together.

        Returns:
          An item for each prompt. Metrics are mean rewards under the names of `task.metrics`, and means of other scores
          with the name of the score in front, such as "cost/all".
        """
        lm, records = as_lm(model, batch_size), _prompts(name, per_group)
        prompts = [lm.chat_ids(record["messages"]) for record in records]
        answers = lm.generate(prompts, max_tokens=max_tokens, temperature=temperature)
        items = []
        for place, (record, (answer,)) in enumerate(zip(records, answers, strict=True)):
            answer = answer.strip()
            scores = {score: getattr(task, score)(record, answer) for score in task.SCORES}
            meta = {field: record["meta"][field] for field in task.GROUPS}
            about = meta | {"prompt": record["messages"][-1]["content"], "answer": answer}
            items.append(
                Item(
                    f"{name}/{place + 1}",
                    {"" if score == "reward" else score: value for score, value in scores.items()},
                    groups=tuple(filter(None, dict.fromkeys(("all", *meta.values(), group_of(task.GROUPS, record))))),
                    shown=about | {score: f"{value:.2f}" for score, value in scores.items()},
                    sample=place % per_group < shown,  # the prompts of a group are adjacent
                )
            )
        return items

    evaluate.version = task.KINDS["chat"]
    evaluate.metrics = [_metric(score, group) for score in task.SCORES for group in metric_names(task.GROUPS)]
    return evaluate


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
