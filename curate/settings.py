"""The config of a run of the data engine, and the steps that it names.

    c.sources.chats = {"source": "chats/*.json", "licence": "apache-2.0"}
    c.steps = ["parse", "language", "exact_duplicates", "heldout"]
    c.step.language.keep = ["en", "zh"]

A section `c.step.NAME` holds the settings of the step NAME. A section of another name says whose settings it holds with
`use`, so that a step can run twice.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from ml_collections import ConfigDict

from ..data.formats import FORMATS
from ..data.json_values import MAX_RECORD_BYTES
from ..data.licences import check_name
from ..data.sources import Source
from ..errors import UserError, shown
from ..settings.leaves import Count, OneOf, Path, Unset
from ..settings.sections import read, to_config
from .rows import Step, WholeStep
from .steps import find, make

READ, WRITE = "read", "write"
"""Names under which the engine rejects rows itself, before the first step and after the last one."""

PARSING, RAW = ("parse", "conversation"), ("language", "personal_data")
"""The engine's steps that parse records, and those that take raw records too. All others need parsed ones."""

READ_REASONS, WRITE_REASONS = ("unreadable", "repeated"), ("malformed",)
"""Reasons of the engine's own rejections: a record that cannot be read (`on_error`) or that its source has twice, and a
row that `data/` could not read from the output."""


@dataclass(frozen=True)
class CurateSource:
    """A source of raw records."""

    source: Path
    """Path, glob or folder, tfds:name:split, or a task's records such as primer:chat (`data/sources.py`)."""

    format: Annotated[str, OneOf("auto", *FORMATS)] = "auto"
    """Format of the records; "auto" detects it from the fields of each record."""

    columns: Annotated[dict[str, str] | None, Unset("the fields' own names")] = None
    """Names of columns under which the records have fields of the format, such as {"instruction": "question"}."""

    licence: Annotated[str | None, Unset("no recorded licence")] = None
    """Name of the records' licence, for the card (`data/licences.toml`)."""

    teacher: Annotated[str | None, Unset("no recorded teacher")] = None
    """Name of the model that wrote the answers, for the card."""

    def check(self, where: str) -> None:
        check_name(self.licence, f"{where}.licence")


@dataclass(frozen=True)
class CurateConfig:
    """What a run reads, which steps it takes, and how it writes."""

    name: str = "dataset"
    """Name of the dataset on its card."""

    sources: dict[str, CurateSource] = field(default_factory=dict)
    """Sources by name. The name of its source is part of each row's id."""

    steps: list[str] = field(default_factory=list)
    """Names of the steps in the order in which rows pass them."""

    step: dict = field(default_factory=dict)
    """Settings of each step by its name. A section with a name of one's own has `use`, the name of a step or a class
    "package.module:Name" or "file.py:Name"."""

    tokenizer: Annotated[str | None, Unset("a count of characters in place of tokens")] = None
    """Folder or file of the tokenizer that counts tokens, for the tables, the card and the column tokens."""

    on_error: Annotated[str, OneOf("raise", "skip")] = "raise"
    """What a record that cannot be read does: "raise" ends the run, "skip" rejects the record as unreadable. A file
    whose rest cannot be read always ends the run."""

    max_record_bytes: Count = MAX_RECORD_BYTES
    """Largest size in bytes of one line, record or row of Parquet."""

    partitions: Count = 16
    """Number of parts that rows are divided into by the first bits of their ids. One part is sorted in memory at a time
    by each worker, and parts are the units of work: give at least twice the number of all workers. A power of two, at
    most 256."""

    output_shards: Count = 1
    """Number of files of each split."""

    keep_rejected: bool = True
    """Whether files in `rejected/` hold the record and columns of each rejected row, beside its id and the reason."""

    write_as: Annotated[str, OneOf("camelid", "alpaca", "sharegpt", "openai")] = "camelid"
    """Format of the rows that are written. A row that the format cannot hold ends the run."""

    def check(self, where: str) -> None:
        if self.partitions not in (numbers := [2**n for n in range(9)]):
            raise UserError(f"{where}.partitions = {self.partitions}: give one of {', '.join(map(str, numbers))}")


