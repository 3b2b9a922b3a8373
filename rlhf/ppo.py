"""PPO against reward models or functions (arXiv:1707.06347; language models: arXiv:1909.08593, 2009.01325, 2203.02155).

One step of the run:

    prompts -> `make_rollout`: draws answers, and scores them with policy, reference, critics and reward models
            -> Python functions among the rewards score the texts on the host
            -> `make_learn`: rewards with a KL penalty, advantages, epochs of minibatches, the KL controller

`make_rollout` and `make_learn` are a compiled program each. With `config.cost`, a Lagrange multiplier holds the mean
cost of answers under a threshold (Safe RLHF, arXiv:2310.12773).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..data.console import tell
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
from .prompt_batches import PtxSettings, add_text, check_rows
from .rewards import FIRST_STATS, at_end, update_stats
from .rollout import Experience, answer_states


@dataclass(frozen=True)
class PPOSettings:
    """The section `config.ppo`. "OpenAI" is arXiv:2009.01325 with the code of arXiv:1909.08593, "TRL" its PPO."""

    epochs: Count = 4
    """Epochs: passes over a step's rollouts (OpenAI, TRL: 4)."""

    minibatches: Count = 1
    """Minibatches of an epoch, each of which is one update (OpenAI, appendix B.1, and TRL: 1)."""

    clip: Positive = 0.2
    """Distance of the probability ratio from 1 beyond which its gradient is 0 (arXiv:1707.06347, table 1)."""

    value_clip: Annotated[Positive | None, Unset("no clipping")] = 0.2
    """Distance of a value from the value at the rollout beyond which its error is clipped (OpenAI, TRL). None: no
    clipping."""

    value_coef: NotNegative = 0.1
    """Weight of the critics' losses (OpenAI, TRL)."""

    entropy_coef: NotNegative = 0.0
    """Weight of the entropy bonus in the policy's loss."""

    gamma: Share = 1.0
    """Discount of the rewards of later tokens (OpenAI, TRL)."""

    lam: Share = 0.95
    """Lambda of generalised advantage estimation (OpenAI, TRL)."""

    whiten_rewards: bool = False
    """Whether the tokens' rewards are scaled to deviation 1 over the step's answers; their mean is kept."""

    whiten_advantages: bool = True
    """Whether advantages are shifted to mean 0 and scaled to deviation 1 over the step's answers (OpenAI, TRL)."""

    target_kl: Annotated[Positive | None, Unset("all epochs")] = None
    """Early stopping: an update after which KL(rollout policy || policy) exceeds this, in nats per token, is the step's
    last. None: all epochs are run."""


@dataclass(frozen=True)
class Penalty:
    """The section `config.kl`: the penalty on the KL divergence from the reference."""

    coef: NotNegative = 0.05
    """Weight of the KL penalty at the start of the run (OpenAI, TRL)."""

    estimator: Annotated[str, OneOf(*KL_KINDS, "exact")] = "k1"
    """Estimator of the KL divergence: k1, k2 or k3, from the drawn tokens; exact sums over the whole vocabulary."""

    controller: Annotated[str, OneOf("fixed", "adaptive")] = "fixed"
    """How the weight changes: fixed keeps it; adaptive changes it so that the KL of an answer stays near `target`."""

    target: Annotated[Positive, Only("controller", "adaptive", default=6.0)] = 6.0
    """adaptive: the KL of an answer to hold, in nats (arXiv:1909.08593, section 2.2)."""

    horizon: Annotated[Positive, Only("controller", "adaptive", default=10_000.0)] = 10_000.0
    """adaptive: number of answers over which the weight adapts (arXiv:1909.08593, section 2.2)."""

    def make_controller(self) -> FixedKL | AdaptiveKL:
        """The controller that `controller` names."""
        return AdaptiveKL(self.target, self.horizon) if self.controller == "adaptive" else FixedKL()


@dataclass(frozen=True)
class PPOConfig(AnswerConfig):
    """The config of PPO."""

    recipe: str = "ppo"
    """Name of the recipe: ppo, or a function train(run) of one's own."""

    kl: Penalty = Penalty()
    """The penalty on the KL divergence from the reference."""

    ppo: PPOSettings = PPOSettings()
    """The algorithm."""

    critic: CriticSettings = CriticSettings()
    """The value function."""

    ptx: PtxSettings = PtxSettings()
    """Pretraining text in every minibatch."""

    cost: CostSettings = CostSettings()
    """A cost of answers that is held under a threshold."""

    def scores(self) -> list[str]:
        """The names of all scores of an answer."""
        return [*super().scores(), "cost"]

    def check(self, where: str) -> None:
        super().check(where)
        answers = self.data.batch_size * self.rollout.n
        if self.kl.controller == "adaptive" and answers >= 5 * self.kl.horizon:
            raise UserError(
                f"{where}.kl.horizon = {shown(self.kl.horizon)}: with {answers} answers in a step the KL coefficient "
                f"could fall below 0; give more than {answers / 5:g}"
            )


