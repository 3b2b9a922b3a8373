"""Which layers learn: all, a few that are drawn anew every so often (LISA), or those that are named.

Layerwise importance sampled AdamW (arXiv:2403.17919, algorithm 1): embedding, final norm and head learn all the time,
and with them a few layers, drawn for a period; gradients and optimiser state exist for these alone. Layers lie in one
stack, so what learns in a step is the tree of parameters with some rows of the stack in place of all of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..errors import UserError
from ..model.layer_subset import LayerSubset
from .optimizer import join_frozen
from .randomness import purpose_key

Rows = Int[Array, " G"]


class Thaw(NamedTuple):
    """layers: how many learn at a time, drawn for each `period` of steps; or, without a period, the numbers of those
    that learn; None: all. Trees that are taken have None for what is frozen (`optimizer.split_frozen`)."""

    layers: int | tuple[int, ...] | None = None
    period: int | None = None
    seed: int = 0

    def rows(self, trainable: Any, step: Int[Array, ""] | int) -> Rows | None:
        """The numbers of the layers that learn at a step, drawn uniformly without replacement; None: all."""
        if self.layers is None:
            return None
        if self.period is None:
            return jnp.array(self.layers, jnp.int32)
        key = jax.random.fold_in(purpose_key(self.seed, "thawed layers"), step // self.period)
        return jax.random.choice(key, depth(trainable), (self.layers,), replace=False)

    def news(self, step: Int[Array, ""]) -> dict[str, Int[Array, ""]]:
        """What the optimiser is told at a step, as it begins anew with other layers (`make_optimizer`)."""
        return {} if self.period is None else {"period": step // self.period}

    def network(self, learning: Any, trainable: Any, frozen: Any, rows: Rows | None) -> Any:
        """The parameters that a loss takes, such that its gradient by `learning` is that of what learns."""
        if rows is None:
            return join_frozen(learning, frozen)
        places = jnp.full(depth(trainable), -1).at[rows].set(jnp.arange(len(rows)))
        reaches_down = self.period is not None or jax.tree.leaves(learning["embed"])
        subset = LayerSubset(learning["layers"], places, 0 if reaches_down else min(self.layers))
        return join_frozen(learning | {"layers": trainable["layers"]}, frozen) | {"layer_subset": subset}


ALL_LAYERS = Thaw()


def take(trainable: Any, rows: Rows | None) -> Any:
    """What learns: `trainable` with `rows` of the stack in place of the stack."""
    if rows is None:
        return trainable
    return trainable | {"layers": jax.tree.map(lambda stack: stack[rows], trainable["layers"])}


def put(learning: Any, trainable: Any, rows: Rows | None) -> Any:
    """The inverse of `take`: `trainable` after what learns has moved."""
    if rows is None:
        return learning
    write = lambda stack, part: stack.at[rows].set(part, unique_indices=True)  # noqa: E731
    return learning | {"layers": jax.tree.map(write, trainable["layers"], learning["layers"])}


def depth(trainable: Any) -> int:
    """How many layers the stack of a tree has."""
    return len(jax.tree.leaves(trainable["layers"])[0])


def check_period(layers: int | Sequence[int] | None, period: float | None) -> None:
    """Raises UserError for a number of layers without a period, and for a period without a number of layers."""
    if isinstance(layers, int) and not period:
        raise UserError("config.lisa.period_steps: say for how many steps layers are drawn, such as 20")
    if layers is None and period is not None:
        raise UserError("config.lisa.period_steps has no meaning without config.lisa.layers, how many are drawn")
    if not isinstance(layers, int) and period is not None:
        raise UserError("config.lisa.period_steps: layers that are named never change; leave it None")


def make_thaw(layers: int | Sequence[int], trainable: Any, period: int | None, seed: int) -> Thaw:
    """The Thaw of a network whose parameters that may learn are `trainable`. layers: how many, or a list of numbers, of
    which negative ones count from the last layer.

    Raises UserError for a number of layers without a period, a list with one, and what the network does not have.
    """
    if not jax.tree.leaves(trainable["layers"]):
        raise UserError("config.lisa.layers: config.optim.frozen freezes all of layers/, so that none can learn")
    n_layers = depth(trainable)
    check_period(layers, period)
    if isinstance(layers, int):
        if not 1 <= layers <= n_layers:
            raise UserError(f"config.lisa.layers {layers}: the network has {n_layers}; give a number from 1 up to that")
        return Thaw(layers, period, seed)
    known = isinstance(layers, list | tuple) and all(layer in range(-n_layers, n_layers) for layer in layers)
    named = {layer % n_layers for layer in layers} if known else ()
    if not named or len(named) != len(layers):
        raise UserError(
            f"config.lisa.layers {layers!r}: give a number of layers, or a list that names each once, from 0 to "
            f"{n_layers - 1} or from -1, the last, down to {-n_layers}"
        )
    return Thaw(tuple(sorted(named)))
