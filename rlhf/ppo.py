"""PPO from a reward model or function (arXiv:1707.06347; for language models arXiv:1909.08593, 2009.01325, 2203.02155).

One step of the run, top to bottom:

    prompts -> `make_rollout`: answers drawn from the policy, and what policy, reference, critic and rewards say of them
            -> Python functions among the rewards: the one time that the host is asked
            -> `make_learn`: rewards with a KL penalty, advantages, epochs of minibatches, the KL controller

The step is one compiled program when every reward is a model. With a cost model beside the reward, a Lagrange
multiplier holds the cost under its threshold (Safe RLHF, arXiv:2310.12773).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..checkpoints.console import tell
from ..errors import UserError, shown
from ..model import llama
from ..model.logprobs import head_logprobs, masked_mean, next_token_loss
from ..model.sampling import Ranges
from ..settings.leaves import Count, NotNegative, OneOf, Only, Positive, Share, Unset
from ..train.lengths import lengths_of
from ..train.randomness import purpose_key
from ..train.run import Result, Run
from ..train.state import State
from . import costs, critic
from .advantages import gae, whiten
from .answer_task import AnswerConfig, AnswerTask
from .costs import CostSettings
from .critic import CriticSettings
from .experience import make_rollout
from .experience_metrics import experience_metrics, explained_variance
from .kl import AdaptiveKL, FixedKL
from .losses import KL_KINDS, kl_estimate, policy_loss, value_loss
from .minibatches import minibatch_epochs
from .prompt_batches import PtxSettings, check_rows, with_text
from .rewards import FIRST_STATS, at_end, update_stats
from .rollout import Experience, answer_states


@dataclass(frozen=True)
class PPOSettings:
    """The section `config.ppo`. "OpenAI" is arXiv:2009.01325 with the code of arXiv:1909.08593, "TRL" its PPO."""

    epochs: Count = 4
    """Passes over a step's rollouts (OpenAI, TRL: 4)."""

    minibatches: Count = 1
    """Updates in a pass (OpenAI, appendix B.1, and TRL: 1)."""

    clip: Positive = 0.2
    """How far the probability ratio may move from 1 before its gradient ends (arXiv:1707.06347, table 1)."""

    value_clip: Annotated[Positive | None, Unset("any move")] = 0.2
    """How far a value may move in an update before its gradient ends (OpenAI, TRL). None: any move."""

    value_coef: NotNegative = 0.1
    """Weight of the critic's loss (OpenAI, TRL)."""

    entropy_coef: NotNegative = 0.0
    """Weight of the entropy bonus."""

    gamma: Share = 1.0
    """Discount of later rewards (OpenAI, TRL)."""

    lam: Share = 0.95
    """Lambda of generalised advantage estimation (OpenAI, TRL)."""

    whiten_rewards: bool = False
    """Whether rewards are divided by their deviation; the mean stays."""

    whiten_advantages: bool = True
    """Whether advantages are shifted to mean 0 and scaled to deviation 1 over the whole batch (OpenAI, TRL)."""

    target_kl: Annotated[Positive | None, Unset("all epochs")] = None
    """KL from the rollouts' policy, in nats per token, above which a step's epochs end. None: all epochs are run."""


@dataclass(frozen=True)
class Penalty:
    """The section `config.kl`: the penalty on the KL divergence from the reference."""

    coef: NotNegative = 0.05
    """The coefficient at the start (OpenAI, TRL)."""

    estimator: Annotated[str, OneOf(*KL_KINDS, "exact")] = "k1"
    """k1, k2 or k3, of the drawn tokens, or exact, over the whole vocabulary."""

    controller: Annotated[str, OneOf("fixed", "adaptive")] = "fixed"
    """fixed, or adaptive, which moves the coefficient to hold the KL of an answer at `target`."""

    target: Annotated[Positive, Only("controller", "adaptive", default=6.0)] = 6.0
    """adaptive: KL of an answer, in nats (arXiv:1909.08593, section 2.2)."""

    horizon: Annotated[Positive, Only("controller", "adaptive", default=10_000.0)] = 10_000.0
    """adaptive: answers over which the coefficient adapts (the same section)."""

    def make_controller(self) -> FixedKL | AdaptiveKL:
        return AdaptiveKL(self.target, self.horizon) if self.controller == "adaptive" else FixedKL()


