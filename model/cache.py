"""The network one position, or a few, at a time, against a key/value cache.

One position reads every weight for very little arithmetic, so what counts is how often memory is passed over.
`Decoder` is `Transformer` made over for that, once per call: layers unrolled from their stack, weights cast to the
compute dtype, query, key and value weights side by side, gate and up too, and on a CPU turned around for several
positions.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from . import quantization
from .attention import attend_cache
from .config import LlamaConfig
from .linear import dense, linear
from .llama import MLP, Attention, Block, Transformer, add_bias, embeddings
from .rope import angles
from .sharding import BATCH, axis_size, constrain
from .weights import Weight


class Cache(NamedTuple):
    """Keys and values of one layer, key/value heads only, in S slots.

    L is [B * K]: were row and head two axes and one of them 1, XLA's CPU backend would copy the cache at every step
    (it strips axes of size 1 from products, and then writes the cache in two shapes). Where a mesh splits heads over
    `tensor`, L is [B, K], so that both can be split. With scales, keys and values are int8: a vector is its codes times
    its scale, a 127th of its largest number.
    """

    keys_LSE: Shaped[Array, "*L S E"]
    values_LSE: Shaped[Array, "*L S E"]
    key_scales_LS: Float[Array, "*L S"] | None = None
    value_scales_LS: Float[Array, "*L S"] | None = None

    def write(self, k_BTKE: jax.Array, v_BTKE: jax.Array, slot: Int[Array, ""] | Int[Array, " B"]) -> "Cache":
        """With the keys and values of T positions from `slot` on, one slot for all rows or one for each."""
        *lead, _, E = self.keys_LSE.shape
        new = Cache(*(jnp.swapaxes(x_BTKE, 1, 2).reshape(*lead, -1, E) for x_BTKE in (k_BTKE, v_BTKE)))
        if self.key_scales_LS is not None:
            new = new.encode()
        slots_axis = len(lead)

        def put(old_LS, new_LT):
            if slot.ndim == 0:
                return jax.lax.dynamic_update_slice_in_dim(old_LS, new_LT, slot, slots_axis)
            slot_L = jnp.repeat(slot, k_BTKE.shape[2]).reshape(lead)
            update = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
            return functools.reduce(lambda f, _: jax.vmap(f), lead, update)(old_LS, new_LT, slot_L)

        return jax.tree.map(put, self, new)

    def encode(self) -> "Cache":
        """The same in codes of 8 bits."""

        def codes_of(x_LSE):
            scales_LS = jnp.max(jnp.abs(x_LSE.astype(jnp.float32)), axis=-1) / 127
            steps_LSE = x_LSE / jnp.where(scales_LS > 0, scales_LS, 1.0)[..., None]
            return jnp.round(steps_LSE).astype(jnp.int8), scales_LS

        (keys, key_scales), (values, value_scales) = codes_of(self.keys_LSE), codes_of(self.values_LSE)
        return Cache(keys, values, key_scales, value_scales)


def _rows_and_heads(x: Shaped[Array, "B K ..."]) -> Shaped[Array, "..."]:
    """Row and head as one axis, or as two where heads are split (see `Cache`)."""
    if axis_size("tensor") > 1:
        return constrain(x, BATCH, "tensor", *[None] * (x.ndim - 2))
    return constrain(x.reshape(-1, *x.shape[2:]), BATCH, *[None] * (x.ndim - 2))


def keep(config: LlamaConfig, k_BTKE: Float[Array, "B T K E"], v_BTKE: Float[Array, "B T K E"]) -> Cache:
    """Keys and values in the numbers that `config.cache` says, still [B, T, K, E] and [B, T, K]."""
    kept = Cache(k_BTKE, v_BTKE)
    return kept.encode() if config.cache == "int8" else kept


def make_cache(kept: Cache, repeats: int, slots: int) -> Cache:
    """The cache of `slots` slots that a prompt begins, each row `repeats` times in a row. kept: what `keep` gives."""

    def fill(x_BTK):  # and a last axis E, but for scales
        x_RKT = jnp.repeat(jnp.swapaxes(x_BTK, 1, 2), repeats, axis=0)
        room = [(0, 0)] * x_RKT.ndim
        room[2] = (0, slots - x_RKT.shape[2])
        return _rows_and_heads(jnp.pad(x_RKT, room))

    return jax.tree.map(fill, kept)


Matrix = jax.Array | Weight


class Form(NamedTuple):
    """How a decoder keeps matrices. dtype: of dense ones. by_blocks: of quantised ones, see `quantization.product`.
    left: every one is dense and a factor from the left, see `linear`."""

    dtype: str
    by_blocks: bool = False
    left: bool = False


def _side_by_side(params: Sequence[nnx.Param], axes: tuple[int, ...], axis: int, form: Form) -> Matrix:
    """Matrices with one input axis as one, dense or, where all are quantised alike, in their codes.

    axes: the output axes that each gets (-1: what is left); axis: along which of all axes they follow one another.
    Adapters are merged into their matrices, which are then no longer quantised.
    """
    values = [param.get_value() for param in params]
    kinds = {_kind(value, form) for value in values}
    if len(kinds) == 1 and None not in kinds:
        parts = [{n: _with_axes(x, axes) for n, x in value.parts.items()} for value in values]
        joined = {n: jnp.concatenate([each[n] for each in parts], axis) for n in parts[0]}
        return Weight(joined, by_blocks=form.by_blocks)
    return _dense(jnp.concatenate([_with_axes(dense(value, 1, form.dtype), axes) for value in values], axis), form)


def _biases(params: Sequence[nnx.Param], axes: tuple[int, ...], axis: int) -> jax.Array:
    """The biases of matrices that `_side_by_side` joins, joined like their outputs."""
    return jnp.concatenate([param.get_value().reshape(axes) for param in params], axis)


def _with_axes(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """A part of a matrix with other output axes; of scales for a whole last axis there is one number along it."""
    last = (1,) if x.shape[-1] == 1 and axes[-1] != 1 else axes[-1:]
    return x.reshape(x.shape[0], *axes[:-1], *last)


def _kind(value: Matrix, form: Form) -> str | None:
    """The kind of a quantised matrix that stays in its codes."""
    if form.left or not isinstance(value, Weight) or "base" in value.parts:
        return None
    return quantization.kind_of(value.parts)


def _alone(value: Matrix, inputs: int, form: Form) -> Matrix:
    """A matrix with its input axes as one, dense or in its codes."""
    if _kind(value, form) is not None:
        parts = {n: x.reshape(-1, *x.shape[inputs:]) for n, x in value.parts.items()}
        return Weight(parts, by_blocks=form.by_blocks)
    whole = dense(value, inputs, form.dtype)
    return _dense(whole.reshape(-1, *whole.shape[inputs:]), form)


def _dense(whole: Float[Array, "inputs ..."], form: Form) -> Matrix:
    return Weight({"left": jnp.moveaxis(whole, 0, -1)}) if form.left else whole


def _times(x_BTD: Float[Array, "B T D"], matrix: Matrix) -> Float[Array, "B T ..."]:
    """The product with a matrix of one input axis. Rows and positions are few here and stay two axes."""
    return linear(x_BTD, matrix) if isinstance(matrix, Weight) else jnp.tensordot(x_BTD, matrix, 1)


class FusedAttention(Attention):
    """`Attention` of new positions over a cache, with query, key and value weights side by side.

    They are grouped by key/value head, [D, K, H / K + 2, E], and so split over `tensor` as the cache is.
    """

    def __init__(self, attention: Attention, form: Form):
        config = attention.config
        K, E = config.n_kv_heads, config.head_dim
        matrices = (attention.q, attention.k, attention.v)
        self.config = config
        self.qkv = nnx.Param(_side_by_side(matrices, (K, -1, E), 2, form))
        self.o = nnx.Param(_alone(attention.o.get_value(), 2, form))
        biases = (attention.q_bias, attention.k_bias, attention.v_bias)
        self.qkv_bias = nnx.Param(_biases(biases, (K, -1, E), 1)) if config.qkv_bias else None
        self.o_bias = attention.o_bias
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm

    def heads(self, x_BTD):
        qkv_BTKHE = add_bias(_times(x_BTD, self.qkv.get_value()), self.qkv_bias)
        B, T, _, _, E = qkv_BTKHE.shape
        return qkv_BTKHE[..., :-2, :].reshape(B, T, -1, E), qkv_BTKHE[..., -2, :], qkv_BTKHE[..., -1, :]

    def merge_heads(self, out_BTHE):
        out_BTD = _times(out_BTHE.reshape(*out_BTHE.shape[:2], -1), self.o.get_value())
        return add_bias(out_BTD, self.o_bias)

    def __call__(self, x_BTD, rotary, past):
        cache, slot, valid_LTS = past
        q_BTHE, k_BTKE, v_BTKE = self.project(x_BTD, rotary)
        cache = cache.write(k_BTKE, v_BTKE, slot)
        return self.merge_heads(attend_cache(q_BTHE, valid_LTS, *cache, scale=self.config.attention_scale)), cache


class FusedMLP(MLP):
    """`MLP` with gate and up in one product."""

    def __init__(self, mlp: MLP, form: Form):
        self.gate_up = nnx.Param(_side_by_side((mlp.gate, mlp.up), (1, -1), 1, form))
        self.down = nnx.Param(_alone(mlp.down.get_value(), 1, form))
        biases = (mlp.gate_bias, mlp.up_bias)
        self.gate_up_bias = nnx.Param(_biases(biases, (1, -1), 0)) if mlp.gate_bias is not None else None
        self.down_bias = mlp.down_bias

    def branches(self, x_BTD):
        both_BT2F = add_bias(_times(x_BTD, self.gate_up.get_value()), self.gate_up_bias)
        return both_BT2F[..., 0, :], both_BT2F[..., 1, :]


class Decoder(nnx.Module):
    """`Transformer` for a few new positions at a time: the same blocks around `FusedAttention` and `FusedMLP`.

    positions: how many come in a pass, of all rows together. With several, XLA's CPU backend reads weights faster from
    the left of a product, and decodes quantised ones once, before the loop over tokens, whatever it is told; with one,
    matrix times vector, it reads them fastest as they lie.
    """

    def __init__(self, llama: Transformer, positions: int, by_blocks: bool = False):
        config = llama.config
        form = Form(config.dtype, by_blocks, left=positions > 1 and jax.default_backend() == "cpu")
        self.config = config
        self.table = llama.embed.embedding
        self.blocks = nnx.List(_unstack(llama, form))
        self.norm = llama.norm
        self.kernel = nnx.Param(self._head(llama, form))

    def __call__(
        self,
        tokens_B: Int[Array, " B"],
        positions_B: Int[Array, " B"],
        caches: list[Cache],
        slot: Int[Array, ""],
        valid_BS: Bool[Array, "B S"],
    ) -> tuple[Float[Array, "B V"], list[Cache]]:
        """Float32 logits of the token after `tokens_B`, whose keys and values go to `slot`."""
        logits_B1V, caches = self.window(tokens_B[:, None], positions_B[:, None], caches, slot, valid_BS[:, None])
        return logits_B1V[:, 0], caches

    def window(
        self,
        tokens_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        caches: list[Cache],
        slot: Int[Array, ""] | Int[Array, " B"],
        valid_BTS: Bool[Array, "B T S"],
    ) -> tuple[Float[Array, "B T V"], list[Cache]]:
        """The same of T positions in one pass: keys and values go to the T slots from `slot` on (see `Cache.write`)."""
        B, T, S = valid_BTS.shape
        if self.config.window is not None:  # slots of a row follow one another as its positions do
            slots_BT1 = jnp.broadcast_to(slot, B)[:, None, None] + jnp.arange(T)[None, :, None]
            valid_BTS &= jnp.arange(S)[None, None] > slots_BT1 - self.config.window
        valid_LTS = _rows_and_heads(jnp.broadcast_to(valid_BTS[:, None], (B, self.config.n_kv_heads, T, S)))
        # The barrier keeps XLA from computing sines anew for every head of every layer.
        rotary = jax.lax.optimization_barrier(angles(self.config, positions_BT))
        x_BTD = embeddings(self.config, self.table.get_value(), tokens_BT)
        written = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x_BTD, cache = block(x_BTD, rotary, (cache, slot, valid_LTS))
            written.append(cache)
        hidden_BTD = self.norm(x_BTD)
        return self.logits(hidden_BTD.reshape(B * T, -1)).reshape(B, T, -1), written

    @property
    def by_blocks(self) -> bool:
        """Whether one position meets codes as they are and several would decode them: see `quantization.product`."""
        matrix = self.blocks[0].mlp.down.get_value()
        return isinstance(matrix, Weight) and matrix.by_blocks and quantization.kind_of(matrix.parts) != "nf4"

    def _head(self, llama: Transformer, form: Form) -> Matrix:
        """The output head; a tied one that is dense stays [V, D], as it lies, so that no transposed copy is made."""
        if not self.config.tied:
            return _alone(llama.head.kernel.get_value(), 1, form)
        table = llama.embed.embedding.get_value()
        if isinstance(table, Weight):
            return _alone(Weight(quantization.as_head(table.parts)), 1, form)
        return Weight({"left": table.astype(form.dtype)}) if form.left else table.astype(form.dtype)

    def logits(self, hidden_BD: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """Float32 logits."""
        kernel = self.kernel.get_value()
        if isinstance(kernel, Weight):
            return linear(hidden_BD[:, None], kernel, jnp.float32)[:, 0]
        axes = "bd,vd->bv" if self.config.tied else "bd,dv->bv"
        return jnp.einsum(axes, hidden_BD, kernel, preferred_element_type=jnp.float32)


def _unstack(llama: Transformer, form: Form) -> list[Block]:
    """The layers one by one, with fused weights."""
    graph, stacked = nnx.split(llama.layers)
    blocks = []
    for i in range(llama.config.n_layers):
        block = nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], stacked))
        block.attention = FusedAttention(block.attention, form)
        block.mlp = FusedMLP(block.mlp, form)
        blocks.append(block)
    return blocks
