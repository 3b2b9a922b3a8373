"""The residual stream where a mesh splits it, and the gradients of what reads it.

On a mesh with the axis `tensor` the stream is split by positions between products (sequence parallelism,
arXiv:2205.05198, section 4.2.2): norms and additions are then split too. A product reads all positions, which are
gathered; the sum over `tensor` that its result needs is a reduce-scatter. In the backward pass it is the other way
round. An all-reduce would move as many bytes, but leave the whole stream on every device.
"""

import jax
from jaxtyping import Array, Float

from .sharding import BATCH, axis_size, compile_platform, constrain


def _splits(T: int) -> bool:
    """Whether `tensor` splits rows of T positions: where it divides them, which it does not for one new token."""
    return axis_size("tensor") > 1 and T % (axis_size("context") * axis_size("tensor")) == 0


def by_position(x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The residual stream, constrained to its places on the mesh."""
    return constrain(x_BTD, BATCH, ("context", "tensor") if _splits(x_BTD.shape[1]) else "context", None)


def gathered(x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """What products read of the stream: all positions. Its gradient is split by positions."""
    return _gathered(x_BTD) if _splits(x_BTD.shape[1]) else x_BTD


def scattered(x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The result of a product, split by positions for the stream. Its gradient has all positions."""
    return _scattered(x_BTD) if _splits(x_BTD.shape[1]) else x_BTD


def read_apart(x_BTF: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
    """The input of one product, whose gradient is complete before anything is computed from it.

    Symptom without: XLA's TPU compiler fuses what follows, such as a norm's backward pass and the sum with another
    product's gradient, into the product. For a layer of llama-65b on v5p it then estimates 20.8 million cycles instead
    of 12.0 for a product of the feed-forward layers (and 0.8 for what follows), and 6.4 instead of 4.7 in attention.
    Where `tensor` splits a product, partial sums are added before they are summed over devices: nothing is kept apart.
    """
    return _read_apart(x_BTF) if compile_platform() == "tpu" and axis_size("tensor") == 1 else x_BTF


@jax.custom_vjp
def _read_apart(x: jax.Array) -> jax.Array:
    return x


_read_apart.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.optimization_barrier(gradient),))


def _whole(x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    return constrain(x_BTD, BATCH, "context", None)


def _of_whole(x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """A product's result by position. It is first constrained to have all positions: XLA would otherwise split the
    product itself by position and repeat work, where `context` splits rows too."""
    return by_position(_whole(x_BTD))


_gathered, _scattered = jax.custom_vjp(_whole), jax.custom_vjp(_of_whole)
_gathered.defvjp(lambda x_BTD: (_whole(x_BTD), None), lambda _, gradient_BTD: (_of_whole(gradient_BTD),))
_scattered.defvjp(lambda x_BTD: (_of_whole(x_BTD), None), lambda _, gradient_BTD: (_whole(gradient_BTD),))
