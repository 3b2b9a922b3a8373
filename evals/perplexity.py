"""Perplexity of a model on any source: text in full, conversations by what the assistant says."""

import itertools
from collections.abc import Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..checkpoints.language_model import Llama
from ..data.batches import EvalBatches
from ..data.cache import build_cache
from ..data.sources import Report
from ..errors import UserError
from ..model.sharding import BATCH
from ..train.evaluate import heldout_loss


def perplexity(
    llama: Llama,
    source: str,
    *,
    split: str | None = None,
    heldout: float = 0.01,
    seq_len: int | None = None,
    batch_size: int | None = None,
    borders: Sequence[int] = (),
    cache_dir: str = "~/.cache/camelid",
    report: Report | None = None,
    **reading,
) -> dict[str, float]:
    """`loss` (nats per token), `perplexity` and `bits_per_character` over all of the source, or one split of it.

    Samples stand whole in rows of `seq_len` tokens (default: 512, or the model's context where that is shorter); text
    longer than that is cut into rows. batch_size: rows that are computed at a time (default: 4,096 tokens on each
    device). borders: positions that divide the row into ranges with a perplexity each, such as (2048, 4096) for
    `perplexity/0-2048`, `perplexity/2048-4096` and `perplexity/4096-8192`: how well a token is predicted with that much
    text before it. report: counts what was read and left out. reading: `format`, `on_error` and `max_record_bytes`, as
    `build_cache` takes them.
    Raises UserError for borders that rows or samples do not reach.
    """
    if llama.tokenizer is None:
        raise UserError("this model came without a tokenizer, so text cannot be scored")
    seq_len = min(512, llama.config.max_len) if seq_len is None else seq_len
    if any(left >= right for left, right in itertools.pairwise([0, *borders, seq_len])):
        raise UserError(f"borders {list(borders)}: give positions that rise, between 0 and seq_len = {seq_len}")
    cache = build_cache(
        source,
        tokenizer=llama.tokenizer,
        template=llama.template,
        cache_dir=cache_dir,
        split=split,
        heldout=heldout,
        **reading,
    )
    if report is not None:
        report.add(cache.info["counts"], cache.info["skipped"])
    if borders and (longest := int(cache.pairs.max())) <= borders[-1]:
        raise UserError(f"{source}: no sample reaches position {borders[-1]}; the longest has {longest + 1} tokens")
    if batch_size is None:
        batch_size = llama.mesh.shape["data"] * llama.mesh.shape["fsdp"] * max(1, 4096 // seq_len)
    batches = EvalBatches(cache, batch_size=batch_size, length=seq_len)
    rows = NamedSharding(llama.mesh, PartitionSpec(BATCH, "context"))
    with jax.set_mesh(llama.mesh):
        metrics, _ = heldout_loss(llama.model, {source: batches}, llama.tokenizer, rows, len(batches), borders)(
            llama.params
        )
    return metrics
