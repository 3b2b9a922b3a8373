"""Adam whose moments take one byte a number (Dettmers et al. 2022, 8-bit optimizers, arXiv:2110.02861).

A moment is cut into blocks along its last axis; each block is divided by its largest magnitude, and each number becomes
the nearest of 256 values that are spaced evenly within every decade (dynamic tree quantisation, section 1.3): small
numbers keep their relative precision. Of the second moment it is the root that is kept, as what the step is divided by:
its range is half as many decades, so that it is not rounded to 0 where the first moment is not. The step itself is
computed in float32, of a stack of layers for one after the other: whole, its decoded moments would take the memory that
codes save.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt8

from ..model.sharding import path_name
from ..model.weights import is_stacked

BLOCK = 256
SMALLEST = 4096
"""Leaves with fewer numbers stay float32: norms are small, and matter."""


def dynamic_values(signed: bool) -> Float[np.ndarray, " 256"]:
    """The 256 values in [-1, 1], or with `signed` false in [0, 1], in rising order.

    The lower the decade, the fewer values it has: 2^6 in [0.1, 1], half as many in the one below, and so on; twice as
    many where there is no sign.
    """
    decades = 7
    values = [0.0, 1.0]
    for decade in range(decades):
        count = 2 ** (decade + (0 if signed else 1))
        edges = np.linspace(0.1, 1.0, count + 1)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - decades + 1)
        values += [*means, *(-means if signed else [])]
    return np.sort(np.array(values, np.float32))


class Blocks(NamedTuple):
    """An array by blocks of its last axis: `codes` of its shape, `scales` with an entry for each block."""

    codes: UInt8[Array, "*rows last"]
    scales: Float[Array, "*rows blocks"]


def encode(x: Float[Array, "*rows last"], signed: bool) -> Blocks:
    """The nearest of the 256 values for each number, over its block's largest magnitude."""
    last = x.shape[-1]
    width = min(BLOCK, last)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -last % width)])
    blocks = padded.reshape(*x.shape[:-1], -1, width)
    scales = jnp.max(jnp.abs(blocks), axis=-1)
    values = dynamic_values(signed)
    borders = jnp.asarray((values[1:] + values[:-1]) / 2)
    ratio = blocks / jnp.where(scales > 0, scales, 1.0)[..., None]
    codes = jnp.searchsorted(borders, ratio.reshape(-1)).astype(jnp.uint8).reshape(padded.shape)
    return Blocks(codes[..., :last], scales)


def decode(blocks: Blocks, signed: bool) -> Float[Array, "*rows last"]:
    last, count = blocks.codes.shape[-1], blocks.scales.shape[-1]
    width = min(BLOCK, last)
    scales = jnp.repeat(blocks.scales, width, axis=-1, total_repeat_length=count * width)[..., :last]
    return jnp.asarray(dynamic_values(signed))[blocks.codes] * scales


class State(NamedTuple):
    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adam_8bit(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with moments in `Blocks`, for float32 gradients."""

    def is_small(p: jax.Array) -> bool:
        return p.size < SMALLEST

    def init(params: optax.Params) -> State:
        def zeros(p, signed):
            if is_small(p):
                return jnp.zeros(p.shape, jnp.float32)
            codes, scales = jax.eval_shape(lambda p: encode(p, signed), p)
            code = np.abs(dynamic_values(signed)).argmin()
            return Blocks(jnp.full(codes.shape, code, codes.dtype), jnp.zeros(scales.shape, scales.dtype))

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

        def each_layer(g, mu, nu):
            def layer(i, stacks):  # g makes room for the step
                done = one(*jax.tree.map(lambda stack: stack[i], stacks))
                return jax.tree.map(lambda stack, new: stack.at[i].set(new), stacks, done)

            return jax.lax.fori_loop(0, len(g), layer, (g, mu, nu))

        leaves, tree = jax.tree.flatten_with_path(updates)
        moments = [tree.flatten_up_to(x) for x in (state.mu, state.nu)]
        done = []
        for (path, g), mu, nu in zip(leaves, *moments, strict=True):
            stacked = isinstance(mu, Blocks) and is_stacked(path_name(path))
            done.append(each_layer(g, mu, nu) if stacked else one(g, mu, nu))
        steps, mus, nus = zip(*done, strict=True)
        return tree.unflatten(steps), State(count, tree.unflatten(mus), tree.unflatten(nus))

    return optax.GradientTransformation(init, update)
