"""GRPO and RLOO: policy gradients without a critic, whose baseline is the scores of other answers to the same prompt.

GRPO is DeepSeekMath, arXiv:2402.03300; the changes of Dr. GRPO (arXiv:2503.20783) and DAPO (arXiv:2503.14476) are
options. RLOO is arXiv:2402.14740. One step of the run:

    prompts -> `make_rollout`: draws n answers to each, and scores them with policy, reference and reward models
            -> Python functions among the rewards score the texts on the host
            -> `make_learn`: advantages within the groups of n answers, epochs of minibatches
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
    """Advantage of an answer over the others to its prompt: grpo, (score - mean) / deviation; dr_grpo, score - mean;
    rloo, score - mean of the others."""

    epochs: Count = 1
    """Epochs: passes over a step's rollouts (DeepSeekMath, TRL: 1)."""

    minibatches: Count = 1
    """Minibatches of an epoch, each of which is one update."""

    clip: Positive = 0.2
    """Distance of the probability ratio from 1 beyond which its gradient is 0."""

    clip_high: Annotated[Positive | None, Unset("the same as clip")] = None
    """Distance of a probability ratio above 1 beyond which its gradient is 0 (DAPO's "clip higher": 0.28). None: the
    same as `clip`."""

    aggregate: Annotated[str, OneOf(*AGGREGATES)] = "sequence"
    """How tokens' losses are averaged: sequence, the mean over answers of each answer's mean (GRPO); token, the mean
    over all tokens (DAPO); constant, the sum divided by answers x `rollout.max_tokens` (Dr. GRPO)."""

    kl_coef: NotNegative = 0.04
    """Weight of the KL penalty (DeepSeekMath: 0.04; DAPO and Dr. GRPO: 0)."""

    kl_estimator: Annotated[str, OneOf(*KL_KINDS)] = "k3"
    """Estimator of the KL divergence from the reference: k1, k2, or k3 (DeepSeekMath, equation 4)."""

    kl_in: Annotated[str, OneOf("loss", "reward")] = "loss"
    """Where the KL penalty enters: loss, added for each token (GRPO); reward, subtracted for a whole answer (RLOO)."""

    drop_equal_groups: bool = False
    """Whether prompts are left out whose answers all have the same score before shaping and penalty. This is DAPO's
    dynamic sampling without drawing other prompts instead."""

    overlong: Whole = 0
    """Length of the interval below `rollout.max_tokens` in which an answer's score falls linearly, by 1 at the end
    (DAPO, equation 13: 4,096 of 20,480 tokens). 0: it does not fall."""

    target_kl: Annotated[Positive | None, Unset("all epochs")] = None
    """Early stopping: an update after which KL(rollout policy || policy) exceeds this, in nats per token, is the step's
    last. None: all epochs are run."""


@dataclass(frozen=True)
class GRPOConfig(GroupConfig):
    """The config of GRPO and RLOO."""

    recipe: str = "grpo"
    """Name of the recipe: grpo, or a function train(run) of one's own."""

    data: PromptDataSettings = PromptDataSettings(batch_size=16)
    """Prompts to answer."""

    optim: OptimSettings = OptimSettings(lr=1e-6, weight_decay=0.0, b2=0.999)
    """The optimiser (learning rate: DeepSeekMath, section 4.2; DAPO, section 4.1)."""

    rollout: RolloutSettings = RolloutSettings(n=8)
    """How answers are drawn (n, the answers to a prompt: TRL 8, DeepSeekMath 64, DAPO 16)."""

    grpo: GRPOSettings = GRPOSettings()
    """The algorithm."""

    def check(self, where: str) -> None:
        super().check(where)
        if self.grpo.overlong > self.rollout.max_tokens:
            raise UserError(
                f"{where}.grpo.overlong = {self.grpo.overlong}: give at most {where}.rollout.max_tokens, which is "
                f"{self.rollout.max_tokens}"
            )


def make_loss(model: llama.Model, settings: GRPOSettings, temperature: float, unused: Ranges = ()) -> Callable:
    """Makes the loss of a minibatch: the clipped policy loss, and the KL penalty unless it is in the reward.

    Args:
      model: the policy's network.
      settings: `config.grpo`.
      temperature: temperature at which the answers were drawn.
      unused: ranges of ids without a token, whose probability is 0, as when the answers were drawn.

    Returns:
      loss_fn(params, batch) -> (loss, weight, statistics), for `train.update.make_update`: means times their weight,
      which is the number of tokens or of answers, by `settings.aggregate`. A batch holds "rows", the dict that
      `make_learn` makes.
    """

    def loss_fn(params, batch):
        rows = batch["rows"]
        rollout, mask_RM = rows["rollout"], rows["mask"]
        states_RMD = answer_states(model, params["policy"], rollout)
        kernel = llama.output_kernel(params["policy"])
        now = head_logprobs(kernel, states_RMD, rollout.answers_RM, temperature, unused)
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


