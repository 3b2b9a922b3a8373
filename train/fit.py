"""What every recipe does with its parameters, data and step: watch, save, resume. And what supervised ones share."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from ..data.batches import Batches, EvalBatches
from ..data.errors import UserError
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..model import llama
from ..model.sharding import BATCH
from ..model.weights import join
from . import setup
from .adapters import Adapters
from .bundle import Llama
from .checkpoints import Checkpoints, check_continues, keep_tokenizer
from .evaluate import heldout_loss
from .leaves import check
from .loop import Check, Evaluation, Pace, Step, check_streak, train
from .optimizer import split_frozen
from .report import HEADLINE, Reporter
from .settings import Settings, check_all_read
from .state import Guard, LossFn, State, make_update

Evaluator = Callable[..., tuple[Mapping[str, float], Sequence[Mapping[str, str]]]]
"""evaluator(llama, **section of config.evals) -> metrics and rows of samples. Its annotations are the section's
(`leaves`); an attribute `metrics`, if it has one, names the metrics that it gives."""


class Job(NamedTuple):
    """What `fit` is told of a run.

    make_step(shardings of the state): the compiled step, its state donated, of a state without `start.base`. batches,
    sharding: what it is fed, as `data.prefetch` takes them. manifest: what checkpoints say beside the config, data and
    network. tables: shown at the start. check: sees all metrics and may stop the run.
    """

    model: llama.Model
    tokenizer: Tokenizer
    template: ChatTemplate | None
    batches: Any
    sharding: NamedSharding
    lengths: setup.Lengths
    start: setup.Start
    make_step: Callable[[State], Step]
    evaluations: Sequence[Evaluation]
    flops_per_token: float
    check: Check
    manifest: Mapping[str, Any] = {}
    tables: Mapping[str, Sequence[Mapping[str, str]]] = {}
    headline: Mapping[str, str] = HEADLINE


def fit(settings: Settings, workdir: epath.Path, mesh: jax.sharding.Mesh, job: Job) -> State:
    """Trains to `config.total_*` and returns the last state, whole networks in it; goes on from the latest checkpoint
    under `workdir`.

    Call it under `jax.set_mesh(mesh)`, when everything else that reads settings has done so. Raises UserError for
    settings that do not fit or that nothing reads, `loop.TrainingStopped` when the run cannot go on.
    """
    abstract = setup.abstract_state(job.start, mesh, settings.partition_rules)
    pace = Pace(job.lengths.log, settings.profile.at_step, settings.profile.n_steps)
    when = {name: settings.checkpoint[name] for name in ("every_steps", "every_seconds", "keep_last", "keep_every")}
    wandb, seed = settings.wandb, settings.seed
    check_all_read(settings)

    manifest = setup.manifest_of(settings.config(), job.model, job.tokenizer, job.template, job.batches)
    manifest |= {"total_steps": job.lengths.total} | job.manifest
    with Checkpoints(workdir, **when) as saved:
        if saved.latest() is not None:
            check_continues(workdir, manifest)
            state = saved.restore(abstract)
        else:
            state = setup.first_state(job.start, abstract, seed)
        begin = int(state["step"])
        with Reporter(workdir, job.lengths.total, start_step=begin, wandb=wandb, headline=job.headline) as reporter:
            if not begin:
                keep_tokenizer(workdir, job.tokenizer)
                for name, rows in job.tables.items():
                    reporter.text(0, name, rows)
            state = train(
                job.make_step(jax.tree.map(lambda x: x.sharding, abstract)),
                state,
                job.batches,
                start=begin,
                total=job.lengths.total,
                sharding=job.sharding,
                pace=pace,
                evaluations=[_on_base(evaluation, job.start.base) for evaluation in job.evaluations],
                check=job.check,
                reporter=reporter,
                checkpoints=saved,
                manifest=manifest,
                flops_per_token=job.flops_per_token,
                workdir=workdir,
            )
    return setup.whole_state(state, job.start.base)


def _on_base(evaluation: Evaluation, base: Mapping[str, Any]) -> Evaluation:
    return evaluation._replace(run=lambda params: evaluation.run(join(params, base)))


def compile_update(
    update: Callable[[State, Any], tuple[State, dict]], base: Mapping[str, Any], where: State
) -> Callable[[State, Any], tuple[State, dict]]:
    """An update of whole networks as a compiled step of the state without their base. where: its shardings.

    It is a partial application of a jitted function of base, state and batch.
    """

    def step(base: Any, state: State, batch: Any) -> tuple[State, dict]:
        state, metrics = update(setup.whole_state(state, base), batch)
        return setup.own_state(state, base), metrics

    return functools.partial(jax.jit(step, donate_argnums=1, out_shardings=(where, None)), base)


def supervise(
    settings: Settings,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
    model: llama.Model,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    batches: Batches,
    heldout: Mapping[str, EvalBatches],
    loss_fn: LossFn,
    evaluators: Mapping[str, Evaluator],
) -> Llama:
    """`fit` for a loss over packed rows of text: the whole of pretraining and tuning. Returns the model."""
    setup.check_rows(settings, mesh, model.config.max_len)
    lengths = setup.lengths_of(settings, batches)
    adapters = Adapters(settings, mesh, may_drop=True)
    part = adapters.part(model.init, settings.init_from, setup.loader(settings))
    everything = jax.eval_shape(part.init, jax.random.key(0))
    frozen = adapters.frozen(everything, part.base)
    trainable, _ = split_frozen(everything, frozen)
    thaw = setup.thaw_of(settings, trainable, lengths, batches)
    optimizer, schedule = setup.optimizer_of(settings, trainable, lengths, batches, restarts=thaw.period is not None)
    update = make_update(
        loss_fn, optimizer, schedule, frozen=frozen, perturb=adapters.perturb(), thaw=thaw, **update_settings(settings)
    )
    rows = NamedSharding(mesh, PartitionSpec(BATCH, "context"))

    def bundle(params: Any, step: int | None = None) -> Llama:
        return Llama(model, params, tokenizer, template, mesh, step=step)

    trained = model.config.trained_len
    borders = [trained] if trained is not None and trained < batches.length else []  # of a stretched network
    measure = heldout_loss(model, heldout, tokenizer, rows, settings.eval_batches, borders)
    evaluations = [Evaluation("heldout", lengths.evaluate, measure)] if heldout else []
    evaluations += further_evaluations(settings, lengths, evaluators, bundle)
    job = Job(
        model=model,
        tokenizer=tokenizer,
        template=template,
        batches=batches,
        sharding=rows,
        lengths=lengths,
        start=setup.Start(optimizer, *part, frozen, settings.ema_decay is not None, thaw=thaw),
        make_step=lambda where: compile_update(update, part.base, where),
        evaluations=evaluations,
        flops_per_token=model.config.flops_per_token(batches.length),
        check=check_streak(settings.guard.max_streak),
        manifest=adapters.manifest(),
        tables=data_tables(batches, heldout),
    )
    state = fit(settings, workdir, mesh, job)
    return bundle(state.get("ema", state["params"]), step=int(state["step"]))


def update_settings(settings: Settings) -> dict[str, Any]:
    """`make_update`'s further arguments from the config."""
    return dict(
        accumulate=settings.optim.accumulate,
        guard=Guard(settings.guard.spike_sigma, settings.guard.warmup_steps),
        ema_decay=settings.ema_decay,
        seed=settings.seed,
    )


def data_tables(batches: Any, heldout: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """What each source holds, and the first records that were left out of it."""
    tables = {"data": setup.report_data(batches, heldout)}
    for name, problems in batches.skipped().items():
        tables[f"left out of {name}"] = [{"record": problem} for problem in problems]
    return tables


def further_evaluations(
    settings: Settings, lengths: setup.Lengths, evaluators: Mapping[str, Evaluator], bundle: Callable[[Any], Llama]
) -> list[Evaluation]:
    """The sections of `config.evals` as functions of parameters; their arguments are checked here."""
    evaluations = []
    for name, section in settings.evals.items():
        if name not in evaluators:
            raise UserError(f"config.evals.{name}: there is no such evaluation, only {', '.join(evaluators)}")
        check(f"config.evals.{name}", section, evaluators[name])
        arguments = dict(section)
        evaluations.append(Evaluation(name, lengths.evaluate, _evaluation(evaluators[name], arguments, bundle)))
    return evaluations


def _evaluation(evaluator: Evaluator, arguments: Mapping[str, Any], bundle: Callable[[Any], Llama]) -> Callable:
    return lambda params: evaluator(bundle(params), **arguments)
