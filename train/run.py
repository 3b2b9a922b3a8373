"""One run of a recipe: its config and devices, the checkpoint that it starts from, and how it is saved and resumed."""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import optax
from etils import epath

from ..checkpoints import AdapterCheckpoint, Checkpoint, absolute_path, manifest, reading
from ..checkpoints import open as open_checkpoint
from ..checkpoints.console import tell
from ..checkpoints.interop.generation_config import GenerationDefaults
from ..checkpoints.language_model import LanguageModel
from ..checkpoints.saving import Checkpoints, keep_tokenizer
from ..data.templates import ChatTemplate, load_template
from ..data.tokenizer import Tokenizer
from ..errors import UserError, did_you_mean
from ..model import llama, lora, storage
from ..model.lora import Lora
from ..model.sharding import make_mesh, path_name
from ..settings.sections import to_config
from . import resume
from .architecture import model_of
from .evaluations import Evaluator, chosen
from .finish import UNFINISHED, Finish
from .ledger import trained_datasets
from .lengths import Lengths, saving_of
from .loop import Check, Evaluation, Finished, Loop, profiler
from .network import FrozenWeights, InitialParams, Load, Network, adapted, base_of
from .optimizer import each_part, make_optimizer, make_schedule
from .randomness import purpose_key
from .report import HEADLINE, Reporter
from .run_config import MeshSettings, RunConfig
from .state import State
from .trainable import LisaSettings, Rules, Trainable, by_rules, of_adapters, of_layers, split_frozen
from .update import LossFn, Update, make_update

C = TypeVar("C", bound=RunConfig)

NO_LISA = LisaSettings()

RULES = ("frozen", "decay", "lr_multipliers")
"""Fields of `config.optim` that are lists of rules for parameters by their paths."""


