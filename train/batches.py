"""From `config.data` to batches of packed rows, and whether they fit the mesh and the network."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax

from ..data.formats import FORMATS
from ..data.licences import USES
from ..data.mixture import EvalPass, Mixture
from ..data.packed_rows import PackedRows
from ..data.sources import Source
from ..data.templates import ChatTemplate
from ..data.text_encoder import TextEncoder
from ..data.token_cache import build_cache
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..settings.leaves import Count, Name, NotNegative, OneOf, Path, Range, Share, Text, Unset
from .ledger import check_licences

Packing = Annotated[str, OneOf("contiguous", "best_fit", "fewest_cuts")]
RowLength = Annotated[int, Range(least=2, most=2**24)]
BatchSize = Annotated[int, Range(least=1, most=2**24)]


@dataclass(frozen=True)
class MixtureEntry:
    """One source of a mixture; its name in the config is its name in metrics."""

    source: Path
    """Where the records are: a glob of files, a folder, "tfds:name:split" or "task:kind" (`data/sources.py`)."""

    weight: NotNegative = 1.0
    """Share of the rows, relative to the other sources."""

    format: Annotated[str, OneOf("auto", *FORMATS)] = "auto"
    """Format of the records (`data/formats.py`); auto goes by each record's fields."""

    columns: dict[Name, Name] | None = None
    """Names of columns under which the records have fields of the format, such as {"instruction": "question", "output":
    "answer"}. None: the records have the fields of a format."""


@dataclass(frozen=True)
class TextEntry(MixtureEntry):
    """One source of a mixture of text and conversations. A source of weight 0 is only evaluated."""

    heldout: Share | None = None
    """Share of the records that is held out for evaluation. Default: the section's."""


@dataclass(frozen=True)
class ReadingSettings:
    """The settings of `config.data` that all recipes share: the mixture of sources, and how records are read."""

    mixture: dict[str, MixtureEntry] = dataclasses.field(default_factory=dict)
    """The sources by their names. At least one has a weight above 0."""

    batch_size: BatchSize = 32
    """Rows, pairs or prompts of a batch, over all hosts."""

    heldout: Annotated[float, Range(least=0, below=1)] = 0.01
    """Share of each source's records that is held out for evaluation."""

    on_error: Annotated[str, OneOf("raise", "skip")] = "raise"
    """What happens at a bad record: raise ends the run, skip leaves the record out, counts it and lists it."""

    max_record_bytes: Count = 2**26
    """The most bytes of a line, record or row. A larger one is a bad record."""

    use: Annotated[str, OneOf(*USES)] = "research"
    """What the trained model is for: research or commercial. Licences in the cards of datasets are compared with it."""

    licences: Annotated[str, OneOf("refuse", "tell")] = "refuse"
    """What happens where licences exclude each other or the use: refuse ends the run, tell prints a line."""

    system: Annotated[Text | None, Unset("no system prompt")] = None
    """System prompt of all conversations that have none of their own. The chat template has to write it."""

    def check(self, where: str) -> None:
        if not any(entry.weight for entry in self.mixture.values()):
            raise UserError(f"{where}.mixture: name at least one source with a weight above 0, to train on")


@dataclass(frozen=True)
class DataSettings(ReadingSettings):
    """The section `config.data` of text and conversations in packed rows."""

    mixture: dict[str, TextEntry] = dataclasses.field(default_factory=dict)
    """The sources by their names. At least one has a weight above 0."""

    seq_len: RowLength = 512
    """Tokens of a row."""

    packing: Packing = "contiguous"
    """How samples fill rows: contiguous cuts at every border, best_fit keeps samples whole, fewest_cuts cuts only those
    that are longer than a row."""

    cache_dir: Path = "~/.cache/camelid"
    """Folder of the token caches."""


def sources_of(mixture: Mapping[str, MixtureEntry], reading: ReadingSettings) -> list[Source]:
    """The sources of a mixture, all read as a section `config.data` says.

    Raises UserError where the licences in the cards of its datasets exclude each other or the use of the model, and
    `config.data.licences` is "refuse".
    """
    trained = {name: entry.source for name, entry in mixture.items() if entry.weight}
    check_licences(trained, reading.use, reading.licences == "refuse")
    how = {name: getattr(reading, name) for name in ("heldout", "on_error", "max_record_bytes")}
    how["system"] = reading.system or ""
    return [
        Source(entry.source, name, entry.format, entry.weight, columns=entry.columns or {}, **how)
        for name, entry in mixture.items()
    ]


def check_system(system: str | None, template: ChatTemplate | None, tokenizer: Tokenizer) -> None:
    """Raises UserError if there is a system prompt, `config.data.system`, that the chat template cannot write."""
    if system is None:
        return
    if template is None:
        raise UserError("config.data.system is for conversations: set config.template, or leave it None for plain text")
    turns = [("system", system), ("user", "Hello."), ("assistant", "Hello.")]
    try:
        text = template.render([{"role": role, "content": content} for role, content in turns], tokenizer)
        problem = "" if system.strip() in text else ": it leaves it out"
    except UserError as error:
        problem = f": {error}"
    if problem:
        what = f"the chat template {template.name} cannot write this system prompt{problem}"
        raise UserError(f"config.data.system: {what}; leave it None, or choose another config.template")