def equal_groups(score_Bn: Array) -> Array:
    """Whether the scores of each group are equal up to float32's rounding of weighted sums, bool [B]."""
    largest_B = jnp.max(jnp.abs(score_Bn), axis=1)
    return jnp.ptp(score_Bn, axis=1) <= 4 * jnp.finfo(jnp.float32).eps * largest_B


def shape_overlong(score_R: Array, lengths_R: Array, overlong: int, max_tokens: int) -> Array:
    """Adds DAPO's penalty of long answers (arXiv:2503.14476, equation 13) to their scores.

    The penalty of an answer of `lengths_R` tokens is 0 up to max_tokens - overlong tokens, and falls from there
    linearly to -1 at `max_tokens`. With `overlong` 0 there is none.
    """
    if not overlong:
        return score_R
    return score_R - jnp.clip((lengths_R - (max_tokens - overlong)) / overlong, 0.0, 1.0)


def make_learn(
    update: Callable, task: AnswerTask, settings: GRPOSettings, *, seed: int
) -> Callable[[State, Experience, Mapping[str, Array]], tuple[State, dict[str, Array]]]:
    """Makes the second half of a step: from the scores of answers to the updated policy.

    Args:
      update: the update on a minibatch.
      task: rewards and shaping of the run.
      settings: `config.grpo`.
      seed: seed of the order of minibatches.

    Returns:
      learn(state, experience, mix) -> (state, metrics). `mix` is not used: GRPO learns from no text.
    """

    n = task.sampling.n

    def learn(state: State, experience: Experience, mix: Mapping[str, Array]):
        rows, mask_RM = experience.rows, experience.rows.mask_RM
        # Rewards: an answer's shaped score, less the penalties of length and, for kl_in = "reward", of divergence.
        score_R = task.rewards.total(experience.scores)
        score_stats = update_stats(state["score_stats"], score_R)
        shaped_R = task.shaping(score_R, rows, score_stats)
        shaped_R = shape_overlong(shaped_R, rows.lengths_R, settings.overlong, mask_RM.shape[1])
        if settings.kl_in == "reward":
            kl_RM = kl_estimate(experience.logp_RM, experience.ref_logp_RM, settings.kl_estimator)
            shaped_R -= settings.kl_coef * jnp.sum(kl_RM * mask_RM, axis=1)

        # Advantages: within the n answers to a prompt, which stand in adjacent rows.
        groups_Bn = shaped_R.reshape(-1, n)
        advantage_R = group_advantages(groups_Bn, kind=settings.advantage).reshape(-1)
        equal_R = jnp.repeat(equal_groups(score_R.reshape(-1, n)), n)
        used_RM = mask_RM * (1.0 - equal_R[:, None]) if settings.drop_equal_groups else mask_RM

        # Updates: epochs of minibatches over the step's answers.
        batch = {
            "rollout": rows,
            "mask": used_RM,
            "logp": experience.logp_RM,
            "ref_logp": experience.ref_logp_RM,
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

        # State of the next step, and metrics. `step` counts rollouts, not updates.
        state |= {"step": step + 1, "score_stats": score_stats}
        metrics |= experience_metrics(experience, score_R)
        metrics["objective/rewards"] = jnp.mean(shaped_R)
        metrics["objective/even_groups"] = jnp.mean(equal_R.astype(jnp.float32))
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return learn


def train(run: Run[GRPOConfig]) -> Result:
    """Trains the model `config.init_from` by GRPO against the rewards of `config.reward`, and returns the policy."""
    config, model, settings = run.config, run.model, run.config.grpo
    check_rows(config, run.mesh, settings.minibatches)
    with run.on_mesh():
        # Data and rewards: prompts, to each of which config.rollout.n answers are drawn, and the rewards of answers.
        task = AnswerTask(run)
        lengths = lengths_of(config, task.prompts)

        # Networks: the policy is trained; reference and reward models are frozen.
        network = run.network(
            critic.initial_params(run, {}),
            lengths,
            updates=settings.epochs * settings.minibatches,
            extra={"score_stats": FIRST_STATS},
        )

        # Step: draw answers and score them with models, then with Python functions; learn in minibatches.
        rollout = make_rollout(
            model, {}, task.rewards, None, task.sampling, seed=config.seed, score_parts=task.score_parts
        )
        draw = task.compile_draw(network, rollout)
        loss_fn = make_loss(model, settings, task.sampling.temperature, task.sampling.unused)
        update = run.update(network, loss_fn)
        learn = make_learn(update, task, settings, seed=config.seed)
        step = task.compile(network, draw, learn)

        # Loop.
        with task.loop(network, draw, task.prompts, lengths) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)
        return run.result(loop.state.get("ema", loop.state["params"])["policy"], loop)
