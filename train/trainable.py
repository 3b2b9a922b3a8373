"""Which parameters of a network learn: all, those that no rule freezes, adapters alone, or some layers of the stack.

Layers lie in one stack. Where a few of them learn (layerwise importance sampled AdamW, arXiv:2403.17919, algorithm 1,
or layers that are named), gradients and optimiser state exist for these rows of the stack alone, and for embedding,
final norm and head, which learn all the time.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..errors import UserError, shown
from ..model import lora
from ..model.layer_subset import LayerSubset
from ..model.sharding import map_rules, match, path_name
from ..model.weights import without
from ..settings.leaves import Count, Range, Units, Unset
from ..settings.length import Length
from .randomness import purpose_key

Rules = Sequence[tuple[str, Any]]


@dataclasses.dataclass(frozen=True)
class LisaSettings:
    """The section `config.lisa`: which layers learn, where not all do, beside embedding, final norm and head."""

    layers: Annotated[Count | list[Annotated[int, Range()]] | None, Unset("all layers")] = None
    """A number: that many layers, drawn anew for each period (LISA). A list: the layers that learn, such as [-2, -1].
    None: all."""

    period: Annotated[Length | None, Units("steps", "epochs", "tokens", "percent", least=1)] = None
    """Length of time before LISA draws a new set of layers."""

    def check(self, where: str) -> None:
        if self.layers is not None and not isinstance(self.layers, int) and len(self.layers) == 0:
            raise UserError(f"{where}.layers = {shown(self.layers)}: name at least one layer, or give None for all")
        check_period(self.layers, self.period and self.period.value)


EVERYTHING: Rules = ((r".*", False),)


class Rest(NamedTuple):
    """The parameters that do not learn at a step. Trees have None in place of the parameters that do."""

    frozen: Any
    """Parameters that never learn."""

    stack: Any = None
    """All layers that may learn, where only some learn at a step; None where all layers learn."""

    rows: Int[Array, " G"] | None = None
    """Indices of the layers that learn at the step; None where all layers learn."""


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Which parameters learn at a step. Without arguments: all of them."""

    frozen: Rules = EVERYTHING
    """(regex over parameter paths, whether the parameter is frozen); the first match counts."""

    layers: int | tuple[int, ...] | None = None
    """A tuple: indices of the layers that learn. A number: that many layers, drawn for each period. None: all."""

    period: int | None = None
    """Steps before a new set of layers is drawn; None where none is drawn."""

    seed: int = 0
    """Seed of the draws."""

    def split(self, params: Any, step: Int[Array, ""] | int) -> tuple[Any, Rest]:
        """The parameters that learn at a step, and the rest. Of stacked layers, the rows that learn are taken."""
        own, frozen = split_frozen(params, self.frozen)
        rows = self._rows(own, step)
        if rows is None:
            return own, Rest(frozen)
        learns = own | {"layers": jax.tree.map(lambda stack: stack[rows], own["layers"])}
        return learns, Rest(frozen, own["layers"], rows)

    def merge(self, learns: Any, rest: Rest) -> Any:
        """The inverse of `split`: all parameters, with new values of those that learn."""
        if rest.rows is not None:
            write = lambda stack, part: stack.at[rest.rows].set(part, unique_indices=True)  # noqa: E731
            learns = learns | {"layers": jax.tree.map(write, rest.stack, learns["layers"])}
        return join_frozen(learns, rest.frozen)

    def for_loss(self, learns: Any, rest: Rest) -> Any:
        """All parameters for the loss, which can be differentiated with respect to `learns`."""
        if rest.rows is None:
            return join_frozen(learns, rest.frozen)
        places = jnp.full(depth(rest.stack), -1).at[rest.rows].set(jnp.arange(len(rest.rows)))
        reaches_down = self.period is not None or jax.tree.leaves(learns["embed"])
        subset = LayerSubset(learns["layers"], places, 0 if reaches_down else min(self.layers))
        return join_frozen(learns | {"layers": rest.stack}, rest.frozen) | {"layer_subset": subset}

    def may_learn(self, params: Any) -> Any:
        """The parameters that learn at some step, in all layers; None in place of the others."""
        return split_frozen(params, self.frozen)[0]

    def optimizer_extra(self, step: Int[Array, ""]) -> dict[str, Int[Array, ""]]:
        """Extra arguments of `Optimizer.move`: the number of the period, since moments start over with other layers."""
        return {} if self.period is None else {"period": step // self.period}

    def _rows(self, own: Any, step: Int[Array, ""] | int) -> Int[Array, " G"] | None:
        """Indices of the layers that learn at a step, drawn uniformly without replacement; None where all learn."""
        if self.layers is None:
            return None
        if self.period is None:
            return jnp.array(self.layers, jnp.int32)
        key = jax.random.fold_in(purpose_key(self.seed, "thawed layers"), step // self.period)
        return jax.random.choice(key, depth(own["layers"]), (self.layers,), replace=False)


def of_adapters(frozen: Rules, params: Any, base: Any) -> Rules:
    """Rules that freeze the base and the fixed parts of adapters.

    Args:
      frozen: rules for all other parameters.
      params: all parameters, adapters included; shapes suffice.
      base: the frozen base weights; shapes suffice.
    """
    own = {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(without(params, base))}
    fixed = tuple(f"/{part}" for part in lora.FIXED)
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [(re.escape(n), n not in own or n.endswith(fixed) or match(frozen, n)) for n in names]


def of_layers(
    layers: int | Sequence[int] | None, period: int | None, frozen: Rules, params: Any, seed: int
) -> Trainable:
    """A `Trainable` in which some layers learn.

    Args:
      layers: the number of layers (LISA), or a list of their indices, where negative ones count from the last layer.
        None: all layers.
      period: steps before a new set of layers is drawn; None for a list.
      frozen: rules for parameters that never learn.
      params: all parameters; shapes suffice.
      seed: seed of the draws.

    Raises:
      UserError: a number of layers without a period, a list with one, or layers that the network does not have.
    """
    check_period(layers, period)
    if layers is None:
        return Trainable(frozen)
    own, _ = split_frozen(params, frozen)
    if not jax.tree.leaves(own["layers"]):
        raise UserError("config.lisa.layers: config.optim.frozen freezes all of layers/, so that none can learn")
    n_layers = depth(own["layers"])
    if isinstance(layers, int):
        if not 1 <= layers <= n_layers:
            raise UserError(f"config.lisa.layers {layers}: the network has {n_layers}; give a number from 1 up to that")
        return Trainable(frozen, layers, period, seed)
    known = isinstance(layers, list | tuple) and all(layer in range(-n_layers, n_layers) for layer in layers)
    named = {layer % n_layers for layer in layers} if known else ()
    if not named or len(named) != len(layers):
        raise UserError(
            f"config.lisa.layers {layers!r}: give a number of layers, or a list that names each once, from 0 to "
            f"{n_layers - 1} or from -1, the last, down to {-n_layers}"
        )
    return Trainable(frozen, tuple(sorted(named)))


def check_period(layers: int | Sequence[int] | None, period: float | None) -> None:
    """Raises UserError for a number of layers without a period, and for a period without a number of layers."""
    if isinstance(layers, int) and not period:
        raise UserError("config.lisa.period_steps: say for how many steps layers are drawn, such as 20")
    if layers is None and period is not None:
        raise UserError("config.lisa.period_steps has no meaning without config.lisa.layers, how many are drawn")
    if not isinstance(layers, int) and period is not None:
        raise UserError("config.lisa.period_steps: layers that are named never change; leave it None")


def depth(stack: Any) -> int:
    """Number of layers of a stack."""
    return len(jax.tree.leaves(stack)[0])


def split_frozen(params: Any, frozen: Rules) -> tuple[Any, Any]:
    """The trainable and the frozen parameters, as two trees with None in place of the other's parameters."""
    is_frozen = by_rules("frozen", frozen, params)
    trainable = jax.tree.map(lambda p, f: None if f else p, params, is_frozen)
    rest = jax.tree.map(lambda p, f: p if f else None, params, is_frozen)
    if not jax.tree.leaves(trainable):
        raise UserError("config.optim.frozen freezes every parameter; leave at least one to train")
    return trainable, rest


def join_frozen(trainable: Any, frozen: Any) -> Any:
    """The inverse of `split_frozen`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda x: x is None)


def by_rules(setting: str, rules: Rules, params: Any) -> Any:
    """`model.sharding.map_rules` of a list of `config.optim`, with a UserError for a list that does not fit."""
    try:
        return map_rules(rules, params)
    except (ValueError, re.error) as error:
        raise UserError(f"config.optim.{setting}: {error}") from None
