"""What every recipe that learns from rewards does with its two halves of a step: compile, run, watch, save, resume."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from ..checkpoints import origin
from ..checkpoints.language_model import Llama
from ..train import setup as train_setup
from ..train.fit import Evaluator, Job, data_tables, fit, further_evaluations
from ..train.leaves import read
from ..train.settings import Settings
from . import rewards, setup, watch


class Play(NamedTuple):
    """What a recipe gives `train_policy`.

    act(state, frozen, prompts) -> experience, and learn(state, experience, mix) -> (state, metrics): pure functions,
    the halves of a step. frozen: parameters that do not learn. graders: whose Python functions score an experience
    between the two. batches: of prompts, with text beside them or not.
    """

    act: Callable
    learn: Callable
    frozen: Mapping[str, Any]
    graders: Sequence[rewards.Rewards]
    batches: Any
    lengths: train_setup.Lengths
    start: train_setup.Start


def train_policy(
    settings: Settings,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
    scene: setup.Scene,
    play: Play,
    evaluators: Mapping[str, Evaluator],
) -> Llama:
    """Runs `play` to `config.total_*`, from the latest checkpoint on, and returns the policy: `params["policy"]`."""
    model = scene.model
    languages = {record["language"] for record in scene.heldout.records} if scene.heldout is not None else ()
    scores = [name for graders in (*play.graders, scene.judges) for name in (*graders.models, *graders.functions)]
    names = watch.heldout_names(scores, sorted(languages)) if languages else []
    names += watch.evaluation_names(settings.evals, evaluators)
    watch.check_names(read(settings, "watch", watch.Limits), "config.watch", names)
    host = setup.host_scores(scene, scene.prompts.records, *play.graders)

    generation = train_setup.generation_of(settings, scene.tokenizer)

    def bundle(params: Any, step: int | None = None) -> Llama:
        return Llama(model, params["policy"], scene.tokenizer, scene.template, mesh, step=step, generation=generation)

    job = Job(
        model=model,
        tokenizer=scene.tokenizer,
        template=scene.template,
        batches=play.batches,
        sharding=scene.rows,
        lengths=play.lengths,
        start=play.start,
        make_step=lambda where: compile_step(play.act, play.learn, play.frozen, play.start.base, where, host),
        evaluations=[
            *watch.heldout_rollouts(settings, scene, play.act, play.frozen, play.graders, play.lengths),
            *further_evaluations(settings, play.lengths, evaluators, bundle),
        ],
        flops_per_token=model.config.flops_per_token(scene.prompts.length + scene.sampling.max_tokens),
        check=watch.watch_of(settings, model.config.dtype, workdir),
        manifest={"policy": "policy"} | lineage(settings) | scene.adapters.manifest(),
        tables=data_tables(scene.prompts, {}),
        headline=watch.HEADLINE,
    )
    state = fit(settings, workdir, mesh, job)
    return bundle(state.get("ema", state["params"]), step=int(state["step"]))


def compile_step(
    act: Callable,
    learn: Callable,
    frozen: Mapping[str, Any],
    base: Mapping[str, Any],
    where: Any,
    host: Callable | None,
) -> Callable[[Any, Mapping[str, Any]], tuple[Any, dict]]:
    """`step(state, batch)` from the halves `act(state, frozen, batch) -> experience` and `learn(state, experience,
    mix) -> (state, metrics)`, of a state without `base`: one program, or two with `host(experience) -> experience`
    between them. where: the state's shardings."""

    def first_half(state, base, frozen, prompts):
        return act(train_setup.whole_state(state, base), frozen, prompts)

    def second_half(state, base, seen, mix):
        state, metrics = learn(train_setup.whole_state(state, base), seen, mix)
        return train_setup.own_state(state, base), metrics

    if host is None:

        def whole(state, base, frozen, batch):
            prompts, mix = setup.split_mix(batch)
            return second_half(state, base, first_half(state, base, frozen, prompts), mix)

        compiled = jax.jit(whole, donate_argnums=0, out_shardings=(where, None))
        return lambda state, batch: compiled(state, base, frozen, batch)

    first = jax.jit(first_half)
    second = jax.jit(second_half, donate_argnums=0, out_shardings=(where, None))
    split = jax.jit(setup.split_mix)

    def halves(state, batch):
        prompts, mix = split(batch)
        return second(state, base, host(first(state, base, frozen, prompts)), mix)

    return halves


def lineage(settings: Settings) -> dict[str, Any]:
    """Path and state of every frozen model of a run, and which of its parameters the run takes: what it must find again
    when it goes on."""
    sources = dict(settings.reward.sources.items())
    if "cost" in settings and settings.cost.source is not None:
        sources["cost"] = settings.cost.source
    models = {name: source for name, source in sources.items() if "model" in source}
    start = settings.critic.init_from if "critic" in settings else None
    paths = {"reference": settings.init_from} | {name: source.model for name, source in models.items()}
    return {
        "critic": start and origin.identity(start),
        "frozen": {name: origin.identity(path) for name, path in paths.items()},
        "frozen_weights": {
            name: origin.choose_weights(source.model, source.get("weights")) for name, source in models.items()
        },
    }
