"""Perplexity of a model on any source. Text counts in full; of conversations only the assistant's turns count."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..checkpoints.heldout_loss import heldout_loss
from ..checkpoints.language_model import LanguageModel
from ..data.mixture import EvalPass
from ..data.packed_rows import PackedRows
from ..data.sources import Source
from ..data.text_encoder import TextEncoder
from ..data.token_cache import TokenCache, build_cache
from ..errors import UserError
from ..model.sharding import BATCH


def text_cache(
    llama: LanguageModel, source: Source, split: str | None = None, cache_dir: str | Path = "~/.cache/camelid"
) -> TokenCache:
    """The token cache of a source for a model's tokenizer and chat template.

    Args:
      llama: the model.
      source: the source.
      split: "train", "heldout", or None for the whole source.
      cache_dir: folder for token caches.

    Raises:
      UserError: the model has no tokenizer, or an error of `build_cache`.
    """
    if llama.tokenizer is None:
        raise UserError("the model has no tokenizer, so text cannot be scored: give a checkpoint with one")
    return build_cache(source, split, TextEncoder(llama.tokenizer, llama.template), cache_dir)


def perplexity(
    llama: LanguageModel,
    caches: Mapping[str, TokenCache],
    *,
    seq_len: int | None = None,
    borders: Sequence[int] = (),
    batch_size: int | None = None,
) -> dict[str, float]:
    """Loss (nats per token), perplexity and bits per character over all of each cache.

    Samples are whole in rows of `seq_len` tokens; longer text is cut into rows.

    Args:
      llama: the model.
      caches: token caches from `text_cache`, by name.
      seq_len: tokens in a row; None: 512, or the model's context if that is shorter.
      borders: positions that divide a row into ranges, each with a perplexity of its own. (2048, 4096) gives
        "NAME/perplexity/0-2048", "NAME/perplexity/2048-4096" and "NAME/perplexity/4096-8192": how well a token is
        predicted with that much text before it.
      batch_size: rows that are computed at a time; None: 4,096 tokens on each device.

    Returns:
      "NAME/loss", "NAME/perplexity" and "NAME/bits_per_character" for each cache, and the perplexity of each range.

    Raises:
      UserError: borders that do not ascend, or that no row or sample reaches.
    """
    seq_len = min(512, llama.config.max_len) if seq_len is None else seq_len
    if any(left >= right for left, right in itertools.pairwise([0, *borders, seq_len])):
        raise UserError(f"borders are {list(borders)}: give ascending positions between 0 and seq_len = {seq_len}")
    for name, cache in caches.items():
        if borders and (longest := int(cache.pairs.max())) <= borders[-1]:
            problem = f"no sample reaches border {borders[-1]}"
            raise UserError(f"{name}: {problem}; the longest has {longest + 1} tokens: give borders below {longest}")
    if batch_size is None:
        batch_size = llama.mesh.shape["data"] * llama.mesh.shape["fsdp"] * max(1, 4096 // seq_len)
    passes = {name: EvalPass(PackedRows(cache, seq_len, "fewest_cuts"), batch_size) for name, cache in caches.items()}
    rows = NamedSharding(llama.mesh, PartitionSpec(BATCH, "context"))
    all_batches = max(map(len, passes.values()))
    measure = heldout_loss(llama.model, passes, llama.tokenizer, rows, all_batches, borders)
    with jax.set_mesh(llama.mesh):
        metrics, _ = measure(llama.params)
    return metrics
