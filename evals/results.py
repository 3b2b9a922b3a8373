"""What evaluations found, as a JSON file: metrics with intervals, every item, and all that decides the numbers.

    {"format": 1, "command", "date", "versions", "model": {"name", "identity", "tokenizer", "template", "bos",
     "stop_tokens", ...}, "evaluations": {NAME: {"evaluation", "settings", "hash", "files", "seconds", "metrics":
     {METRIC: {"value", "stderr", "low", "high", "n", "clusters"}}, "items": [{"id", "scores", "cluster", ...}]}}}

"hash" is that of the settings and of the contents of the files that they name: two results with the same hash were
asked the same.
"""

import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.checksums import write_whole
from ..data.json_values import plain
from ..errors import UserError
from .intervals import Estimate, difference, in_words
from .items import Item, metrics_of
from .lm import LM

FORMAT = 1
NOT_ASKED = ("batch_size", "cache_dir", "shown", "cache")
"""Settings that decide how something is computed, and not what is asked."""


class Evaluated(NamedTuple):
    """What one evaluation found."""

    evaluation: str
    """Its name."""

    settings: Mapping[str, Any]
    """Its settings."""

    items: Sequence[Item]
    """Its items."""

    seconds: float
    """How long it took."""

    version: str = ""
    """The version of the questions, where no file holds them."""


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
        found = self.content["evaluations"][evaluation]["metrics"]
        return {
            name: Estimate(**{k: math.nan if v is None else v for k, v in each.items()}) for name, each in found.items()
        }

    def items(self, evaluation: str) -> list[Item]:
        """The items of an evaluation."""
        known = Item.__dataclass_fields__
        return [
            Item(**{k: v for k, v in each.items() if k in known})
            for each in self.content["evaluations"][evaluation]["items"]
        ]


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
    settings = {name: value for name, value in each.settings.items() if value is not None}
    files = _files(settings.values())
    asked = {name: files.get(str(value), value) for name, value in settings.items() if name not in NOT_ASKED}
    digest = hashlib.sha256(json.dumps([each.evaluation, each.version, asked], sort_keys=True).encode())
    return {
        "evaluation": each.evaluation,
        "settings": settings,
        "hash": digest.hexdigest()[:16],
        "files": files,
        "seconds": round(each.seconds, 2),
        "metrics": {
            name: {k: None if math.isnan(v) else v for k, v in estimate._asdict().items()}
            for name, estimate in metrics_of(each.items).items()
        },
        "items": [_item(item) for item in each.items],
    }


def _files(values: Iterable[Any]) -> dict[str, str]:
    """The hash of each file, or of all files of each folder, that settings name."""
    found = {}
    for value in values:
        path = Path(value) if isinstance(value, str) and value else None
        if path is not None and path.exists():
            files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
            digest = hashlib.sha256()
            for file in files:
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
            found[value] = digest.hexdigest()[:16]
    return found


def _item(item: Item) -> dict[str, Any]:
    about = {"id": item.id, "scores": dict(item.scores), "cluster": item.cluster, "groups": list(item.groups)}
    return about | ({"subject": item.subject} if item.subject else {}) | {"shown": plain(dict(item.shown))}


def write(path: str, content: Mapping[str, Any]) -> None:
    """Writes a file of results."""
    from etils import epath

    write_whole(epath.Path(path), json.dumps(content, ensure_ascii=False, indent=1))


def read(path: str) -> Result:
    """Reads a file of results. Raises UserError for anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is no file of results: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or "evaluations" not in content:
        raise UserError(f"{path} is no file of results: give one that `camelid eval --output` wrote")
    return Result(path, content)


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
    rows = []
    for evaluation in dict.fromkeys(name for each in results for name in each.content["evaluations"]):
        having = [each for each in results if evaluation in each.content["evaluations"]]
        if len({each.content["evaluations"][evaluation]["hash"] for each in having}) > 1:
            raise UserError(
                f"{evaluation}: {' and '.join(each.path for each in having)} were asked differently (other questions "
                "or settings), so they cannot be compared"
            )
        found = {id(each): each.metrics(evaluation) for each in having}
        items = {id(each): each.items(evaluation) for each in having}
        for metric in dict.fromkeys(name for each in having for name in found[id(each)]):
            values = [found.get(id(each), {}).get(metric) for each in results]
            differences = [_difference(items.get(id(each)), items.get(id(results[0])), metric) for each in results[1:]]
            rows.append(Row(evaluation, metric, values, differences))
    return rows


def _difference(mine: Sequence[Item] | None, others: Sequence[Item] | None, metric: str) -> tuple[Estimate, str] | None:
    """The paired difference of a metric; None where it is none of means over items that both have."""
    if not mine or not others:
        return None
    theirs = {item.id: item for item in others}
    pairs = [(item, theirs[item.id]) for item in mine if item.id in theirs]
    chosen = [
        (item, other, score) for item, other in pairs if (score := _score_of(item, metric)) and score[0] in other.scores
    ]
    if not chosen:
        return None
    a = [item.scores[name] for item, _, (name,) in chosen]
    b = [other.scores[name] for _, other, (name,) in chosen]
    found = difference(a, b, [item.cluster or item.id for item, _, _ in chosen])
    return found, in_words(found)


def _score_of(item: Item, metric: str) -> tuple[str] | None:
    """The name of the score of an item that counts in a metric; None where none does."""
    groups = [*item.groups, *([item.subject] if item.subject else [])]
    for score in item.scores:
        if any("/".join(filter(None, (score, group))) == metric for group in groups):
            return (score,)
    return None
