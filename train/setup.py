"""From `config.data` to batches of packed rows, and whether they fit the mesh and the network."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from ..data.cache import build_cache
from ..data.mixture import EvalPass, Mixture
from ..data.packed_rows import PackedRows
from ..data.sources import Source
from ..data.templates import ChatTemplate
from ..data.text_encoder import TextEncoder
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from .settings import Settings


def sources_of(mixture: Settings, reading: Settings) -> list[Source]:
    """The sources of a section `mixture`.

    reading: the section with `heldout`, `on_error` and `max_record_bytes`, which says how all of them are read.
    """
    how = {name: reading[name] for name in ("heldout", "on_error", "max_record_bytes")}
    return [Source(entry.source, name, entry.format, entry.weight, **how) for name, entry in mixture.items()]


def data_of(
    settings: Settings, tokenizer: Tokenizer, template: ChatTemplate | None
) -> tuple[Mixture, dict[str, EvalPass]]:
    """The endless training batches of `config.data.mixture`, and one pass over each source's held-out part.

    A source of weight 0 is only measured.
    """
    section, encoder = settings.data, TextEncoder(tokenizer, template)
    sources = []
    for source in sources_of(section.mixture, section):
        share = section.mixture[source.name].get("heldout", section.heldout)
        if not share and not source.weight:
            path = section.mixture.dotted(source.name)
            raise UserError(f"{path}: weight 0 and nothing held out: give it a weight or a heldout")
        sources.append(dataclasses.replace(source, heldout=share))

    def rows(source: Source, split: str, packing: str) -> PackedRows:
        return PackedRows(build_cache(source, split, encoder, section.cache_dir), section.seq_len, packing)

    train = functools.partial(rows, split="train", packing=section.packing)
    batches = Mixture([source for source in sources if source.weight], train, section.batch_size, settings.seed)
    held_out = {source.name: rows(source, "heldout", "fewest_cuts") for source in sources if source.heldout}
    return batches, {name: EvalPass(part, section.batch_size) for name, part in held_out.items()}


def check_rows(settings: Settings, mesh: jax.sharding.Mesh, max_len: int) -> None:
    """Raises UserError if the mesh, and the parts that a step accumulates over, do not divide a batch evenly, or if
    rows are longer than the network's context."""
    if settings.data.seq_len > max_len:
        raise UserError(
            f"config.data.seq_len {settings.data.seq_len} is more than the network's context of {max_len} tokens; "
            "shorten it, or say config.model.max_len"
        )
    parts, devices = settings.optim.accumulate, mesh.shape["data"] * mesh.shape["fsdp"]
    if parts < 1 or settings.data.batch_size % (parts * devices):
        raise UserError(
            f"config.data.batch_size {settings.data.batch_size} is not a multiple of data x fsdp = {devices} devices "
            f"times config.optim.accumulate = {parts}"
        )
    if settings.data.seq_len % mesh.shape["context"]:
        raise UserError(
            f"config.data.seq_len {settings.data.seq_len} is not a multiple of mesh axis context = "
            f"{mesh.shape['context']}"
        )


def report_data(batches: Mixture, heldout: Mapping[str, EvalPass]) -> list[dict[str, str]]:
    """Rows of a table: each count of each source and split."""
    columns = {f"{name} train": counts for name, counts in batches.summary().items()}
    columns |= {f"{name} heldout": source.summary() for name, source in heldout.items()}
    names = dict.fromkeys(name for counts in columns.values() for name in counts)
    return [{"": name, **{column: _shown(counts.get(name)) for column, counts in columns.items()}} for name in names]


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
