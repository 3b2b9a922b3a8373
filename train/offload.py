"""An optimiser that remembers on the host: its moments come to the device one layer at a time.

Between steps the state of AdamW takes twice the memory of float32 parameters, and is needed only after gradients are
there. XLA copies a slice of an array in host memory in, and the new one out, inside of a loop on the device
(`pinned_host` of JAX's memory kinds; ZeRO-Offload, arXiv:2101.06840, computes on the host instead).
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

ON_HOST = "on_host"
"""What a path in the optimiser's state has in it where arrays live on the host (`state.state_shardings`)."""


def on_host(make: Callable[[Any], optax.GradientTransformation], params: Any) -> optax.GradientTransformationExtraArgs:
    """The direction that `make(params)` gives, number by number, with a state that `state_shardings` puts on the host.

    `params` and updates are those of a network, its `layers` in a stack.
    """
    layers, rest = (make(part) for part in split_layers(params))

    def init(params):
        stack, others = split_layers(params)
        return {ON_HOST: {"layers": layers.init(stack), "rest": rest.init(others)}}

    def update(updates, state, params, **_):
        (stack_updates, updates), (stack, others) = split_layers(updates), split_layers(params)
        held = state[ON_HOST]
        stack_updates, of_layers = _each_layer(layers, stack_updates, held["layers"], stack)
        updates, of_rest = _update(rest, updates, held["rest"], others)
        return updates | stack_updates, {ON_HOST: {"layers": of_layers, "rest": of_rest}}

    return optax.GradientTransformationExtraArgs(init, update)


def split_layers(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A network's tree as its stack of layers, if it has one, and all else."""
    stack = {name: part for name, part in tree.items() if name == "layers"}
    return stack, {name: part for name, part in tree.items() if name not in stack}


def _update(optimizer: optax.GradientTransformation, updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """The optimiser's update on the device, of a state that stays where it lies."""
    here = jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Device), state)
    updates, new = optimizer.update(updates, here, params)
    return updates, jax.tree.map(lambda x, old: jax.device_put(x, jax.typeof(old).memory_space), new, state)


def _each_layer(optimizer: optax.GradientTransformation, updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """`_update` of one layer after the other."""
    depth = max((len(x) for x in jax.tree.leaves(updates)), default=0)

    def rows(stacks, i):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0) if x.ndim else x, stacks)

    def layer(i, carry):
        updates, held = carry  # updates make room for directions
        own = jax.tree.map(lambda x, first: x if x.ndim else first, rows(held, i), state)  # counts are those before all
        done = _update(optimizer, rows(updates, i), own, rows(params, i))
        return jax.tree.map(
            lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, i, 0) if x.ndim else new, carry, done
        )

    return jax.lax.fori_loop(0, depth, layer, (updates, state))
