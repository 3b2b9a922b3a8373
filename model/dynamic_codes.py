"""Numbers of [-1, 1] or [0, 1] in a byte each, spaced evenly within every decade: small ones keep their relative
precision beside large ones (dynamic tree quantisation: Dettmers et al. 2022, arXiv:2110.02861, section 1.3)."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

DECADES = 7
"""The powers of ten that values lie between: from 1e-7 to 1."""

ZERO = 127
"""The code of 0 where there is a sign: that many are below, and one more, 1, above."""


class Decade(NamedTuple):
    """Values that are the middles of `parts` equal parts of it, each `width` wide, from `low` on. first: the number of
    the first of them, among all values in rising order."""

    first: int
    parts: int
    low: float
    width: float


def decades(signed: bool) -> list[Decade]:
    """From the lowest. The lower, the fewer parts: 2^6 of [0.1, 1], half as many of the one below, and so on; twice as
    many where there is no sign. The value 0 comes before all of them, 1 after them."""
    first, found = 1, []
    for power in range(DECADES):
        parts, high = 2**power * (1 if signed else 2), 10.0 ** (power + 1 - DECADES)
        found.append(Decade(first, parts, high / 10, 0.9 * high / parts))
        first += parts
    return found


def magnitudes(numbers: Int[Array, "*shape"], signed: bool) -> Float[Array, "*shape"]:
    """The values from 0 to 1 by their numbers; by arithmetic, where a TPU would gather from a table one by one."""
    values, n = jnp.zeros(numbers.shape), numbers.astype(jnp.float32)
    for decade in decades(signed):
        values = jnp.where(n >= decade.first, decade.low + decade.width * (n - decade.first + 0.5), values)
    return jnp.where(n == decade.first + decade.parts, 1.0, values)


def nearest(x: Float[Array, "*shape"], signed: bool) -> Int[Array, "*shape"]:
    """The number of the magnitude that is nearest to x in [0, 1]."""
    numbers, below = jnp.zeros(x.shape), 0.0
    for decade in decades(signed):
        inside = decade.first + jnp.clip(jnp.floor((x - decade.low) / decade.width), 0, decade.parts - 1)
        numbers = jnp.where(x > (below + decade.low + decade.width / 2) / 2, inside, numbers)
        below = decade.low + decade.width * (decade.parts - 0.5)
    return jnp.where(x > (below + 1) / 2, decade.first + decade.parts, numbers).astype(jnp.int32)


def signed_codes(x: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """The nearest values' codes of numbers from -1 to 1; there is a 1, and no -1."""
    numbers = jnp.sign(x).astype(jnp.int32) * nearest(jnp.abs(x), signed=True)
    return (ZERO + jnp.maximum(numbers, -ZERO)).astype(jnp.uint8)


def signed_values(codes: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The values of `signed_codes`."""
    numbers = codes.astype(jnp.int32) - ZERO
    values = magnitudes(jnp.abs(numbers), signed=True)
    return jnp.where(numbers < 0, -values, values)


@functools.cache
def signed_table() -> np.ndarray:
    """The 256 values of `signed_codes`, rising."""
    below = [part.low + part.width * (np.arange(part.parts) + 0.5) for part in decades(signed=True)]
    positive = np.concatenate(below)
    return np.concatenate([-positive[::-1], [0.0], positive, [1.0]]).astype(np.float32)
