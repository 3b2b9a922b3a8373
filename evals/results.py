"""What evaluations found, as a JSON file: metrics with intervals, every item, and all that decides the numbers.

    {"format": 1, "command", "date", "versions", "model": {"name", "identity", "tokenizer", "template", "bos",
     "stop_tokens", ...}, "evaluations": {NAME: {"evaluation", "settings", "hash", "files", "seconds", "metrics":
     {METRIC: {"value", "stderr", "low", "high", "n", "clusters"}}, "items": [{"id", "scores", "cluster", ...}]}}}

"hash" is that of the settings and of the contents of the files that they name: two results with the same hash were
asked the same.
"""

import glob
import hashlib
import importlib.metadata
import inspect
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.checksums import write_whole
from ..data.json_values import plain
from ..errors import UserError
from ..settings import functions
from .intervals import Estimate, difference, in_words
from .items import Evaluator, Item, checked, groups_of, metrics_of
from .lm import LM

FORMAT = 1
NOT_ASKED = ("batch_size", "cache_dir", "shown", "cache")
"""Settings that decide how something is computed, and not what is asked."""


class Asked(NamedTuple):
    """What an evaluation asks, known before it runs."""

    evaluation: str
    """Its name."""

    settings: Mapping[str, Any]
    """Its settings, with their defaults."""

    files: Mapping[str, str]
    """The hash of each file, or of all files of a folder or a glob, that settings name."""

    hash: str
    """The hash of all that decides which questions are asked, and how."""


class Evaluated(NamedTuple):
    """What one evaluation found."""

    asked: Asked
    """What it asked."""

    items: Sequence[Item]
    """Its items."""

    seconds: float
    """How long it took."""


class Result(NamedTuple):
    """A file of results."""

    path: str
    """Where it is."""

    content: Mapping[str, Any]
    """What it holds."""

    @property
    def name(self) -> str:
        """The file's name, without its ending."""
        return Path(self.path).stem

    def metrics(self, evaluation: str) -> dict[str, Estimate]:
        """The metrics of an evaluation."""
        return metrics_of(self.items(evaluation))

    def items(self, evaluation: str) -> list[Item]:
        """The items of an evaluation."""
        known = Item.__dataclass_fields__
        found = self.content["evaluations"][evaluation]["items"]
        return [Item(**{k: v for k, v in each.items() if k in known}) for each in found]


def asked_of(evaluation: str, evaluate: Evaluator, settings: Mapping[str, Any], model: Any) -> Asked:
    """What an evaluation asks of a model.

    Args:
      evaluation: its name.
      evaluate: the evaluation. Its attribute `version` is that of questions in its code; `asked_of(model, settings)`
        gives what settings mean for a model.
      settings: its settings.
      model: the model.
    """
    parameters = inspect.signature(evaluate).parameters.values()
    whole = {each.name: each.default for each in parameters if each.default is not each.empty} | settings
    files = _files(whole.values())
    code = [_code(name) for name in (evaluation, *whole.values()) if isinstance(name, str) and ":" in name]
    about = {name: files.get(str(value), value) for name, value in whole.items() if name not in NOT_ASKED}
    if hasattr(evaluate, "asked_of"):
        about |= evaluate.asked_of(model, whole)
    text = json.dumps([evaluation, getattr(evaluate, "version", ""), code, about], sort_keys=True)
    settings = {name: value for name, value in whole.items() if value is not None}
    return Asked(evaluation, settings, files, hashlib.sha256(text.encode()).hexdigest()[:16])


def _code(name: str) -> str | None:
    """The hash of the file of a function "package.module:name" or "file.py:name"; None if it is no such name."""
    file = functions.source_of(name)
    return file and hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def result_of(lm: LM, evaluated: Mapping[str, Evaluated], command: Sequence[str]) -> dict[str, Any]:
    """The content of a file of results.

    Args:
      lm: the model.
      evaluated: what each evaluation found, by the name that it has in the file.
      command: the words of the command.
    """
    return {
        "format": FORMAT,
        "command": list(command),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {name: importlib.metadata.version(name) for name in ("camelid", "jax", "flax", "numpy")},
        "model": lm.describe(),
        "evaluations": {name: _described(each) for name, each in evaluated.items()},
    }


def _described(each: Evaluated) -> dict[str, Any]:
    asked = each.asked
    return {
        "evaluation": asked.evaluation,
        "settings": asked.settings,
        "hash": asked.hash,
        "files": asked.files,
        "seconds": round(each.seconds, 2),
        "metrics": {name: _numbers(estimate) for name, estimate in metrics_of(each.items).items()},
        "items": [_item(item) for item in each.items],
    }


def _numbers(estimate: Estimate) -> dict[str, float | None]:
    return {k: v if math.isfinite(v) else None for k, v in estimate._asdict().items()}


def _files(values: Iterable[Any]) -> dict[str, str]:
    """The hash of each file, or of all files of each folder or glob, that settings name."""
    found = {}
    for value in filter(lambda value: isinstance(value, str) and value, values):
        path = Path(value)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            files = [path]
        else:
            files = [Path(file) for file in sorted(glob.glob(value, recursive=True))] if glob.has_magic(value) else []
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        if files:
            found[value] = digest.hexdigest()[:16]
    return found


