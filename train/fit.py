"""What every recipe does with its parameters, data and step: watch, save, resume. And what supervised ones share."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from ..checkpoints.console import tell
from ..checkpoints.language_model import Llama
from ..checkpoints.reading import Best, read_manifest
from ..checkpoints.saving import Checkpoints, keep_tokenizer
from ..data.mixture import EvalPass, Mixture
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model import llama
from ..model.sharding import BATCH
from ..model.weights import join
from . import resume, setup
from .adapters import Adapters
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
    network. tables: shown at the start. check: sees all metrics and may stop the run. finish: changes what was trained
    after the last step.
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
    finish: "Finish | None" = None


class Finish(NamedTuple):
    """What happens to the parameters, and to their moving average, after the last step and before they are saved.

    run(params of the whole network): those with other entries `names`. The checkpoint keeps what these were under
    "unfinished", so that a run which is made longer goes on from there.
    """

    names: tuple[str, ...]
    run: Callable[[Any], Any]

    def shelve(self, state: State) -> State:
        """The entries that `run` replaces, of a state or of its shapes."""
        return {kind: {name: state[kind][name] for name in self.names} for kind in ("params", "ema") if kind in state}

    def __call__(self, state: State, base: Mapping[str, Any]) -> State:
        whole = setup.whole_state(state, base)
        changed = whole | {kind: self.run(whole[kind]) for kind in ("params", "ema") if kind in state}
        return setup.own_state(changed, base) | {UNFINISHED: self.shelve(state)}


UNFINISHED = "unfinished"


def fit(settings: Settings, workdir: epath.Path, mesh: jax.sharding.Mesh, job: Job) -> State:
    """Trains to `config.total_*` and returns the last state, whole networks in it; goes on from the latest checkpoint
    under `workdir`.

    Call it under `jax.set_mesh(mesh)`, when everything else that reads settings has done so. Raises UserError for
    settings that do not fit or that nothing reads, `loop.TrainingStopped` when the run cannot go on.
    """
    abstract = setup.abstract_state(job.start, mesh, settings.partition_rules)
    pace = Pace(job.lengths.log, settings.profile.at_step, settings.profile.n_steps)
    if pace.profile_at is not None and pace.profile_at >= job.lengths.total:
        raise UserError(f"config.profile.at_step {pace.profile_at}: the run has the steps 0 to {job.lengths.total - 1}")
    saving = setup.saving_of(settings, job.lengths, job.batches)
    if saving["best"] is not None and not job.evaluations:
        raise UserError("config.checkpoint.best: this run has no evaluations, so no checkpoint could be the best")
    wandb, seed = settings.wandb, settings.seed
    start = setup.start_of(settings)
    check_all_read(settings)
    manifest = setup.manifest_of(settings.config(), job.model, job.tokenizer, job.template, job.batches)
    manifest |= {"generation": setup.generation_of(settings, job.tokenizer).to_dict()}
    manifest |= {"total_steps": job.lengths.total, "start": start} | job.manifest

    with Checkpoints(workdir, **saving) as saved:
        state = _resume(saved, abstract, manifest, job.finish)
        if state is None:
            state = setup.first_state(job.start, abstract, seed)
        begin = int(state["step"])
        if begin >= job.lengths.total:
            return setup.whole_state(state, job.start.base)
        keep_tokenizer(workdir, job.tokenizer)
        with Reporter(workdir, job.lengths.total, start_step=begin, wandb=wandb, headline=job.headline) as reporter:
            if not begin:
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
                check=_with_best(job.check, saving["best"]),
                reporter=reporter,
                checkpoints=saved,
                manifest=manifest,
                flops_per_token=job.flops_per_token,
                workdir=workdir,
                finish=job.finish and (lambda state: job.finish(state, job.start.base)),
            )
        state.pop(UNFINISHED, None)
        if jax.process_index() == 0:
            best = f", the best in checkpoints/{saved.best()}" if saved.best() is not None else ""
            print(f"step {job.lengths.total}: checkpoints, metrics and samples are in {workdir}{best}", flush=True)
    return setup.whole_state(state, job.start.base)


def _resume(saved: Checkpoints, abstract: State, manifest: Mapping[str, Any], finish: Finish | None) -> State | None:
    """The state of the newest whole checkpoint, None where there is none; tells in a line what it is of.

    Of a finished run that is made longer it is the state before `finish`. UserError for what a run must not change.
    """
    step = saved.latest()
    if step is None:
        return None
    before = read_manifest(saved.path(step))
    changes = resume.check(saved.path(step), before, manifest)
    complete = step >= before["total_steps"] == manifest["total_steps"]
    if step > before["total_steps"] and not complete:  # versions before gave what `finish` made a step of its own
        step = before["total_steps"]
    with_shelf = finish is not None and saved.holds(step, UNFINISHED)
    state = saved.restore(abstract | ({UNFINISHED: finish.shelve(abstract)} if with_shelf else {}), step)
    shelf = state.pop(UNFINISHED, {})
    if complete and finish is not None and not shelf and step == before["total_steps"]:
        raise UserError(
            f"{saved.path(step)}: a version before was cut off just before the end: make the run a step longer"
        )
    if complete:
        also = f"; what has changed does nothing any more: {'; '.join(changes)}" if changes else ""
        tell(f"{saved.path(step).parent.parent}: already complete, {step} steps; nothing was done{also}")
        return state
    tell(f"going on from step {step}" + (f" with what was changed: {'; '.join(changes)}" if changes else ""))
    return state | {kind: state[kind] | entries for kind, entries in shelf.items()}


def _with_best(check: Check, best: Best | None) -> Check:
    """`check`, which at the first evaluation also looks whether there is the metric by which the best is kept."""

    def both(step: int, metrics: Mapping[str, float]) -> None:
        check(step, metrics)
        evaluated = [name for name in metrics if name.startswith("eval/")]
        if best is not None and evaluated and best.metric not in metrics:
            there = ", ".join(evaluated)
            raise UserError(f"config.checkpoint.best: no evaluation gives {best.metric!r}; there are {there}")

    return both


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


def check_network(settings: Settings, mesh: jax.sharding.Mesh, model: llama.Model) -> None:
    """Raises UserError, before data are read, for rows that do not fit the network or the mesh, and for rules of
    `config.optim` and `config.lora` that do not fit its parameters."""
    setup.check_rows(settings, mesh, model.config.max_len)
    Adapters(settings, mesh, may_drop=True).check(model.abstract_params)


def supervise(
    settings: Settings,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
    model: llama.Model,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    batches: Mixture,
    heldout: Mapping[str, EvalPass],
    loss_fn: LossFn,
    evaluators: Mapping[str, Evaluator],
) -> Llama:
    """`fit` for a loss over packed rows of text: the whole of pretraining and tuning. Returns the model."""
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

    generation = setup.generation_of(settings, tokenizer)

    def bundle(params: Any, step: int | None = None) -> Llama:
        return Llama(model, params, tokenizer, template, mesh, step=step, generation=generation)

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
