"""Dynamic tree quantisation: numbers in [-1, 1] or [0, 1] as one byte each (Dettmers et al., arXiv:2110.02861, section
1.3). Codes are spaced evenly within every decade, so that small numbers keep their relative precision.

A magnitude's number is its index among all magnitudes of a code in rising order; number 0 is the magnitude 0.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

DECADES = 7
"""Number of decades, from 1e-7 to 1."""

ZERO = 127
"""Signed code of 0. There are 127 codes below it and 128 above it, since 1 has a code and -1 has none."""


class Decade(NamedTuple):
    """A decade that is cut into equal parts, the middles of which are the magnitudes of codes."""

    first: int
    """Number of the magnitude in its first part."""
    parts: int
    """Number of parts."""
    low: float
    """Lower border."""
    width: float
    """Width of a part."""


def decades(signed: bool) -> list[Decade]:
    """The decades in rising order, between the magnitudes 0 and 1.

    With a sign, [0.1, 1] has 2^6 parts, and each lower decade half as many; without a sign each has twice as many.
    """
    first, found = 1, []
    for power in range(DECADES):
        parts, high = 2**power * (1 if signed else 2), 10.0 ** (power + 1 - DECADES)
        found.append(Decade(first, parts, high / 10, 0.9 * high / parts))
        first += parts
    return found


def magnitudes(numbers: Int[Array, "*shape"], signed: bool) -> Float[Array, "*shape"]:
    """The magnitudes, in [0, 1], of the given numbers. It computes them: a TPU reads a table entry by entry."""
    values, n = jnp.zeros(numbers.shape), numbers.astype(jnp.float32)
    for decade in decades(signed):
        values = jnp.where(n >= decade.first, decade.low + decade.width * (n - decade.first + 0.5), values)
    return jnp.where(n == decade.first + decade.parts, 1.0, values)


def nearest(x: Float[Array, "*shape"], signed: bool) -> Int[Array, "*shape"]:
    """The number of the magnitude nearest to each x in [0, 1]."""
    numbers, below = jnp.zeros(x.shape), 0.0
    for decade in decades(signed):
        inside = decade.first + jnp.clip(jnp.floor((x - decade.low) / decade.width), 0, decade.parts - 1)
        numbers = jnp.where(x > (below + decade.low + decade.width / 2) / 2, inside, numbers)
        below = decade.low + decade.width * (decade.parts - 0.5)
    return jnp.where(x > (below + 1) / 2, decade.first + decade.parts, numbers).astype(jnp.int32)


def signed_codes(x: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """The codes of the values nearest to numbers in [-1, 1]. 1 has a code; -1 has none, and gets the lowest one."""
    numbers = jnp.sign(x).astype(jnp.int32) * nearest(jnp.abs(x), signed=True)
    return (ZERO + jnp.maximum(numbers, -ZERO)).astype(jnp.uint8)


def signed_values(codes: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The values that `signed_codes` encoded, up to quantisation."""
    numbers = codes.astype(jnp.int32) - ZERO
    values = magnitudes(jnp.abs(numbers), signed=True)
    return jnp.where(numbers < 0, -values, values)


@functools.cache
def signed_table() -> np.ndarray:
    """The values of the 256 codes of `signed_codes`, in rising order."""
    below = [part.low + part.width * (np.arange(part.parts) + 0.5) for part in decades(signed=True)]
    positive = np.concatenate(below)
    return np.concatenate([-positive[::-1], [0.0], positive, [1.0]]).astype(np.float32)
