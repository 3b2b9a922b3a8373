"""The network: pre-norm transformer with RMSNorm, rotary embedding, grouped-query attention and SwiGLU.

What other families than LLaMA add (biases, norms of heads, a window, multipliers) is there where the config says so.

`build(config)` hands out what the rest of the codebase works with: a pure function and the abstract tree of its
parameters, a plain nested dict. Layers are stacked on a leading axis and run by `jax.lax.scan`, so that compile time
does not grow with depth.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from . import layer_subset, quantization, ring_attention
from .attention import attention
from .config import LlamaConfig
from .layer_subset import LayerSubset
from .linear import linear
from .remat import policy_of
from .residual import by_position, gathered, read_apart, scattered
from .rope import angles, rotate
from .sharding import BATCH, constrain
from .weights import Weight, is_weight, wrap

Params = dict[str, Any]


def _weight(config: LlamaConfig, rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> nnx.Param:
    return nnx.Param(std * jax.random.truncated_normal(rngs.params(), -3, 3, shape, config.param_dtype))


def _bias(config: LlamaConfig, present: bool, shape: tuple[int, ...]) -> nnx.Param | None:
    return nnx.Param(jnp.zeros(shape, config.param_dtype)) if present else None


def add_bias(x_BT: Float[Array, "B T *outputs"], bias: nnx.Param | None) -> Float[Array, "B T *outputs"]:
    """x plus the bias of a product, in x's dtype; x where the network has no such bias."""
    return x_BT if bias is None else x_BT + bias.get_value().astype(x_BT.dtype)[None, None]


