"""An optimiser that moves one layer after the other, whose state may stay in the host's memory.

Intermediate values and the update then exist for one layer at a time. Parameters and moments are written in place, and
gradients are never copied.

AdamW's state takes twice the memory of float32 parameters, and a step needs it only once the gradients are computed.
Moments that lie on the host (`pinned_host` among JAX's memory kinds) are therefore copied to the device for their layer
alone, and back. ZeRO-Offload (arXiv:2101.06840) computes on the host instead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Shaped

ON_HOST = "on_host"
"""Component of a path in the optimiser's state that marks arrays on the host (`state.state_shardings`)."""

Moved = tuple[Any, Any, jax.Array]
"""Parameters after a step, the optimiser's state after it, and the norm of the step."""


class Optimizer(NamedTuple):
    """An optimiser as three pure functions. `extra` is `Trainable.optimizer_extra` of the step."""

    init: Callable[[Any], Any]
    """init(params) -> the state before the first step."""

    move: Callable[..., Moved]
    """move(gradients, state, params, key, **extra) -> `Moved`. The key rounds parameters in bfloat16; None without."""

    finite: Callable[..., jax.Array]
    """finite(gradients, state, params, count, **extra) -> whether all parameters are finite after step `count`."""


def at_once(transformation: optax.GradientTransformation) -> Optimizer:
    """An optax transformation as an `Optimizer`, which moves all parameters at once."""

    def move(grads, state, params, key=None, **further) -> Moved:
        updates, state = transformation.update(grads, state, params, **further)
        params, norm = add_updates(params, updates, key)
        return params, state, norm

    def finite(grads, state, params, count, **further) -> jax.Array:
        del count
        updates, _ = transformation.update(grads, state, params, **further)
        fits = jax.tree.map(lambda p, u: jnp.all(jnp.abs(p + u) <= largest_of(p.dtype)), params, updates)
        return jax.tree.reduce(jnp.logical_and, fits, jnp.asarray(True))

    return Optimizer(transformation.init, move, finite)


def by_layer(
    layers: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    clip_norm: float | None,
    finite: Callable[..., jax.Array],
    *,
    host: bool = False,
) -> Optimizer:
    """An `Optimizer` that moves the layers of a stack one after the other.

    Args:
      layers: the transformation of the stack. Its update of a layer must not depend on other layers, and its scalars
        must count steps.
      rest: the transformation of all other parameters.
      clip_norm: global norm to which gradients are clipped; None: they are not.
      finite: as `Optimizer.finite`.
      host: whether the arrays of the state lie on the host.
    """
    place = ON_HOST if host else "on_device"

    def init(params):
        stack, others = split_layers(params)
        return {place: {"layers": layers.init(stack), "rest": rest.init(others)}}

    def move(grads, state, params, key=None) -> Moved:
        held, norm = state[place], optax.tree.norm(optax.tree.cast(grads, jnp.float32))
        scale = 1.0 if clip_norm is None else clip_norm / jnp.maximum(norm, clip_norm)
        (stack_grads, grads), (stack, others) = split_layers(grads), split_layers(params)
        stack, of_layers, squares = _each_layer(layers, stack_grads, held["layers"], stack, scale, key)
        others, of_rest, norm = _move(rest, grads, held["rest"], others, scale, fold_in(key, depth(stack)))
        return others | stack, {place: {"layers": of_layers, "rest": of_rest}}, jnp.sqrt(squares + norm**2)

    return Optimizer(init, move, finite)


def split_layers(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A network's tree as two: the stack of layers, if there is one, and the rest."""
    stack = {name: part for name, part in tree.items() if name == "layers"}
    return stack, {name: part for name, part in tree.items() if name not in stack}


def add_updates(params: Any, updates: Any, key: jax.Array) -> tuple[Any, jax.Array]:
    """Parameters after float32 updates, and the norm of the difference. key: rounds parameters in bfloat16."""
    leaves, tree = jax.tree.flatten(params)
    moved = [
        round_stochastically(p.astype(jnp.float32) + u, p.dtype, fold_in(key, number))
        for number, (p, u) in enumerate(zip(leaves, tree.flatten_up_to(updates), strict=True))
    ]
    difference = [new.astype(jnp.float32) - old.astype(jnp.float32) for new, old in zip(moved, leaves, strict=True)]
    return tree.unflatten(moved), optax.tree.norm(difference)


def fold_in(key: jax.Array | None, number: Any) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, number)


def round_stochastically(x: Float[Array, "*shape"], dtype: Any, key: jax.Array | None) -> Shaped[Array, "*shape"]:
    """Rounds float32 numbers to `dtype`, in bfloat16 at random to one of the two neighbours.

    The nearer neighbour is the likelier, such that the mean over keys is x, and small updates are not lost (Gupta et
    al., arXiv:1502.02551, section 3; for bfloat16 arXiv:2010.06192, section 4). The result depends on the key and the
    place in the array, not on the number of devices. Raises ValueError for another dtype, and for bfloat16 without a
    key.
    """
    if dtype == jnp.float32:
        return x
    if dtype != jnp.bfloat16 or key is None:
        raise ValueError(f"parameters of {dtype}: give float32 ones, or bfloat16 ones and a key for rounding")
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)


def largest_of(dtype: Any) -> float:
    """The largest finite number of a dtype."""
    return float(jnp.finfo(dtype).max)


def depth(stack: Any) -> int:
    """Number of layers of a stack; 0 for one without parameters."""
    return max((len(x) for x in jax.tree.leaves(stack)), default=0)


def rows(stacks: Any, i: Any) -> Any:
    """Layer i of every array of a tree; scalars stay as they are."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False) if x.ndim else x, stacks)


def _move(
    optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any, scale: Any, key: jax.Array
) -> Moved:
    """A step on the device. The state is copied there from its memory space, and the new state back."""
    here = jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), state)
    grads = jax.tree.map(lambda g: g * scale, grads)
    params, new, norm = at_once(optimizer).move(grads, here, params, key)
    return params, jax.tree.map(lambda x, old: jax.device_put(x, jax.typeof(old).memory_space), new, state), norm


def _each_layer(
    optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any, scale: Any, key: jax.Array
) -> Moved:
    """A step of one layer after the other. The third value is the square of the step's norm."""

    def write(stacks, news, i):
        def one(x, new):
            return jax.lax.dynamic_update_index_in_dim(x, new, i, 0) if x.ndim else new

        return jax.tree.map(one, stacks, news)

    def layer(i, carry):
        params, held, squares = carry
        # Every layer sees the counts of before the step.
        own = jax.tree.map(lambda x, first: x if x.ndim else first, rows(held, i), state)
        moved, new, norm = _move(optimizer, rows(grads, i), own, rows(params, i), scale, fold_in(key, i))
        return write(params, moved, i), write(held, new, i), squares + norm**2

    return jax.lax.fori_loop(0, depth(params), layer, (params, state, jnp.float32(0.0)))
