"""Loss on held-out rows."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..data.batches import EvalBatches
from ..data.prefetch import device_batch
from ..model import llama
from .losses import token_logprobs


def heldout_loss(
    model: llama.Model, batches: Mapping[str, EvalBatches], sharding: jax.sharding.Sharding, max_batches: int
) -> Callable[[Any], tuple[dict[str, float], list]]:
    """The evaluation `run(params)` -> loss (nats per trained token) and perplexity of each source, `max_batches` each.

    A source with fewer batches is read whole; every token weighs the same.
    """

    @jax.jit
    def sums(params, batch):
        scores = token_logprobs(model, params, batch)
        return -jnp.sum(scores.logp * batch["loss_mask"]), jnp.sum(batch["loss_mask"])

    def run(params: Any) -> tuple[dict[str, float], list]:
        metrics = {}
        for name, source in batches.items():
            parts = [
                sums(params, device_batch(source, step, sharding)) for step in range(min(len(source), max_batches))
            ]
            loss, tokens = (sum(float(x) for x in column) for column in zip(*parts, strict=True))
            metrics[f"{name}/loss"] = loss / tokens
            metrics[f"{name}/perplexity"] = math.exp(min(loss / tokens, 700.0))
        return metrics, []

    return run
