"""Perplexity of a model on any source: text in full, conversations by what the assistant says."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..checkpoints.language_model import LanguageModel
from ..data.cache import TokenCache, build_cache
from ..data.mixture import EvalPass
from ..data.packed_rows import PackedRows
from ..data.sources import Source
from ..data.text_encoder import TextEncoder
from ..errors import UserError
from ..model.sharding import BATCH
from ..train.evaluate import heldout_loss


def text_cache(
    llama: LanguageModel, source: Source, split: str | None = None, cache_dir: str | Path = "~/.cache/camelid"
) -> TokenCache:
    """All of a source (split None) or one split of it, in the tokens of a model and its chat template.

    Raises UserError for a model without a tokenizer, and as of `build_cache`.
    """
    if llama.tokenizer is None:
        raise UserError("this model came without a tokenizer, so text cannot be scored")
    return build_cache(source, split, TextEncoder(llama.tokenizer, llama.template), cache_dir)


def perplexity(
    llama: LanguageModel,
    caches: Mapping[str, TokenCache],
    *,
    seq_len: int | None = None,
    borders: Sequence[int] = (),
    batch_size: int | None = None,
) -> dict[str, float]:
    """`loss` (nats per token), `perplexity` and `bits_per_character` over all of each cache, as "NAME/loss" and so on.

    Samples stand whole in rows of `seq_len` tokens; text longer than that is cut into rows.

    Args:
      llama: the model.
      caches: texts by name, as `text_cache` gives them.
      seq_len: tokens in a row; default: 512, or the model's context where that is shorter.
      borders: positions that divide the row into ranges with a perplexity each, such as (2048, 4096) for
        "NAME/perplexity/0-2048", "NAME/perplexity/2048-4096" and "NAME/perplexity/4096-8192": how well a token is
        predicted with that much text before it.
      batch_size: rows that are computed at a time; None: 4,096 tokens on each device.

    Raises:
      UserError: borders that rows or samples do not reach.
    """
    seq_len = min(512, llama.config.max_len) if seq_len is None else seq_len
    if any(left >= right for left, right in itertools.pairwise([0, *borders, seq_len])):
        raise UserError(f"borders {list(borders)}: give positions that rise, between 0 and seq_len = {seq_len}")
    for name, cache in caches.items():
        if borders and (longest := int(cache.pairs.max())) <= borders[-1]:
            raise UserError(f"{name}: no sample reaches position {borders[-1]}; the longest has {longest + 1} tokens")
    if batch_size is None:
        batch_size = llama.mesh.shape["data"] * llama.mesh.shape["fsdp"] * max(1, 4096 // seq_len)
    passes = {name: EvalPass(PackedRows(cache, seq_len, "fewest_cuts"), batch_size) for name, cache in caches.items()}
    rows = NamedSharding(llama.mesh, PartitionSpec(BATCH, "context"))
    all_batches = max(map(len, passes.values()))
    measure = heldout_loss(llama.model, passes, llama.tokenizer, rows, all_batches, borders)
    with jax.set_mesh(llama.mesh):
        metrics, _ = measure(llama.params)
    return metrics