def read_config(config: Mapping[str, Any]) -> CurateConfig:
    """A checked config. Raises UserError for a leaf as `settings.sections.read` does, for a step that does not exist,
    and for a step's section that is changed though the step is not among `config.steps`."""
    found = read(config, CurateConfig)
    found = replace(found, step={name: _plain(section, name) for name, section in found.step.items()})
    if not found.sources:
        raise UserError("config.sources is empty: give config.sources.NAME.source, or --source")
    if not found.steps:
        raise UserError('config.steps is empty: name the steps in their order, as in ["parse", "heldout"]')
    for name in found.steps:
        if found.steps.count(name) > 1:
            raise UserError(
                f"config.steps has {name} twice: let the second one have a section of its own, "
                f'config.step.{name}_again = {{"use": "{name}"}}'
            )
    for name in found.step:
        if name not in found.steps and _is_changed(name, found.step[name]):
            raise UserError(f"config.step.{name} does nothing: {name} is not in config.steps; add it there")
    if not any(_may_parse(found, name) for name in found.steps):
        raise UserError("config.steps has no step that parses records: add parse or conversation")
    list(named_steps(found))
    _check_order(found)
    return found


def _check_order(config: CurateConfig) -> None:
    """Raises UserError for a step of the engine before the first step that can parse records, unless it takes raw
    ones."""
    for name in config.steps:
        if _may_parse(config, name):
            return
        if class_name(config, name) not in RAW:
            first = next(each for each in config.steps if _may_parse(config, each))
            raise UserError(
                f"config.steps has {name} before {first}, but {name} needs parsed records: put {first} before it"
            )


def class_name(config: CurateConfig, name: str) -> str:
    """The name in STEPS, or the class "package.module:Name", of the step that `config.steps` calls `name`."""
    return config.step.get(name, {}).get("use") or name


def _may_parse(config: CurateConfig, name: str) -> bool:
    """Whether a step parses records, or is one of the user's own, which may do so."""
    used = class_name(config, name)
    return used in PARSING or ":" in used


def named_steps(config: CurateConfig) -> Iterator[tuple[str, Step | WholeStep]]:
    """Name and step, in order. Raises UserError as `steps.make` does."""
    for name in config.steps:
        used = class_name(config, name)
        settings = {leaf: value for leaf, value in config.step.get(name, {}).items() if leaf != "use"}
        find(used, "config.steps" if used == name else f"config.step.{name}.use")
        yield name, make(used, settings, f"config.step.{name}")


def is_whole(step: Step | WholeStep) -> bool:
    """Whether a step decides about all rows together."""
    return hasattr(step, "decide")


def settings_of(step: Step | WholeStep) -> dict[str, Any]:
    """All settings of a step, defaults included, as JSON can hold them."""
    return to_config(step).to_dict()


def source_of(config: CurateConfig, name: str) -> Source:
    """The source called `name`, as `data/` reads it."""
    source = config.sources[name]
    return Source(
        source.source,
        name,
        source.format,
        columns=source.columns or {},
        on_error=config.on_error,
        max_record_bytes=config.max_record_bytes,
    )


def sources_at(locations: Iterable[str], **more: Any) -> dict[str, dict[str, Any]]:
    """Sections for `config.sources`, named by files or folders. more: further leaves of each, such as its licence."""
    found: dict[str, dict[str, Any]] = {}
    for location in locations:
        parts = [re.sub(r"[^\w-]+", "_", part.partition(".")[0]).strip("_") for part in location.split("/")]
        stem = next(filter(None, reversed(parts)), "source")
        name, number = stem, 1
        while name in found:
            name, number = f"{stem}{number}", number + 1
        found[name] = to_config(CurateSource(location)).to_dict() | more
    return found


def _is_changed(name: str, section: Mapping[str, Any]) -> bool:
    """Whether a section of the config differs from the defaults of its step."""
    defaults = settings_of(find(section.get("use") or name, f"config.step.{name}")())
    given = {leaf: value for leaf, value in section.items() if leaf != "use"}
    return json.dumps({**defaults, **given}, sort_keys=True) != json.dumps(defaults, sort_keys=True)


def _plain(section: Any, name: str) -> dict[str, Any]:
    """A section of a step as a plain dict."""
    if not isinstance(section, Mapping | ConfigDict):
        raise UserError(f"config.step.{name} = {shown(section)}: give a section with the settings of a step")
    return section.to_dict() if isinstance(section, ConfigDict) else dict(section)