def _times(x: jax.Array, multiplier: float) -> jax.Array:
    return x if multiplier == 1 else x * jnp.asarray(multiplier, x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, in float32 whatever the compute dtype (arXiv:1910.07467).

    width: of the last axis (None: the network's). multiplier: of the result.
    """

    def __init__(
        self, config: LlamaConfig, stack: tuple[int, ...] = (), width: int | None = None, multiplier: float = 1.0
    ):
        self.eps, self.multiplier = config.norm_eps, multiplier
        self.scale = nnx.Param(jnp.ones((*stack, width or config.dim), config.param_dtype))

    def __call__(self, x: Float[Array, "*any D"]) -> Float[Array, "*any D"]:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        normed = x32 * inverse * jnp.expand_dims(self.scale[...].astype(jnp.float32), range(x.ndim - 1))
        return _times(normed, self.multiplier).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        D, H, K, E = config.dim, config.n_heads, config.n_kv_heads, config.head_dim
        self.config = config
        self.q = _weight(config, rngs, (*stack, D, H, E), D**-0.5)
        self.k = _weight(config, rngs, (*stack, D, K, E), D**-0.5)
        self.v = _weight(config, rngs, (*stack, D, K, E), D**-0.5)
        self.o = _weight(config, rngs, (*stack, H, E, D), (2 * config.n_layers * H * E) ** -0.5)
        self.q_bias = _bias(config, config.qkv_bias, (*stack, H, E))
        self.k_bias = _bias(config, config.qkv_bias, (*stack, K, E))
        self.v_bias = _bias(config, config.qkv_bias, (*stack, K, E))
        self.o_bias = _bias(config, config.o_bias, (*stack, D))
        self.q_norm = RMSNorm(config, stack, E) if config.qk_norm else None
        self.k_norm = RMSNorm(config, stack, E) if config.qk_norm else None

    def heads(self, x_BTD) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, H, E], keys and values [B, T, K, E], before their norms and rotation."""
        pairs = (self.q, self.q_bias), (self.k, self.k_bias), (self.v, self.v_bias)
        return tuple(add_bias(linear(read_apart(x_BTD), matrix.get_value()), bias) for matrix, bias in pairs)

    def project(self, x_BTD, rotary) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values; queries and keys turned to their positions."""
        q, k, v = self.heads(x_BTD)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, *rotary), rotate(k, *rotary), v

    def merge_heads(self, out_BTHE) -> Float[Array, "B T D"]:
        return add_bias(linear(out_BTHE, self.o.get_value()), self.o_bias)

    def __call__(self, x_BTD, rotary, segment_ids_BT):
        q, k, v = self.project(x_BTD, rotary)
        q, k, v = (
            checkpoint_name(constrain(x, BATCH, "context", "tensor", None), name)
            for x, name in ((q, "query"), (k, "key"), (v, "value"))
        )
        config = self.config
        out_BTHE = attention(q, k, v, segment_ids_BT, config.attention, config.window, config.attention_scale)
        return self.merge_heads(out_BTHE), (k, v)


class MLP(nnx.Module):
    """SwiGLU: (silu(x gate) * (x up)) down (arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        D, F = config.dim, config.ffn_dim
        self.gate = _weight(config, rngs, (*stack, D, F), D**-0.5)
        self.up = _weight(config, rngs, (*stack, D, F), D**-0.5)
        self.down = _weight(config, rngs, (*stack, F, D), (2 * config.n_layers * F) ** -0.5)
        self.gate_bias = _bias(config, config.mlp_bias, (*stack, F))
        self.up_bias = _bias(config, config.mlp_bias, (*stack, F))
        self.down_bias = _bias(config, config.mlp_bias, (*stack, D))

    def branches(self, x_BTD) -> tuple[jax.Array, jax.Array]:
        """Gate and up, [B, T, F] each."""
        pairs = (self.gate, self.gate_bias), (self.up, self.up_bias)
        return tuple(add_bias(linear(read_apart(x_BTD), matrix.get_value()), bias) for matrix, bias in pairs)

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate_BTF, up_BTF = map(checkpoint_name, self.branches(x_BTD), ("gate", "up"))
        hidden_BTF = constrain(jax.nn.silu(gate_BTF) * up_BTF, BATCH, "context", "tensor")
        return add_bias(linear(read_apart(hidden_BTF), self.down.get_value()), self.down_bias)


class Block(nnx.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs, stack: tuple[int, ...] = ()):
        self.multiplier = config.residual_multiplier
        self.attention_norm = RMSNorm(config, stack)
        self.attention = Attention(config, rngs, stack)
        self.mlp_norm = RMSNorm(config, stack)
        self.mlp = MLP(config, rngs, stack)

    def __call__(self, x_BTD, rotary, past):
        """`past` is what attention looks back at: segment ids of the row, or a key/value cache (cache.py)."""
        mixed_BTD, kv = self.attention(gathered(self.attention_norm(x_BTD)), rotary, past)
        x_BTD = by_position(x_BTD + _times(scattered(mixed_BTD), self.multiplier))
        x_BTD = checkpoint_name(x_BTD, "residual")
        mixed_BTD = self.mlp(gathered(self.mlp_norm(x_BTD)))
        return by_position(x_BTD + _times(scattered(mixed_BTD), self.multiplier)), kv


class Embedding(nnx.Module):
    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.embedding = _weight(config, rngs, (config.vocab_size, config.dim), config.dim**-0.5)


def embeddings(
    config: LlamaConfig, table_VD: Float[Array, "V D"] | Weight, tokens_BT: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """The rows of the embedding that tokens stand for, times the config's multiplier."""
    if isinstance(table_VD, Weight):
        rows_BTD = quantization.rows(table_VD.parts, tokens_BT, config.dtype)
    else:
        rows_BTD = constrain(table_VD, "tensor", None).astype(config.dtype)[tokens_BT]
    return _times(rows_BTD, config.embedding_multiplier)


class Head(nnx.Module):
    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.kernel = _weight(config, rngs, (config.dim, config.vocab_size), config.dim**-0.5)


class Transformer(nnx.Module):
    """Parameters: embed/embedding, layers/{attention,mlp}/..., norm/scale, and head/kernel unless tied.

    The norm before the head divides by the config's `logit_divisor`, so that heads need not know of it.
    """

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embedding(config, rngs)
        self.layers = Block(config, rngs, stack=(config.n_layers,))
        self.norm = RMSNorm(config, multiplier=1 / config.logit_divisor)
        if not config.tied:
            self.head = Head(config, rngs)

    def __call__(
        self,
        tokens_BT,
        segment_ids_BT,
        positions_BT,
        *,
        keep: Callable[[jax.Array, jax.Array], Any] | None = None,
        subset: LayerSubset | None = None,
    ):
        """Runs all layers.

        Args:
            tokens_BT: tokens, int32.
            segment_ids_BT: positions of a row attend to each other where they have one segment id.
            positions_BT: position of each token in its segment.
            keep: keep(keys, values) of a layer is collected for all layers; None collects nothing.
            subset: the trainable layers, where only some are trainable.

        Returns:
            The states that the output head reads, and the results of `keep`, stacked by layer.
        """
        config = self.config
        zigzag = keep is None and ring_attention.balances(config.attention, config.window, *tokens_BT.shape)
        if zigzag:  # an even share of attention for each device of `context`
            rows = tokens_BT, segment_ids_BT, positions_BT
            tokens_BT, segment_ids_BT, positions_BT = map(ring_attention.to_zigzag, rows)
            segment_ids_BT = ring_attention.Zigzag(segment_ids_BT)
        x_BTD = embeddings(config, self.embed.embedding.get_value(), tokens_BT)
        x_BTD = by_position(x_BTD)
        rotary = angles(config, positions_BT)
        block, layers = nnx.split(self.layers)

        def layer(params, x_BTD, rotary, segment_ids_BT):
            x_BTD = checkpoint_name(x_BTD, "layer_input")
            x_BTD, kv = nnx.merge(block, params)(x_BTD, rotary, segment_ids_BT)
            return x_BTD, keep and keep(*kv)

        if config.remat != "none":
            layer = jax.checkpoint(layer, policy=policy_of(config.remat), prevent_cse=False)
        unroll, past, kv_N = min(config.unroll, config.n_layers), (rotary, segment_ids_BT), None
        if subset is not None:
            x_BTD = layer_subset.scan(layer, x_BTD, nnx.to_pure_dict(layers), past, subset, unroll)
        else:
            x_BTD, kv_N = jax.lax.scan(lambda x, params: layer(params, x, *past), x_BTD, layers, unroll=unroll)
        return gathered(self.norm(ring_attention.from_zigzag(x_BTD) if zigzag else x_BTD)), kv_N


class Model(NamedTuple):
    """A network as pure functions over a plain nested dict of parameters, made by `build`."""

    config: LlamaConfig
    """The network's config."""

    apply: Callable[..., Float[Array, "B T V"]]
    """apply(params, tokens, segment_ids=None, positions=None) returns float32 logits."""

    hidden: Callable[..., Float[Array, "B T D"]]
    """hidden(params, tokens, segment_ids=None, positions=None) returns the states that the output head reads."""

    init: Callable[[jax.Array], Params]
    """init(key) returns random parameters."""

    abstract_params: Params
    """Shapes and dtypes of the parameters."""

    bind: Callable[[Params], Transformer]
    """bind(params) returns the module with these parameters, for the files of model/ only."""


@functools.cache
def build(config: LlamaConfig) -> Model:
    """The network of `config` as pure functions over a plain nested dict of parameters.

    apply(params, tokens int32 [B, T], segment_ids int32 [B, T] = all one, positions int32 [B, T] = 0..T-1)
    gives float32 logits [B, T, V]; hidden(...) gives what the head reads, [B, T, D] in the compute dtype, to be
    turned into log-probabilities in chunks. Raises ValueError for an unknown remat policy.
    """
    policy_of(config.remat)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0))))

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.state(Transformer(config, nnx.Rngs(params=key))))

    def bind(params: Params) -> Transformer:
        return nnx.merge(graph, wrap(params))

    def hidden(params, tokens_BT, segment_ids_BT=None, positions_BT=None) -> Float[Array, "B T D"]:
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones_like(tokens_BT)
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        params = dict(params)
        subset = params.pop("layer_subset", None)
        return bind(params)(tokens_BT, segment_ids_BT, positions_BT, subset=subset)[0]

    def apply(params, tokens_BT, segment_ids_BT=None, positions_BT=None) -> Float[Array, "B T V"]:
        return logits(params, hidden(params, tokens_BT, segment_ids_BT, positions_BT))

    # Under `jax.set_mesh` shapes come with places on that mesh, of which the next caller knows nothing.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(abstract))
    return Model(config, apply, hidden, init, shapes, bind)


def output_kernel(params: Params) -> Float[Array, "D V"] | Weight:
    """The output head's matrix: its own, or the embedding transposed where they are tied."""
    if "head" in params:
        return wrap(params["head"]["kernel"])
    table = params["embed"]["embedding"]
    return Weight(quantization.as_head(table)) if is_weight(table) else table.T


def logits(params: Params, hidden_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """Float32 logits of hidden states."""
    return linear(hidden_BTD, output_kernel(params), jnp.float32)
