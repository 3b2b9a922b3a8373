"""One run of a recipe: its config and devices, the checkpoint that it starts from, and how it is saved and resumed."""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import optax
from etils import epath

from ..checkpoints import AdapterCheckpoint, Checkpoint, absolute_path
from ..checkpoints import open as open_checkpoint
from ..checkpoints.interop.generation_config import GenerationDefaults
from ..checkpoints.language_model import LanguageModel
from ..data.templates import ChatTemplate, load_template
from ..data.tokenizer import Tokenizer
from ..errors import UserError, did_you_mean
from ..model import llama, lora, storage
from ..model.compiler_options import compiler_options
from ..model.config import LlamaConfig
from ..model.lora import Lora
from ..model.sharding import make_mesh, path_name
from .architecture import model_of
from .by_layer import Optimizer
from .evaluations import Evaluator, chosen
from .goodput import attempt_begin
from .lengths import Lengths
from .loop import Evaluation, Finished, Loop
from .metrics_file import read_metrics
from .network import FrozenWeights, InitialParams, Load, Network, adapted, base_of
from .optimizer import each_part, make_optimizer, make_schedule, waiting
from .randomness import purpose_key
from .recording import Recording
from .run_config import MeshSettings, RunConfig
from .run_loop import run_loop
from .trainable import LisaSettings, Rules, Trainable, by_rules, of_adapters, of_layers, split_frozen
from .update import LossFn, Update, make_update

C = TypeVar("C", bound=RunConfig)
T = TypeVar("T")

NO_LISA = LisaSettings()

RULES = ("frozen", "decay", "lr_multipliers")
"""Fields of `config.optim` that are lists of rules for parameters by their paths."""


