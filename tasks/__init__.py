"""Tasks: small worlds with a known truth, each a module of this folder that offers what `Task` says, found by name.

    primer       a closed world in English and Chinese, seven skills to answer in
    reviews      reviews by people, to be continued with something good
    safe_sums    sums, and a password that must not be told
    walks        shortest paths through a graph

A name reads alike everywhere: "primer:chat" is a source of records, `--task=primer` and `config.evals.primer` evaluate
a model, {"task": "primer"} and {"task": "safe_sums:cost"} score answers.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..errors import UserError, did_you_mean

NAMES = ("primer", "reviews", "safe_sums", "walks")

Score = Callable[[Mapping, str], float]
"""score(record, answer). record: {"messages": the prompt's, "reference": an answer or None, "meta": {...}}."""


class Task(Protocol):
    """A module that makes records and scores answers to them, both the same on every machine."""

    KINDS: tuple[str, ...]
    """The kinds of its records; every task has the kind "chat"."""
    GROUPS: Mapping[str, tuple[str, ...]]
    """The fields of a chat record's meta by which `metrics` divides records, and the values of each field."""
    SCORES: tuple[str, ...]
    """The names of its functions of a record and an answer, "reward" first."""

    def records(self, kind: str, split: str = "train") -> Iterator[dict]:
        """The records of a kind and split ("train" or "heldout"), as `data.formats` describes them."""

    def reward(self, record: Mapping, answer: str) -> float:
        """What an answer is worth, in [0, 1]."""

    def metrics(self, records: Sequence[Mapping], scores: Sequence[float]) -> dict[str, float]:
        """The mean of the records' scores over all and over each group."""

    def files(self) -> list[Path]:
        """The files that decide the records: source code, tables and data."""


def find(name: str) -> Task:
    """The task of a name. Raises UserError, with the nearest spelling, where there is none."""
    if name not in NAMES:
        raise UserError(f"there is no task {name!r}; choose one of {', '.join(NAMES)}{did_you_mean(name, NAMES)}")
    return importlib.import_module(f".{name}", __name__)


def find_score(name: str) -> Score:
    """A score by its name: "walks" for the task's reward, "safe_sums:cost" for another one of its scores.

    Raises UserError, with the nearest spelling, where there is none.
    """
    task, colon, score = name.partition(":")
    known = find(task).SCORES
    if colon and score not in known:
        names = [f"{task}:{each}" for each in known]
        raise UserError(f"there is no score {name!r}; choose one of {', '.join(names)}{did_you_mean(name, names)}")
    return getattr(find(task), score or "reward")
