"""Perplexity of a model on any source: text in full, conversations by what the assistant says."""

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..data.batches import EvalBatches
from ..data.cache import build_cache
from ..data.errors import UserError
from ..model.sharding import BATCH
from ..train.bundle import Llama
from ..train.evaluate import heldout_loss


def perplexity(
    llama: Llama,
    source: str,
    *,
    split: str | None = None,
    heldout: float = 0.01,
    seq_len: int = 512,
    batch_size: int = 8,
    cache_dir: str = "~/.cache/camelid",
) -> dict[str, float]:
    """`loss` (nats per token), `perplexity` and `bits_per_character` over all of the source, or one split of it.

    Samples stand whole in rows of `seq_len` tokens; text longer than that is cut into rows.
    """
    if llama.tokenizer is None:
        raise UserError("this model came without a tokenizer, so text cannot be scored")
    cache = build_cache(
        source,
        tokenizer=llama.tokenizer,
        template=llama.template,
        cache_dir=cache_dir,
        split=split,
        heldout=heldout,
    )
    batches = EvalBatches(cache, batch_size=batch_size, length=seq_len)
    rows = NamedSharding(llama.mesh, PartitionSpec(BATCH, "context"))
    with jax.set_mesh(llama.mesh):
        metrics, _ = heldout_loss(llama.model, {source: batches}, llama.tokenizer, rows, len(batches))(llama.params)
    return metrics
