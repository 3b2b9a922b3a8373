"""Log-probabilities of tokens without an array of batch x time x vocabulary, and means over masks.

The output head is applied to `CHUNK` positions at a time. Where a loss is some function of log-probabilities, as in
preference losses and PPO, the backward pass applies the head again instead of storing logits. Where the loss is a sum
over tokens, its gradient is computed together with its value.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from . import llama
from .linear import linear
from .sampling import Ranges, without_unused
from .sharding import axis_size
from .weights import Weight

CHUNK = 64
"""Positions of a row whose logits are in memory at one time."""


class TokenScores(NamedTuple):
    """What the network says of each target, in float32. Under jit, fields that are not used are not computed."""

    logp: Float[Array, "B T"]
    """Log-probability of the target."""

    log_z: Float[Array, "B T"]
    """Log of the softmax's denominator, for the z-loss."""

    entropy: Float[Array, "B T"]
    """Entropy of the predicted distribution, in nats."""


def token_logprobs(model: llama.Model, params: llama.Params, batch: Mapping[str, Array]) -> TokenScores:
    """Scores of the targets of a batch of packed rows: `tokens`, `targets`, `segment_ids` and `positions`, [B, T]."""
    hidden_BTD = model.hidden(params, batch["tokens"], batch["segment_ids"], batch["positions"])
    return head_logprobs(llama.output_kernel(params), hidden_BTD, batch["targets"])


def head_logprobs(
    kernel_DV: Float[Array, "D V"],
    hidden_BTD: Float[Array, "B T D"],
    targets_BT: Int[Array, "B T"],
    temperature: float = 1.0,
    unused: Ranges = (),
) -> TokenScores:
    """Scores of targets, with logits and softmax in float32.

    Args:
      kernel_DV: the output head.
      hidden_BTD: the network's last hidden states, from each of which a target is predicted.
      targets_BT: token ids.
      temperature: divisor of the logits, that of `model.sampling.Sampling` where tokens were sampled.
      unused: ids without a token, which have probability 0, as in `model.sampling.Sampling`.
    """
    score = jax.checkpoint(functools.partial(_chunk_scores, kernel_DV, temperature=temperature, unused=unused))
    chunks = _split(hidden_BTD), _split(targets_BT)
    _, scores = jax.lax.scan(lambda _, chunk: (None, score(*chunk)), None, chunks)
    return TokenScores(*(_join(x, targets_BT.shape[1]) for x in scores))


def _chunk_scores(kernel_DV, hidden_BtD, targets_Bt, temperature: float = 1.0, unused: Ranges = ()) -> TokenScores:
    logits_BtV = without_unused(unused, linear(hidden_BtD, kernel_DV, jnp.float32) / temperature)
    log_z_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
    chosen_Bt = jnp.take_along_axis(logits_BtV, targets_Bt[..., None], axis=-1)[..., 0]
    mean_Bt = jnp.sum(jax.nn.softmax(logits_BtV, axis=-1) * logits_BtV, axis=-1)
    return TokenScores(chosen_Bt - log_z_Bt, log_z_Bt, log_z_Bt - mean_Bt)


def head_kl(
    kernel_DV: Float[Array, "D V"],
    hidden_BTD: Float[Array, "B T D"],
    other_kernel_DV: Float[Array, "D V"],
    other_hidden_BTD: Float[Array, "B T D"],
    temperature: float = 1.0,
    unused: Ranges = (),
) -> Float[Array, "B T"]:
    """KL(p || q) in nats over the whole vocabulary at each position. p is from the first head and states, q from the
    others; see `head_logprobs` for the arguments."""

    def chunk_kl(hidden_BtD, other_BtD):
        p_BtV, q_BtV = (
            jax.nn.log_softmax(without_unused(unused, linear(x_BtD, w_DV, jnp.float32) / temperature), axis=-1)
            for x_BtD, w_DV in ((hidden_BtD, kernel_DV), (other_BtD, other_kernel_DV))
        )
        return jnp.sum(jnp.exp(p_BtV) * (p_BtV - q_BtV), axis=-1)

    chunks = _split(hidden_BTD), _split(other_hidden_BTD)
    _, kl = jax.lax.scan(lambda _, chunk: (None, jax.checkpoint(chunk_kl)(*chunk)), None, chunks)
    return _join(kl, hidden_BTD.shape[1])


