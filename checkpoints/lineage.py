"""Where a model comes from: the runs that trained it, the data of each, and the model that the first one started from.

Everything is read from the manifests of the runs, as far back as they are still on this machine.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from ..data import hub
from ..data.cards import Card, card_of
from ..errors import UserError
from . import reading
from .adapters import AdapterCheckpoint
from .checkpoint import Checkpoint
from .runs import RunCheckpoint

MOST_RUNS = 32
"""The longest lineage that is followed; manifests that name each other in a circle end there."""

FRONT_MATTER = re.compile(r"---\r?\n(?P<fields>.*?)\r?\n---", re.DOTALL)
LICENCE = re.compile(r"^license: *[\"']?([\w.+-]+)[\"']? *$", re.MULTILINE)
LICENCE_NAME = re.compile(r"^license_name: *[\"']?([\w.+-]+)[\"']? *$", re.MULTILINE)


class Data(NamedTuple):
    """A source that a run trained on."""

    name: str
    """The name of the source in the run's config."""
    location: str
    """The last part of its path, or its name with a prefix such as tfds: or a task's."""
    weight: float
    """The share with which rows were drawn, as the config gave it."""
    card: Card | None
    """The card of the dataset; None if it has none, or another one than when the run trained on it."""


class Stage(NamedTuple):
    """One run."""

    config: Mapping[str, Any]
    """The run's whole config."""
    step: int
    """The step of the checkpoint that the next stage, or the model itself, is."""
    metrics: Mapping[str, float]
    """The metrics of the last evaluation up to that step."""
    data: list[Data]
    """The sources that it trained on."""
    versions: Mapping[str, str]
    """The versions of camelid, jax and flax."""
    record: Mapping[str, Any]
    """The content of the run's run.json; empty if there is none."""


class Root(NamedTuple):
    """The model that the first run started from."""

    name: str
    """owner/name of a model on the Hugging Face Hub, or the last part of its path."""
    on_hub: bool
    """Whether it is on the Hub."""
    commit: str | None
    """Its commit on the Hub."""
    licence: str | None
    """The licence that its model card names; None if it has none."""


class Lineage(NamedTuple):
    """Where a model comes from."""

    stages: list[Stage]
    """The runs, the first one first."""
    root: Root | None
    """The model that the first run started from; None for random parameters."""


def lineage_of(found: Checkpoint) -> Lineage:
    """The lineage of a checkpoint."""
    if not isinstance(found, RunCheckpoint):
        if isinstance(found, AdapterCheckpoint):  # in PEFT's format, which does not say how they were trained
            return Lineage([], _root(found.base.address))
        return Lineage([], _root(found.address))
    stages, manifest, folder = [], found.manifest, found.folder
    for _ in range(MOST_RUNS):
        if manifest["config"]:
            stages.append(_stage(manifest, folder))
            before = (manifest.get("start") or {}).get("identity")
        else:
            origin = manifest.get("origin") or {}
            before = origin and [origin.get("path"), origin.get("step")]
        if not before:
            return Lineage(stages[::-1], None)
        there = _run_at(*before[:2])
        if there is None:
            return Lineage(stages[::-1], _root(before[0]))
        folder, manifest = there, reading.manifest_of(there)
    return Lineage(stages[::-1], _root(str(folder)))


def _run_at(address: str, step: int | None) -> epath.Path | None:
    """The folder of a run's checkpoint, which is not compared with its checksums; None if it is not on this machine.

    Args:
      address: the path of the run or of the checkpoint, as `Checkpoint.address` gives it.
      step: the step of the checkpoint; None for a model in another format.
    """
    if step is None or hub.PREFIX.match(address):
        return None
    path = epath.Path(address.removesuffix(reading.BEST))
    for folder in (path / "checkpoints" / str(step), path):
        try:
            if reading.manifest_of(folder)["step"] == step:
                return folder
        except (UserError, OSError):
            continue
    return None


def _stage(manifest: Mapping[str, Any], folder: epath.Path) -> Stage:
    """The stage of a run. folder: that of the checkpoint, inside the run directory."""
    run, step = folder.parent.parent, manifest["step"]
    metrics = manifest.get("metrics") or _last_evaluation(run / "metrics.jsonl", step)
    data = [_data(name, entry, manifest) for name, entry in _mixture(manifest["config"]) if entry.get("weight")]
    return Stage(manifest["config"], step, metrics, data, manifest.get("versions", {}), _json(run / "run.json"))


def _mixture(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The sources of a config, of its data and of the pretraining texts beside them."""
    parts = (config.get(part) or {} for part in ("data", "ptx"))
    return [item for part in parts for item in (part.get("mixture") or {}).items()]


def _data(name: str, entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> Data:
    location = str(entry.get("source"))
    found = card_of(location)
    card = found[1] if found is not None else None
    if card is not None and manifest.get("datasets", {}).get(name, card.hash) != card.hash:
        card = None
    is_path = "/" in location and "://" not in location and not location.startswith("tfds:")
    shown = location.rstrip("/").rpartition("/")[2] if is_path else location
    return Data(name, shown, float(entry["weight"]), card)


def _last_evaluation(file: epath.Path, step: int) -> dict[str, float]:
    """The metrics of the last evaluation up to a step, from a run's metrics.jsonl; {} without one."""
    found: dict[str, float] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # cut off by a crash
            continue
        metrics = {name: value for name, value in record.items() if name.startswith("eval/")}
        if metrics and record.get("step", step + 1) <= step:
            found = metrics
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _json(file: epath.Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _root(address: str) -> Root:
    """The model at an address (`Checkpoint.address`)."""
    name = hub.name_of(address) if hub.PREFIX.match(address) else None
    if name is None:
        path = epath.Path(address)
        folder = path if path.is_dir() else path.parent
        return Root(path.name, False, None, _licence(folder / "README.md"))
    file = hub.cached_file(name, "README.md")
    return Root(name.repository, True, name.revision, file and _licence(epath.Path(file)))


def _licence(card: epath.Path) -> str | None:
    """The licence in the header of a model card; None if there is no card, or it names none."""
    try:
        header = FRONT_MATTER.match(card.read_text())
    except (OSError, ValueError):
        return None
    fields = header["fields"] if header else ""
    named, special = LICENCE.search(fields), LICENCE_NAME.search(fields)
    if named is None or named[1] == "unknown":
        return None
    return special[1] if named[1] == "other" and special else None if named[1] == "other" else named[1]
