"""PPO from a reward model or function (arXiv:1707.06347; for language models arXiv:1909.08593, 2009.01325, 2203.02155).

One step of the run, top to bottom:

    prompts -> `act`: answers drawn from the policy; what policy, reference, critic and reward models say of them
            -> Python rewards, where there are any: the one time that the host is asked
            -> `learn`: rewards with a KL penalty, advantages, epochs of minibatches, the KL controller

Both halves are one compiled program when every reward is a model. With a cost model beside the reward, a Lagrange
multiplier holds the cost under its threshold (Safe RLHF, arXiv:2310.12773).
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array

from ..checkpoints.console import tell
from ..checkpoints.language_model import Llama
from ..model import llama
from ..model.sampling import Ranges, Sampling
from ..train import setup as train_setup
from ..train.fit import Evaluator, update_settings
from ..train.leaves import Count, NotNegative, OneOf, Only, Positive, Share, Unset, read
from ..train.losses import head_kl, head_logprobs, masked_mean, next_token_loss
from ..train.optimizer import split_frozen
from ..train.randomness import purpose_key
from ..train.settings import Settings
from ..train.state import State, make_update
from . import costs, critic, rewards, setup, statistics
from .advantages import gae, whiten
from .fit import Play, train_policy
from .kl import AdaptiveKL, FixedKL
from .learner import learn
from .losses import KL_KINDS, kl_estimate, policy_loss, value_loss
from .rollout import Experience, Rollout, answer_states, in_parts, roll_out


class Hyper(NamedTuple):
    """The section `config.ppo`.

    epochs: passes over a step's rollouts. minibatches: updates in a pass. clip: of the ratio. value_clip: how far a
    value may move (None: any). value_coef, entropy_coef: of the critic's loss and the entropy bonus in the loss. gamma,
    lam: of the advantages. whiten_rewards: to deviation 1, the mean stays. whiten_advantages: over the whole batch, to
    mean 0 and deviation 1. target_kl: from the rollouts' policy, above which a step's epochs end (None: never).
    """

    epochs: Count
    minibatches: Count
    clip: Positive
    value_clip: Annotated[Positive | None, Unset("any move")]
    value_coef: NotNegative
    entropy_coef: NotNegative
    gamma: Share
    lam: Share
    whiten_rewards: bool
    whiten_advantages: bool
    target_kl: Annotated[Positive | None, Unset("all epochs")]


class Penalty(NamedTuple):
    """The section `config.kl`. coef: the first coefficient. estimator: k1, k2, k3, or exact, over the whole vocabulary.
    controller: fixed or adaptive, which holds the KL of an answer at `target` nats at the pace of `horizon` answers."""

    coef: NotNegative
    estimator: Annotated[str, OneOf(*KL_KINDS, "exact")]
    controller: Annotated[str, OneOf("fixed", "adaptive")]
    target: Annotated[Positive, Only("controller", "adaptive", default=6.0)]
    horizon: Annotated[Positive, Only("controller", "adaptive", default=10_000)]

    def make_controller(self) -> FixedKL | AdaptiveKL:
        return AdaptiveKL(self.target, self.horizon) if self.controller == "adaptive" else FixedKL()


def make_act(
    model: llama.Model,
    critics: Mapping[str, critic.Critic],
    graders: rewards.Rewards,
    cost: costs.Cost | None,
    sampling: Sampling,
    *,
    seed: int,
    score_parts: int,
) -> Callable[[State, Mapping[str, Any], Mapping[str, Array]], Experience]:
    """The function `act(state, frozen, batch) -> Experience`. frozen: "reference", "rewards", "cost": parameters."""
    drawn_from = sampling.temperature, sampling.unused

    def look(params, frozen, rows: Rollout) -> Experience:
        """Everything the networks say of some rows; the same code scores rollouts here and trains on them below."""
        states_RMD = answer_states(model, params["policy"], rows)
        ref_states_RMD = answer_states(model, frozen["reference"], rows)
        kernel, ref_kernel = llama.output_kernel(params["policy"]), llama.output_kernel(frozen["reference"])
        own = head_logprobs(kernel, states_RMD, rows.answers_RM, *drawn_from)
        ref = head_logprobs(ref_kernel, ref_states_RMD, rows.answers_RM, *drawn_from)
        scores = graders.of_models(frozen["rewards"], rows)
        if cost is not None:
            scores |= cost.grader.of_models(frozen["cost"], rows)
        kl_RM = head_kl(kernel, states_RMD, ref_kernel, ref_states_RMD, *drawn_from)
        logp_RM, ref_logp_RM, entropy_RM, kl_RM = (
            jnp.where(rows.mask_RM > 0, x_RM, 0.0) for x_RM in (own.logp, ref.logp, own.entropy, kl_RM)
        )
        return Experience(
            rows=rows,
            logp_RM=logp_RM,
            ref_logp_RM=ref_logp_RM,
            entropy_RM=entropy_RM,
            kl_exact_RM=kl_RM,
            values={name: c.values(params[name], rows, states_RMD) for name, c in critics.items()},
            scores=scores,
        )

    def act(state: State, frozen: Mapping[str, Any], batch: Mapping[str, Array]) -> Experience:
        params = state["params"]
        key = jax.random.fold_in(purpose_key(seed, "rollout"), state["step"])
        rows = roll_out(model, params["policy"], batch, key, sampling)
        return in_parts(lambda part: look(params, frozen, part), rows, score_parts)

    return act


def make_loss(
    model: llama.Model,
    critics: Mapping[str, critic.Critic],
    hyper: Hyper,
    temperature: float,
    ptx_coef: float,
    unused: Ranges = (),
) -> Callable:
    """The loss of a minibatch {"rows", "mix"?} as `train.state.make_update` takes it: sums over the answers' tokens.

    temperature, unused: as in the `Sampling` that the answers were drawn by.
    """
    text_loss = next_token_loss(model)

    def loss_fn(params, batch):
        rows, seen = batch["rows"], batch["rows"]["rollout"]
        mask_RM = seen.mask_RM
        states_RMD = answer_states(model, params["policy"], seen)
        kernel = llama.output_kernel(params["policy"])
        now = head_logprobs(kernel, states_RMD, seen.answers_RM, temperature, unused)
        loss, stats = policy_loss(now.logp, rows["logp"], rows["advantages"], mask_RM, clip=hyper.clip)
        stats = {f"policy/{name}": stats[name] for name in ("ratio", "clip_fraction", "approx_kl")} | {
            "policy/loss": loss,
            "policy/ratio_error": masked_mean(jnp.abs(jnp.exp(now.logp - rows["logp"]) - 1.0), mask_RM),
        }
        if hyper.entropy_coef:
            loss -= hyper.entropy_coef * masked_mean(now.entropy, mask_RM)
        loss *= rows["policy_learns"][0]
        for name, c in critics.items():
            values_RM = c.values(params[name], seen, states_RMD)
            miss, value_stats = value_loss(
                values_RM, rows["values"][name], rows["returns"][name], mask_RM, clip=hyper.value_clip
            )
            loss += hyper.value_coef * miss
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
    graders: rewards.Rewards,
    cost: costs.Cost | None,
    hyper: Hyper,
    penalty: Penalty,
    shaping: rewards.Shaping,
    *,
    seed: int,
    critic_first: int = 0,
) -> Callable[[State, Experience, Mapping[str, Array]], tuple[State, dict[str, Array]]]:
    """The function `learn(state, experience, mix) -> (state, metrics)` of a step's second half. critic_first: steps in
    which only critics learn, so that the policy's first advantages are not an untrained critic's errors."""
    controller = penalty.make_controller()

    def channel(name: str, rewards_RM, seen: Experience):
        """Advantages and returns of one critic."""
        return gae(rewards_RM, seen.values[name], seen.rows.mask_RM, gamma=hyper.gamma, lam=hyper.lam)

    def learn_from(state: State, seen: Experience, mix: Mapping[str, Array]):
        rows, mask_RM = seen.rows, seen.rows.mask_RM
        # Rewards: the score at the last token, a penalty at every token.
        score_R = graders.total(seen.scores)
        score_stats = rewards.update_stats(state["score_stats"], score_R)
        shaped_R = shaping(score_R, rows, score_stats)
        kl_RM = (
            seen.kl_exact_RM
            if penalty.estimator == "exact"
            else kl_estimate(seen.logp_RM, seen.ref_logp_RM, penalty.estimator)
        )
        reward_RM = (rewards.at_end(shaped_R, mask_RM) - state["kl_coef"] * kl_RM) * mask_RM
        if hyper.whiten_rewards:
            reward_RM = whiten(reward_RM, mask_RM, shift_mean=False)

        # Advantages, of the reward and, held together by the multiplier, of the cost.
        advantages_RM, returns_RM = channel("critic", reward_RM, seen)
        returns = {"critic": returns_RM}
        state, metrics = dict(state), {}
        if cost is not None:
            cost_advantages_RM, returns["cost_critic"] = channel(
                "cost_critic", rewards.at_end(seen.scores["cost"], mask_RM), seen
            )
            advantages_RM = costs.combine(advantages_RM, cost_advantages_RM, state["multiplier"])
            state["multiplier"] = cost.update(state["multiplier"], jnp.mean(seen.scores["cost"]))
            metrics |= {"cost/multiplier": state["multiplier"], "cost/scores": jnp.mean(seen.scores["cost"])}
        metrics["policy/advantage_std"] = jnp.sqrt(masked_mean(advantages_RM**2, mask_RM))
        if hyper.whiten_advantages:
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
        state, update_metrics = learn(
            lambda state, minibatch: update(state, weigh_mix(minibatch)),
            state,
            batch,
            key,
            epochs=hyper.epochs,
            minibatches=hyper.minibatches,
            mix=mix,
            target_kl=hyper.target_kl,
        )

        # What is carried on, and what is told.
        state |= {"step": step + 1, "score_stats": score_stats}
        metrics |= update_metrics | statistics.of_experience(seen, score_R)
        state["kl_coef"] = controller.update(state["kl_coef"], metrics["objective/kl"], len(score_R))
        metrics["objective/rewards"] = jnp.mean(jnp.sum(reward_RM, axis=1))
        metrics["objective/kl_coef"] = state["kl_coef"]
        for name, c in critics.items():
            metrics[f"{c.label}/explained_variance"] = statistics.explained_variance(
                seen.values[name], returns[name], mask_RM
            )
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return learn_from


def run(settings: Settings, workdir: epath.Path, evaluators: Mapping[str, Evaluator]) -> Llama:
    """Trains `config.init_from` against the rewards of `config.reward`, and returns the policy."""
    mesh = train_setup.mesh_of(settings)
    with jax.set_mesh(mesh):
        hyper, penalty = read(settings, "ppo", Hyper), read(settings, "kl", Penalty)
        setup.check_rows(settings, mesh, hyper.minibatches)

        # The cast: policy and critics learn; reference, reward and cost models are frozen.
        scene = setup.scene_of(settings, mesh)
        model, sampling, seed = scene.model, scene.sampling, settings.seed
        cost, cost_params = costs.load(settings, scene.tokenizer, scene.adapters.bases, model.config.dtype)
        critics = critic.critics_of(settings, scene.tokenizer, with_cost=cost is not None)
        frozen = {"reference": scene.reference, "rewards": scene.reward_params, "cost": cost_params}

        # What moves them.
        batches = setup.with_mix(settings, scene)
        lengths = train_setup.lengths_of(settings, batches)
        if settings.critic.first_steps >= lengths.total:
            first = settings.critic.first_steps
            tell(f"config.critic.first_steps {first}: in a run of {lengths.total} steps the critic learns alone")
        part = critic.parts_of(settings, model, critics, scene.adapters)
        everything = jax.eval_shape(part.init, jax.random.key(0))
        frozen_rules = scene.adapters.frozen(everything, part.base, list(everything))
        trainable, _ = split_frozen(everything, frozen_rules)
        updates = hyper.epochs * hyper.minibatches
        optimizer, schedule = critic.optimizer_of(settings, trainable, lengths, batches, updates=updates)
        loss_fn = make_loss(model, critics, hyper, sampling.temperature, settings.ptx.coef, sampling.unused)
        update = make_update(loss_fn, optimizer, schedule, frozen=frozen_rules, **update_settings(settings))
        parts = settings.rollout.score_parts
        extra = {"kl_coef": penalty.coef, "score_stats": rewards.FIRST_STATS, "multiplier": cost.first if cost else 0.0}
        play = Play(
            act=make_act(model, critics, scene.graders, cost, sampling, seed=seed, score_parts=parts),
            learn=make_learn(
                update,
                critics,
                scene.graders,
                cost,
                hyper,
                penalty,
                scene.shaping,
                seed=seed,
                critic_first=settings.critic.first_steps,
            ),
            frozen=frozen,
            graders=[scene.graders, *([cost.grader] if cost else [])],
            batches=batches,
            lengths=lengths,
            start=train_setup.Start(optimizer, *part, frozen_rules, settings.ema_decay is not None, extra),
        )
        return train_policy(settings, workdir, mesh, scene, play, evaluators)
