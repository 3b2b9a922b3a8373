"""The network one position at a time, against a key/value cache.

One position reads every weight for very little arithmetic, so what counts is how often memory is passed over.
`Decoder` is `Llama` made over for that, once per call: layers unrolled from their stack, weights cast to the compute
dtype, query, key and value weights side by side, gate and up too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from .attention import attend_cache
from .llama import MLP, Attention, Block, Llama
from .rope import angles
from .sharding import BATCH, axis_size, constrain


class Cache(NamedTuple):
    """Keys and values of one layer, key/value heads only; every row writes the same one of S slots next.

    L is [B * K]: were row and head two axes and one of them 1, XLA's CPU backend would copy the cache at every step
    (it strips axes of size 1 from products, and then writes the cache in two shapes). Where a mesh splits heads over
    `tensor`, L is [B, K], so that both can be split.
    """

    keys_LSE: Float[Array, "*L S E"]
    values_LSE: Float[Array, "*L S E"]

    def write(self, k_B1KE: jax.Array, v_B1KE: jax.Array, slot: Int[Array, ""]) -> "Cache":
        """With one position's keys and values, [B, 1, K, E], in `slot`."""

        def put(old_LSE, new_B1KE):
            *lead, _, E = old_LSE.shape
            return jax.lax.dynamic_update_slice_in_dim(old_LSE, new_B1KE.reshape(*lead, 1, E), slot, axis=-2)

        return Cache(put(self.keys_LSE, k_B1KE), put(self.values_LSE, v_B1KE))


def _rows_and_heads(x: Shaped[Array, "B K ..."]) -> Shaped[Array, "..."]:
    """Row and head as one axis, or as two where heads are split (see `Cache`)."""
    if axis_size("tensor") > 1:
        return constrain(x, BATCH, "tensor", *[None] * (x.ndim - 2))
    return constrain(x.reshape(-1, *x.shape[2:]), BATCH, *[None] * (x.ndim - 2))


def make_cache(k_BTKE: Float[Array, "B T K E"], v_BTKE: Float[Array, "B T K E"], repeats: int, slots: int) -> Cache:
    """The cache of `slots` slots that a prompt's keys and values begin, each row `repeats` times in a row."""
    room = slots - k_BTKE.shape[1]

    def fill(x_BTKE):
        x_RKTE = jnp.repeat(x_BTKE.transpose(0, 2, 1, 3), repeats, axis=0)
        return _rows_and_heads(jnp.pad(x_RKTE, ((0, 0), (0, 0), (0, room), (0, 0))))

    return Cache(fill(k_BTKE), fill(v_BTKE))


class FusedAttention(Attention):
    """`Attention` of one new position, with query, key and value weights side by side.

    They are grouped by key/value head, [D, K, H / K + 2, E], and so split over `tensor` as the cache is.
    """

    def __init__(self, attention: Attention):
        config = attention.config
        D, K, E = config.dim, config.n_kv_heads, config.head_dim
        parts = [w[...].reshape(D, K, -1, E) for w in (attention.q, attention.k, attention.v)]
        self.config = config
        self.qkv = nnx.Param(jnp.concatenate(parts, axis=2).astype(config.dtype))
        self.o = nnx.Param(attention.o[...].reshape(-1, D).astype(config.dtype))

    def heads(self, x_BTD):
        qkv_BTKHE = jnp.einsum("btd,dkhe->btkhe", x_BTD, self.qkv[...])
        B, T, _, _, E = qkv_BTKHE.shape
        return qkv_BTKHE[..., :-2, :].reshape(B, T, -1, E), qkv_BTKHE[..., -2, :], qkv_BTKHE[..., -1, :]

    def merge_heads(self, out_BTHE):
        return out_BTHE.reshape(*out_BTHE.shape[:2], -1) @ self.o[...]

    def __call__(self, x_B1D, rotary, past):
        cache, slot, valid_LS = past
        q_B1HE, k_B1KE, v_B1KE = self.project(x_B1D, rotary)
        cache = cache.write(k_B1KE, v_B1KE, slot)
        return self.merge_heads(attend_cache(q_B1HE, *cache, valid_LS)), cache


class FusedMLP(MLP):
    """`MLP` with gate and up in one product."""

    def __init__(self, mlp: MLP, dtype: str):
        self.gate_up = nnx.Param(jnp.stack([mlp.gate[...], mlp.up[...]], axis=1).astype(dtype))
        self.down = nnx.Param(mlp.down[...].astype(dtype))

    def branches(self, x_BTD):
        both_BT2F = jnp.einsum("btd,dcf->btcf", x_BTD, self.gate_up[...])
        return both_BT2F[..., 0, :], both_BT2F[..., 1, :]


class Decoder(nnx.Module):
    """`Llama` for one position at a time: the same blocks around `FusedAttention` and `FusedMLP`."""

    def __init__(self, llama: Llama):
        config = llama.config
        self.config = config
        self.table = nnx.Param(llama.embed.embedding[...].astype(config.dtype))
        self.blocks = nnx.List(_unstack(llama))
        self.norm = llama.norm
        if not config.tied:
            self.kernel = nnx.Param(llama.head.kernel[...].astype(config.dtype))

    def __call__(
        self,
        tokens_B: Int[Array, " B"],
        positions_B: Int[Array, " B"],
        caches: list[Cache],
        slot: Int[Array, ""],
        valid_BS: Bool[Array, "B S"],
    ) -> tuple[Float[Array, "B V"], list[Cache]]:
        """Float32 logits of the token after `tokens_B`, whose keys and values go to `slot`."""
        B, S = valid_BS.shape
        valid_LS = _rows_and_heads(jnp.broadcast_to(valid_BS[:, None], (B, self.config.n_kv_heads, S)))
        # The barrier keeps XLA from computing sines anew for every head of every layer.
        rotary = jax.lax.optimization_barrier(angles(self.config, positions_B[:, None]))
        x_B1D = self.table[...][tokens_B[:, None]]
        written = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x_B1D, cache = block(x_B1D, rotary, (cache, slot, valid_LS))
            written.append(cache)
        return self.logits(self.norm(x_B1D)[:, 0]), written

    def logits(self, hidden_BD: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """Float32 logits; a tied head reads the embedding as it lies, so that no transposed copy is made."""
        weight, axes = (self.table, "bd,vd->bv") if self.config.tied else (self.kernel, "bd,dv->bv")
        return jnp.einsum(axes, hidden_BD, weight[...], preferred_element_type=jnp.float32)


def _unstack(llama: Llama) -> list[Block]:
    """The layers one by one, with fused weights."""
    graph, stacked = nnx.split(llama.layers)
    blocks = []
    for i in range(llama.config.n_layers):
        block = nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], stacked))
        block.attention = FusedAttention(block.attention)
        block.mlp = FusedMLP(block.mlp, llama.config.dtype)
        blocks.append(block)
    return blocks
