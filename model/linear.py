"""The one matrix product of the network."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from .sharding import axis_size


def linear(
    x: Float[Array, "B T *inputs"], w: Float[Array, "..."], out_dtype: jnp.dtype | None = None
) -> Float[Array, "B T *outputs"]:
    """x's features times w, w being cast to x's dtype and the result given in `out_dtype` (default: x's).

    Rows and positions become one axis for the product: over two, XLA's CPU backend computes the weights' gradient from
    transposed copies and takes twice as long. Where a mesh splits positions they stay two axes, so that both can be.
    """
    contracted = x.ndim - 2
    w = w.astype(x.dtype)
    if axis_size("context") > 1:
        return jnp.tensordot(x, w, contracted, preferred_element_type=out_dtype)
    width = math.prod(w.shape[:contracted])
    out = jnp.matmul(x.reshape(-1, width), w.reshape(width, -1), preferred_element_type=out_dtype)
    return out.reshape(*x.shape[:2], *w.shape[contracted:])
