"""Tasks: small worlds with a known truth. Each is a module of this folder with the interface `Task`, found by its name.

    primer       a closed world in English and Chinese, with questions in seven skills
    reviews      reviews by people, to be continued favourably
    safe_sums    sums, and a password that must not be revealed
    walks        shortest paths through a graph

A task has the same name everywhere: "primer:chat" is a source of records, `--tasks=primer` and `config.evals.primer`
evaluate a model, and {"task": "primer"} and {"task": "safe_sums:cost"} score answers.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..errors import UserError, did_you_mean

NAMES = ("primer", "reviews", "safe_sums", "walks")

Score = Callable[[Mapping, str], float]
"""score(record, answer), where record is {"messages": the prompt, "reference": an answer or None, "meta": {...}}."""


class Task(Protocol):
    """A module that makes records, and scores answers to them. Both are the same on every machine."""

    KINDS: Mapping[str, str]
    """The kinds of its records, "chat" among them, with the version of each: 32 hexadecimal digits, which are replaced
    whenever the records change. The names of caches, and so the order of batches, depend on them."""
    GROUPS: Mapping[str, tuple[str, ...]]
    """The fields of meta that divide chat records into groups for `metrics`, with the values of each field."""
    SCORES: tuple[str, ...]
    """The names of its functions of type `Score`, "reward" first."""

    def records(self, kind: str, split: str = "train") -> Iterator[dict]:
        """The records of a kind and a split ("train" or "heldout"), in the form that `data.formats` describes."""

    def reward(self, record: Mapping, answer: str) -> float:
        """The score of an answer to the prompt of `record`, in [0, 1]."""

    def metrics(self, records: Sequence[Mapping], scores: Sequence[float]) -> dict[str, float]:
        """The mean of `scores`, one score for each record, over all records and over each group."""

    def files(self) -> list[Path]:
        """The files outside of the package that decide the records. Their content is part of cache names."""


def find(name: str) -> Task:
    """The task called `name`. Raises UserError, with the nearest name, if there is none."""
    if name not in NAMES:
        raise UserError(f"there is no task {name!r}; choose one of {', '.join(NAMES)}{did_you_mean(name, NAMES)}")
    return importlib.import_module(f".{name}", __name__)


def find_score(name: str) -> Score:
    """The score called `name`: "walks" is a task's reward, "safe_sums:cost" another score of a task.

    Raises UserError, with the nearest name, if there is none.
    """
    task, colon, score = name.partition(":")
    known = find(task).SCORES
    if colon and score not in known:
        names = [f"{task}:{each}" for each in known]
        raise UserError(f"there is no score {name!r}; choose one of {', '.join(names)}{did_you_mean(name, names)}")
    return getattr(find(task), score or "reward")