def make_loss(
    model: llama.Model,
    critics: Mapping[str, critic.Critic],
    settings: PPOSettings,
    temperature: float,
    ptx_coef: float,
    unused: Ranges = (),
) -> Callable:
    """Makes PPO's loss of a minibatch: clipped policy loss, entropy bonus, critics' losses and loss of the text.

    Args:
      model: the policy's network.
      critics: the critics by their names in the parameters.
      settings: `config.ppo`.
      temperature: temperature at which the answers were drawn.
      ptx_coef: weight of the text's loss.
      unused: ranges of ids without a token, whose probability is 0, as when the answers were drawn.

    Returns:
      loss_fn(params, batch) -> (loss, tokens, statistics), for `train.update.make_update`: loss and statistics are
      means over the answers' tokens times the number of tokens. A batch holds "rows", the dict that `make_learn` makes,
      and "mix" if there is text.
    """
    text_loss = next_token_loss(model)

    def loss_fn(params, batch):
        rows, rollout = batch["rows"], batch["rows"]["rollout"]
        mask_RM = rollout.mask_RM
        # Policy: the clipped surrogate and the entropy bonus.
        states_RMD = answer_states(model, params["policy"], rollout)
        kernel = llama.output_kernel(params["policy"])
        now = head_logprobs(kernel, states_RMD, rollout.answers_RM, temperature, unused)
        loss, stats = policy_loss(now.logp, rows["logp"], rows["advantages"], mask_RM, clip=settings.clip)
        stats = {f"policy/{name}": stats[name] for name in ("ratio", "clip_fraction", "approx_kl")} | {
            "policy/loss": loss,
            "policy/ratio_error": masked_mean(jnp.abs(jnp.exp(now.logp - rows["logp"]) - 1.0), mask_RM),
        }
        if settings.entropy_coef:
            loss -= settings.entropy_coef * masked_mean(now.entropy, mask_RM)
        learns = rows["policy_learns"][0]  # 0 in the steps in which only critics learn
        loss *= learns

        # Critics: squared errors of the values.
        states_RMD = jnp.where(learns > 0, states_RMD, jax.lax.stop_gradient(states_RMD))
        for name, c in critics.items():
            values_RM = c.values(params[name], rollout, states_RMD)
            critic_loss, value_stats = value_loss(
                values_RM, rows["values"][name], rows["returns"][name], mask_RM, clip=settings.value_clip
            )
            loss += settings.value_coef * critic_loss
            stats |= {f"{c.label}/loss": critic_loss, f"{c.label}/clip_fraction": value_stats["clip_fraction"]}

        # Means become sums over tokens; the text's loss is one already.
        tokens = jnp.sum(mask_RM)
        loss, stats = loss * tokens, {name: value * tokens for name, value in stats.items()}
        if "mix" in batch:
            nll, _, _ = text_loss(params["policy"], batch["mix"])
            loss, stats = loss + ptx_coef * nll * learns, stats | {"ptx/loss": nll}
        return loss, tokens, stats

    return loss_fn


