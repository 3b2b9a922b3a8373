"""RAFT: tuning on the best of k own answers, round after round (reward-ranked fine-tuning, arXiv:2304.06767; LMFlow).

A step of the run is a round: rollouts and scores as in PPO, then the best answer to each prompt is what the policy is
tuned on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..model import llama
from ..model.logprobs import masked_mean
from ..settings.leaves import Count
from ..train.lengths import lengths_of
from ..train.optimizer import OptimSettings
from ..train.randomness import purpose_key
from ..train.run import Result, Run
from ..train.state import State
from . import critic
from .answer_task import AnswerTask, GroupConfig
from .experience import make_rollout
from .experience_metrics import experience_metrics
from .minibatches import minibatch_epochs
from .prompt_batches import check_rows
from .rewards import FIRST_STATS, update_stats
from .rollout import Experience, RolloutSettings, score_answers


@dataclass(frozen=True)
class RAFTSettings:
    """The section `config.raft`."""

    epochs: Count = 2
    """Passes over a round's best answers (arXiv:2304.06767, section 4.1)."""

    minibatches: Count = 1
    """Updates in a pass."""


@dataclass(frozen=True)
class RAFTConfig(GroupConfig):
    """The config of RAFT."""

    recipe: str = "raft"
    """raft."""

    optim: OptimSettings = OptimSettings(lr=2e-5, weight_decay=0.0, b2=0.999)
    """The optimiser (learning rate: arXiv:2304.06767, section 4.1)."""

    rollout: RolloutSettings = RolloutSettings(n=8, temperature=0.85)
    """How answers are drawn (temperature: arXiv:2304.06767, section 4.1)."""

    raft: RAFTSettings = RAFTSettings()
    """The algorithm."""


def make_loss(model: llama.Model) -> Callable:
    """The kept answers' negative log-likelihood, as `train.update.make_update` takes it: sums over their tokens."""

    def loss_fn(params, batch):
        kept, mask_RM = batch["rows"]["rollout"], batch["rows"]["rollout"].mask_RM
        logp_RM = score_answers(model, params["policy"], kept, temperature=1.0).logp
        loss, tokens = -masked_mean(logp_RM, mask_RM), jnp.sum(mask_RM)
        return loss * tokens, tokens, {"policy/loss": loss * tokens}

    return loss_fn


def make_learn(
    update: Callable, task: AnswerTask, settings: RAFTSettings, *, seed: int
) -> Callable[[State, Experience, Mapping[str, Array]], tuple[State, dict[str, Array]]]:
    """The function `learn(state, experience, mix) -> (state, metrics)` of a round's second half."""

    n = task.sampling.n

    def learn_from(state: State, seen: Experience, mix: Mapping[str, Array]):
        rows, step = seen.rows, state["step"]
        score_R = task.rewards.total(seen.scores)
        score_stats = update_stats(state["score_stats"], score_R)
        shaped_Bn = task.shaping(score_R, rows, score_stats).reshape(-1, n)
        best_B = jnp.argmax(shaped_Bn, axis=1) + jnp.arange(len(shaped_Bn)) * n
        key = jax.random.fold_in(purpose_key(seed, "minibatches"), step)
        state, metrics = minibatch_epochs(
            update,
            state,
            {"rollout": jax.tree.map(lambda x: x[best_B], rows)},
            key,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
        )
        state |= {"step": step + 1, "score_stats": score_stats}
        metrics |= experience_metrics(seen, score_R)
        metrics["objective/scores_of_best"] = jnp.mean(score_R[best_B])
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return learn_from


def train(run: Run[RAFTConfig]) -> Result:
    """Trains `config.init_from` on its own best answers by the rewards of `config.reward`, and returns the policy."""
    config, model, settings = run.config, run.model, run.config.raft
    check_rows(config, run.mesh, settings.minibatches, kept=config.rollout.n)
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

        # Step: roll out and score; keep the best answer to each prompt; tune on these.
        rollout = make_rollout(
            model, {}, task.rewards, None, task.sampling, seed=config.seed, score_parts=task.score_parts
        )
        update = run.update(network, make_loss(model))
        learn = make_learn(update, task, settings, seed=config.seed)
        step = task.compile(network, rollout, learn, frozen)

        # Loop.
        with task.loop(network, rollout, frozen, task.prompts, lengths) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)
        return run.result(loop.state.get("ema", loop.state["params"])["policy"], loop)