def mesh_of(settings: MeshSettings, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh of `config.mesh` over these devices; None: all."""
    try:
        return make_mesh(dict(vars(settings)), devices)
    except ValueError as error:
        raise UserError(f"config.mesh: {error}") from None


class Result(NamedTuple):
    """What a recipe returns."""

    model: Any
    """The trained model: a `LanguageModel`, or a reward model."""

    metrics: dict[str, float]
    """The last value of every metric that the run reported."""


class Run(Generic[C]):
    """What a recipe needs around its data, networks, loss and step.

    Attributes:
      config: the settings, of the recipe's own class.
      workdir: folder of checkpoints and metrics.
      mesh: the devices. Recipes work under `run.on_mesh()`. None where only data are read.
      evaluators: the evaluations that `config.evals` may name.
      frozen: frozen weights, which the run's networks share in memory.
    """

    def __init__(
        self,
        config: C,
        workdir: epath.PathLike,
        mesh: jax.sharding.Mesh | None,
        evaluators: Mapping[str, Evaluator] | None = None,
    ):
        self.config, self.workdir, self.mesh = config, epath.Path(workdir), mesh
        self.evaluators = evaluators or {}
        self.frozen = FrozenWeights(mesh, config.partition_rules)
        self._opened: dict[tuple[str, str | None], Checkpoint] = {}
        self._recording: Recording | None = None
        self._began = attempt_begin()

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """A context in which functions compile for the run's mesh."""
        return jax.set_mesh(self.mesh)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[Recording]:
        """The record of this attempt at the run, around all of its work; within another such context, that record."""
        if self._recording is not None:
            yield self._recording
            return
        with Recording(self.workdir, self._began) as self._recording:
            try:
                yield self._recording
            finally:
                self._recording = None

    # What the run starts from ----------------------------------------------------------------------------------------

    def open(self, path: epath.PathLike, weights: str | None = None) -> Checkpoint:
        """The checkpoint at a path, which is opened once in a run."""
        key = str(absolute_path(path)), weights
        if key not in self._opened:
            self._opened[key] = open_checkpoint(path, weights)
        return self._opened[key]

    @functools.cached_property
    def start(self) -> Checkpoint | None:
        """The checkpoint of `config.init_from`; None where the run starts from random parameters."""
        path = self.config.init_from
        return None if path is None else self.open(path, self.config.init_weights)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """`config.tokenizer`, a path; where it is None, that of `config.init_from`."""
        if self.config.tokenizer is not None:
            return Tokenizer.load(self.config.tokenizer)
        if self.start is None:
            raise UserError("config.tokenizer: give the path of one, or config.init_from a checkpoint that has one")
        if self.start.tokenizer is None:
            raise UserError(f"{self.config.init_from} has no tokenizer; set config.tokenizer")
        return self.start.tokenizer

    @functools.cached_property
    def template(self) -> ChatTemplate | None:
        """`config.template`, a name or a jinja file; where it is None, that of `config.init_from`, if it has one."""
        if self.config.template is not None:
            return load_template(self.config.template)
        return None if self.start is None else self.start.template

    def need_template(self) -> ChatTemplate:
        """The chat template. Raises UserError where there is none."""
        if self.template is None:
            raise UserError("config.template: name one (chatml, llama2, ...) or give a jinja file")
        return self.template

    @functools.cached_property
    def model(self) -> llama.Model:
        """The network of `config.model`."""
        named = self.config.tokenizer is not None or self.start is not None  # a preset may be lowered without one
        return model_of(self.config.model, self.start, self.tokenizer if named else None)

    @functools.cached_property
    def generation(self) -> GenerationDefaults:
        """How the model at `config.init_from` recommends to draw answers. Token ids that end answers are left out where
        the run's tokenizer has another token under the id."""
        if self.start is None:
            return GenerationDefaults()
        said, own = self.start.generation, self.start.tokenizer
        same = own is None or own.fingerprint == self.tokenizer.fingerprint
        kept = tuple(i for i in said.stop_ids if same or own.piece(i) == self.tokenizer.piece(i))
        return dataclasses.replace(said, stop_ids=kept)

    def language_model(self, params: Any, step: int | None = None) -> LanguageModel:
        """The run's network with these parameters, tokenizer and template, for generating and saving."""
        return LanguageModel(
            self.model, params, self.tokenizer, self.template, self.mesh, step=step, generation=self.generation
        )

    # What it reads ---------------------------------------------------------------------------------------------------

    def read(self, reader: Callable[..., T], **options: Any) -> T:
        """What reader(config.data, tokenizer, template, seed, **options) gives, such as `batches.data_of`.

        Recipes read data through this method, so that a plan can put shapes in the place of data.
        """
        return reader(self.config.data, self.tokenizer, self.template, self.config.seed, **options)

    def on_host(self, function: Callable[..., T], shapes: Callable[..., T]) -> Callable[..., T]:
        """A function that reads arrays on the host, between two compiled ones: `function` itself.

        A plan, which has no arrays, takes shapes(...) in its place.
        """
        return function

    # Networks --------------------------------------------------------------------------------------------------------

    def flops_per_token(self, seq_len: int, config: LlamaConfig | None = None, *, head: bool = True) -> float:
        """Model FLOPs of a training step per token, in rows of `seq_len` tokens.

        config: that of the network; default: the run's. head: as in `LlamaConfig.flops_per_token`.
        """
        return (config or self.model.config).flops_per_token(seq_len, frozen=self.adapters is not None, head=head)

    @functools.cached_property
    def adapters(self) -> Lora | None:
        """The adapters of `config.lora`; None where it has none."""
        return self.config.lora.adapters()

    @functools.cached_property
    def quantize(self) -> storage.Rules | None:
        """How `config.lora.quantize` stores the base of adapters in memory."""
        return self.config.lora.base_storage()

    def initial(
        self,
        init: Callable[[jax.Array], Any],
        start: Checkpoint | None,
        *,
        load: Load | None = None,
        fresh_head: Load | None = None,
    ) -> InitialParams:
        """Where a network's parameters come from: a checkpoint, with the adapters of `config.lora`.

        Args:
          init: makes the network at random, without adapters.
          start: the checkpoint; None for random parameters.
          load: reads all parameters, where the network has more than `start` holds. Default: `start.load_params`.
          fresh_head: makes the scalar head, which a language model at `start` does not have.
        """
        if self.adapters is None:
            return InitialParams(init, load or (start and start.load_params))
        options = dict(quantize=self.quantize, seed=self.config.seed, fresh_head=fresh_head)
        return adapted(init, start, self.adapters, self.frozen, **options)

    def reference(self) -> Any:
        """The frozen parameters of `config.init_from`, on the base that the run's networks share."""
        abstract = self.model.abstract_params
        if self.adapters is None or isinstance(self.start, AdapterCheckpoint):
            return self.frozen.load_whole(self.start, abstract)
        return self.frozen.load(self.start, abstract, self.quantize)

    def network(
        self,
        initial: InitialParams,
        lengths: Lengths,
        *,
        updates: int = 1,
        lisa: LisaSettings = NO_LISA,
        lrs: Mapping[str, float] | None = None,
        first_steps: Mapping[str, int] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Network:
        """A network that learns as `config.optim`, `schedule` and `lora` say.

        Args:
          initial: where its parameters come from.
          lengths: the lengths of the run.
          updates: optimiser steps in one step of the run.
          lisa: which layers learn; default: all.
          lrs: highest learning rates by the names of networks, which replace `config.optim.lr`.
          first_steps: numbers of steps, by the names of networks, before the first in which a network learns. Until
            then its gradient must be 0.
          extra: further entries of the state: scalars, or trees of scalars.
        """
        config = self.config
        trainable = self._trainable(initial, lengths, lisa)
        own = trainable.may_learn(jax.eval_shape(initial.init, jax.random.key(0)))
        optimizer = functools.partial(self._optimizer, lengths, updates, trainable.period is not None)
        if initial.names:
            lrs, first_steps = lrs or {}, first_steps or {}
            made = {name: optimizer(own[name], lrs.get(name), first_steps.get(name, 0)) for name in initial.names}
            combined, schedule = each_part({name: one for name, (one, _) in made.items()}), made[initial.names[0]][1]
        else:
            combined, schedule = optimizer(own, None, 0)
        return Network(
            initial,
            trainable,
            combined,
            schedule,
            self.mesh,
            config.partition_rules,
            ema=config.ema_decay is not None,
            extra=extra or {},
            compiler_options=self.compiler_options,
        )

    @functools.cached_property
    def compiler_options(self) -> dict[str, Any]:
        """Options of XLA for the programs of a step: those of the platform, changed by `config.compiler_options`."""
        return compiler_options(self.mesh, self.config.compiler_options or {})

    def _optimizer(
        self, lengths: Lengths, updates: int, restarts: bool, params: Any, lr: float | None, first_steps: int
    ) -> tuple[Optimizer, optax.Schedule]:
        """An optimiser, and the learning rate by updates of the run.

        Args:
          lengths: the lengths of the run.
          updates: as in `network`.
          restarts: as in `make_optimizer`.
          params: the parameters that learn; shapes suffice.
          lr: the highest learning rate; None for `config.optim.lr`.
          first_steps: steps of the run before the first in which the parameters learn.
        """
        optim, schedule = self.config.optim, self.config.schedule
        rate = make_schedule(
            name=schedule.name,
            lr=optim.lr if lr is None else lr,
            total_steps=lengths.total * updates,
            warmup_steps=lengths.steps(schedule.warmup) * updates,
            final=schedule.final,
            decay_steps=schedule.decay and lengths.steps(schedule.decay) * updates,
        )
        if not first_steps:
            return make_optimizer(params, optim, rate, restarts=restarts), rate
        before = first_steps * updates
        return waiting(make_optimizer(params, optim, lambda count: rate(count + before)), before), rate

    def _trainable(self, initial: InitialParams, lengths: Lengths, lisa: LisaSettings) -> Trainable:
        params = jax.eval_shape(initial.init, jax.random.key(0))
        frozen = self._frozen_rules(params, initial)
        period = lisa.period and lengths.steps(lisa.period)
        return of_layers(lisa.layers, period, frozen, params, self.config.seed)

    def _frozen_rules(self, params: Any, initial: InitialParams) -> Rules:
        """Rules for the parameters that do not learn: those of `config.optim.frozen`, and the base of adapters.

        With several networks a rule applies to each of them, or begins with the name of one. Raises UserError for a
        rule of `config.optim` that matches no parameter.
        """
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        within = f"(?:(?:{'|'.join(initial.names)})/)?" if initial.names else ""
        own_names = [re.sub(f"^{within}", "", name) for name in names]
        for setting in RULES:
            there = [*own_names, *names] if setting == "frozen" else own_names
            for pattern, _ in getattr(self.config.optim, setting) or ():
                if not any(re.fullmatch(pattern, name) for name in there):
                    near = did_you_mean(pattern, there) or f"; there are {', '.join(dict.fromkeys(there))}"
                    raise UserError(f"config.optim.{setting}: {pattern!r} matches no parameter{near}")
        rules = [(f"{within}(?:{rule})", x) for rule, x in self.config.optim.frozen or ()] or [(r".*", False)]
        return rules if self.adapters is None else of_adapters(rules, params, initial.base_shapes)

    def check_rules(self) -> None:
        """Raises UserError for rules of `config.optim` and `config.lora` that do not fit the network. Recipes call it
        before they read data, which may take long."""
        params = self.model.abstract_params
        if self.adapters is not None:
            base_of(self.adapters, params)
            return
        trainable, _ = split_frozen(params, self._frozen_rules(params, InitialParams(self.model.init)))
        for setting in ("decay", "lr_multipliers"):
            if rules := getattr(self.config.optim, setting):
                by_rules(setting, rules, trainable)

    def update(self, network: Network, loss_fn: LossFn) -> Update:
        """One optimiser step of a network as a pure function (`update.make_update`), with the config's settings."""
        config = self.config
        return make_update(
            loss_fn,
            network.optimizer,
            network.schedule,
            network.trainable,
            accumulate=config.optim.accumulate,
            guard=config.guard,
            ema_decay=config.ema_decay,
            perturb=self._dropout(),
            seed=config.seed,
        )

    def _dropout(self) -> Callable[[Any, jax.Array], Any] | None:
        """The dropout of adapters' inputs as the argument `perturb` of `make_update`; None without dropout."""
        rate, key = self.config.lora.dropout, purpose_key(self.config.seed, "lora dropout")
        if not rate:
            return None
        return lambda params, number: lora.with_dropout(params, jax.random.fold_in(key, number), rate)

    # The loop --------------------------------------------------------------------------------------------------------

    def further_evaluations(self, lengths: Lengths, model_of: Callable[[Any], LanguageModel]) -> list[Evaluation]:
        """The evaluations of `config.evals`.

        Args:
          lengths: the lengths of the run.
          model_of: model_of(params) -> the language model with the parameters of a state.
        """

        return [
            Evaluation(
                each.name,
                lengths.evaluate if each.every is None else lengths.steps(each.every),
                lambda params, each=each: each.evaluator(model_of(params), **each.settings),
            )
            for each in chosen(self.config.evals, self.evaluators)
        ]

    loop = run_loop

    def result(self, params: Any, loop: "Loop | Finished") -> Result:
        """The run's language model with these parameters of the last state, and the last metrics."""
        return Result(self.language_model(params, int(loop.state["step"])), self.last_metrics())

    def last_metrics(self) -> dict[str, float]:
        """The last value of every metric that the run has reported."""
        reports = read_metrics(self.workdir)
        return {name: value for values in reports.values() for name, value in values.items()}
