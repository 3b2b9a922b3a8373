"""Adam whose moments take one byte per number (Dettmers et al. 2022, 8-bit optimizers, arXiv:2110.02861).

A moment is cut into blocks along its last axis. Each block is divided by its largest magnitude, and each number becomes
the nearest of 256 values (`model/dynamic_codes.py`). The second moment is stored as its root, which spans half as many
decades: it is then not rounded to 0 where the first moment is not.

The step itself is computed in float32, one layer at a time (`by_layer`): decoded moments of all layers would take the
memory that codes save.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, UInt8

from ..model.dynamic_codes import ZERO, magnitudes, nearest, signed_codes, signed_values

BLOCK = 256
SMALLEST = 4096
"""Arrays with fewer numbers, such as norms, keep moments in float32: they save little memory."""


class Blocks(NamedTuple):
    """An array quantised to 8-bit codes, with a scale for each block of its last axis."""

    codes: UInt8[Array, "*rows last"]
    """The code of each number."""

    scales: Float[Array, "*rows blocks"] | Float[Array, "*rows"]
    """The largest magnitude of each block. With one block there is no last axis: on TPUs the layout of [..., 1] takes
    up to 128 times its size."""


def encode(x: Float[Array, "*rows last"], signed: bool) -> Blocks:
    """Quantises an array to 8-bit codes. signed: whether its numbers may be negative."""
    width = min(BLOCK, x.shape[-1])
    window, ends = (1,) * (x.ndim - 1) + (width,), [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % width)]
    scales = jax.lax.reduce_window(jnp.abs(x), 0.0, jax.lax.max, window, window, ends)
    scales = scales[..., 0] if width == x.shape[-1] else scales
    ratio = x / _of_each(jnp.where(scales > 0, scales, 1.0), x.shape)
    codes = signed_codes(ratio) if signed else nearest(ratio, signed).astype(jnp.uint8)
    return Blocks(codes, scales)


def decode(blocks: Blocks, signed: bool) -> Float[Array, "*rows last"]:
    """The numbers that `encode` stored, up to their rounding to codes."""
    values = signed_values(blocks.codes) if signed else magnitudes(blocks.codes, signed)
    return values * _of_each(blocks.scales, blocks.codes.shape)


def _of_each(scales: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "*rows last"]:
    """The scale of each number of an array.

    It is a product with a matrix of ones and zeros, since a reshape into blocks would make TPUs copy the whole stack of
    layers into another layout.
    """
    if scales.ndim < len(shape):
        return scales[..., None]
    members = jnp.repeat(jnp.eye(scales.shape[-1]), BLOCK, axis=1)[:, : shape[-1]]
    return jnp.matmul(scales, members, precision="highest")


class State(NamedTuple):
    """The state of `scale_by_adam_8bit`."""

    count: jax.Array
    """Steps so far."""

    mu: Any
    """First moments: `Blocks`, or float32 for small arrays."""

    nu: Any
    """Second moments: roots in `Blocks`, or for small arrays float32, not their roots."""


def scale_by_adam_8bit(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction for float32 gradients, as `optax.scale_by_adam`, with moments of 8 bits."""

    def is_small(p: jax.Array) -> bool:
        return p.size < SMALLEST

    def init(params: optax.Params) -> State:
        def zeros(p, signed):
            if is_small(p):
                return jnp.zeros(p.shape, jnp.float32)
            codes, scales = jax.eval_shape(lambda p: encode(p, signed), p)
            return Blocks(
                jnp.full(codes.shape, ZERO if signed else 0, codes.dtype), jnp.zeros(scales.shape, scales.dtype)
            )

        mu, nu = (jax.tree.map(lambda p, signed=signed: zeros(p, signed), params) for signed in (True, False))
        return State(jnp.zeros([], jnp.int32), mu, nu)

    def update(updates: optax.Updates, state: State, params: optax.Params | None = None):
        del params
        count = optax.safe_increment(state.count)

        def one(g, mu, nu):
            coded = isinstance(mu, Blocks)
            mu, nu = (decode(mu, True), decode(nu, False) ** 2) if coded else (mu, nu)
            mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g * g
            step = mu / (1 - b1**count) / (jnp.sqrt(nu / (1 - b2**count)) + eps)
            return step, *((encode(mu, True), encode(jnp.sqrt(nu), False)) if coded else (mu, nu))

        leaves, tree = jax.tree.flatten(updates)
        moments = [tree.flatten_up_to(x) for x in (state.mu, state.nu)]
        done = list(map(one, leaves, *moments))
        steps, mus, nus = ([parts[i] for parts in done] for i in range(3))
        return tree.unflatten(steps), State(count, tree.unflatten(mus), tree.unflatten(nus))

    return optax.GradientTransformation(init, update)
