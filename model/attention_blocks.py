"""Attention of a block of queries to a block of keys, as ring attention joins them (`ring_attention.py`).

Forward gives the output over the keys of the block, and the logarithm of the softmax's denominator (log-sum-exp, lse).
Backward takes both of whole rows: the gradients of a block need no other block (FlashAttention-2, arXiv:2307.08691,
algorithm 2).
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from . import xla_cpu

_MASKED = -1e30  # finite: a query that sees nothing of a block has this lse, and so no weight where it sees anything


class Sight(NamedTuple):
    """Which keys of a block a query sees, segments aside: query i key j where 0 <= offset + i - j < window."""

    offset: int
    """Tokens from the first key to the first query."""

    window: int | None
    """Positions that a position sees, itself among them; None for all."""


class Kernels(NamedTuple):
    """An implementation of the attention of a block."""

    forward: Callable[..., tuple[Float[Array, "B H T E"], Float[Array, "B H T"]]]
    """forward(q, k, v, q_segments, k_segments, sight) gives output and lse, the lse in float32."""

    backward: Callable[..., tuple[Float[Array, "B H T E"], Float[Array, "B K S E"], Float[Array, "B K S E"]]]
    """backward(q, k, v, q_segments, k_segments, out, lse, d_out, sight) gives dq, dk and dv."""


def kernels(name: str, interpret: bool = False) -> Kernels:
    """The implementation "xla" or "splash". `interpret` runs splash attention without a TPU, for tests."""
    if name == "xla":
        return Kernels(_xla_forward, _xla_backward)
    return Kernels(*(functools.partial(f, interpret=interpret) for f in (_splash_forward, _splash_backward)))


def _blocks(T: int, S: int, sight: Sight) -> Iterator[tuple[slice, slice, Bool[Array, "t s"]]]:
    """Queries, at most 16 times, with the keys that one of them sees, and which of these keys each of them sees."""
    block = max(64, -(-T // 16))
    for start in range(0, T, block):
        stop = min(start + block, T)
        first = 0 if sight.window is None else max(0, start + sight.offset - sight.window + 1)
        last = min(S, stop + sight.offset)
        if first < last:
            before_ts = sight.offset + jnp.arange(start, stop)[:, None] - jnp.arange(first, last)[None, :]
            seen_ts = (before_ts >= 0) & (before_ts < (sight.window or S + sight.offset + T))
            yield slice(start, stop), slice(first, last), seen_ts


def _probabilities(
    q_BKGtE: Float[Array, "B K G t E"],
    k_BKsE: Float[Array, "B K s E"],
    same_B1ts: Bool[Array, "B 1 t s"],
    seen_ts: Bool[Array, "t s"],
    lse_BKQ1: Float[Array, "B K Q 1"] | None = None,
) -> tuple[Float[Array, "B K Q s"], Float[Array, "B K Q 1"]]:
    """Weights of a block's keys, and the lse: that of the block where none is given. A group's queries are one axis."""
    scores_BKQs = xla_cpu.grouped_scores(q_BKGtE, k_BKsE)
    mask_B1Qs = jnp.tile(same_B1ts & seen_ts[None, None], (1, 1, q_BKGtE.shape[2], 1))
    masked_BKQs = jnp.where(mask_B1Qs, scores_BKQs, _MASKED)
    if lse_BKQ1 is None:
        lse_BKQ1 = jax.nn.logsumexp(masked_BKQs, axis=-1, keepdims=True)
    return jnp.exp(masked_BKQs - lse_BKQ1), lse_BKQ1


def _grouped(x_BHT: Float[Array, "B H T *E"], K: int) -> Float[Array, "B K G T *E"]:
    B, H, *rest = x_BHT.shape
    return x_BHT.reshape(B, K, H // K, *rest)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _xla_forward(q_BHTE, k_BKSE, v_BKSE, q_segments_B1T, k_segments_B1S, sight: Sight):
    K, S = k_BKSE.shape[1:3]
    q_BKGTE = _grouped(q_BHTE, K)
    out_BKGTE = jnp.zeros(q_BKGTE.shape, jnp.float32)
    lse_BKGT = jnp.full(q_BKGTE.shape[:-1], _MASKED, jnp.float32)
    for rows, seen, seen_ts in _blocks(q_BHTE.shape[2], S, sight):
        same_B1ts = q_segments_B1T[:, :, rows, None] == k_segments_B1S[:, :, None, seen]
        q_BKGtE = q_BKGTE[:, :, :, rows]
        probs_BKQs, lse_BKQ1 = _probabilities(q_BKGtE, k_BKSE[:, :, seen], same_B1ts, seen_ts)
        block = _product(probs_BKQs.astype(v_BKSE.dtype), v_BKSE[:, :, seen])
        out_BKGTE = out_BKGTE.at[:, :, :, rows].set(block.reshape(q_BKGtE.shape))
        lse_BKGT = lse_BKGT.at[:, :, :, rows].set(lse_BKQ1.reshape(q_BKGtE.shape[:-1]))
    return out_BKGTE.reshape(q_BHTE.shape), lse_BKGT.reshape(q_BHTE.shape[:-1])


def _xla_backward(q_BHTE, k_BKSE, v_BKSE, q_segments_B1T, k_segments_B1S, out_BHTE, lse_BHT, d_out_BHTE, sight: Sight):
    (B, _, T, E), (K, S) = q_BHTE.shape, k_BKSE.shape[1:3]
    # The part of the softmax's gradient that all keys share.
    shared_BHT = jnp.sum(out_BHTE.astype(jnp.float32) * d_out_BHTE.astype(jnp.float32), axis=-1)
    q_BKGTE, d_out_BKGTE, lse_BKGT, shared_BKGT = (_grouped(x, K) for x in (q_BHTE, d_out_BHTE, lse_BHT, shared_BHT))
    dq_BKGTE = jnp.zeros(q_BKGTE.shape, jnp.float32)
    dk_BKSE = dv_BKSE = jnp.zeros(k_BKSE.shape, jnp.float32)
    for rows, seen, seen_ts in _blocks(T, S, sight):
        same_B1ts = q_segments_B1T[:, :, rows, None] == k_segments_B1S[:, :, None, seen]
        q_BKGtE, k_BKsE, v_BKsE = q_BKGTE[:, :, :, rows], k_BKSE[:, :, seen], v_BKSE[:, :, seen]
        q_BKQE, d_out_BKQE = (x.reshape(B, K, -1, E) for x in (q_BKGtE, d_out_BKGTE[:, :, :, rows]))
        lse_BKQ1, shared_BKQ1 = (x[:, :, :, rows].reshape(B, K, -1, 1) for x in (lse_BKGT, shared_BKGT))
        probs_BKQs, _ = _probabilities(q_BKGtE, k_BKsE, same_B1ts, seen_ts, lse_BKQ1)
        d_probs_BKQs = _product(d_out_BKQE, jnp.swapaxes(v_BKsE, -1, -2))
        d_scores_BKQs = (probs_BKQs * (d_probs_BKQs - shared_BKQ1)).astype(q_BHTE.dtype)
        dq_BKGTE = dq_BKGTE.at[:, :, :, rows].set(_product(d_scores_BKQs, k_BKsE).reshape(q_BKGtE.shape))
        dk_BKSE = dk_BKSE.at[:, :, seen].add(_product(jnp.swapaxes(d_scores_BKQs, -1, -2), q_BKQE))
        probs_BKsQ = jnp.swapaxes(probs_BKQs, -1, -2).astype(d_out_BKQE.dtype)
        dv_BKSE = dv_BKSE.at[:, :, seen].add(_product(probs_BKsQ, d_out_BKQE))
    return dq_BKGTE.reshape(q_BHTE.shape), dk_BKSE, dv_BKSE


def _splash_kernel(q_BHTE, k_BKSE, sight: Sight, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    (H, T), S = q_BHTE.shape[1:3], k_BKSE.shape[2]
    if sight.window is not None:
        mask = pallas.LocalMask((T, S), (sight.window - 1, 0), sight.offset)
    else:
        mask = pallas.FullMask((T, S)) if sight.offset >= S else pallas.CausalMask((T, S), sight.offset)
    return pallas.make_splash_mha(
        pallas.MultiHeadMask([mask for _ in range(H)]),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash_blocks(splash_block(T)),
        save_residuals=True,
        interpret=interpret,
    )


def splash_block(T: int) -> int:
    """Tokens of the blocks in which splash attention reads T tokens: a multiple of 128, at most 512, that divides T."""
    return next(block for block in range(min(512, T), 0, -128) if T % block == 0)


@functools.cache
def splash_blocks(block: int):
    """Splash attention's sizes of blocks, all of them the same."""
    from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes

    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    return BlockSizes(**{f"block_{name}": block for name in names})