def mesh_of(settings: MeshSettings) -> jax.sharding.Mesh:
    """The mesh of `config.mesh`."""
    try:
        return make_mesh(dict(vars(settings)))
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
      mesh: the devices. Recipes work under `jax.set_mesh(run.mesh)`. None where only data are read.
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

    # Networks --------------------------------------------------------------------------------------------------------

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
        extra: Mapping[str, Any] | None = None,
    ) -> Network:
        """A network that learns as `config.optim`, `schedule` and `lora` say.

        Args:
          initial: where its parameters come from.
          lengths: the lengths of the run.
          updates: optimiser steps in one step of the run.
          lisa: which layers learn; default: all.
          lrs: highest learning rates by the names of networks, which replace `config.optim.lr`.
          extra: further entries of the state: scalars, or trees of scalars.
        """
        config = self.config
        trainable = self._trainable(initial, lengths, lisa)
        own = trainable.may_learn(jax.eval_shape(initial.init, jax.random.key(0)))
        optimizer = functools.partial(self._optimizer, lengths, updates, trainable.period is not None)
        if initial.names:
            made = {name: optimizer(own[name], (lrs or {}).get(name)) for name in initial.names}
            combined, schedule = each_part({name: one for name, (one, _) in made.items()}), made[initial.names[0]][1]
        else:
            combined, schedule = optimizer(own, None)
        return Network(
            initial,
            trainable,
            combined,
            schedule,
            self.mesh,
            config.partition_rules,
            ema=config.ema_decay is not None,
            extra=extra or {},
        )

    def _optimizer(
        self, lengths: Lengths, updates: int, restarts: bool, params: Any, lr: float | None
    ) -> tuple[Any, optax.Schedule]:
        optim, schedule = self.config.optim, self.config.schedule
        rate = make_schedule(
            name=schedule.name,
            lr=optim.lr if lr is None else lr,
            total_steps=lengths.total * updates,
            warmup_steps=lengths.steps(schedule.warmup) * updates,
            final=schedule.final,
            decay_steps=schedule.decay and lengths.steps(schedule.decay) * updates,
        )
        return make_optimizer(params, optim, rate, restarts=restarts), rate

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

    @contextlib.contextmanager
    def loop(
        self,
        network: Network,
        batches: Any,
        sharding: jax.sharding.Sharding,
        lengths: Lengths,
        *,
        evaluations: Sequence[Evaluation],
        check: Check,
        flops_per_token: float,
        manifest: Mapping[str, Any] | None = None,
        tables: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
        headline: Mapping[str, str] = HEADLINE,
        finish: Finish | None = None,
    ) -> Iterator[Loop]:
        """The loop from the run's latest checkpoint to its end; it has no steps where the run is complete.

        After the loop, `loop.state` is the last state, with whole networks.

        Args:
          network: the network that is trained.
          batches: batches by step, as `data.prefetch` takes them.
          sharding: the sharding of batches.
          lengths: the lengths of the run.
          evaluations: evaluations of whole networks.
          check: sees all metrics and may stop the run.
          flops_per_token: model FLOPs of a step per token, for the reports.
          manifest: further entries of the manifests of checkpoints.
          tables: tables to show at the start, by name.
          headline: metrics of the progress line, with their labels.
          finish: changes the parameters after the last step.

        Raises:
          UserError: settings that do not fit.
          loop.TrainingStopped: the run cannot go on.
        """
        config, total = self.config, lengths.total
        first_traced = config.profile.at_step
        if first_traced is not None and first_traced >= total:
            raise UserError(f"config.profile.at_step {first_traced}: the run has the steps 0 to {total - 1}")
        saving = saving_of(config.checkpoint, lengths)
        best = saving["best"]
        if best is not None and not evaluations:
            raise UserError("config.checkpoint.best: this run has no evaluations, so no checkpoint could be the best")
        if best is not None:
            _check_best(best.metric, evaluations)
        described = self._manifest(batches, lengths) | dict(manifest or {})

        with Checkpoints(self.workdir, **saving) as saved:
            state = self._resume(saved, network.abstract_state, described, finish)
            if state is None:
                state = network.first_state(config.seed)
            begin = int(state["step"])
            if begin >= total:
                yield Finished(network.whole(state))
                return
            keep_tokenizer(self.workdir, self.tokenizer)
            passes = ", ".join(f"{name} {times:.3g}" for name, times in batches.epochs(total).items())
            tell(
                f"{total - begin:,} steps of {batches.batch_size:,} rows; passes over the sources in the run: {passes}"
            )
            options = dict(start_step=begin, headline=headline, config=config)
            with Reporter(self.workdir, total, **options) as reporter:
                for name, rows in (tables or {}).items() if not begin else ():
                    reporter.text(0, name, rows)
                with Loop(
                    state,
                    batches,
                    sharding,
                    lengths,
                    evaluations=[e._replace(run=_on_base(e.run, network)) for e in evaluations],
                    check=check if best is None else _also_best(check, best.metric),
                    reporter=reporter,
                    checkpoints=saved,
                    manifest=described,
                    flops_per_token=flops_per_token,
                    profiler=profiler(self.workdir / "profile", config.profile),
                    finish=finish and functools.partial(finish.apply, network),
                ) as loop:
                    del state  # it is donated
                    yield loop
            loop.state.pop(UNFINISHED, None)
            loop.state = network.whole(loop.state)
            if jax.process_index() == 0:
                kept = f", the best in checkpoints/{saved.best()}" if saved.best() is not None else ""
                print(f"step {total}: checkpoints, metrics and samples are in {self.workdir}{kept}", flush=True)

    def result(self, params: Any, loop: "Loop | Finished") -> Result:
        """The run's language model with these parameters of the last state, and the last metrics."""
        return Result(self.language_model(params, int(loop.state["step"])), self.last_metrics())

    def last_metrics(self) -> dict[str, float]:
        """The last value of every metric that the run has reported."""
        path, found = self.workdir / "metrics.jsonl", {}
        for line in path.read_text().splitlines() if path.exists() else ():
            found |= json.loads(line)
        return found

    def _manifest(self, batches: Any, lengths: Lengths) -> dict[str, Any]:
        """The manifest of the run's checkpoints."""
        tokenizer, template, start = self.tokenizer, self.template, self.start
        said = dict(tokenizer=tokenizer, template=template, data_fingerprint=batches.fingerprint)
        described = manifest.describe(to_config(self.config), **said)
        described |= {"model": dataclasses.asdict(self.model.config), "generation": self.generation.to_dict()}
        described |= {"total_steps": lengths.total, "start": None, "datasets": trained_datasets(self.config)}
        if start is not None:
            described["start"] = {"identity": start.identity, "weights": start.weights}
        if self.adapters is not None:
            base = start.base if isinstance(start, AdapterCheckpoint) else start
            described["adapter"] = {
                "path": base.address,
                "identity": base.identity,
                "weights": base.weights,
                "lora": dataclasses.asdict(self.adapters),
                "quantize": self.quantize,
            }
        return described

    def _resume(
        self, saved: Checkpoints, abstract: State, described: Mapping[str, Any], finish: Finish | None
    ) -> State | None:
        """The state of the newest whole checkpoint, of which a line tells; None where there is none.

        For a finished run that is made longer, it is the state before `finish`. Raises UserError where settings differ
        that a run must not change.
        """
        step = saved.latest()
        if step is None:
            return None
        path = saved.path(step)
        before = reading.manifest_of(path)
        changes = resume.check(path, before, described, type(self.config))
        complete = step >= before["total_steps"] == described["total_steps"]
        if step > before["total_steps"] and not complete:  # versions before gave what `finish` made a step of its own
            step = before["total_steps"]
        with_shelf = finish is not None and saved.holds(step, UNFINISHED)
        state = saved.restore(abstract | ({UNFINISHED: finish.shelve(abstract)} if with_shelf else {}), step)
        shelf = state.pop(UNFINISHED, {})
        if complete and finish is not None and not shelf and step == before["total_steps"]:
            raise UserError(f"{path}: a version before was cut off just before the end: make the run a step longer")
        if complete:
            also = f"; changes have no effect any more: {'; '.join(changes)}" if changes else ""
            tell(f"{path.parent.parent}: already complete, {step} steps; nothing was done{also}")
            return state
        tell(f"resuming from step {step}" + (f" with changes: {'; '.join(changes)}" if changes else ""))
        return state | {kind: state[kind] | entries for kind, entries in shelf.items()}


def _also_best(check: Check, metric: str) -> Check:
    """A check that calls `check`, and refuses the evaluation that `config.checkpoint.best` names if its metric is not
    among what it gives. Other evaluations may have schedules of their own."""
    evaluation = "/".join(metric.split("/")[:2]) + "/"

    def both(step: int, metrics: Mapping[str, float]) -> None:
        check(step, metrics)
        evaluated = [name for name in metrics if name.startswith(evaluation)]
        if evaluated and metric not in metrics:
            there = ", ".join(evaluated)
            raise UserError(f"config.checkpoint.best: no evaluation gives {metric!r}; there are {there}")

    return both


def _check_best(metric: str, evaluations: Sequence[Evaluation]) -> None:
    """Raises UserError if no evaluation of a run has the name in the metric of `config.checkpoint.best`."""
    if not any(metric.startswith(f"eval/{each.name}/") for each in evaluations):
        there = ", ".join(f"eval/{each.name}/..." for each in evaluations)
        raise UserError(f"config.checkpoint.best: no evaluation gives {metric!r}; there are {there}")


def _on_base(run: Callable, network: Network) -> Callable:
    """An evaluation of a state's parameters, made of an evaluation of whole networks."""
    return lambda params: run(network.whole({"params": params})["params"])
