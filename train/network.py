"""A network that a run trains: its initial parameters, its frozen base, its optimiser, and how its step is compiled.

Without adapters the state of a run holds the whole network. With adapters the state, and so every checkpoint, holds the
adapters alone: the base is read from `config.init_from` when the run starts or resumes, and networks that start from
the same checkpoint share it in memory. A step joins adapters and base, and separates them again (`Network.compile`).
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..checkpoints import AdapterCheckpoint, Checkpoint
from ..errors import UserError
from ..model import lora, storage
from ..model.lora import Lora
from ..model.sharding import PARTITION_RULES, path_name, placed, shardings
from ..model.weights import is_weight, join, without
from .by_layer import Optimizer
from .state import State, state_of, state_shardings
from .trainable import Rules, Trainable

Params = Any
Init = Callable[[jax.Array], Params]
"""init(key) -> random parameters."""
Load = Callable[[Any], Params]
"""load(abstract) -> parameters with the shapes, dtypes and shardings of the tree `abstract`."""


class FrozenWeights:
    """Frozen weights that several networks of a run share, each array of which is in memory once."""

    def __init__(self, mesh: jax.sharding.Mesh, partition_rules: Rules | None = None):
        self._mesh, self._rules = mesh, partition_rules or PARTITION_RULES
        self._known: dict[str, dict[str, jax.Array]] = {}

    def place(self, abstract: Any) -> Any:
        """Shapes with the run's shardings. Raises UserError where a mesh axis does not divide an axis of an array."""
        try:
            where = shardings(abstract, self._mesh, self._rules)
        except ValueError as error:
            raise UserError(str(error)) from None
        return placed(abstract, where)

    def load(self, start: Checkpoint, abstract: Any, quantize: storage.Rules | None) -> Params:
        """The parameters of a checkpoint that a tree of shapes names. quantize: how matrices are stored in memory."""
        known = self._known.setdefault(f"{start.path} {start.weights} {json.dumps(quantize)}", {})
        named = {path_name(key_path): leaf for key_path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
        if named.keys() - known.keys():
            read = start.load_params(self.place(abstract), some=True, quantize=quantize)
            for key_path, leaf in jax.tree_util.tree_leaves_with_path(read, is_leaf=is_weight):
                known.setdefault(path_name(key_path), leaf)
        return jax.tree_util.tree_map_with_path(lambda key_path, _: known[path_name(key_path)], abstract)

    def load_whole(self, start: Checkpoint, abstract: Any) -> Params:
        """All parameters of a checkpoint; of a checkpoint of adapters, with the base that they were trained on."""
        if not isinstance(start, AdapterCheckpoint):
            return start.load_params(self.place(abstract))
        base = self.load(start.base, lora.base_of(start.lora, abstract), start.quantize)
        return join(start.load_adapters(self.place(abstract)), base)


@dataclasses.dataclass(frozen=True)
class InitialParams:
    """Where the parameters of a network come from, or of several networks in one tree."""

    init: Init
    """Makes all parameters at random, adapters included."""

    load: Load | None = None
    """Reads the parameters of the state from a checkpoint; None where a run starts from random parameters."""

    base_shapes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Shapes of the frozen base weights, which the state does not hold; empty without adapters."""

    load_base: Callable[[], Mapping[str, Any]] = dict
    """Reads the frozen base weights."""

    names: tuple[str, ...] = ()
    """Names of the networks where the tree has several; () for one network."""


def adapted(
    init: Init,
    start: Checkpoint | None,
    adapters: Lora,
    frozen: FrozenWeights,
    *,
    quantize: storage.Rules | None,
    seed: int,
    fresh_head: Load | None = None,
) -> InitialParams:
    """A network with low-rank adapters on the parameters of a checkpoint.

    Args:
      init: makes the network without adapters.
      start: the checkpoint. If it holds adapters, the run trains them further, and `adapters` must equal them. None
        where nothing is read, and the step is only lowered.
      adapters: the adapters' targets and kind.
      frozen: the run's frozen weights, which hold the base.
      quantize: how the base is stored in memory.
      seed: seed of the adapters' initial values.
      fresh_head: makes the scalar head, which a language model does not have.
    """
    earlier = start if isinstance(start, AdapterCheckpoint) else None
    if earlier is not None and earlier.lora != adapters:
        raise UserError(f"config.lora: {start.name} has adapters of {earlier.lora}; give the same, or convert it first")
    plain = frozen.place(jax.eval_shape(init, jax.random.key(0)))
    stays = base_of(adapters, plain)
    load_base = functools.cache(lambda: frozen.load(start if earlier is None else earlier.base, stays, quantize))
    stored = _stored_shapes(stays, quantize, load_base)

    def init_adapted(key: jax.Array) -> Params:
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), stored)
        return lora.adapt(adapters, join(without(init(key), stays), blank), plain, key)

    def load(abstract: Any) -> Params:
        whole = without(plain, stays)
        head = {"score": fresh_head(whole.pop("score"))} if "score" in whole and start.kind != "scalar" else {}
        if earlier is not None:
            return earlier.load_adapters(plain, score=head.get("score"))
        whole = head | (start.load_params(whole, some=True) if whole else {})
        base = load_base()
        fresh = jax.jit(  # a fresh adapter may depend on its matrix
            lambda base, whole: without(lora.adapt(adapters, join(whole, base), plain, jax.random.key(seed)), base),
            out_shardings=jax.tree.map(lambda x: x.sharding, without(abstract, base)),
        )
        return fresh(base, whole)

    return InitialParams(init_adapted, load, stored, load_base)


def _stored_shapes(stays: Any, quantize: storage.Rules | None, load_base: Callable[[], Any]) -> Any:
    """Shapes of a base as it is stored in memory. The base is read only if it stays in the codes of a GGUF file."""
    if quantize is None:
        return stays
    if any(kind == storage.STORED for _, kind in quantize):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), load_base())
    return jax.eval_shape(functools.partial(storage.quantize, rules=quantize), stays)


def base_of(adapters: Lora, params: Params) -> Params:
    """The shapes of the frozen base under adapters. Raises UserError for targets that the network does not have."""
    try:
        return lora.base_of(adapters, params)
    except ValueError as error:
        raise UserError(f"config.{error}") from None


def together(starts: Mapping[str, InitialParams]) -> InitialParams:
    """The initial parameters of several networks in one tree, {name: parameters}: all are read, or all are random."""

    def init(key: jax.Array) -> Params:
        return {name: start.init(jax.random.fold_in(key, i)) for i, (name, start) in enumerate(starts.items())}

    def load(abstract: Any) -> Params:
        return {name: start.load(abstract[name]) for name, start in starts.items()}

    shapes = {name: start.base_shapes for name, start in starts.items() if start.base_shapes}
    load_base = lambda: {name: starts[name].load_base() for name in shapes}  # noqa: E731
    read = None if all(start.load is None for start in starts.values()) else load
    return InitialParams(init, read, shapes, load_base, tuple(starts))


@dataclasses.dataclass(frozen=True)
class Network:
    """What a run trains, one network or several in one tree, and how its step is compiled."""

    initial: InitialParams
    """Where the parameters come from."""

    trainable: Trainable
    """Which parameters learn."""

    optimizer: Optimizer
    """The optimiser of the parameters that learn."""

    schedule: optax.Schedule
    """The learning rate by step, for the metrics."""

    mesh: jax.sharding.Mesh
    """The devices."""

    partition_rules: Rules | None = None
    """(regex over parameter paths, mesh axes of each array axis); None: `model.sharding.PARTITION_RULES`."""

    ema: bool = False
    """Whether the state keeps a moving average of the parameters."""

    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further entries of the state: scalars, or trees of scalars."""

    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Options of XLA for the programs of a step (`model.compiler_options`)."""

    @functools.cached_property
    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state, without the frozen base."""
        abstract = jax.eval_shape(self._make, jax.eval_shape(self.initial.init, jax.random.key(0)))
        try:
            where = state_shardings(abstract, self.mesh, self.partition_rules or PARTITION_RULES)
        except ValueError as error:
            raise UserError(str(error)) from None
        return without_base(placed(abstract, where), self.initial.base_shapes)

    @functools.cached_property
    def shardings(self) -> State:
        """The sharding of each leaf of the state."""
        return jax.tree.map(lambda x: x.sharding, self.abstract_state)

    @functools.cached_property
    def base(self) -> Mapping[str, Any]:
        """The frozen base weights; empty without adapters."""
        return self.initial.load_base()

    def first_state(self, seed: int) -> State:
        """The state before the first step: parameters of the checkpoint that the run starts from, or random ones."""
        if self.initial.load is None:
            return self._random_state(jax.random.key(seed))

        def make(params: Params, base: Params) -> State:
            return without_base(self._make(join(params, base)), base)

        params = self.initial.load(self.abstract_state["params"])
        return jax.jit(make, out_shardings=self.shardings)(params, self.base)

    @functools.cached_property
    def _random_state(self) -> Callable[[jax.Array], State]:
        """The compiled function from a key to a state with random parameters."""
        return jax.jit(lambda key: self._make(self.initial.init(key)), out_shardings=self.shardings)

    def _make(self, params: Params) -> State:
        return state_of(params, self.optimizer, self.trainable, ema=self.ema, extra=self.extra)

    def whole(self, state: State) -> State:
        """The state with whole networks, frozen base weights included."""
        return with_base(state, self.base)

    def stored(self, state: State) -> State:
        """The inverse of `whole`: the state as steps carry it, without frozen base weights."""
        return without_base(state, self.base)

    def compile(self, update: Callable, *frozen: Any) -> Callable[[State, Any], tuple[State, dict]]:
        """The compiled function step(state, batch) -> (state, metrics). It donates the state, which changes in place.

        Args:
          update: update(state, *frozen, batch) -> (state, metrics), which sees whole networks in the state.
          frozen: further arrays for `update`, such as the parameters of a reference model.
        """
        return functools.partial(self._jit(update), self.base, frozen)

    def compile_read(self, read: Callable, *frozen: Any) -> Callable[[State, Any], Any]:
        """The compiled function of read(state, *frozen, batch), which does not change the state."""
        return functools.partial(self._jit_read(read), self.base, frozen)

    def lower(self, update: Callable, batch: Any, *frozen: Any) -> jax.stages.Lowered:
        """The program of `compile`, lowered from shapes alone: neither data nor weights are read.

        Args:
          update: as in `compile`.
          batch: a tree of `jax.ShapeDtypeStruct`.
          frozen: trees of `jax.ShapeDtypeStruct`.
        """
        return self._jit(update).lower(self.initial.base_shapes, frozen, self.abstract_state, batch)

    def _jit_read(self, read: Callable) -> Callable:
        return jax.jit(
            lambda base, frozen, state, batch: read(with_base(state, base), *frozen, batch),
            compiler_options=dict(self.compiler_options) or None,
        )

    def _jit(self, update: Callable) -> Callable:
        def step(base: Any, frozen: tuple, state: State, batch: Any) -> tuple[State, dict]:
            state, metrics = update(with_base(state, base), *frozen, batch)
            return without_base(state, base), metrics

        return self.jit_step(step, (self.shardings, None))

    def jit_step(self, step: Callable, out_shardings: Any) -> Callable:
        """Compiles a function whose third argument is the state, or several states, which it donates."""
        options = dict(self.compiler_options) or None
        return jax.jit(step, donate_argnums=2, out_shardings=out_shardings, compiler_options=options)


def with_base(state: State, base: Mapping[str, Any]) -> State:
    """The state with whole networks, frozen base weights included."""
    return state | {name: join(state[name], base) for name in ("params", "ema") if name in state}


def without_base(state: State, base: Mapping[str, Any]) -> State:
    """The state without frozen base weights: what a step carries and a checkpoint saves."""
    return state | {name: without(state[name], base) for name in ("params", "ema") if name in state}
