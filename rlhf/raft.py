"""RAFT: tuning on the best of k own answers, round after round (reward-ranked fine-tuning, arXiv:2304.06767; LMFlow).

A step of the run is a round: rollouts and scores as in PPO, then the best answer to each prompt is what the policy is
tuned on.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array

from ..model import llama
from ..train import setup as train_setup
from ..train.bundle import Llama
from ..train.fit import Evaluator
from ..train.leaves import Count, read
from ..train.losses import masked_mean
from ..train.randomness import purpose_key
from ..train.settings import Settings
from ..train.state import State
from . import rewards, setup, statistics
from .fit import train_policy
from .grpo import play_without_critic
from .learner import learn
from .rollout import Experience, score_answers


class Hyper(NamedTuple):
    """The section `config.raft`. epochs, minibatches: over a round's best answers."""

    epochs: Count
    minibatches: Count


def make_loss(model: llama.Model) -> Callable:
    """The kept answers' negative log-likelihood, as `train.state.make_update` takes it: sums over their tokens."""

    def loss_fn(params, batch):
        kept, mask_RM = batch["rows"]["rollout"], batch["rows"]["rollout"].mask_RM
        logp_RM = score_answers(model, params["policy"], kept, temperature=1.0).logp
        loss, tokens = -masked_mean(logp_RM, mask_RM), jnp.sum(mask_RM)
        return loss * tokens, tokens, {"policy/loss": loss * tokens}

    return loss_fn


def make_learn(
    update: Callable, graders: rewards.Rewards, hyper: Hyper, shaping: rewards.Shaping, n: int, *, seed: int
) -> Callable[[State, Experience, Mapping[str, Array]], tuple[State, dict[str, Array]]]:
    """The function `learn(state, experience, mix) -> (state, metrics)` of a round's second half."""

    def learn_from(state: State, seen: Experience, mix: Mapping[str, Array]):
        rows, step = seen.rows, state["step"]
        score_R = graders.total(seen.scores)
        score_stats = rewards.update_stats(state["score_stats"], score_R)
        shaped_Bn = shaping(score_R, rows, score_stats).reshape(-1, n)
        best_B = jnp.argmax(shaped_Bn, axis=1) + jnp.arange(len(shaped_Bn)) * n
        key = jax.random.fold_in(purpose_key(seed, "minibatches"), step)
        state, metrics = learn(
            update,
            state,
            {"rollout": jax.tree.map(lambda x: x[best_B], rows)},
            key,
            epochs=hyper.epochs,
            minibatches=hyper.minibatches,
        )
        state |= {"step": step + 1, "score_stats": score_stats}
        metrics |= statistics.of_experience(seen, score_R)
        metrics["objective/scores_of_best"] = jnp.mean(score_R[best_B])
        return state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return learn_from


def run(settings: Settings, workdir: epath.Path, evaluators: Mapping[str, Evaluator]) -> Llama:
    """Trains `config.init_from` on its own best answers by the rewards of `config.reward`, and returns the policy."""
    mesh = train_setup.mesh_of(settings)
    with jax.set_mesh(mesh):
        hyper = read(settings, "raft", Hyper)
        setup.check_rows(settings, mesh, hyper.minibatches, kept=settings.rollout.n)
        scene = setup.scene_of(settings, mesh)
        sampling, seed = scene.sampling, settings.seed
        play = play_without_critic(
            settings,
            scene,
            make_loss(scene.model),
            lambda update: make_learn(update, scene.graders, hyper, scene.shaping, sampling.n, seed=seed),
            updates=hyper.epochs * hyper.minibatches,
        )
        return train_policy(settings, workdir, mesh, scene, play, evaluators)
