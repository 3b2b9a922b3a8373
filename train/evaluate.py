"""Loss on held-out rows."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..data.batches import EvalBatches
from ..data.prefetch import device_batch
from ..data.tokenizer import Tokenizer
from ..model import llama
from .losses import token_logprobs


def heldout_loss(
    model: llama.Model,
    batches: Mapping[str, EvalBatches],
    tokenizer: Tokenizer,
    sharding: jax.sharding.Sharding,
    max_batches: int,
) -> Callable[[Any], tuple[dict[str, float], list]]:
    """The evaluation `run(params)` of each source, `max_batches` each: loss (nats per trained token), perplexity, and
    bits_per_character, which tokenizers that cut text differently have in common.

    A source with fewer batches is read whole; every token weighs the same.
    """

    @jax.jit
    def sums(params, batch, characters_V):
        scores = token_logprobs(model, params, batch)
        mask = batch["loss_mask"]
        return -jnp.sum(scores.logp * mask), jnp.sum(mask), jnp.sum(characters_V[batch["targets"]] * mask)

    def run(params: Any) -> tuple[dict[str, float], list]:
        metrics = {}
        for name, source in batches.items():
            parts = [
                sums(params, device_batch(source, step, sharding), tokenizer.characters)
                for step in range(min(len(source), max_batches))
            ]
            nats, tokens, characters = (sum(float(x) for x in column) for column in zip(*parts, strict=True))
            metrics[f"{name}/loss"] = nats / tokens
            metrics[f"{name}/perplexity"] = math.exp(min(nats / tokens, 700.0))
            metrics[f"{name}/bits_per_character"] = nats / math.log(2) / characters if characters else math.nan
        return metrics, []

    return run
