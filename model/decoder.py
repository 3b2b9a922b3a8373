"""The network for a few new positions of each row, over a key/value cache (`cache.py`).

One position reads every weight for very little arithmetic, so the number of passes over memory decides the speed.
`Decoder` is made from a `Transformer` with fewer passes: layers are unrolled from their stack, weights are cast to the
compute dtype, and the matrices of queries, keys and values are one matrix, as are those of gate and up.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from . import adapter_rows, quantization, xla_cpu
from .attention import attend_cache
from .cache import Cache
from .linear import dense, linear
from .llama import MLP, Attention, Block, Transformer, add_bias, embeddings
from .rope import angles
from .weights import Weight

Matrix = jax.Array | Weight


class Form(NamedTuple):
    """How a decoder stores its matrices."""

    dtype: str
    """Dtype of dense matrices."""

    by_blocks: bool = False
    """Whether a single row is multiplied with the codes of quantised matrices (`quantization.product`)."""

    left: bool = False
    """Whether every matrix is dense and a left factor (`xla_cpu.from_left`)."""


def _side_by_side(params: Sequence[nnx.Param], axes: tuple[int, ...], axis: int, form: Form) -> Matrix:
    """Matrices with one input axis as one, dense or, where all are quantised alike, in their codes.

    axes: the output axes that each gets (-1: what is left); axis: along which of all axes they follow one another.
    Adapters of a whole network are merged into its matrices, which are then no longer quantised.
    """
    matrices = [param.get_value() for param in params]
    if adapter_rows.has_adapters(matrices[0]):
        base = _side_by_side([nnx.Param(matrix.parts["base"]) for matrix in matrices], axes, axis, form)
        return _adapted_by_row(base, matrices, axes, axis, form)
    kinds = {_kind(matrix, form) for matrix in matrices}
    if len(kinds) == 1 and None not in kinds:
        parts = [{n: _with_axes(x, axes) for n, x in matrix.parts.items()} for matrix in matrices]
        joined = {n: jnp.concatenate([each[n] for each in parts], axis) for n in parts[0]}
        return Weight(joined, by_blocks=form.by_blocks)
    return _dense(jnp.concatenate([_with_axes(dense(each, 1, form.dtype), axes) for each in matrices], axis), form)


def _adapted_by_row(base: Matrix, matrices: Sequence[Weight], axes: tuple[int, ...], axis: int, form: Form) -> Weight:
    """`base`, which is `matrices` side by side, with their adapters of single rows (`adapter_rows.py`)."""
    parts = [matrix.parts for matrix in matrices]
    ups = [_with_axes(each["up"], axes) for each in parts]
    ends = np.cumsum([up.shape[axis] for up in ups])
    for i, up in enumerate(ups):  # each adds to the outputs of its own matrix
        around = [(0, 0)] * up.ndim
        around[axis] = (int(ends[i]) - up.shape[axis], int(ends[-1] - ends[i]))
        ups[i] = jnp.pad(up, around)
    inputs = math.prod(parts[0]["down"].shape[:-1])
    down = jnp.concatenate([each["down"].reshape(inputs, each["owners"].size) for each in parts], 1)
    found = {
        "base": base,
        "down": _dense(down.astype(form.dtype), form),
        "up": _dense(jnp.concatenate(ups).astype(form.dtype), form),
        "owners": jnp.concatenate([each["owners"] for each in parts]),
    }
    if "factors" in parts[0]:
        found["factors"] = jnp.concatenate([_with_axes(each["factors"], axes) for each in parts], axis)
    return Weight(found)


def _biases(params: Sequence[nnx.Param], axes: tuple[int, ...], axis: int) -> jax.Array:
    """The biases of matrices that `_side_by_side` joins, joined like their outputs."""
    return jnp.concatenate([param.get_value().reshape(axes) for param in params], axis)


def _with_axes(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """A part of a matrix with other output axes; of scales for a whole last axis there is one number along it."""
    last = (1,) if x.shape[-1] == 1 and axes[-1] != 1 else axes[-1:]
    axes = (*axes[:-1], *last)
    left = math.prod(x.shape[1:]) // math.prod(axis for axis in axes if axis != -1)
    return x.reshape(x.shape[0], *(left if axis == -1 else axis for axis in axes))


def _kind(value: Matrix, form: Form) -> str | None:
    """The kind of a quantised matrix that stays in its codes."""
    if form.left or not isinstance(value, Weight) or "base" in value.parts:
        return None
    return quantization.kind_of(value.parts)


def _alone(value: Matrix, inputs: int, form: Form) -> Matrix:
    """A matrix with its input axes as one, dense or in its codes."""
    if adapter_rows.has_adapters(value):
        return _adapted_by_row(_alone(value.parts["base"], inputs, form), [value], value.parts["up"].shape[1:], 1, form)
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


class Past(NamedTuple):
    """What new positions of a layer attend to. The fields are those of `Decoder.hidden`."""

    cache: Cache
    valid_LTS: Bool[Array, "*L T S"]
    slot: Int[Array, ""] | Int[Array, " R"]
    filled: Int[Array, ""] | None
    row: Int[Array, ""] | None
    is_written: bool


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

    def __call__(self, x_BTD, rotary, past: "Past"):
        q_BTHE, k_BTKE, v_BTKE = self.project(x_BTD, rotary)
        cache = past.cache if past.is_written else past.cache.write(k_BTKE, v_BTKE, past.slot, past.row)
        how = dict(scale=self.config.attention_scale, filled=past.filled, row=past.row)
        return self.merge_heads(attend_cache(q_BTHE, past.valid_LTS, *cache, **how)), cache


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
    """The blocks of a `Transformer` around `FusedAttention` and `FusedMLP`, called with a few new positions a row."""

    def __init__(self, network: Transformer, positions: int, by_blocks: bool = False):
        """Copies the matrices of a network into the decoder's form.

        Args:
            network: the network, with its parameters.
            positions: number of positions in a pass, of all rows together; it decides the form of the matrices.
            by_blocks: whether a single row is multiplied with codes (`quantization.product`).
        """
        config = network.config
        form = Form(config.dtype, by_blocks, left=xla_cpu.from_left(positions))
        self.config = config
        self.table = network.embed.embedding
        self.blocks = nnx.List(_unstack(network, form))
        self.norm = network.norm
        self.kernel = nnx.Param(self._head(network, form))

    def __call__(
        self,
        tokens_RT: Int[Array, "R T"],
        slot: Int[Array, ""] | Int[Array, " R"],
        starts_R: Int[Array, " R"],
        caches: list[Cache],
        filled: Int[Array, ""] | None = None,
        adapters_R: Int[Array, " R"] | None = None,
        *,
        row: Int[Array, ""] | None = None,
        is_written: bool = False,
    ) -> tuple[Float[Array, "R T V"], list[Cache]]:
        """Float32 logits of the token that follows each of T new tokens of every row, and the caches with these tokens.

        The arguments are those of `hidden`.
        """
        how = dict(row=row, is_written=is_written)
        hidden_RTD, written = self.hidden(tokens_RT, slot, starts_R, caches, filled, adapters_R, **how)
        (R, T, _), kernel = hidden_RTD.shape, self.kernel.get_value()
        if adapters_R is not None:
            kernel = adapter_rows.choose(kernel, jnp.repeat(adapters_R, T))
        return self._logits(hidden_RTD.reshape(R * T, -1), kernel).reshape(R, T, -1), written

    def hidden(
        self,
        tokens_RT: Int[Array, "R T"],
        slot: Int[Array, ""] | Int[Array, " R"],
        starts_R: Int[Array, " R"],
        caches: list[Cache],
        filled: Int[Array, ""] | None = None,
        adapters_R: Int[Array, " R"] | None = None,
        *,
        row: Int[Array, ""] | None = None,
        is_written: bool = False,
    ) -> tuple[Float[Array, "R T D"], list[Cache]]:
        """The states that the output head reads, after each of T new tokens of every row.

        Args:
            tokens_RT: the new tokens.
            slot: slot of the cache that the first new token of all rows is written to, or one for each row.
            starts_R: slot of each row's position 0; a row attends to the slots from there to the new token's.
            caches: one for each layer.
            filled: number of slots from the first on that are read (`attention.attend_cache`); None for all.
            adapters_R: number of the adapter that each row uses, 0 for none; for a network that has some
                (`adapter_rows.put`).
            row: the row of the caches that the tokens are of, where the caches have others too; R is 1 then.
            is_written: whether the caches have the keys and values of the new tokens already.

        Returns:
            The last layer's normalised states, in the compute dtype, and the caches with the new tokens.
        """
        R, T = tokens_RT.shape
        slots_RT = jnp.broadcast_to(slot, R)[:, None] + jnp.arange(T)[None]
        slots_11S = jnp.arange(caches[0].slots)[None, None]
        valid_RTS = (slots_11S >= starts_R[:, None, None]) & (slots_11S <= slots_RT[:, :, None])
        if self.config.window is not None:  # slots of a row follow one another as its positions do
            valid_RTS &= slots_11S > slots_RT[:, :, None] - self.config.window
        heads = (R, self.config.n_kv_heads, *valid_RTS.shape[1:])
        valid_LTS = xla_cpu.rows_and_heads(jnp.broadcast_to(valid_RTS[:, None], heads))
        # The barrier keeps XLA from computing sines anew for every head of every layer.
        rotary = jax.lax.optimization_barrier(angles(self.config, slots_RT - starts_R[:, None]))
        x_RTD = embeddings(self.config, self.table.get_value(), tokens_RT)
        written, blocks = [], self.blocks
        if adapters_R is not None:
            blocks = adapter_rows.choose(blocks, adapters_R)
        for block, cache in zip(blocks, caches, strict=True):
            x_RTD, cache = block(x_RTD, rotary, Past(cache, valid_LTS, slot, filled, row, is_written))
            written.append(cache)
        return self.norm(x_RTD), written

    @property
    def by_blocks(self) -> bool:
        """Whether a pass over one position multiplies codes and one over several decodes them first."""
        matrix = self.blocks[0].mlp.down.get_value()
        return isinstance(matrix, Weight) and matrix.by_blocks and quantization.kind_of(matrix.parts) != "nf4"

    def _head(self, network: Transformer, form: Form) -> Matrix:
        """The output head; a tied one that is dense stays [V, D], as it lies, so that no transposed copy is made."""
        if not self.config.tied:
            return _alone(network.head.kernel.get_value(), 1, form)
        table = network.embed.embedding.get_value()
        if isinstance(table, Weight):
            return _alone(Weight(quantization.as_head(table.parts)), 1, form)
        return Weight({"left": table.astype(form.dtype)}) if form.left else table.astype(form.dtype)

    def logits(self, hidden_BD: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """Float32 logits."""
        return self._logits(hidden_BD, self.kernel.get_value())

    def _logits(self, hidden_BD: Float[Array, "B D"], kernel: Matrix) -> Float[Array, "B V"]:
        if isinstance(kernel, Weight):
            return linear(hidden_BD[:, None], kernel, jnp.float32)[:, 0]
        axes = "bd,vd->bv" if self.config.tied else "bd,dv->bv"
        return jnp.einsum(axes, hidden_BD, kernel, preferred_element_type=jnp.float32)


def _unstack(network: Transformer, form: Form) -> list[Block]:
    """The layers one by one, with fused weights."""
    graph, stacked = nnx.split(network.layers)
    blocks = []
    for i in range(network.config.n_layers):
        block = nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], stacked))
        block.attention = FusedAttention(block.attention, form)
        block.mlp = FusedMLP(block.mlp, form)
        blocks.append(block)
    return blocks