def _item(item: Item) -> dict[str, Any]:
    about = {"id": item.id, "scores": dict(item.scores), "cluster": item.cluster, "groups": list(item.groups)}
    return about | ({"subject": item.subject} if item.subject else {}) | {"shown": dict(item.shown)}


def write(path: str, content: Mapping[str, Any]) -> None:
    """Writes a file of results."""
    from etils import epath

    write_whole(epath.Path(path), json.dumps(plain(content), ensure_ascii=False, indent=1))


def read(path: str) -> Result:
    """Reads a file of results, and computes its metrics anew. Raises UserError for anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no file of results: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not content.get("evaluations"):
        raise UserError(f"{path} is no file of results: give one that `camelid eval --output` wrote")
    result = Result(path, content)
    try:
        wrong = [name for name in content["evaluations"] if not _is_sound(result, name)]
        _ = content["model"]["name"], content["versions"].items(), [*content["command"]], content["date"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path} has been changed: it is no file of results any more ({error})") from None
    if wrong:
        raise UserError(f"{path} has been changed: the metrics of {wrong[0]} are not those of its items")
    return result


def _is_sound(result: Result, evaluation: str) -> bool:
    """Whether items have ids of their own, and give the metrics that the file says."""
    checked(result.items(evaluation), evaluation)
    described = result.content["evaluations"][evaluation]
    said, found = described["metrics"], {name: _numbers(each) for name, each in result.metrics(evaluation).items()}
    if said.keys() != found.keys() or not isinstance(described["hash"], str):
        return False
    return all(
        math.isclose(said[name]["value"], found[name]["value"], rel_tol=1e-9, abs_tol=1e-12)
        and said[name]["n"] == found[name]["n"]
        for name in said
    )


class Row(NamedTuple):
    """A metric in several results."""

    evaluation: str
    """The evaluation."""

    metric: str
    """The metric."""

    values: list[Estimate | None]
    """Its value in each result; None where it has none."""

    differences: list[tuple[Estimate, str] | None]
    """Of each result after the first: its difference to the first on the same items, and what that says in words."""


def compare(results: Sequence[Result]) -> list[Row]:
    """The metrics of results side by side, with paired differences to the first one.

    Raises UserError where an evaluation of one name was asked differently.
    """
    for other in results[1:]:
        if not results[0].content["evaluations"].keys() & other.content["evaluations"].keys():
            raise UserError(f"{results[0].path} and {other.path} share no evaluation, so there is nothing to compare")
    rows = []
    for evaluation in dict.fromkeys(name for each in results for name in each.content["evaluations"]):
        having = [each for each in results if evaluation in each.content["evaluations"]]
        items = {id(each): each.items(evaluation) for each in having}
        for each in having[1:]:
            _check_same(having[0], each, evaluation, items)
        found = {id(each): metrics_of(items[id(each)]) for each in having}
        for metric in dict.fromkeys(name for each in having for name in found[id(each)]):
            values = [found.get(id(each), {}).get(metric) for each in results]
            first = items.get(id(results[0]))
            differences = [
                _difference(items.get(id(each)), first, metric)
                if _is_comparable(results[0], each, metric) else None
                for each in results[1:]
            ]  # fmt: skip
            rows.append(Row(evaluation, metric, values, differences))
    return rows


def _check_same(first: Result, other: Result, evaluation: str, items: Mapping[int, Sequence[Item]]) -> None:
    """Raises UserError if two results were asked different questions."""
    hashes = [each.content["evaluations"][evaluation]["hash"] for each in (first, other)]
    ids = [{item.id for item in items[id(each)]} for each in (first, other)]
    if hashes[0] != hashes[1] or ids[0] != ids[1]:
        raise UserError(
            f"{evaluation}: {first.path} and {other.path} were asked differently (other questions or settings), so "
            "they cannot be compared"
        )


def _is_comparable(first: Result, other: Result, metric: str) -> bool:
    """Whether a metric means the same for two models: numbers for each token do not where tokenizers differ."""
    per_token = metric.partition("/")[0] in ("loss", "perplexity")
    return not per_token or first.content["model"].get("tokenizer") == other.content["model"].get("tokenizer")


def _difference(mine: Sequence[Item] | None, others: Sequence[Item] | None, metric: str) -> tuple[Estimate, str] | None:
    """The paired difference of a metric; None where it is none of means over items that both have."""
    if not mine or not others:
        return None
    theirs = {item.id: item for item in others}
    chosen = [
        (item, theirs[item.id], score)
        for item in mine
        if (score := _score_of(item, metric)) is not None and score in theirs[item.id].scores
    ]
    if not chosen:
        return None
    a = [item.scores[score] for item, _, score in chosen]
    b = [other.scores[score] for _, other, score in chosen]
    found = difference(a, b, [item.cluster or item.id for item, _, _ in chosen])
    return found, in_words(found)


def _score_of(item: Item, metric: str) -> str | None:
    """The name of the score of an item that counts in a metric; None where none does."""
    for score in item.scores:
        if any("/".join(filter(None, (score, group))) == metric for group in groups_of(item)):
            return score
    return None
