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

ON_HOST = "on_host"
"""What a path in the optimiser's state has in it where arrays live on the host (`state.state_shardings`)."""

Moved = tuple[Any, Any, jax.Array]
"""Parameters after a step, the optimiser's state after it, and the norm of the step."""


class Optimizer(NamedTuple):
    """init(params) gives the first state; move(gradients, state, params, **further) makes a step."""

    init: Callable[[Any], Any]
    move: Callable[..., Moved]


def at_once(transformation: optax.GradientTransformation) -> Optimizer:
    """The optimiser that takes the steps which `transformation` gives."""

    def move(grads, state, params, **further) -> Moved:
        updates, state = transformation.update(grads, state, params, **further)
        return optax.apply_updates(params, updates), state, optax.tree.norm(updates)

    return Optimizer(transformation.init, move)


def by_layer(
    layers: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    clip_norm: float | None,
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

    def move(grads, state, params) -> Moved:
        held, (stack, others) = state[place], split_layers(params)
        norm = optax.tree.norm(optax.tree.cast(grads, jnp.float32))
        scale = 1.0 if clip_norm is None else clip_norm / jnp.maximum(norm, clip_norm)
        of_stack, grads = split_layers(grads)
        stack, of_layers, squares = _each_layer(layers, of_stack, held["layers"], stack, scale)
        others, of_rest, norm = _move(rest, grads, held["rest"], others, scale)
        return others | stack, {place: {"layers": of_layers, "rest": of_rest}}, jnp.sqrt(squares + norm**2)

    return Optimizer(init, move)


def split_layers(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A network's tree as its stack of layers, if it has one, and all else."""
    stack = {name: part for name, part in tree.items() if name == "layers"}
    return stack, {name: part for name, part in tree.items() if name not in stack}


def _move(optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any, scale: Any) -> Moved:
    """A step on the device, with a state that stays where it lies."""
    here = jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), state)
    grads = jax.tree.map(lambda g: g * scale, grads)
    params, new, norm = at_once(optimizer).move(grads, here, params)
    return params, jax.tree.map(lambda x, old: jax.device_put(x, jax.typeof(old).memory_space), new, state), norm


def _each_layer(optimizer: optax.GradientTransformation, grads: Any, state: Any, params: Any, scale: Any) -> Moved:
    """`_move` of one layer after the other, with the square of the step's norm."""
    depth = max((len(x) for x in jax.tree.leaves(params)), default=0)

    def rows(stacks, i):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False) if x.ndim else x, stacks)

    def write(stacks, news, i):
        def one(x, new):
            return jax.lax.dynamic_update_index_in_dim(x, new, i, 0) if x.ndim else new

        return jax.tree.map(one, stacks, news)

    def layer(i, carry):
        params, held, squares = carry
        own = jax.tree.map(lambda x, first: x if x.ndim else first, rows(held, i), state)  # counts are those before all
        moved, new, norm = _move(optimizer, rows(grads, i), own, rows(params, i), scale)
        return write(params, moved, i), write(held, new, i), squares + norm**2

    return jax.lax.fori_loop(0, depth, layer, (params, state, jnp.float32(0.0)))
