"""RAFT, reward-ranked fine-tuning (arXiv:2304.06767; LMFlow): a policy is tuned on its own best answers.

One step of the run:

    prompts -> `make_rollout`: draws n answers to each, and scores them with policy, reference and reward models
            -> Python functions among the rewards score the texts on the host
            -> `make_learn`: keeps the best answer to each prompt, and tunes the policy on the kept answers
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
    """Epochs: passes over a step's best answers (arXiv:2304.06767, section 4.1)."""

    minibatches: Count = 1
    """Minibatches of an epoch, each of which is one update."""


@dataclass(frozen=True)
class RAFTConfig(GroupConfig):
    """The config of RAFT."""

    recipe: str = "raft"
    """Name of the recipe: raft, or a function train(run) of one's own."""

    optim: OptimSettings = OptimSettings(lr=2e-5, weight_decay=0.0, b2=0.999)
    """The optimiser (learning rate: arXiv:2304.06767, section 4.1)."""

    rollout: RolloutSettings = RolloutSettings(n=8, temperature=0.85)
    """How answers are drawn (temperature: arXiv:2304.06767, section 4.1)."""

    raft: RAFTSettings = RAFTSettings()
    """The algorithm."""


def make_loss(model: llama.Model) -> Callable:
    """Makes the loss of a minibatch: the negative log-likelihood of the kept answers at temperature 1.

    It returns loss_fn(params, batch) -> (loss, tokens, statistics), sums over tokens, for `train.update.make_update`.
    """

    def loss_fn(params, batch):
        kept, mask_RM = batch["rows"]["rollout"], batch["rows"]["rollout"].mask_RM
        logp_RM = score_answers(model, params["policy"], kept, temperature=1.0).logp
        loss, tokens = -masked_mean(logp_RM, mask_RM), jnp.sum(mask_RM)
        return loss * tokens, tokens, {"policy/loss": loss * tokens}

    return loss_fn


def make_learn(
    update: Callable, task: AnswerTask, settings: RAFTSettings, *, seed: int
) -> Callable[[State, Experience, Mapping[str, Array]], tuple[State, dict[str, Array]]]:
    """Makes the second half of a step: from the scores of answers to the tuned policy.

    Args:
      update: the update on a minibatch.
      task: rewards and shaping of the run.
      settings: `config.raft`.
      seed: seed of the order of minibatches.

    Returns:
      learn(state, experience, mix) -> (state, metrics). `mix` is not used: RAFT learns from no text.
    """

    n = task.sampling.n

    def learn(state: State, experience: Experience, mix: Mapping[str, Array]):
        rows, step = experience.rows, state["step"]
        # The row of the best answer to each prompt by shaped score; the n answers to a prompt stand in adjacent rows.
        score_R = task.rewards.total(experience.scores)
        score_stats = update_stats(state["score_stats"], score_R)
        shaped_Bn = task.shaping(score_R, rows, score_stats).reshape(-1, n)
        best_B = jnp.argmax(shaped_Bn, axis=1) + jnp.arange(len(shaped_Bn)) * n

        # Updates: epochs of minibatches over the best answers.
        key = jax.random.fold_in(purpose_key(seed, "minibatches"), step)
        state, metrics = minibatch_epochs(
            update,
            state,
            {"rollout": jax.tree.map(lambda x: x[best_B], rows)},
            key,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
        )

        # State of the next step, and metrics. `step` counts rollouts, not updates.
        state |= {"step": step + 1, "score_stats": score_stats}
        metrics |= experience_metrics(experience, score_R)
        metrics["objective/scores_of_best"] = jnp.mean(score_R[best_B])
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return learn


def train(run: Run[RAFTConfig]) -> Result:
    """Tunes the model `config.init_from` on its own best answers by `config.reward`, and returns the policy."""
    config, model, settings = run.config, run.model, run.config.raft
    check_rows(config, run.mesh, settings.minibatches, kept=config.rollout.n)
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

        # Step: draw answers and score them; keep the best answer to each prompt; tune the policy on the kept answers.
        rollout = make_rollout(
            model, {}, task.rewards, None, task.sampling, seed=config.seed, score_parts=task.score_parts
        )
        draw = task.compile_draw(network, rollout)
        update = run.update(network, make_loss(model))
        learn = make_learn(update, task, settings, seed=config.seed)
        step = task.compile(network, draw, learn)

        # Loop.
        with task.loop(network, draw, task.prompts, lengths) as loop:
            for batch in loop:
                loop.state, loop.metrics = step(loop.state, batch)
        return run.result(loop.state.get("ema", loop.state["params"])["policy"], loop)