def _splash_forward(q_BHTE, k_BKSE, v_BKSE, q_segments_B1T, k_segments_B1S, sight: Sight, *, interpret: bool):
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    kernel = _splash_kernel(q_BHTE, k_BKSE, sight, interpret)

    def row(q_HTE, k_KSE, v_KSE, q_segments_1T, k_segments_1S):
        segments = SegmentIds(q_segments_1T[0], k_segments_1S[0])
        out_HTE, (lse_HT,) = kernel(q_HTE, k_KSE, v_KSE, segment_ids=segments)
        return out_HTE, lse_HT

    return jax.vmap(row)(q_BHTE, k_BKSE, v_BKSE, q_segments_B1T, k_segments_B1S)


def _splash_backward(
    q_BHTE, k_BKSE, v_BKSE, q_segments_B1T, k_segments_B1S, out_BHTE, lse_BHT, d_out_BHTE, sight: Sight, *, interpret
):
    """Splash attention's own kernels for dq, and for dk and dv. JAX's public function would give them the output and
    the lse of the block, where those of the whole row are needed."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds, splash_attention_kernel

    kernel = _splash_kernel(q_BHTE, k_BKSE, sight, interpret)

    def row(q_HTE, k_KSE, v_KSE, q_segments_1T, k_segments_1S, out_HTE, lse_HT, d_out_HTE):
        segments = SegmentIds(q_segments_1T[0], k_segments_1S[0])
        kept = q_HTE, k_KSE, v_KSE, segments, None, out_HTE, lse_HT, kernel.dq_mask_info, kernel.dkv_mask_info
        _, _, _, *gradients, _, _ = splash_attention_kernel._splash_attention_bwd(
            **kernel.kwargs, res=kept, do=d_out_HTE
        )
        return tuple(gradients)

    args = q_BHTE, k_BKSE, v_BKSE, q_segments_B1T, k_segments_B1S, out_BHTE, lse_BHT, d_out_BHTE
    return jax.vmap(row)(*args)
