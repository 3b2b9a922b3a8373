"""A run of a recipe over shapes: the recipe runs as it is, with no data, tokenizer or weights, and what it compiles is
kept as programs.

`PlannedRun` puts shapes where a `Run` reads files, and a `PlannedNetwork` keeps each program that a recipe compiles.
The loop has one step, from the shapes of a state and of a batch. A plan thus sees the very programs of `camelid train`.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from ...checkpoints import Checkpoint
from ...data.packed_rows import DTYPES
from ...data.pairs import PairEncoder
from ...data.prompts import PromptEncoder
from ...errors import UserError
from ...model import storage
from ...model.config import LlamaConfig
from ...rlhf import kto, pair_batches, prompt_batches, reward
from ...rlhf.watch import WatchSettings
from ...train import batches as text_batches
from ...train.lengths import Lengths
from ...train.network import FrozenWeights, Network
from ...train.run import Run
from ...train.run_config import RunConfig
from .stand_ins import PlannedBatches, PlannedCheckpoint, tokenizer_of


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that a step of a run executes."""

    name: str
    """step, and in a recipe that draws answers: rollout, then step."""

    traced: jax.stages.Traced
    """The program before it is lowered."""

    arguments: Mapping[str, Any]
    """Trees of shapes with shardings: base, frozen, state and batch."""

    mesh: jax.sharding.Mesh
    """The devices."""

    @functools.cached_property
    def compiled(self) -> jax.stages.Compiled:
        """The compiled program. Raises jax.errors.JaxRuntimeError where the compiler refuses it."""
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return self.traced.lower().compile()


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """What a step of a run consists of."""

    programs: tuple[Program, ...]
    """The programs, in the order in which a step calls them."""

    lengths: Lengths
    """Lengths of the run; those that depend on data stand on `stand_ins.STEPS_PER_EPOCH`."""

    flops_per_token: float
    """Model FLOPs of a step per token of its batch."""

    tokens: int
    """Tokens of a step: of a batch's rows, of all sides of its pairs, or of its prompts with the longest answers."""


class _Planned(Exception):
    """Ends a recipe after the step of its loop, before it makes anything of the last state."""

    def __init__(self, step: PlannedStep):
        super().__init__()
        self.step = step


class _Loop:
    """The one step of a planned run."""

    def __init__(self, state: Any, batch: Any):
        self.state, self.metrics, self._batch = state, {}, batch

    def __iter__(self) -> Iterator[Any]:
        yield self._batch


class PlannedRun(Run):
    """A run of a recipe over shapes."""

    def __init__(
        self,
        config: RunConfig,
        mesh: jax.sharding.Mesh,
        architecture: LlamaConfig | None,
        *,
        chain: bool,
    ):
        """
        Args:
          config: the settings, of the recipe's own class.
          mesh: the devices, which may be absent ones.
          architecture: that of checkpoints which are not on this machine.
          chain: whether the shardings of what one program hands to the next are those that the compiler chooses, for
            which the first is compiled; else they are left open.
        """
        super().__init__(_of_the_step(config), epath.Path("."), mesh)
        self.frozen = _PlannedWeights(mesh, config.partition_rules)
        self._programs: list[Program] = []
        self._architecture, self._chain = architecture, chain

    def plan(self, train: Callable[[Run], Any]) -> PlannedStep:
        """What a step of the recipe train(run) consists of. Raises the recipe's UserError."""
        try:
            train(self)
        except _Planned as planned:
            return planned.step
        raise UserError("config.recipe: the recipe has no loop (`run.loop`), so there is no step to plan")

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """A context in which functions compile for the plan's mesh. What is computed at once runs on this machine."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    # What a run reads ------------------------------------------------------------------------------------------------

    def open(self, path: epath.PathLike, weights: str | None = None) -> Checkpoint:
        """The checkpoint at a path, or a stand-in with the plan's architecture where there is none.

        A stand-in for `config.init_from` is a language model, any other one a scalar model.
        """
        if self._architecture is None:
            try:
                return super().open(path, weights)
            except UserError as error:
                if epath.Path(path).exists():
                    raise
                said = f"{error}; to plan without it, give `camelid plan` its --architecture, such as llama-7b"
                raise UserError(said) from None
        if epath.Path(path).exists():
            return super().open(path, weights)
        kind = None if path == self.config.init_from else "scalar"
        return PlannedCheckpoint(str(path), self._architecture, kind)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The run's tokenizer, or a stand-in where its file is not on this machine."""
        path = self.config.tokenizer
        if path is not None and not epath.Path(path).exists():
            return tokenizer_of(self._vocab_size())
        if path is None and self.start is not None and self.start.tokenizer is None:
            return tokenizer_of(self._vocab_size())
        return super().tokenizer

    def _vocab_size(self) -> int:
        settings = self.config.model
        if settings.vocab_size is not None:
            return settings.vocab_size
        if settings.preset is not None:
            return LlamaConfig.preset(settings.preset).vocab_size
        return self.start.config.vocab_size

    def read(self, reader: Callable, **options: Any) -> Any:
        """The shapes of what a reader of data gives."""
        if reader not in _SHAPES:
            name = f"{reader.__module__}.{reader.__qualname__}"
            raise UserError(f"config.recipe: a plan does not know the shapes of what {name} reads")
        return _SHAPES[reader](self, self.config.data, **options)

    def on_host(self, function: Callable, shapes: Callable) -> Callable:
        """The function `shapes`, in place of one that reads arrays on the host."""
        return shapes

    # What it compiles ------------------------------------------------------------------------------------------------

    def network(self, *args: Any, **kwargs: Any) -> "PlannedNetwork":
        """The network of `Run.network`, which keeps its programs."""
        made = super().network(*args, **kwargs)
        fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        return PlannedNetwork(**fields, keep=self._keep)

    def _keep(self, name: str, jitted: Callable, **arguments: Any) -> Any:
        """Traces a program, keeps it, and returns the shapes of its results."""
        traced = jitted.trace(*arguments.values())
        program = Program(name, traced, arguments, self.mesh)
        self._programs.append(program)
        if name == "rollout" and self._chain:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # `memory_of` compiles it again, and says why
                return _with_shardings(traced.out_info, program.compiled.output_shardings)
        return _with_shardings(traced.out_info, None)

    @contextlib.contextmanager
    def loop(
        self, network: Network, batches: Any, sharding: Any, lengths: Lengths, *, flops_per_token: float, **_: Any
    ) -> Iterator[_Loop]:
        """A loop of one step, from the shapes of the state and of a batch."""
        batch = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=_for_rank(sharding, len(shape)))
            for name, (shape, dtype) in batches.shapes.items()
        }
        yield _Loop(network.abstract_state, batch)
        tokens, rollout = math.prod(batches.shapes["tokens"][0]), getattr(self.config, "rollout", None)
        if rollout is not None:
            tokens = batches.batch_size * rollout.n * (batches.length + rollout.max_tokens)
        raise _Planned(PlannedStep(tuple(self._programs), lengths, flops_per_token, tokens))


