"""Log-probabilities of tokens without ever holding a batch x time x vocabulary array, and means over masks.

One chunked function serves pretraining, tuning, preference losses, PPO and scoring: the output head is applied to a
few positions at a time, and applied again in the backward pass instead of being stored.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..model import llama
from ..model.linear import linear
from ..model.sharding import axis_size

CHUNK = 64
"""Positions of a row whose logits exist at one time."""


class TokenScores(NamedTuple):
    """logp: log-probability of each target. log_z: log of the softmax's denominator, for the z-loss. Both float32."""

    logp: Float[Array, "B T"]
    log_z: Float[Array, "B T"]


def token_logprobs(model: llama.Model, params: llama.Params, batch: Mapping[str, Array]) -> TokenScores:
    """Scores of `batch["targets"]` [B, T] given the packed rows `tokens`, `segment_ids`, `positions` [B, T]."""
    hidden_BTD = model.hidden(params, batch["tokens"], batch["segment_ids"], batch["positions"])
    return head_logprobs(llama.output_kernel(params), hidden_BTD, batch["targets"])


def head_logprobs(
    kernel_DV: Float[Array, "D V"], hidden_BTD: Float[Array, "B T D"], targets_BT: Int[Array, "B T"]
) -> TokenScores:
    """Scores of targets from the states before them, `CHUNK` positions at a time; logits and softmax in float32."""

    @jax.checkpoint
    def score(hidden, targets):
        logits = linear(hidden, kernel_DV, jnp.float32)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return TokenScores(chosen - log_z, log_z)

    B, T = targets_BT.shape
    shards = axis_size("context")  # each device walks through its own part of the row
    chunks = -(-T // (shards * CHUNK))
    padded = chunks * shards * -(-T // (shards * chunks))
    if padded != T:
        hidden_BTD = jnp.pad(hidden_BTD, ((0, 0), (0, padded - T), (0, 0)))
        targets_BT = jnp.pad(targets_BT, ((0, 0), (0, padded - T)))

    def split(x):
        parts = jnp.moveaxis(x.reshape(B, shards, chunks, -1, *x.shape[2:]), 2, 0)
        return parts.reshape(chunks, B, -1, *x.shape[2:])

    _, scores = jax.lax.scan(lambda _, xs: (None, score(*xs)), None, (split(hidden_BTD), split(targets_BT)))

    def join(x):
        return jnp.moveaxis(x.reshape(chunks, B, shards, -1), 0, 2).reshape(B, padded)[:, :T]

    return TokenScores(*map(join, scores))


def next_token_loss(model: llama.Model, z_loss: float = 0.0) -> Callable:
    """The loss of pretraining and of tuning, as `state.make_update` takes it: sums over the tokens of `loss_mask`.

    Per token -log p + z_loss log(Z)^2, where Z is the softmax's denominator: the second term keeps logits from
    drifting (PaLM, arXiv:2204.02311, section 5).
    """

    def loss_fn(params: llama.Params, rows: Mapping[str, Array]):
        scores = token_logprobs(model, params, rows)
        mask_BT = rows["loss_mask"]
        nll = -jnp.sum(scores.logp * mask_BT)
        log_z_squared = jnp.sum(scores.log_z**2 * mask_BT)
        return nll + z_loss * log_z_squared, jnp.sum(mask_BT), {"nll": nll, "log_z_squared": log_z_squared}

    return loss_fn


def masked_mean(x: Float[Array, "*shape"], mask: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean of x over all entries where mask is 1, over the whole array and so over every shard; 0 where none is."""
    x, mask = x.astype(jnp.float32), mask.astype(jnp.float32)
    return jnp.sum(jnp.where(mask > 0, x, 0.0) * mask) / jnp.maximum(jnp.sum(mask), 1.0)
