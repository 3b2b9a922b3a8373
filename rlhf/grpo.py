"""GRPO and RLOO: PPO without a critic, whose baseline is the other answers to the same prompt.

GRPO (DeepSeekMath, arXiv:2402.03300), with what Dr. GRPO (arXiv:2503.20783) and DAPO (arXiv:2503.14476) changed as
options, and RLOO (arXiv:2402.14740). Rollouts, scoring and epochs of minibatches are PPO's.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array

from ..checkpoints.language_model import Llama
from ..model import llama
from ..model.sampling import Ranges
from ..train import setup as train_setup
from ..train.fit import Evaluator, update_settings
from ..train.leaves import Count, NotNegative, OneOf, Positive, Unset, Whole, read
from ..train.losses import head_logprobs
from ..train.optimizer import split_frozen
from ..train.randomness import purpose_key
from ..train.settings import Settings
from ..train.state import State, make_update
from . import critic, rewards, setup, statistics
from .advantages import GROUP_KINDS, group_advantages
from .fit import Play, train_policy
from .learner import learn
from .losses import AGGREGATES, KL_KINDS, aggregated, kl_estimate, policy_loss, real_rows
from .ppo import make_act
from .rollout import Experience, answer_states


class Hyper(NamedTuple):
    """The section `config.grpo`.

    advantage: grpo, dr_grpo or rloo. epochs, minibatches, clip, target_kl: as PPO's. clip_high: the upper end of the
    clip (DAPO's "clip higher"). aggregate: token, sequence or constant (`losses.policy_loss`). kl_coef,
    kl_estimator: of the penalty. kl_in: "loss", for each token as GRPO has it, or "reward", off the answer's score as
    RLOO has it.
    drop_even: leave out prompts whose answers all score the same, before shaping and penalty, which teach nothing
    (DAPO's dynamic sampling, without drawing others in their place). overlong: in the last so many tokens of
    `max_tokens` the score falls linearly by up to 1 (DAPO, equation 13).
    """

    advantage: Annotated[str, OneOf(*GROUP_KINDS)]
    epochs: Count
    minibatches: Count
    clip: Positive
    clip_high: Annotated[Positive | None, Unset("the same as clip")]
    aggregate: Annotated[str, OneOf(*AGGREGATES)]
    kl_coef: NotNegative
    kl_estimator: Annotated[str, OneOf(*KL_KINDS)]
    kl_in: Annotated[str, OneOf("loss", "reward")]
    drop_even: bool
    overlong: Whole
    target_kl: Annotated[Positive | None, Unset("all epochs")]


def make_loss(model: llama.Model, hyper: Hyper, temperature: float, unused: Ranges = ()) -> Callable:
    """The loss of a minibatch as `train.state.make_update` takes it: sums over the answers' tokens. temperature,
    unused: as in the `Sampling` that the answers were drawn by."""

    def loss_fn(params, batch):
        rows = batch["rows"]
        seen, mask_RM = rows["rollout"], rows["mask"]
        states_RMD = answer_states(model, params["policy"], seen)
        kernel = llama.output_kernel(params["policy"])
        now = head_logprobs(kernel, states_RMD, seen.answers_RM, temperature, unused)
        advantages_RM = jnp.broadcast_to(rows["advantage"][:, None], mask_RM.shape)
        loss, stats = policy_loss(
            now.logp,
            rows["logp"],
            advantages_RM,
            mask_RM,
            clip=hyper.clip,
            clip_high=hyper.clip_high,
            aggregate=hyper.aggregate,
        )
        stats = {f"policy/{name}": value for name, value in stats.items()} | {"policy/loss": loss}
        if hyper.kl_in == "loss":
            kl_RM = kl_estimate(now.logp, rows["ref_logp"], hyper.kl_estimator)
            loss += hyper.kl_coef * aggregated(kl_RM, mask_RM, hyper.aggregate)
        weight = jnp.sum(mask_RM) if hyper.aggregate == "token" else real_rows(mask_RM)
        return loss * weight, weight, {name: value * weight for name, value in stats.items()}

    return loss_fn


def even_groups(score_Bn: Array) -> Array:
    """Which groups' scores are the same but for float32's rounding of their sums, bool [B]."""
    largest_B = jnp.max(jnp.abs(score_Bn), axis=1)
    return jnp.ptp(score_Bn, axis=1) <= 4 * jnp.finfo(jnp.float32).eps * largest_B


def shape_overlong(score_R: Array, lengths_R: Array, overlong: int, max_tokens: int) -> Array:
    """DAPO's soft punishment of long answers: 0 up to max_tokens - overlong, then falling linearly to -1."""
    if not overlong:
        return score_R
    return score_R - jnp.clip((lengths_R - (max_tokens - overlong)) / overlong, 0.0, 1.0)


def make_learn(
    update: Callable, graders: rewards.Rewards, hyper: Hyper, shaping: rewards.Shaping, n: int, *, seed: int
) -> Callable[[State, Experience, Mapping[str, Array]], tuple[State, dict[str, Array]]]:
    """The function `learn(state, experience, mix) -> (state, metrics)` of a step's second half."""

    def learn_from(state: State, seen: Experience, mix: Mapping[str, Array]):
        rows, mask_RM = seen.rows, seen.rows.mask_RM
        score_R = graders.total(seen.scores)
        score_stats = rewards.update_stats(state["score_stats"], score_R)
        shaped_R = shaping(score_R, rows, score_stats)
        shaped_R = shape_overlong(shaped_R, rows.lengths_R, hyper.overlong, mask_RM.shape[1])
        if hyper.kl_in == "reward":
            kl_RM = kl_estimate(seen.logp_RM, seen.ref_logp_RM, hyper.kl_estimator)
            shaped_R -= hyper.kl_coef * jnp.sum(kl_RM * mask_RM, axis=1)
        groups_Bn = shaped_R.reshape(-1, n)
        advantage_R = group_advantages(groups_Bn, kind=hyper.advantage).reshape(-1)
        even_R = jnp.repeat(even_groups(score_R.reshape(-1, n)), n)
        used_RM = mask_RM * (1.0 - even_R[:, None]) if hyper.drop_even else mask_RM

        batch = {
            "rollout": rows,
            "mask": used_RM,
            "logp": seen.logp_RM,
            "ref_logp": seen.ref_logp_RM,
            "advantage": advantage_R,
        }
        key = jax.random.fold_in(purpose_key(seed, "minibatches"), state["step"])
        step = state["step"]
        state, metrics = learn(
            update,
            state,
            batch,
            key,
            epochs=hyper.epochs,
            minibatches=hyper.minibatches,
            target_kl=hyper.target_kl,
        )
        state |= {"step": step + 1, "score_stats": score_stats}
        metrics |= statistics.of_experience(seen, score_R)
        metrics["objective/rewards"] = jnp.mean(shaped_R)
        metrics["objective/even_groups"] = jnp.mean(even_R.astype(jnp.float32))
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return learn_from


def play_without_critic(
    settings: Settings, scene: setup.Scene, loss_fn: Callable, make_learn: Callable[[Callable], Callable], updates: int
) -> Play:
    """The play of a recipe in which the policy alone learns. make_learn: from an update to a step's second half.
    updates: how many a step makes."""
    model, parts = scene.model, settings.rollout.score_parts
    lengths = train_setup.lengths_of(settings, scene.prompts)
    part = critic.parts_of(settings, model, {}, scene.adapters)
    everything = jax.eval_shape(part.init, jax.random.key(0))
    frozen = scene.adapters.frozen(everything, part.base, list(everything))
    trainable, _ = split_frozen(everything, frozen)
    optimizer, schedule = critic.optimizer_of(settings, trainable, lengths, scene.prompts, updates=updates)
    update = make_update(loss_fn, optimizer, schedule, frozen=frozen, **update_settings(settings))
    return Play(
        act=make_act(model, {}, scene.graders, None, scene.sampling, seed=settings.seed, score_parts=parts),
        learn=make_learn(update),
        frozen={"reference": scene.reference, "rewards": scene.reward_params},
        graders=[scene.graders],
        batches=scene.prompts,
        lengths=lengths,
        start=train_setup.Start(
            optimizer, *part, frozen, settings.ema_decay is not None, {"score_stats": rewards.FIRST_STATS}
        ),
    )


def run(settings: Settings, workdir: epath.Path, evaluators: Mapping[str, Evaluator]) -> Llama:
    """Trains `config.init_from` against the rewards of `config.reward`, and returns the policy."""
    mesh = train_setup.mesh_of(settings)
    with jax.set_mesh(mesh):
        hyper = read(settings, "grpo", Hyper)
        setup.check_rows(settings, mesh, hyper.minibatches)
        scene = setup.scene_of(settings, mesh)
        sampling, seed = scene.sampling, settings.seed
        play = play_without_critic(
            settings,
            scene,
            make_loss(scene.model, hyper, sampling.temperature, sampling.unused),
            lambda update: make_learn(update, scene.graders, hyper, scene.shaping, sampling.n, seed=seed),
            updates=hyper.epochs * hyper.minibatches,
        )
        return train_policy(settings, workdir, mesh, scene, play, evaluators)
