"""From `config.data` to batches of packed rows, and whether they fit the mesh and the network."""

from collections.abc import Mapping
from typing import Any

import jax

from ..data.batches import Batches, EvalBatches, Part
from ..data.cache import build_cache
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from .settings import Settings


def data_of(
    settings: Settings, tokenizer: Tokenizer, template: ChatTemplate | None
) -> tuple[Batches, dict[str, EvalBatches]]:
    """The endless training batches of `config.data.mixture`, and one pass over each source's held-out part.

    A source of weight 0 is only measured.
    """
    section = settings.data
    reading = dict(on_error=section.on_error, max_record_bytes=section.max_record_bytes)
    common = dict(tokenizer=tokenizer, template=template, cache_dir=section.cache_dir, **reading)
    rows = dict(batch_size=section.batch_size, length=section.seq_len)
    parts, heldout = [], {}
    for name, source in section.mixture.items():
        share = source.get("heldout", section.heldout)
        where = dict(source=source.source, format=source.format, heldout=share, **common)
        if not share and not source.weight:
            raise UserError(f"config.data.mixture.{name}: weight 0 and nothing held out: give it a weight or a heldout")
        if source.weight:
            parts.append(Part(name, build_cache(split="train", **where), source.weight))
        if share:
            heldout[name] = EvalBatches(build_cache(split="heldout", **where), **rows)
    return Batches(parts, **rows, packing=section.packing, seed=settings.seed), heldout


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


def report_data(batches: Batches, heldout: Mapping[str, EvalBatches]) -> list[dict[str, str]]:
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