def _of_the_step(config: RunConfig) -> RunConfig:
    """A config without what is about evaluations: these a plan leaves out, with what watches them."""
    changes = {"evals": {}} | ({"watch": WatchSettings()} if hasattr(config, "watch") else {})
    return dataclasses.replace(config, **changes)


@dataclasses.dataclass(frozen=True)
class PlannedNetwork(Network):
    """A network whose programs are traced from shapes and kept."""

    keep: Callable[..., Any] = None
    """keep(name, jitted, **arguments) -> the shapes of its results."""

    @functools.cached_property
    def base(self) -> Mapping[str, Any]:
        """The shapes of the frozen base weights."""
        return self.initial.base_shapes

    def compile(self, update: Callable, *frozen: Any) -> Callable[[Any, Any], tuple[Any, dict]]:
        """step(state, batch), which keeps the program and returns shapes."""
        jitted = self._jit(update)

        def step(state: Any, batch: Any) -> tuple[Any, dict]:
            _, metrics = self.keep("step", jitted, base=self.base, frozen=frozen, state=state, batch=batch)
            return self.abstract_state, metrics

        return step

    def compile_read(self, read: Callable, *frozen: Any) -> Callable[[Any, Any], Any]:
        """read(state, batch), which keeps the program and returns shapes."""
        jitted = self._jit_read(read)
        return lambda state, batch: self.keep(
            "rollout", jitted, base=self.base, frozen=frozen, state=state, batch=batch
        )


class _PlannedWeights(FrozenWeights):
    """Frozen weights as shapes."""

    def load(self, start: Checkpoint, abstract: Any, quantize: storage.Rules | None) -> Any:
        """The shapes of parameters, as they are stored in memory."""
        if quantize is None:
            return self.place(abstract)
        return self.place(jax.eval_shape(functools.partial(storage.quantize, rules=quantize), abstract))

    def load_whole(self, start: Checkpoint, abstract: Any) -> Any:
        """The shapes of all parameters."""
        return self.place(abstract)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    """Shapes with these shardings, or with open ones."""
    if shardings is None:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def _for_rank(sharding: jax.sharding.NamedSharding, rank: int) -> jax.sharding.NamedSharding:
    """The sharding of an array with fewer axes than the sharding names, as `data.prefetch` shortens it."""
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*sharding.spec[:rank]))


def _packed(length: int, batch_size: int) -> PlannedBatches:
    return PlannedBatches(batch_size, {name: ((length,), dtype) for name, dtype in DTYPES.items()})


def _samples(batch_size: int, encoder: Any) -> PlannedBatches:
    return PlannedBatches(batch_size, encoder.shapes | {"index": ((), np.int32)})


def _pairs(run: Run, settings: Any, **_: Any) -> tuple[PlannedBatches, dict]:
    sides = getattr(settings, "answers_per_prompt", 2)
    encoder = PairEncoder(run.tokenizer, run.template, settings.seq_len, sides=sides)
    return _samples(settings.batch_size, encoder), {}


_SHAPES: dict[Callable, Callable] = {
    text_batches.data_of: lambda run, settings: (_packed(settings.seq_len, settings.batch_size), {}),
    pair_batches.pairs_of: _pairs,
    reward.comparisons_of: _pairs,
    kto.answers_or_pairs_of: _pairs,
    reward.calibration_prompts: lambda run, settings, **_: (),
    prompt_batches.prompts_of: lambda run, settings: (
        _samples(settings.batch_size, PromptEncoder(run.tokenizer, run.template, settings.max_prompt_tokens)),
        None,
    ),
    prompt_batches.text_batches_of: lambda run, reading, settings: _packed(settings.seq_len, settings.batch_size),
}
"""shapes(run, config.data, **options) of what each reader of data gives."""
