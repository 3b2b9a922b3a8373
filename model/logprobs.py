"""Log-probabilities of tokens without an array of batch x time x vocabulary, and means over masks.

The output head is applied to a chunk of positions at a time. Where a loss is some function of log-probabilities, as in
preference losses and PPO, the backward pass applies the head again instead of storing logits. Where the loss is a sum
over tokens, its gradient is computed together with its value.

Each device goes through the chunks of its own rows. The head is gathered from the devices that share it before the
first chunk, and its gradient is summed over devices after the last one: neither happens once a chunk.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from . import llama
from .linear import linear
from .sampling import Ranges, without_unused
from .sharding import BATCH, axis_size, compile_platform
from .weights import Weight

CHUNK = 64
"""Positions of a row whose logits are in memory at one time, on a CPU."""

CHUNK_TOKENS = 2048
"""Tokens of a device whose logits are in memory at one time, on other devices. The gradient of the head is read and
written once a chunk, which takes less time than its products only from about 1,000 tokens on."""

SPLIT = (*BATCH, "context")
"""Mesh axes over which rows and their positions are split."""


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

    def own(kernel_DV, *rows):
        score = jax.checkpoint(functools.partial(_chunk_scores, kernel_DV, temperature=temperature, unused=unused))
        _, scores = jax.lax.scan(lambda _, chunk: (None, score(*chunk)), None, [_split(x) for x in rows])
        return TokenScores(*(_join(x, rows[0].shape[1]) for x in scores)), ()

    return _on_own_rows(own, kernel_DV, hidden_BTD, targets_BT)[0]


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

    @jax.checkpoint
    def chunk_kl(kernels, hidden_BtD, other_BtD):
        p_BtV, q_BtV = (
            jax.nn.log_softmax(without_unused(unused, linear(x_BtD, w_DV, jnp.float32) / temperature), axis=-1)
            for x_BtD, w_DV in zip((hidden_BtD, other_BtD), kernels, strict=True)
        )
        return jnp.sum(jnp.exp(p_BtV) * (p_BtV - q_BtV), axis=-1)

    def own(kernels, *rows):
        _, kl = jax.lax.scan(lambda _, chunk: (None, chunk_kl(kernels, *chunk)), None, [_split(x) for x in rows])
        return _join(kl, rows[0].shape[1]), ()

    return _on_own_rows(own, (kernel_DV, other_kernel_DV), hidden_BTD, other_hidden_BTD)[0]


def _on_own_rows(function: Callable[..., tuple[Any, Any]], kernels: Any, *rows: Shaped[Array, "B T ..."]) -> Any:
    """function(kernels, *rows) -> (arrays [B, T, ...], sums over rows), where each device computes its own rows.

    The mesh axis `tensor` is left to XLA, which splits the head's outputs over it. Where a mesh does not divide rows or
    positions, zeros are appended and their results dropped; in sums they count.
    """
    if math.prod(map(axis_size, SPLIT)) == 1:
        return function(kernels, *rows)

    def own(kernels, *rows):
        by_row, sums = function(kernels, *rows)
        return by_row, jax.lax.psum(sums, SPLIT)

    B, T = rows[0].shape[:2]
    more = -B % math.prod(map(axis_size, BATCH)), -T % axis_size("context")
    rows = [jnp.pad(x, [(0, n) for n in (*more, *[0] * (x.ndim - 2))]) for x in rows]
    whole, split = PartitionSpec(), PartitionSpec(BATCH, "context")
    by_row, sums = jax.shard_map(
        own,
        in_specs=(whole, *[split] * len(rows)),
        out_specs=(split, whole),
        axis_names=set(SPLIT),
        check_vma=False,
    )(kernels, *rows)
    return jax.tree.map(lambda x: x[:B, :T], by_row), sums


def _split(x: Shaped[Array, "B T ..."]) -> Shaped[Array, "chunks B t ..."]:
    """Rows cut into chunks of positions, padded with zeros."""
    (B, T), rest = x.shape[:2], x.shape[2:]
    chunks = -(-T // _chunk_length(B))
    x = jnp.pad(x, ((0, 0), (0, -T % chunks), *((0, 0) for _ in rest)))
    return jnp.moveaxis(x.reshape(B, chunks, -1, *rest), 1, 0)


def _chunk_length(B: int) -> int:
    """Positions of each of a device's B rows whose logits are in memory at one time."""
    return CHUNK if compile_platform() == "cpu" else max(1, CHUNK_TOKENS // B)


def _join(x: Shaped[Array, "chunks B t ..."], T: int) -> Shaped[Array, "B T ..."]:
    """The inverse of `_split`."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :T]


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
    """Sums of a loss and of statistics over chunks of positions.

    Only the loss is differentiated, with respect to the head and the hidden states. The gradient of a sum does not
    depend on later operations, so each chunk's gradient is computed with its value, and no logits are computed twice.

    Args:
      chunk_sums: chunk_sums(kernel, hidden, targets, mask) -> (loss, dict of statistics) of one chunk.
      kernel_DV: the output head.
      hidden_BTD: the network's last hidden states.
      targets_BT: token ids.
      mask_BT: weight of each target.
    """

    def own(kernel, *rows):
        _, sums = jax.lax.scan(lambda _, chunk: (None, chunk_sums(kernel, *chunk)), None, [_split(x) for x in rows])
        return (), jax.tree.map(jnp.sum, sums)

    return _on_own_rows(own, kernel_DV, hidden_BTD, targets_BT, mask_BT)[1]


def _sum_with_gradient(chunk_sums, *arguments):
    """The sums with their gradients. For a frozen head no gradient is formed.

    The gradient of a head is summed over chunks and devices in float32. A head that is one matrix is gathered in the
    dtype of the computation.
    """
    is_argument = lambda x: hasattr(x, "perturbed")  # noqa: E731
    leaves, tree = jax.tree.flatten(arguments[0], is_leaf=is_argument)
    learns = [leaf.perturbed for leaf in leaves]
    kernel, hidden_BTD, *rest = jax.tree.map(lambda x: x.value, arguments, is_leaf=is_argument)
    dtypes = [x.dtype for x, moves in zip(jax.tree.leaves(kernel), learns, strict=True) if moves]
    if not isinstance(kernel, Weight):
        kernel = kernel.astype(hidden_BTD.dtype)

    def merged(learning, values):
        own = iter(learning)
        return tree.unflatten([next(own) if moves else v for moves, v in zip(learns, values, strict=True)])

    def own(values, *rows):
        def of_chunk(learning, *chunk):
            return chunk_sums(merged(learning, values), *chunk)

        def step(total, chunk):
            sums, (parts, hidden_grad) = jax.value_and_grad(of_chunk, argnums=(0, 1), has_aux=True)(learning, *chunk)
            return jax.tree.map(jnp.add, total, parts), (sums, hidden_grad)

        learning = [value for value, moves in zip(values, learns, strict=True) if moves]
        zeros = [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in learning]
        grads, (sums, hidden_grads) = jax.lax.scan(step, zeros, [_split(x) for x in rows])
        return _join(hidden_grads, rows[0].shape[1]), (jax.tree.map(jnp.sum, sums), grads)

    hidden_grad, (sums, grads) = _on_own_rows(own, jax.tree.leaves(kernel), hidden_BTD, *rest)
    grads = [grad.astype(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]
    return sums, (merged(grads, [None] * len(learns)), hidden_grad)


def _scale_gradient(chunk_sums, gradients, cotangents):
    along_loss, _ = cotangents
    return *jax.tree.map(lambda g: (along_loss * g).astype(g.dtype), gradients), None, None


sum_over_chunks.defvjp(_sum_with_gradient, _scale_gradient, symbolic_zeros=True)


def masked_mean(x: Float[Array, "*shape"], mask: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean of x, weighted by a mask, over the whole array, all shards included; 0 where the mask is 0 everywhere."""
    x, mask = x.astype(jnp.float32), mask.astype(jnp.float32)
    return jnp.sum(jnp.where(mask > 0, x, 0.0) * mask) / jnp.maximum(jnp.sum(mask), 1.0)
