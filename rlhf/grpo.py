"""GRPO and RLOO: PPO without a critic, whose baseline is the other answers to the same prompt.

GRPO (DeepSeekMath, arXiv:2402.03300), with what Dr. GRPO (arXiv:2503.20783) and DAPO (arXiv:2503.14476) changed as
options, and RLOO (arXiv:2402.14740). Rollouts, scoring and epochs of minibatches are PPO's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..errors import UserError
from ..model import llama
from ..model.logprobs import head_logprobs
from ..model.sampling import Ranges
from ..settings.leaves import Count, NotNegative, OneOf, Positive, Unset, Whole
from ..train.lengths import lengths_of
from ..train.optimizer import OptimSettings
from ..train.randomness import purpose_key
from ..train.run import Result, Run
from ..train.state import State
from . import critic
from .advantages import GROUP_KINDS, group_advantages
from .answer_task import AnswerTask, GroupConfig
from .experience import make_rollout
from .experience_metrics import experience_metrics
from .losses import AGGREGATES, KL_KINDS, aggregated, kl_estimate, policy_loss, real_rows
from .minibatches import minibatch_epochs
from .prompt_batches import PromptDataSettings, check_rows
from .rewards import FIRST_STATS, update_stats
from .rollout import Experience, RolloutSettings, answer_states


@dataclass(frozen=True)
class GRPOSettings:
    """The section `config.grpo`."""

    advantage: Annotated[str, OneOf(*GROUP_KINDS)] = "grpo"
    """Advantage of an answer among the others to its prompt: grpo, dr_grpo or rloo."""

    epochs: Count = 1
    """Passes over a step's rollouts (DeepSeekMath, TRL: 1)."""

    minibatches: Count = 1
    """Updates in a pass."""

    clip: Positive = 0.2
    """How far the probability ratio may move from 1 before its gradient ends."""

    clip_high: Annotated[Positive | None, Unset("the same as clip")] = None
    """The upper of the two limits (DAPO's "clip higher": 0.28). None: `clip`."""

    aggregate: Annotated[str, OneOf(*AGGREGATES)] = "sequence"
    """How losses of tokens are averaged: sequence (GRPO), token (DAPO) or constant (Dr. GRPO)."""

    kl_coef: NotNegative = 0.04
    """Weight of the KL penalty (DeepSeekMath: 0.04; DAPO and Dr. GRPO: 0)."""

    kl_estimator: Annotated[str, OneOf(*KL_KINDS)] = "k3"
    """Estimator of the KL divergence: k1, k2 or k3 (DeepSeekMath, equation 4)."""

    kl_in: Annotated[str, OneOf("loss", "reward")] = "loss"
    """Where the penalty is added: loss, for each token (GRPO), or reward, for the whole answer (RLOO)."""

    drop_equal_groups: bool = False
    """Whether prompts whose answers all have the same score are left out, before shaping and penalty (DAPO's dynamic
    sampling, without drawing other prompts in their place)."""

    overlong: Whole = 0
    """Last tokens of `rollout.max_tokens` in which the score falls linearly by up to 1 (DAPO, equation 13: 4,096 of
    20,480)."""

    target_kl: Annotated[Positive | None, Unset("all epochs")] = None
    """KL from the rollouts' policy, in nats per token, above which a step's epochs end. None: all epochs are run."""


@dataclass(frozen=True)
class GRPOConfig(GroupConfig):
    """The config of GRPO and RLOO."""

    recipe: str = "grpo"
    """grpo."""

    data: PromptDataSettings = PromptDataSettings(batch_size=16)
    """Prompts to answer."""

    optim: OptimSettings = OptimSettings(lr=1e-6, weight_decay=0.0, b2=0.999)
    """The optimiser (learning rate: DeepSeekMath, section 4.2; DAPO, section 4.1)."""

    rollout: RolloutSettings = RolloutSettings(n=8)
    """How answers are drawn (answers to a prompt: TRL 8, DeepSeekMath 64, DAPO 16)."""

    grpo: GRPOSettings = GRPOSettings()
    """The algorithm."""

    def check(self, where: str) -> None:
        super().check(where)
        if self.grpo.overlong > self.rollout.max_tokens:
            raise UserError(
                f"{where}.grpo.overlong = {self.grpo.overlong}: give at most {where}.rollout.max_tokens, "
                f"{self.rollout.max_tokens}"
            )


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
        used_RM = mask_RM * (1.0 - even_R[:, None]) if settings.drop_equal_groups else mask_RM

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


def train(run: Run[GRPOConfig]) -> Result:
    """Trains `config.init_from` against the rewards of `config.reward`, and returns the policy."""
    config, model, settings = run.config, run.model, run.config.grpo
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
