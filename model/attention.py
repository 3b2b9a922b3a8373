"""Causal attention within segments, behind one function with one implementation per kind of hardware.

`xla` runs everywhere; `splash` is JAX's Pallas kernel for TPUs; `cudnn` is NVIDIA's fused kernel. All of them take
packed rows: a position attends to the earlier positions of its own row that carry its own segment id, with a window W
to itself and the W - 1 before it.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Shaped

from . import ring_attention, xla_cpu
from .attention_blocks import splash_block, splash_blocks
from .sharding import BATCH, axis_size, compile_platform, constrain

IMPLEMENTATIONS = ("auto", "xla", "splash", "cudnn")
BRANCHES = "branches"
"""An implementation that `xla` is of: continuations share a context that is computed once. The positions of a context
have the segment id s below 2**16, those of its continuation b = 1, 2, ... have s + b * 2**16. A continuation sees
itself and its context, and a context itself alone. Only scoring asks for it: nothing is differentiated there."""

_MASKED = -1e30  # finite, so that a row with nothing to attend to gives a mean and not NaN


def attention(
    q_BTHE: Float[Array, "B T H E"],
    k_BTKE: Float[Array, "B T K E"],
    v_BTKE: Float[Array, "B T K E"],
    segment_ids_BT: Int[Array, "B T"] | ring_attention.Zigzag,
    implementation: str = "auto",
    window: int | None = None,
    scale: float | None = None,
) -> Float[Array, "B T H E"]:
    """softmax(scale q k^T) v over earlier positions of the same segment (Vaswani et al., section 3.2.1).

    window: how many positions a position sees, itself among them (None: all). scale: None for 1 / sqrt(E).
    Query head h reads key/value head h // (H / K). `auto` takes splash on a TPU where each device's part of the row is
    a multiple of 128 tokens, cudnn on a GPU in a 16-bit dtype, else xla. A named implementation that cannot run raises.
    What a backward pass needs of it beside its inputs has the name "attention" (`remat.py`). Where the mesh splits rows
    evenly over `context`, xla and splash compute the blocks of ring attention (`ring_attention.py`).
    """
    if implementation == "auto":
        implementation = _choose(q_BTHE)
    if implementation not in (*IMPLEMENTATIONS, BRANCHES):
        raise ValueError(f"attention {implementation!r}: give one of {', '.join(IMPLEMENTATIONS)}")
    if implementation in ("xla", "splash") and ring_attention.takes(*q_BTHE.shape[:2]):
        q_BTHE = _scaled(q_BTHE, scale)
        return ring_attention.attend(q_BTHE, k_BTKE, v_BTKE, segment_ids_BT, kernel=implementation, window=window)
    branches = functools.partial(_xla, branches=True)
    function = {"xla": _xla, "splash": splash, "cudnn": _cudnn, BRANCHES: branches}[implementation]
    out_BTHE = function(q_BTHE, k_BTKE, v_BTKE, segment_ids_BT, window=window, scale=scale)
    # Splash attention names its output itself, with the softmax's denominators.
    return out_BTHE if implementation == "splash" else checkpoint_name(out_BTHE, "attention")


def _choose(q_BTHE: jax.Array) -> str:
    platform = compile_platform()
    if platform == "tpu" and q_BTHE.shape[1] % (128 * axis_size("context")) == 0:
        return "splash"
    ring = ring_attention.takes(*q_BTHE.shape[:2])  # which has no blocks of cuDNN's
    if platform == "gpu" and q_BTHE.dtype in (jnp.bfloat16, jnp.float16) and not ring:
        return "cudnn"
    return "xla"


def _scaled(q_BTHE: jax.Array, scale: float | None) -> jax.Array:
    return q_BTHE * jnp.asarray(q_BTHE.shape[-1] ** -0.5 if scale is None else scale, q_BTHE.dtype)


def _xla(
    q_BTHE,
    k_BTKE,
    v_BTKE,
    segment_ids_BT,
    *,
    window: int | None = None,
    scale: float | None = None,
    branches: bool = False,
):
    """Blocks of queries against the keys that one of them sees: scores above the diagonal, and those of earlier blocks
    than a window reaches, are never computed.

    Blocks are static slices, at most 16 of them so that compile time stays flat. Rows that the `context` axis does not
    divide are one block: each device has a part of the queries and gathers all keys.
    """
    B, T, H, E = q_BTHE.shape
    K = k_BTKE.shape[2]
    q_BKGTE = _scaled(q_BTHE.reshape(B, T, K, H // K, E).transpose(0, 2, 3, 1, 4), scale)
    k_BKTE, v_BKTE = k_BTKE.transpose(0, 2, 1, 3), v_BTKE.transpose(0, 2, 1, 3)
    block = max(64, -(-T // 16))
    if axis_size("context") > 1:
        block = T
        k_BKTE, v_BKTE = (constrain(x, BATCH, "tensor", None, None) for x in (k_BKTE, v_BKTE))
    outs = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        first = 0 if window is None else max(0, start - window + 1)
        seen_TS = jnp.arange(start, stop)[:, None] >= jnp.arange(first, stop)[None, :]
        if window is not None:
            seen_TS &= jnp.arange(start, stop)[:, None] - jnp.arange(first, stop)[None, :] < window
        own_BT1, other_B1S = segment_ids_BT[:, start:stop, None], segment_ids_BT[:, None, first:stop]
        same_BTS = own_BT1 == other_B1S
        if branches:
            same_BTS |= own_BT1 & 0xFFFF == other_B1S
        rows, seen = slice(start, stop), slice(first, stop)
        mask_BTS = seen_TS[None] & same_BTS
        outs.append(_attend(q_BKGTE[:, :, :, rows], k_BKTE[:, :, seen], v_BKTE[:, :, seen], mask_BTS))
    out_BKGTE = jnp.concatenate(outs, axis=3)
    return out_BKGTE.transpose(0, 3, 1, 2, 4).reshape(B, T, H, E)


def _attend(
    q_BKGTE: Float[Array, "B K G T E"],
    k_BKSE: Float[Array, "B K S E"],
    v_BKSE: Float[Array, "B K S E"],
    mask_BTS: Bool[Array, "B T S"],
) -> Float[Array, "B K G T E"]:
    """Attention with scores and softmax in float32; q comes already scaled."""
    scores = xla_cpu.grouped_scores(q_BKGTE, k_BKSE)
    masked = jnp.where(jnp.tile(mask_BTS, (1, q_BKGTE.shape[2], 1))[:, None], scores, _MASKED)
    probs = jax.nn.softmax(masked, axis=-1).astype(v_BKSE.dtype)
    return jnp.matmul(probs, v_BKSE).reshape(q_BKGTE.shape)


BLOCK = 128
"""Slots of a cache that are read together where only a part of them is read."""


def attend_cache(
    q_BTHE: Float[Array, "B T H E"],
    valid_LTS: Bool[Array, "*L T S"],
    keys_LSE: Shaped[Array, "*L S E"],
    values_LSE: Shaped[Array, "*L S E"],
    key_scales_LS: Float[Array, "*L S"] | None = None,
    value_scales_LS: Float[Array, "*L S"] | None = None,
    *,
    scale: float | None = None,
    filled: Int[Array, ""] | Int[Array, " B"] | None = None,
    row: Int[Array, ""] | None = None,
) -> Float[Array, "B T H E"]:
    """Attention of T new positions over a key/value cache.

    L stands for row and key/value head, as one axis or as two (`xla_cpu.rows_and_heads`). For keys and values in codes
    of 8 bits, the scales of their vectors are multiplied into scores and weights, and products are of integers: no
    decoded cache is formed.

    Args:
        q_BTHE: queries.
        valid_LTS: slots of the cache that each new position attends to.
        keys_LSE: keys, in floats or codes.
        values_LSE: values, in floats or codes.
        key_scales_LS: a scale for each key in codes; None for floats.
        value_scales_LS: a scale for each value in codes; None for floats.
        scale: factor of the scores; None for 1 / sqrt(E).
        filled: number of slots from the first on that are read, in whole blocks, one for all rows or one for each; None
            for all slots. The result is the same bits for every number that covers the slots a query attends to; where
            none are read it is 0.
        row: the row that the queries are of, where the cache has others too; they are of one row then, and `filled` is
            given.
    """
    B, T, H, E = q_BTHE.shape
    *lead, _, _ = valid_LTS.shape
    K = math.prod(lead) // B
    q_BKTGE = _scaled(jnp.swapaxes(q_BTHE.reshape(B, T, K, H // K, E), 1, 2), scale)
    q_LQE = q_BKTGE.reshape(*lead, -1, E)  # the queries of a head's group at all new positions
    valid_LQS = jnp.repeat(valid_LTS, H // K, axis=-2)

    def joined(out_LQE):
        return jnp.swapaxes(out_LQE.reshape(q_BKTGE.shape), 1, 2).reshape(q_BTHE.shape).astype(q_BTHE.dtype)

    cache = [keys_LSE, values_LSE, *(() if key_scales_LS is None else (key_scales_LS, value_scales_LS))]
    if filled is not None:
        attend = _attend_blocks if filled.ndim == 0 else _attend_rows
        return joined(attend(q_LQE, valid_LQS, cache, filled, row))
    probs = jax.nn.softmax(jnp.where(valid_LQS, _scores(q_LQE, cache), _MASKED), axis=-1)
    return joined(_weighted_values(probs, cache))


def _scores(q_LQE: Float[Array, "*L Q E"], cache: Sequence[Array]) -> Float[Array, "*L Q S"]:
    """Float32 scores of queries against the keys of a cache: keys and values, and their scales if they are codes."""
    if len(cache) == 2:
        return jnp.einsum("...qe,...se->...qs", q_LQE, cache[0], preferred_element_type=jnp.float32)
    return xla_cpu.times_codes("...qe,...se->...qs", q_LQE, cache[0]) * cache[2][..., None, :]


def _weighted_values(probs_LQS: Float[Array, "*L Q S"], cache: Sequence[Array]) -> Float[Array, "*L Q E"]:
    """Sums of the values of a cache, weighted by probabilities."""
    if len(cache) == 2:
        return jnp.einsum("...qs,...se->...qe", probs_LQS.astype(cache[1].dtype), cache[1])
    return xla_cpu.times_codes("...qs,...se->...qe", probs_LQS * cache[3][..., None, :], cache[1])


def _attend_blocks(
    q_LQE: Float[Array, "*L Q E"],
    valid_LQS: Bool[Array, "*L Q S"],
    cache: Sequence[Array],
    filled: Int[Array, ""],
    row: Int[Array, ""] | None,
) -> Float[Array, "*L Q E"]:
    """Attention over the first `filled` slots, block by block with a running maximum (arXiv:1805.02867, algorithm 3).

    A block of which nothing counts changes no bit: it adds 0 and multiplies by 1.
    """
    S, axis = valid_LQS.shape[-1], valid_LQS.ndim - 2
    size, own = math.gcd(S, BLOCK) if S > BLOCK else S, valid_LQS.shape[0]

    def block(x_LS, i):  # of a row's slots, without a copy of all of them
        starts, sizes = [0] * x_LS.ndim, list(x_LS.shape)
        starts[axis], sizes[axis] = i * size, size
        if row is not None:
            starts[0], sizes[0] = row * own, own
        return jax.lax.dynamic_slice(x_LS, starts, sizes)

    def add(i, sums):
        top_LQ1, weight_LQ1, out_LQE = sums
        part = [block(x_LS, i) for x_LS in cache]
        valid_LQs = jax.lax.dynamic_slice_in_dim(valid_LQS, i * size, size, axis + 1)
        scores_LQs = jnp.where(valid_LQs, _scores(q_LQE, part), _MASKED)
        new_LQ1 = jnp.maximum(top_LQ1, jnp.max(scores_LQs, axis=-1, keepdims=True))
        probs_LQs, kept_LQ1 = jnp.exp(scores_LQs - new_LQ1), jnp.exp(top_LQ1 - new_LQ1)
        weight_LQ1 = weight_LQ1 * kept_LQ1 + jnp.sum(probs_LQs, axis=-1, keepdims=True)
        return new_LQ1, weight_LQ1, out_LQE * kept_LQ1 + _weighted_values(probs_LQs, part).astype(jnp.float32)

    none_LQ1 = jnp.full((*q_LQE.shape[:-1], 1), _MASKED, jnp.float32)
    begin = none_LQ1, jnp.zeros_like(none_LQ1), jnp.zeros(q_LQE.shape, jnp.float32)
    _, weight_LQ1, out_LQE = jax.lax.fori_loop(0, -(-filled // size), add, begin)
    return out_LQE / jnp.maximum(weight_LQ1, 1)  # it is 1 or more, but where nothing is read


def _attend_rows(q_LQE, valid_LQS, cache: Sequence[Array], filled_B: Int[Array, " B"], _: None):
    """`_attend_blocks` row by row, each over as many slots as it has filled."""
    own = len(q_LQE) // len(filled_B)

    def one(row, out_LQE):
        q, valid = (jax.lax.dynamic_slice_in_dim(x, row * own, own) for x in (q_LQE, valid_LQS))
        out = _attend_blocks(q, valid, cache, filled_B[row], row)
        return jax.lax.dynamic_update_slice_in_dim(out_LQE, out, row * own, axis=0)

    return jax.lax.fori_loop(0, len(filled_B), one, jnp.zeros(q_LQE.shape, jnp.float32))


def splash(
    q_BTHE,
    k_BTKE,
    v_BTKE,
    segment_ids_BT,
    *,
    window: int | None = None,
    scale: float | None = None,
    interpret: bool = False,
):
    """JAX's splash attention (Pallas, TPU), under `shard_map` where a mesh is set, with heads over `tensor`; of rows
    over `context` it computes the blocks of ring attention. `interpret` runs it without a TPU, for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    T, H = q_BTHE.shape[1:3]
    context, tensor = axis_size("context"), axis_size("tensor")
    if T % (128 * context):
        raise ValueError(f"splash attention takes rows of a multiple of {128 * context} tokens, not {T}")
    if context > 1:
        args = _scaled(q_BTHE, scale), k_BTKE, v_BTKE, segment_ids_BT
        return ring_attention.attend(*args, kernel="splash", window=window, interpret=interpret)
    mask = pallas.CausalMask((T, T)) if window is None else pallas.LocalMask((T, T), (window - 1, 0), 0)
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([mask for _ in range(H)]),
        head_shards=tensor,
        q_seq_shards=1,
        block_sizes=splash_blocks(splash_block(T)),
        residual_checkpoint_name="attention",
        interpret=interpret,
    )

    def run(kernel, q, k, v, q_segments, kv_segments):
        def one_row(q_THE, k_SKE, v_SKE, q_seg_T, kv_seg_S):
            heads_first = (x.transpose(1, 0, 2) for x in (q_THE, k_SKE, v_SKE))
            out_HTE = kernel(*heads_first, segment_ids=pallas.SegmentIds(q_seg_T, kv_seg_S))
            return out_HTE.transpose(1, 0, 2)

        return jax.vmap(one_row)(q, k, v, q_segments, kv_segments)

    args = (
        kernel,
        _scaled(q_BTHE, scale),
        k_BTKE,
        v_BTKE,
        segment_ids_BT,
        segment_ids_BT,
    )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return run(*args)
    heads, rows = P(BATCH, None, "tensor", None), P(BATCH, None)
    kernel_spec = kernel.manual_sharding_spec(jax.sharding.NamedSharding(mesh, P("tensor", None)))
    in_specs = (kernel_spec, heads, heads, heads, rows, rows)
    return jax.shard_map(run, in_specs=in_specs, out_specs=heads, check_vma=False)(*args)


def _cudnn(q_BTHE, k_BTKE, v_BTKE, segment_ids_BT, *, window: int | None = None, scale: float | None = None):
    """NVIDIA's fused attention through `jax.nn`; segments and the window enter as a mask, 16-bit inputs only."""
    T = q_BTHE.shape[1]
    seen_TT = jnp.tril(jnp.ones((T, T), bool))
    if window is not None:
        seen_TT &= ~jnp.tril(seen_TT, -window)
    mask_B1TT = (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])[:, None] & seen_TT[None, None]
    return jax.nn.dot_product_attention(q_BTHE, k_BTKE, v_BTKE, mask=mask_B1TT, scale=scale, implementation="cudnn")