def scale_text_mask(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Scales the text's loss mask so that it sums to the number of the answers' tokens.

    The update divides all sums by that number, which makes the text's sum the mean over the text's tokens.
    """
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
    """Makes the second half of a step: from the scores of answers to the updated networks.

    Args:
      update: the update on a minibatch.
      critics: the critics by their names in the parameters.
      task: rewards, shaping and cost of the run.
      settings: `config.ppo`.
      penalty: `config.kl`.
      seed: seed of the order of minibatches.
      critic_first: steps in which only critics learn. The policy's first advantages would otherwise be the errors of an
        untrained critic.

    Returns:
      learn(state, experience, mix) -> (state, metrics), where `mix` holds the text of the step ({} for none).
    """
    controller, cost = penalty.make_controller(), task.cost

    def advantages_and_returns(name: str, reward_RM, experience: Experience):
        """Advantages and returns of the critic `name`, from the reward or cost of each token."""
        values_RM, mask_RM = experience.values[name], experience.rows.mask_RM
        return gae(reward_RM, values_RM, mask_RM, gamma=settings.gamma, lam=settings.lam)

    def learn(state: State, experience: Experience, mix: Mapping[str, Array]):
        rows, mask_RM = experience.rows, experience.rows.mask_RM
        # Rewards: the shaped score at the last token, and the KL penalty at every token.
        score_R = task.rewards.total(experience.scores)
        score_stats = update_stats(state["score_stats"], score_R)
        shaped_R = task.shaping(score_R, rows, score_stats)
        kl_RM = (
            experience.kl_exact_RM
            if penalty.estimator == "exact"
            else kl_estimate(experience.logp_RM, experience.ref_logp_RM, penalty.estimator)
        )
        reward_RM = (at_end(shaped_R, mask_RM) - state["kl_coef"] * kl_RM) * mask_RM
        if settings.whiten_rewards:
            reward_RM = whiten(reward_RM, mask_RM, shift_mean=False)

        # Advantages of the reward; with a cost, the multiplier weighs advantages of the cost against them.
        advantages_RM, returns_RM = advantages_and_returns("critic", reward_RM, experience)
        returns = {"critic": returns_RM}
        state, metrics = dict(state), {}
        if cost is not None:
            cost_R = experience.scores["cost"]
            cost_advantages_RM, returns["cost_critic"] = advantages_and_returns(
                "cost_critic", at_end(cost_R, mask_RM), experience
            )
            advantages_RM = costs.combine(advantages_RM, cost_advantages_RM, state["multiplier"])
            state["multiplier"] = cost.update(state["multiplier"], jnp.mean(cost_R))
            metrics |= {"cost/multiplier": state["multiplier"], "cost/scores": jnp.mean(cost_R)}
        metrics["policy/advantage_std"] = jnp.sqrt(masked_mean(advantages_RM**2, mask_RM))
        if settings.whiten_advantages:
            advantages_RM = whiten(advantages_RM, mask_RM)

        # Updates: epochs of minibatches over the step's answers.
        batch = {
            "rollout": rows,
            "logp": experience.logp_RM,
            "advantages": advantages_RM,
            "values": experience.values,
            "returns": returns,
            "policy_learns": jnp.broadcast_to(jnp.float32(state["step"] >= critic_first), score_R.shape),
        }
        key = jax.random.fold_in(purpose_key(seed, "minibatches"), state["step"])
        step = state["step"]
        state, update_metrics = minibatch_epochs(
            lambda state, minibatch: update(state, scale_text_mask(minibatch)),
            state,
            batch,
            key,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            mix=mix,
            target_kl=settings.target_kl,
        )

        # State of the next step, and metrics. `step` counts rollouts, not updates.
        state |= {"step": step + 1, "score_stats": score_stats}
        metrics |= update_metrics | experience_metrics(experience, score_R)
        state["kl_coef"] = controller.update(state["kl_coef"], metrics["objective/kl"], len(score_R))
        metrics["objective/rewards"] = jnp.mean(jnp.sum(reward_RM, axis=1))
        metrics["objective/kl_coef"] = state["kl_coef"]
        for name, c in critics.items():
            values_RM = experience.values[name]
            metrics[f"{c.label}/explained_variance"] = explained_variance(values_RM, returns[name], mask_RM)
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return learn


def train(run: Run[PPOConfig]) -> Result:
    """Trains the model `config.init_from` by PPO against the rewards of `config.reward`, and returns the policy."""
    config, model, settings = run.config, run.model, run.config.ppo
    check_rows(config, run.mesh, settings.minibatches)
    with run.on_mesh():
        # Data and rewards: prompts, the rewards and cost of answers, and text for every minibatch (config.ptx).
        task = AnswerTask(run, costs.load_cost(run, config.cost))
        batches = add_text(run, config.ptx, task.prompts)
        lengths = lengths_of(config, batches)
        if first := config.critic.first_steps:
            until = f"the first {first}" if first < lengths.total else f"all {lengths.total}"
            tell(f"config.critic.first_steps = {first}: in {until} steps of the run only the critic learns")

        # Networks: policy and critics are trained; reference, reward and cost models are frozen.
        critics = critic.critics_of(run, config.critic, with_cost=task.cost is not None)
        multiplier = config.cost.multiplier_init if task.cost else 0.0
        network = run.network(
            critic.initial_params(run, critics),
            lengths,
            updates=settings.epochs * settings.minibatches,
            lrs=dict.fromkeys(critics, config.critic.lr),
            first_steps={"policy": config.critic.first_steps},
            extra={"kl_coef": config.kl.coef, "score_stats": FIRST_STATS, "multiplier": multiplier},
        )

        # Step: draw answers and score them with models, then with Python functions; learn in minibatches.
        rollout = make_rollout(
            model, critics, task.rewards, task.cost, task.sampling, seed=config.seed, score_parts=task.score_parts
        )
        draw = task.compile_draw(network, rollout)
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
        step = task.compile(network, draw, learn)

        # Loop.
        with task.loop(network, draw, batches, lengths, critic_from=config.critic.init_from) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)
        return run.result(loop.state.get("ema", loop.state["params"])["policy"], loop)
