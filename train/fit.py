"""What every supervised recipe does with its network, data and loss: optimise, watch, save, resume."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from ..data.batches import Batches, EvalBatches
from ..data.errors import UserError
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..model import llama
from ..model.sharding import BATCH
from . import setup
from .bundle import Llama
from .checkpoints import Checkpoints, check_continues, keep_tokenizer
from .evaluate import heldout_loss
from .loop import Evaluation, Pace, train
from .optimizer import split_frozen
from .report import Reporter
from .settings import Settings, check_all_read
from .state import Guard, LossFn, make_update

Evaluator = Callable[..., tuple[Mapping[str, float], Sequence[Mapping[str, str]]]]
"""evaluator(llama, **section of config.evals) -> metrics and rows of samples."""


def fit(
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
    """Trains to `config.total_*` and returns the model; goes on from the latest checkpoint under `workdir`.

    Call it under `jax.set_mesh(mesh)`. Raises UserError for settings that do not fit or that nothing reads,
    `loop.TrainingStopped` when steps keep failing.
    """
    setup.check_rows(settings, mesh, model.config.max_len)
    lengths = setup.lengths_of(settings, batches)
    frozen = setup.frozen_of(settings)
    trainable, _ = split_frozen(model.abstract_params, frozen)
    optimizer, schedule = setup.optimizer_of(settings, trainable, lengths, batches)
    update = make_update(
        loss_fn,
        optimizer,
        schedule,
        frozen=frozen,
        accumulate=settings.optim.accumulate,
        guard=Guard(settings.guard.spike_sigma, settings.guard.warmup_steps),
        ema_decay=settings.ema_decay,
    )
    rows = NamedSharding(mesh, PartitionSpec(BATCH, "context"))

    def bundle(params: Any, step: int | None = None) -> Llama:
        return Llama(model, params, tokenizer, template, mesh, step=step)

    measure = heldout_loss(model, heldout, rows, settings.eval_batches)
    evaluations = [Evaluation("heldout", lengths.evaluate, measure)] if heldout else []
    for name, section in settings.evals.items():
        evaluations.append(Evaluation(name, lengths.evaluate, _evaluation(name, section, evaluators, bundle)))

    abstract = setup.abstract_state(settings, model, optimizer, mesh)
    pace = Pace(lengths.log, settings.guard.max_streak, settings.profile.at_step, settings.profile.n_steps)
    when = {name: settings.checkpoint[name] for name in ("every_steps", "every_seconds", "keep_last", "keep_every")}
    wandb = settings.wandb
    check_all_read(settings)

    manifest = setup.manifest_of(settings.config(), model, tokenizer, template, batches)
    with Checkpoints(workdir, **when) as saved:
        if saved.latest() is not None:
            check_continues(workdir, manifest)
        state = setup.first_state(settings, model, optimizer, saved, abstract)
        start = int(state["step"])
        with Reporter(workdir, lengths.total, start_step=start, wandb=wandb) as reporter:
            if not start:
                keep_tokenizer(workdir, tokenizer)
                reporter.text(0, "data", setup.report_data(batches, heldout))
                for name, problems in batches.skipped().items():
                    reporter.text(0, f"left out of {name}", [{"record": problem} for problem in problems])
            shardings = jax.tree.map(lambda x: x.sharding, abstract)
            state = train(
                jax.jit(update, donate_argnums=0, out_shardings=(shardings, None)),
                state,
                batches,
                start=start,
                total=lengths.total,
                sharding=rows,
                pace=pace,
                evaluations=evaluations,
                reporter=reporter,
                checkpoints=saved,
                manifest=manifest,
                flops_per_token=model.config.flops_per_token(batches.length),
                workdir=workdir,
            )
    return bundle(state.get("ema", state["params"]), step=int(state["step"]))


def _evaluation(
    name: str, section: Settings, evaluators: Mapping[str, Evaluator], bundle: Callable[[Any], Llama]
) -> Callable[[Any], tuple[Mapping[str, float], Sequence[Mapping[str, str]]]]:
    """The evaluator of a section of `config.evals` as a function of parameters; its arguments are checked here."""
    if name not in evaluators:
        raise UserError(f"config.evals.{name}: there is no such evaluation, only {', '.join(evaluators)}")
    arguments = dict(section)
    try:
        inspect.signature(evaluators[name]).bind(None, **arguments)
    except TypeError as error:
        raise UserError(f"config.evals.{name}: {error}") from None
    return lambda params: evaluators[name](bundle(params), **arguments)
