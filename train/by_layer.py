"""An optimiser that moves one layer after the other, and may remember on the host.

What it computes on the way, and the step itself, then exist for a layer at a time: parameters and moments are written
in place, and of the gradients no second copy is made. Moments that lie in the host's memory (`pinned_host` of JAX's
memory kinds) come to the device for their layer alone, and go back (ZeRO-Offload, arXiv:2101.06840, computes on the
host instead): between steps the state of AdamW takes twice the memory of float32 parameters, and is needed only after
gradients are there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Shaped

ON_HOST = "on_host"
"""What a path in the optimiser's state has in it where arrays live on the host (`state.state_shardings`)."""

Moved = tuple[Any, Any, jax.Array]
"""Parameters after a step, the optimiser's state after it, and the norm of the step."""


class Optimizer(NamedTuple):
    """init(params) gives the first state. move(gradients, state, params, key, **further) makes a step; key: of the
    rounding of parameters in bfloat16, None where there are none. finite(gradients, state, params, count, **further)
    says whether parameters are finite after that step, the `count`-th. further: what `make_optimizer` asks for."""

    init: Callable[[Any], Any]
    move: Callable[..., Moved]
    finite: Callable[..., jax.Array]


def at_once(transformation: optax.GradientTransformation) -> Optimizer:
    """The optimiser that takes the steps which `transformation` gives."""

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
    """The optimiser of a network, its `layers` in a stack, whose gradients are clipped to a global norm of `clip_norm`.

    layers: for the stack, such that what it does to one layer does not depend on the others; its scalars count steps.
    rest: for all else. host: `state_shardings` puts the arrays of the state there.
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
    """A network's tree as its stack of layers, if it has one, and all else."""
    stack = {name: part for name, part in tree.items() if name == "layers"}
    return stack, {name: part for name, part in tree.items() if name not in stack}


def add_updates(params: Any, updates: Any, key: jax.Array) -> tuple[Any, jax.Array]:
    """Parameters after updates in float32, and the norm of what they moved by. key: of `round_stochastically`."""
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
    """float32 numbers in `dtype`: in bfloat16 one of the two neighbours, the nearer the likelier, so that the mean over
    keys is x and small updates are not lost (Gupta et al., arXiv:1502.02551, section 3; for bfloat16
    arXiv:2010.06192, section 4). Raises ValueError for another dtype, or for bfloat16 without a key.

    The bits are a function of the key and the place in the array, on any number of devices.
    """
    if dtype == jnp.float32:
        return x
    if dtype != jnp.bfloat16 or key is None:
        raise ValueError(f"parameters of {dtype} move by float32, or by bfloat16 with a key for rounding")
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)


def largest_of(dtype: Any) -> float:
    """The largest number that parameters of a dtype hold: in bfloat16 less than in float32."""
    return float(jnp.finfo(dtype).max)


def depth(stack: Any) -> int:
    """How many layers a stack has; 0 where it has no parameters."""
    return max((len(x) for x in jax.tree.leaves(stack)), default=0)


def rows(stacks: Any, i: Any) -> Any:
    """Layer i of every stack; scalars stay."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False) if x.ndim else x, stacks)


def _move(
    optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any, scale: Any, key: jax.Array
) -> Moved:
    """A step on the device, with a state that stays where it lies."""
    here = jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), state)
    grads = jax.tree.map(lambda g: g * scale, grads)
    params, new, norm = at_once(optimizer).move(grads, here, params, key)
    return params, jax.tree.map(lambda x, old: jax.device_put(x, jax.typeof(old).memory_space), new, state), norm


def _each_layer(
    optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any, scale: Any, key: jax.Array
) -> Moved:
    """`_move` of one layer after the other, with the square of the step's norm."""

    def write(stacks, news, i):
        def one(x, new):
            return jax.lax.dynamic_update_index_in_dim(x, new, i, 0) if x.ndim else new

        return jax.tree.map(one, stacks, news)

    def layer(i, carry):
        params, held, squares = carry
        own = jax.tree.map(lambda x, first: x if x.ndim else first, rows(held, i), state)  # counts are those before all
        moved, new, norm = _move(optimizer, rows(grads, i), own, rows(params, i), scale, fold_in(key, i))
        return write(params, moved, i), write(held, new, i), squares + norm**2

    return jax.lax.fori_loop(0, depth(params), layer, (params, state, jnp.float32(0.0)))