@dataclass(frozen=True)
class PPOConfig(AnswerConfig):
    """The config of PPO."""

    recipe: str = "ppo"
    """ppo."""

    kl: Penalty = Penalty()
    """The penalty on the KL divergence from the reference."""

    ppo: PPOSettings = PPOSettings()
    """The algorithm."""

    critic: CriticSettings = CriticSettings()
    """The value function."""

    ptx: PtxSettings = PtxSettings()
    """Text beside the answers."""

    cost: CostSettings = CostSettings()
    """A cost that is held under a threshold."""

    def scores(self) -> list[str]:
        return [*super().scores(), "cost"]

    def check(self, where: str) -> None:
        super().check(where)
        answers = self.data.batch_size * self.rollout.n
        if self.kl.controller == "adaptive" and answers >= 5 * self.kl.horizon:
            raise UserError(
                f"{where}.kl.horizon = {shown(self.kl.horizon)}: with {answers} answers a step the coefficient could "
                f"fall below 0; give more than {answers / 5:g}"
            )


def make_loss(
    model: llama.Model,
    critics: Mapping[str, critic.Critic],
    settings: PPOSettings,
    temperature: float,
    ptx_coef: float,
    unused: Ranges = (),
) -> Callable:
    """The loss of a minibatch {"rows", "mix"?} as `train.update.make_update` takes it: sums over the answers' tokens.

    temperature, unused: as in the `Sampling` that the answers were drawn by.
    """
    text_loss = next_token_loss(model)

    def loss_fn(params, batch):
        rows, seen = batch["rows"], batch["rows"]["rollout"]
        mask_RM = seen.mask_RM
        states_RMD = answer_states(model, params["policy"], seen)
        kernel = llama.output_kernel(params["policy"])
        now = head_logprobs(kernel, states_RMD, seen.answers_RM, temperature, unused)
        loss, stats = policy_loss(now.logp, rows["logp"], rows["advantages"], mask_RM, clip=settings.clip)
        stats = {f"policy/{name}": stats[name] for name in ("ratio", "clip_fraction", "approx_kl")} | {
            "policy/loss": loss,
            "policy/ratio_error": masked_mean(jnp.abs(jnp.exp(now.logp - rows["logp"]) - 1.0), mask_RM),
        }
        if settings.entropy_coef:
            loss -= settings.entropy_coef * masked_mean(now.entropy, mask_RM)
        loss *= rows["policy_learns"][0]
        for name, c in critics.items():
            values_RM = c.values(params[name], seen, states_RMD)
            miss, value_stats = value_loss(
                values_RM, rows["values"][name], rows["returns"][name], mask_RM, clip=settings.value_clip
            )
            loss += settings.value_coef * miss
            stats |= {f"{c.label}/loss": miss, f"{c.label}/clip_fraction": value_stats["clip_fraction"]}
        tokens = jnp.sum(mask_RM)
        loss, stats = loss * tokens, {name: value * tokens for name, value in stats.items()}
        if "mix" in batch:
            nll, _, _ = text_loss(params["policy"], batch["mix"])
            loss, stats = loss + ptx_coef * nll * rows["policy_learns"][0], stats | {"ptx/loss": nll}
        return loss, tokens, stats

    return loss_fn


