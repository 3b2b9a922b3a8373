"""The state of a run, which every step carries on, and its shardings.

The state is a plain dict: `params`, `opt_state`, `step`, `guard` (counters that decide whether a step is skipped) and,
on request, `ema`, the moving average of the parameters.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ..model.sharding import path_name, shardings
from ..model.weights import is_stacked
from .by_layer import ON_HOST, Optimizer
from .trainable import Rules, Trainable, join_frozen, split_frozen

State = dict[str, Any]


def state_of(
    params: Any, optimizer: Optimizer, trainable: Trainable, *, ema: bool, extra: Mapping[str, Any] | None = None
) -> State:
    """The state of a run before its first step.

    Args:
      params: all parameters.
      optimizer: the optimiser of the trainable parameters.
      trainable: which parameters are trainable.
      ema: whether the state has a moving average of the parameters.
      extra: further entries of the state: scalars, or trees of scalars.
    """
    own, rest = split_frozen(params, trainable.frozen)
    guard = {"mean": 0.0, "var": 0.0, "accepted": 0, "skipped": 0, "streak": 0}
    state = {
        "params": params,
        "opt_state": optimizer.init(trainable.split(params, 0)[0]),
        "step": jnp.zeros((), jnp.int32),
        "guard": {k: jnp.asarray(v, jnp.float32 if isinstance(v, float) else jnp.int32) for k, v in guard.items()},
    }
    state |= jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), dict(extra or {}))
    return state | ({"ema": join_frozen(in_float32(own), jax.tree.map(jnp.copy, rest))} if ema else {})


def in_float32(params: Any) -> Any:
    """A copy of parameters in float32, the dtype of moving averages: 16 bits would round their small steps away."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)


def state_shardings(abstract: State, mesh: jax.sharding.Mesh, rules: Rules) -> State:
    """The sharding of each leaf of a state.

    Moments, and the scales of their blocks, have the sharding of their parameter; so do moments of some layers of a
    stack. With several networks in one tree, a network's moments stand below its name (`optimizer.each_part`).
    Everything else is replicated. Arrays under `by_layer.ON_HOST` lie in the host's memory.

    Args:
      abstract: shapes of the state.
      mesh: the devices.
      rules: (regex over parameter paths, mesh axes of each array axis).
    """
    params = shardings(abstract["params"], mesh, rules)
    by_path = {
        path_name(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(abstract["params"]), jax.tree.leaves(params), strict=True
        )
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def like_its_parameter(path, leaf):
        parts = path_name(path).split("/")
        sharding = of_parts(parts, leaf)
        return sharding.with_memory_kind("pinned_host") if ON_HOST in parts and leaf.ndim else sharding

    def of_parts(parts, leaf):
        network = f"{parts[1]}/" if len(parts) > 1 and parts[1] in abstract["params"] else ""
        for start in range(len(parts)):
            suffix = "/".join(parts[start:])
            parameter = suffix.removesuffix("/codes").removesuffix("/scales")
            shape, sharding = by_path.get(parameter) or by_path.get(network + parameter, (None, None))
            if shape is None:
                continue
            sharding = NamedSharding(mesh, PartitionSpec(*sharding.spec[: leaf.ndim]))  # scales may lack the last axis
            alike = suffix.endswith("/scales") or (is_stacked(suffix) and shape[1:] == leaf.shape[1:])
            if shape == leaf.shape or (alike and _divides(sharding, leaf.shape)):
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(like_its_parameter, abstract)


def _divides(sharding: NamedSharding, shape: tuple[int, ...]) -> bool:
    """Whether the sharding divides an array of this shape evenly."""
    try:
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True
