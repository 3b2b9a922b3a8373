"""GRPO and RLOO: PPO without a critic, whose baseline is the other answers to the same prompt.

GRPO (DeepSeekMath, arXiv:2402.03300), with what Dr. GRPO (arXiv:2503.20783) and DAPO (arXiv:2503.14476) changed as
options, and RLOO (arXiv:2402.14740). Rollouts, scoring and epochs of minibatches are PPO's.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..model import llama
from ..model.sampling import Ranges
from ..train.leaves import Count, NotNegative, OneOf, Positive, Unset, Whole, read
from ..train.lengths import lengths_of
from ..train.losses import head_logprobs
from ..train.randomness import purpose_key
from ..train.run import Result, Run
from ..train.state import State
from . import critic
from .advantages import GROUP_KINDS, group_advantages
from .answer_task import AnswerTask
from .experience import make_rollout
from .experience_metrics import experience_metrics
from .losses import AGGREGATES, KL_KINDS, aggregated, kl_estimate, policy_loss, real_rows
from .minibatches import minibatch_epochs
from .rewards import FIRST_STATS, update_stats
from .rollout import Experience, answer_states
from .setup import check_rows


class GRPOSettings(NamedTuple):
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


def make_loss(model: llama.Model, settings: GRPOSettings, temperature: float, unused: Ranges = ()) -> Callable:
    """The loss of a minibatch as `train.update.make_update` takes it: sums over the answers' tokens. temperature,
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
            clip=settings.clip,
            clip_high=settings.clip_high,
            aggregate=settings.aggregate,
        )
        stats = {f"policy/{name}": value for name, value in stats.items()} | {"policy/loss": loss}
        if settings.kl_in == "loss":
            kl_RM = kl_estimate(now.logp, rows["ref_logp"], settings.kl_estimator)
            loss += settings.kl_coef * aggregated(kl_RM, mask_RM, settings.aggregate)
        weight = jnp.sum(mask_RM) if settings.aggregate == "token" else real_rows(mask_RM)
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
    update: Callable, task: AnswerTask, settings: GRPOSettings, *, seed: int
) -> Callable[[State, Experience, Mapping[str, Array]], tuple[State, dict[str, Array]]]:
    """The function `learn(state, experience, mix) -> (state, metrics)` of a step's second half."""

    n = task.sampling.n

    def learn_from(state: State, seen: Experience, mix: Mapping[str, Array]):
        rows, mask_RM = seen.rows, seen.rows.mask_RM
        score_R = task.rewards.total(seen.scores)
        score_stats = update_stats(state["score_stats"], score_R)
        shaped_R = task.shaping(score_R, rows, score_stats)
        shaped_R = shape_overlong(shaped_R, rows.lengths_R, settings.overlong, mask_RM.shape[1])
        if settings.kl_in == "reward":
            kl_RM = kl_estimate(seen.logp_RM, seen.ref_logp_RM, settings.kl_estimator)
            shaped_R -= settings.kl_coef * jnp.sum(kl_RM * mask_RM, axis=1)
        groups_Bn = shaped_R.reshape(-1, n)
        advantage_R = group_advantages(groups_Bn, kind=settings.advantage).reshape(-1)
        even_R = jnp.repeat(even_groups(score_R.reshape(-1, n)), n)
        used_RM = mask_RM * (1.0 - even_R[:, None]) if settings.drop_even else mask_RM

        batch = {
            "rollout": rows,
            "mask": used_RM,
            "logp": seen.logp_RM,
            "ref_logp": seen.ref_logp_RM,
            "advantage": advantage_R,
        }
        key = jax.random.fold_in(purpose_key(seed, "minibatches"), state["step"])
        step = state["step"]
        state, metrics = minibatch_epochs(
            update,
            state,
            batch,
            key,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            target_kl=settings.target_kl,
        )
        state |= {"step": step + 1, "score_stats": score_stats}
        metrics |= experience_metrics(seen, score_R)
        metrics["objective/rewards"] = jnp.mean(shaped_R)
        metrics["objective/even_groups"] = jnp.mean(even_R.astype(jnp.float32))
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return learn_from


def train(run: Run) -> Result:
    """Trains `config.init_from` against the rewards of `config.reward`, and returns the policy."""
    config, model = run.config, run.model
    settings = read(config, "grpo", GRPOSettings)
    check_rows(config, run.mesh, settings.minibatches)
    with jax.set_mesh(run.mesh):
        # Data and rewards: prompts, to each of which config.rollout.n answers are drawn, and what these are worth.
        task = AnswerTask(run)
        lengths = lengths_of(config, task.prompts)

        # Networks: the policy learns; reference and reward models are frozen.
        network = run.network(
            critic.initial_params(run, {}),
            lengths,
            updates=settings.epochs * settings.minibatches,
            extra={"score_stats": FIRST_STATS},
        )
        frozen = task.frozen_params()

        # Step: roll out and score; add the scores of Python functions; learn in minibatches.
        rollout = make_rollout(
            model, {}, task.rewards, None, task.sampling, seed=config.seed, score_parts=task.score_parts
        )
        loss_fn = make_loss(model, settings, task.sampling.temperature, task.sampling.unused)
        update = run.update(network, loss_fn)
        learn = make_learn(update, task, settings, seed=config.seed)
        step = task.compile(network, rollout, learn, frozen)

        # Loop.
        with task.loop(network, rollout, frozen, task.prompts, lengths) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)
        return run.result(loop.state.get("ema", loop.state["params"])["policy"], loop)