def _split(x: Shaped[Array, "B T ..."]) -> Shaped[Array, "chunks B t ..."]:
    """Rows cut into chunks of positions, padded with zeros. Where the mesh axis `context` splits rows, each device cuts
    its own part."""
    (B, T), rest = x.shape[:2], x.shape[2:]
    shards = axis_size("context")
    chunks = -(-T // (shards * CHUNK))
    padded = chunks * shards * -(-T // (shards * chunks))
    x = jnp.pad(x, ((0, 0), (0, padded - T), *((0, 0) for _ in rest)))
    return jnp.moveaxis(x.reshape(B, shards, chunks, -1, *rest), 2, 0).reshape(chunks, B, -1, *rest)


def _join(x: Shaped[Array, "chunks B t ..."], T: int) -> Shaped[Array, "B T ..."]:
    """The inverse of `_split`."""
    (chunks, B), rest = x.shape[:2], x.shape[3:]
    parts = x.reshape(chunks, B, axis_size("context"), -1, *rest)
    return jnp.moveaxis(parts, 0, 2).reshape(B, -1, *rest)[:, :T]


def next_token_loss(model: llama.Model, z_loss: float = 0.0) -> Callable:
    """The loss of pretraining and tuning, as a `train.update.LossFn`: sums over the tokens of `loss_mask`.

    The loss of a token is -log p + z_loss log(Z)^2, where Z is the softmax's denominator. The second term keeps logits
    from drifting (PaLM, arXiv:2204.02311, section 5).
    """

    def chunk_sums(kernel_DV, hidden_BtD, targets_Bt, mask_Bt):
        scores = _chunk_scores(kernel_DV, hidden_BtD, targets_Bt)
        nll = -jnp.sum(scores.logp * mask_Bt)
        log_z_squared = jnp.sum(scores.log_z**2 * mask_Bt)
        return nll + z_loss * log_z_squared, {"nll": nll, "log_z_squared": log_z_squared}

    def loss_fn(params: llama.Params, rows: Mapping[str, Array]):
        hidden_BTD = model.hidden(params, rows["tokens"], rows["segment_ids"], rows["positions"])
        kernel_DV, mask_BT = llama.output_kernel(params), rows["loss_mask"]
        loss, extra = sum_over_chunks(chunk_sums, kernel_DV, hidden_BTD, rows["targets"], mask_BT)
        return loss, jnp.sum(mask_BT), extra

    return loss_fn


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sum_over_chunks(
    chunk_sums: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
    kernel_DV: Float[Array, "D V"] | Weight,
    hidden_BTD: Float[Array, "B T D"],
    targets_BT: Int[Array, "B T"],
    mask_BT: Float[Array, "B T"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Sums of a loss and of statistics over chunks of `CHUNK` positions.

    Only the loss is differentiated, with respect to the head and the hidden states. The gradient of a sum does not
    depend on later operations, so each chunk's gradient is computed with its value, and no logits are computed twice.

    Args:
      chunk_sums: chunk_sums(kernel, hidden, targets, mask) -> (loss, dict of statistics) of one chunk.
      kernel_DV: the output head.
      hidden_BTD: the network's last hidden states.
      targets_BT: token ids.
      mask_BT: weight of each target.
    """
    chunks = [_split(x) for x in (hidden_BTD, targets_BT, mask_BT)]
    _, sums = jax.lax.scan(lambda _, chunk: (None, chunk_sums(kernel_DV, *chunk)), None, chunks)
    return jax.tree.map(jnp.sum, sums)


def _sum_with_gradient(chunk_sums, *arguments):
    """The sums with their gradients. For a frozen head no gradient is formed."""
    is_argument = lambda x: hasattr(x, "perturbed")  # noqa: E731
    kernel, *_ = arguments
    leaves, tree = jax.tree.flatten(kernel, is_leaf=is_argument)
    learns = [leaf.perturbed for leaf in leaves]
    kernel, hidden_BTD, targets_BT, mask_BT = jax.tree.map(lambda x: x.value, arguments, is_leaf=is_argument)
    values = jax.tree.leaves(kernel)

    def with_learning(learning, *chunk):
        own = iter(learning)
        return chunk_sums(
            tree.unflatten([next(own) if moves else v for moves, v in zip(learns, values, strict=True)]), *chunk
        )

    def step(total, chunk):
        sums, (parts, hidden_grad) = jax.value_and_grad(with_learning, argnums=(0, 1), has_aux=True)(learning, *chunk)
        return jax.tree.map(jnp.add, total, parts), (sums, hidden_grad)

    learning = [value for value, moves in zip(values, learns, strict=True) if moves]
    chunks = [_split(x) for x in (hidden_BTD, targets_BT, mask_BT)]
    grads, (sums, hidden_grads) = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, learning), chunks)
    found = iter(grads)
    kernel_grad = tree.unflatten([next(found) if moves else None for moves in learns])
    return jax.tree.map(jnp.sum, sums), (kernel_grad, _join(hidden_grads, hidden_BTD.shape[1]))


def _scale_gradient(chunk_sums, gradients, cotangents):
    along_loss, _ = cotangents
    return *jax.tree.map(lambda g: (along_loss * g).astype(g.dtype), gradients), None, None


sum_over_chunks.defvjp(_sum_with_gradient, _scale_gradient, symbolic_zeros=True)


def masked_mean(x: Float[Array, "*shape"], mask: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean of x, weighted by a mask, over the whole array, all shards included; 0 where the mask is 0 everywhere."""
    x, mask = x.astype(jnp.float32), mask.astype(jnp.float32)
    return jnp.sum(jnp.where(mask > 0, x, 0.0) * mask) / jnp.maximum(jnp.sum(mask), 1.0)
