"""The one matrix product of the network, for a matrix of any kind (`weights.py`), and the matrix itself."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import quantization, xla_cpu
from .sharding import axis_size
from .weights import Weight


def linear(
    x: Float[Array, "B T *inputs"], w: Float[Array, "..."] | Weight, out_dtype: jnp.dtype | None = None
) -> Float[Array, "B T *outputs"]:
    """x's features times w, in x's dtype, the result given in `out_dtype` (default: x's)."""
    if not isinstance(w, Weight):
        return _product(x, w, out_dtype)
    if "left" in w.parts:
        return _from_left(x, w.parts["left"], out_dtype)
    if "owners" in w.parts:
        return _adapted_by_row(x, w.parts, out_dtype)
    if "base" in w.parts:
        return _adapted(x, w.parts, out_dtype)
    return quantization.product(x, w.parts, out_dtype, by_blocks=w.by_blocks)


def _product(x: jax.Array, w: jax.Array, out_dtype: jnp.dtype | None = None) -> jax.Array:
    """The product with a dense matrix. Rows and positions are one axis, but two where a mesh splits positions, which
    `tensor` does between products."""
    contracted = x.ndim - 2
    w = w.astype(x.dtype)
    if axis_size("context") * axis_size("tensor") > 1:
        return jnp.tensordot(x, w, contracted, preferred_element_type=out_dtype)
    width = math.prod(w.shape[:contracted])
    merged = xla_cpu.merged_rows(x, contracted)
    out = jnp.matmul(merged, w.reshape(width, -1), preferred_element_type=out_dtype)
    return out.reshape(*x.shape[:2], *w.shape[contracted:])


def _from_left(x_BTI: jax.Array, w: Float[Array, "*outputs I"], out_dtype: jnp.dtype | None) -> jax.Array:
    """The product with a matrix that is kept as a left factor (`xla_cpu.from_left`)."""
    out = jnp.tensordot(w.astype(x_BTI.dtype), x_BTI, (-1, -1), preferred_element_type=out_dtype)
    return jnp.moveaxis(out, (-2, -1), (0, 1))


def _adapted(x: jax.Array, parts: dict[str, Any], out_dtype: jnp.dtype | None) -> jax.Array:
    """x base + gain (x a) b, and with DoRA each output brought to its magnitude (`lora.py`)."""
    out = linear(x, parts["base"], out_dtype)
    seen = _drop(x, parts)
    low = linear(linear(seen, parts["a"]), parts["b"], out_dtype)
    if "a0" in parts:
        low -= linear(linear(x, parts["a0"]), parts["b0"], out_dtype)
    out += parts["gain"].astype(out.dtype) * low
    if "magnitude" in parts:
        # The norm is taken for a constant in the gradient (DoRA, section 4.3).
        inputs = x.ndim - 2
        whole = jax.lax.stop_gradient(_sum(parts, inputs, jnp.float32))
        norms = jnp.sqrt(jnp.sum(whole**2, axis=tuple(range(inputs))))
        out *= (parts["magnitude"] / norms)[None, None].astype(out.dtype)
    return out


def _adapted_by_row(x: jax.Array, parts: dict[str, Any], out_dtype: jnp.dtype | None) -> jax.Array:
    """The product with a matrix of whose adapters each row uses one or none (`adapter_rows.py`)."""
    out = linear(x, parts["base"], out_dtype)
    if parts["owners"].size:
        own_B1N = parts["owners"][None, None] == parts["chosen"][:, None, None]
        low_BTN = linear(x, parts["down"])
        out += linear(jnp.where(own_B1N, low_BTN, jnp.zeros((), low_BTN.dtype)), parts["up"], out_dtype)
    if "factors" in parts:
        out *= parts["factors"][parts["chosen"]][:, None].astype(out.dtype)
    return out


def _drop(x: jax.Array, parts: dict[str, Any]) -> jax.Array:
    """The adapter's own input: some of it dropped where training asks for that."""
    if "drop_key" not in parts:
        return x
    kept = 1.0 - parts["drop_rate"]
    mask = jax.random.bernoulli(parts["drop_key"], kept, x.shape)
    return jnp.where(mask, x / kept.astype(x.dtype), jnp.zeros((), x.dtype))


def dense(w: Float[Array, "..."] | Weight, inputs: int, dtype: jnp.dtype) -> Float[Array, "..."]:
    """The matrix that `linear` multiplies by, as one array. inputs: how many of its axes are inputs."""
    if not isinstance(w, Weight):
        return w.astype(dtype)
    if "base" not in w.parts:
        return quantization.decode(w.parts, inputs, dtype)
    whole = _sum(w.parts, inputs, jnp.float32)
    if "magnitude" in w.parts:
        norms = jnp.sqrt(jnp.sum(whole**2, axis=tuple(range(inputs))))
        whole *= (w.parts["magnitude"] / norms)[(None,) * inputs]
    return whole.astype(dtype)


def _sum(parts: dict[str, Any], inputs: int, dtype: jnp.dtype) -> jax.Array:
    """base + gain a b, magnitudes aside."""
    change = jnp.tensordot(parts["a"], parts["b"], 1)
    if "a0" in parts:
        change -= jnp.tensordot(parts["a0"], parts["b0"], 1)
    return dense(parts["base"], inputs, dtype) + (parts["gain"] * change).astype(dtype)