def data_of(
    settings: DataSettings, tokenizer: Tokenizer, template: ChatTemplate | None, seed: int
) -> tuple[Mixture, dict[str, EvalPass]]:
    """The endless training batches of `config.data.mixture`, and one pass over each source's held-out part.

    A source of weight 0 is only evaluated.
    """
    check_system(settings.system, template, tokenizer)
    encoder, sources = TextEncoder(tokenizer, template), []
    for source in sources_of(settings.mixture, settings):
        share = settings.mixture[source.name].heldout
        share = settings.heldout if share is None else share
        if not share and not source.weight:
            raise UserError(
                f"config.data.mixture.{source.name}: weight 0 and nothing held out: give it a weight or a heldout"
            )
        sources.append(dataclasses.replace(source, heldout=share))

    def rows(source: Source, split: str, packing: str) -> PackedRows:
        return PackedRows(build_cache(source, split, encoder, settings.cache_dir), settings.seq_len, packing)

    train = functools.partial(rows, split="train", packing=settings.packing)
    batches = Mixture([source for source in sources if source.weight], train, settings.batch_size, seed)
    held_out = {source.name: rows(source, "heldout", "fewest_cuts") for source in sources if source.heldout}
    return batches, {name: EvalPass(part, settings.batch_size) for name, part in held_out.items()}


def check_rows(batch_size: int, seq_len: int, accumulate: int, mesh: jax.sharding.Mesh, max_len: int) -> None:
    """Raises UserError if the mesh, and the parts that a step accumulates over, do not divide a batch evenly, or if
    rows are longer than the network's context."""
    if seq_len > max_len:
        raise UserError(
            f"config.data.seq_len {seq_len} is more than the network's context of {max_len} tokens; shorten it, or "
            "raise config.model.max_len"
        )
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if accumulate < 1 or batch_size % (accumulate * devices):
        raise UserError(
            f"config.data.batch_size {batch_size} is not a multiple of data x fsdp = {devices} devices times "
            f"config.optim.accumulate = {accumulate}"
        )
    chunks = 2 * mesh.shape["context"]  # ring attention deals each device two chunks of a row
    if chunks > 2 and seq_len % chunks:
        raise UserError(
            f"config.data.seq_len {seq_len} is not a multiple of {chunks}, twice the mesh axis context; give "
            f"{-(-seq_len // chunks) * chunks}"
        )


COUNTS = {
    "share": "share of the batches (%)",
    "records": "records",
    "samples": "samples",
    "tokens": "tokens",
    "trained": "trained tokens",
    "longest": "longest sample (tokens)",
    "rows": "rows",
    "fill": "fill of the rows (%)",
    "skipped": "bad records",
    "empty": "records without a trained token",
    "truncated": "samples cut",
    "left_out": "samples left out",
    "too_long": "records that are too long",
    "same_tokens": "pairs of equal answers",
    "repeated": "repeated prompts",
}
"""{count of a source's summary: the head of its column}."""

HELD_OUT = ("records", "tokens", "skipped", "empty", "truncated", "left_out", "too_long", "same_tokens", "repeated")
"""Counts of held-out parts that are reported."""


def report_data(batches: Mixture, heldout: Mapping[str, EvalPass]) -> list[dict[str, str]]:
    """A row for each source with its counts, without columns that say nothing: zeros alone, and samples where each
    record is one."""
    found: dict[str, dict[str, float]] = {name: {} for name in (*batches.summary(), *heldout)}
    for name, counts in batches.summary().items():
        found[name] |= {COUNTS[each]: counts[each] * _factor(each) for each in COUNTS if each in counts}
    for name, part in heldout.items():
        counts = part.summary()
        found[name] |= {f"held-out {COUNTS[each]}": counts[each] for each in HELD_OUT if each in counts}
    heads = [head for head in _HEADS if any(counts.get(head) for counts in found.values())]
    if all(counts.get("samples") == counts.get("records") for counts in found.values()):
        heads = [head for head in heads if head != "samples"]
    return [{"source": name} | {head: _shown(counts.get(head)) for head in heads} for name, counts in found.items()]


_HEADS = [*COUNTS.values(), *(f"held-out {COUNTS[each]}" for each in HELD_OUT)]


def _factor(count: str) -> int:
    """What a count is multiplied with for its column: shares are shown in percent."""
    return 100 if count in ("share", "fill") else 1


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def data_tables(batches: Any, heldout: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """What each source holds, and the first records that were left out of it."""
    tables = {"data": report_data(batches, heldout)}
    for name, problems in batches.skipped().items():
        tables[f"left out of {name}"] = [{"record": problem} for problem in problems]
    return tables
