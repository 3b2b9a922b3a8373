"""Loss on held-out rows, also by how much text stands before a token."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..data.mixture import EvalPass
from ..data.prefetch import device_batch
from ..data.tokenizer import Tokenizer
from ..model import llama
from ..model.logprobs import token_logprobs


def heldout_loss(
    model: llama.Model,
    batches: Mapping[str, EvalPass],
    tokenizer: Tokenizer,
    sharding: jax.sharding.Sharding,
    max_batches: int,
    borders: Sequence[int] = (),
) -> Callable[[Any], tuple[dict[str, float], list]]:
    """The evaluation `run(params)` of each source, `max_batches` each: loss (nats per trained token), perplexity, and
    bits_per_character, which tokenizers that cut text differently have in common.

    A source with fewer batches is read whole; every token weighs the same. borders: positions, ascending, at which the
    row is divided into ranges, each with a perplexity of its own; a range that no sample reaches has none. A position
    counts from where its sample begins in the row.
    """
    edges = jnp.asarray([0, *borders])
    has_prefix = tokenizer.adds_bos and tokenizer.drops_first_space  # a space before a text, which is not of the text

    @jax.jit
    def sums(params, batch, characters_V):
        scores = token_logprobs(model, params, batch)
        place_BT = jnp.searchsorted(edges, batch["positions"], side="right") - 1
        in_range = place_BT[None] == jnp.arange(len(edges))[:, None, None]
        characters_BT = characters_V[batch["targets"]]
        if has_prefix:
            characters_BT -= (batch["tokens"] == tokenizer.bos_id) & (characters_BT > 0)
        terms = jnp.stack([-scores.logp, jnp.ones_like(scores.logp), characters_BT])
        return jnp.sum(jnp.where(in_range[None], (terms * batch["loss_mask"][None])[:, None], 0.0), axis=(2, 3))

    def run(params: Any) -> tuple[dict[str, float], list]:
        metrics = {}
        for name, source in batches.items():
            steps = range(min(len(source), max_batches))
            parts = [sums(params, device_batch(source, step, sharding), tokenizer.characters) for step in steps]
            by_range = sum(np.asarray(part, np.float64) for part in parts)
            nats, tokens, characters = by_range.sum(axis=1).tolist()
            metrics[f"{name}/loss"] = nats / tokens
            metrics[f"{name}/perplexity"] = _perplexity(nats, tokens)
            metrics[f"{name}/bits_per_character"] = nats / math.log(2) / characters if characters else math.nan
            if borders:
                ranges = itertools.pairwise([0, *borders, source.length])
                for (start, stop), nats, tokens in zip(ranges, *by_range[:2], strict=True):
                    if tokens:
                        metrics[f"{name}/perplexity/{start}-{stop}"] = _perplexity(nats, tokens)
        return metrics, []

    return run


def _perplexity(nats: float, tokens: float) -> float:
    return math.exp(min(nats / tokens, 700.0))