def weigh_mix(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The minibatch with the text's loss mask scaled to as many tokens as its answers have: both then get means."""
    if "mix" not in batch:
        return batch
    mask_BT = batch["mix"]["loss_mask"]
    scale = jnp.sum(batch["rows"]["rollout"].mask_RM) / jnp.maximum(jnp.sum(mask_BT), 1.0)
    return {**batch, "mix": {**batch["mix"], "loss_mask": mask_BT * scale}}


def make_learn(
    update: Callable,
    critics: Mapping[str, critic.Critic],
    task: AnswerTask,
    settings: PPOSettings,
    penalty: Penalty,
    *,
    seed: int,
    critic_first: int = 0,
) -> Callable[[State, Experience, Mapping[str, Array]], tuple[State, dict[str, Array]]]:
    """The function `learn(state, experience, mix) -> (state, metrics)` of a step's second half. critic_first: steps in
    which only critics learn, so that the policy's first advantages are not an untrained critic's errors."""
    controller, cost = penalty.make_controller(), task.cost

    def channel(name: str, rewards_RM, seen: Experience):
        """Advantages and returns of one critic."""
        return gae(rewards_RM, seen.values[name], seen.rows.mask_RM, gamma=settings.gamma, lam=settings.lam)

    def learn_from(state: State, seen: Experience, mix: Mapping[str, Array]):
        rows, mask_RM = seen.rows, seen.rows.mask_RM
        # Rewards: the score at the last token, a penalty at every token.
        score_R = task.rewards.total(seen.scores)
        score_stats = update_stats(state["score_stats"], score_R)
        shaped_R = task.shaping(score_R, rows, score_stats)
        kl_RM = (
            seen.kl_exact_RM
            if penalty.estimator == "exact"
            else kl_estimate(seen.logp_RM, seen.ref_logp_RM, penalty.estimator)
        )
        reward_RM = (at_end(shaped_R, mask_RM) - state["kl_coef"] * kl_RM) * mask_RM
        if settings.whiten_rewards:
            reward_RM = whiten(reward_RM, mask_RM, shift_mean=False)

        # Advantages, of the reward and, held together by the multiplier, of the cost.
        advantages_RM, returns_RM = channel("critic", reward_RM, seen)
        returns = {"critic": returns_RM}
        state, metrics = dict(state), {}
        if cost is not None:
            cost_advantages_RM, returns["cost_critic"] = channel(
                "cost_critic", at_end(seen.scores["cost"], mask_RM), seen
            )
            advantages_RM = costs.combine(advantages_RM, cost_advantages_RM, state["multiplier"])
            state["multiplier"] = cost.update(state["multiplier"], jnp.mean(seen.scores["cost"]))
            metrics |= {"cost/multiplier": state["multiplier"], "cost/scores": jnp.mean(seen.scores["cost"])}
        metrics["policy/advantage_std"] = jnp.sqrt(masked_mean(advantages_RM**2, mask_RM))
        if settings.whiten_advantages:
            advantages_RM = whiten(advantages_RM, mask_RM)

        # Epochs of minibatches.
        batch = {
            "rollout": rows,
            "logp": seen.logp_RM,
            "advantages": advantages_RM,
            "values": seen.values,
            "returns": returns,
            "policy_learns": jnp.broadcast_to(jnp.float32(state["step"] >= critic_first), score_R.shape),
        }
        key = jax.random.fold_in(purpose_key(seed, "minibatches"), state["step"])
        step = state["step"]
        state, update_metrics = minibatch_epochs(
            lambda state, minibatch: update(state, weigh_mix(minibatch)),
            state,
            batch,
            key,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            mix=mix,
            target_kl=settings.target_kl,
        )

        # What is carried on, and what is told.
        state |= {"step": step + 1, "score_stats": score_stats}
        metrics |= update_metrics | experience_metrics(seen, score_R)
        state["kl_coef"] = controller.update(state["kl_coef"], metrics["objective/kl"], len(score_R))
        metrics["objective/rewards"] = jnp.mean(jnp.sum(reward_RM, axis=1))
        metrics["objective/kl_coef"] = state["kl_coef"]
        for name, c in critics.items():
            metrics[f"{c.label}/explained_variance"] = explained_variance(seen.values[name], returns[name], mask_RM)
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return learn_from


def train(run: Run[PPOConfig]) -> Result:
    """Trains `config.init_from` against the rewards of `config.reward`, and returns the policy."""
    config, model, settings = run.config, run.model, run.config.ppo
    check_rows(config, run.mesh, settings.minibatches)
    with jax.set_mesh(run.mesh):
        # Data and rewards: prompts to answer, what answers are worth, and text beside them (config.ptx).
        task = AnswerTask(run, costs.load_cost(run, config.cost))
        batches = with_text(config.ptx, config.data, task.prompts, run.tokenizer, run.template, config.seed)
        lengths = lengths_of(config, batches)
        if config.critic.first_steps >= lengths.total:
            first = config.critic.first_steps
            tell(f"config.critic.first_steps {first}: in a run of {lengths.total} steps the critic learns alone")

        # Networks: policy and critics learn; reference, reward and cost models are frozen.
        critics = critic.critics_of(run, config.critic, with_cost=task.cost is not None)
        multiplier = config.cost.multiplier_init if task.cost else 0.0
        network = run.network(
            critic.initial_params(run, critics),
            lengths,
            updates=settings.epochs * settings.minibatches,
            lrs=dict.fromkeys(critics, config.critic.lr),
            extra={"kl_coef": config.kl.coef, "score_stats": FIRST_STATS, "multiplier": multiplier},
        )
        frozen = task.frozen_params()

        # Step: roll out and score; add the scores of Python functions; learn in minibatches.
        rollout = make_rollout(
            model, critics, task.rewards, task.cost, task.sampling, seed=config.seed, score_parts=task.score_parts
        )
        loss_fn = make_loss(model, critics, settings, task.sampling.temperature, config.ptx.coef, task.sampling.unused)
        update = run.update(network, loss_fn)
        learn = make_learn(
            update,
            critics,
            task,
            settings,
            config.kl,
            seed=config.seed,
            critic_first=config.critic.first_steps,
        )
        step = task.compile(network, rollout, learn, frozen)

        # Loop.
        with task.loop(network, rollout, frozen, batches, lengths, critic_from=config.critic.init_from) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)
        return run.result(loop.state.get("ema", loop.state["params"])["policy"], loop)
