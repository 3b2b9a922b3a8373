"""camelid's side of `ppo_compare.py`: times an iteration of PPO, and its pieces alone."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from camelid.benchmarks import ppo_task as task
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.decode import prompt_ids
from camelid.model.sampling import Sampling
from camelid.model.sharding import make_mesh
from camelid.rlhf import scalar
from camelid.rlhf.critic import Critic
from camelid.rlhf.experience import make_rollout
from camelid.rlhf.ppo import Penalty, PPOSettings, make_learn, make_loss
from camelid.rlhf.rewards import FIRST_STATS, ModelReward, Rewards, Shaping
from camelid.rlhf.rollout import roll_out
from camelid.train.network import InitialParams, Network, together
from camelid.train.optimizer import OptimSettings, each_part, make_optimizer, make_schedule
from camelid.train.trainable import Trainable
from camelid.train.update import Guard, make_update

SETTINGS = PPOSettings(
    epochs=task.EPOCHS,
    minibatches=task.MINIBATCHES,
    clip=task.CLIP,
    value_clip=task.VALUE_CLIP,
    value_coef=task.VALUE_COEF,
    entropy_coef=0.0,
    gamma=task.GAMMA,
    lam=task.LAM,
    whiten_rewards=False,
    whiten_advantages=True,
    target_kl=None,
)
PENALTY = Penalty(coef=task.KL_COEF, estimator="k1", controller="fixed", target=6.0, horizon=1e4)
SAMPLING = Sampling(max_tokens=task.ANSWER, temperature=task.TEMPERATURE)
CONFIG = LlamaConfig.preset(task.SHAPE)
MODEL, SCALAR = llama.build(CONFIG), scalar.build(CONFIG)
CRITICS = {"critic": Critic("value", SCALAR, start=None)}
REWARDS = Rewards({"reward": ModelReward(SCALAR, weight=1.0, pessimism=0.0)}, {})


def prompts() -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of random prompts in the form of `data.prompts`."""
    rng = np.random.default_rng(0)
    lengths = np.full(task.PROMPTS, task.PROMPT, np.int32)
    while True:
        tokens = rng.integers(CONFIG.vocab_size, size=(task.PROMPTS, task.PROMPT), dtype=np.int32)
        index = np.arange(task.PROMPTS, dtype=np.int32)
        yield {"tokens": tokens, "lengths": lengths, "ids": prompt_ids(tokens, lengths), "index": index}


def frozen_networks() -> dict[str, Any]:
    """The parameters of the reference and the reward model, with random weights."""
    keys = jax.random.split(jax.random.key(1))
    return {"reference": jax.jit(MODEL.init)(keys[0]), "rewards": {"reward": jax.jit(SCALAR.init)(keys[1])}}


def halves(mesh: jax.sharding.Mesh, sampling: Sampling = SAMPLING) -> tuple[Callable, Callable, Network]:
    """The functions for the rollout and the update of a PPO step, and the network that it trains."""
    initial = together({"policy": InitialParams(MODEL.init), "critic": InitialParams(SCALAR.init)})
    schedule = make_schedule(name="constant", lr=task.LR, total_steps=1, warmup_steps=0, final=1.0)
    settings = OptimSettings(weight_decay=0.0, clip_norm=None, b2=0.999)
    networks = jax.eval_shape(initial.init, jax.random.key(0))
    optimizer = each_part({name: make_optimizer(params, settings, schedule) for name, params in networks.items()})
    loss = make_loss(MODEL, CRITICS, SETTINGS, sampling.temperature, ptx_coef=0.0)
    update = make_update(loss, optimizer, schedule, guard=Guard(spike_sigma=None))
    rollout = make_rollout(MODEL, CRITICS, REWARDS, None, sampling, seed=0, score_parts=1)
    worth = SimpleNamespace(rewards=REWARDS, cost=None, shaping=Shaping(), sampling=sampling)
    learn = make_learn(update, CRITICS, worth, SETTINGS, PENALTY, seed=0)
    extra = {"kl_coef": PENALTY.coef, "score_stats": FIRST_STATS, "multiplier": 0.0}
    return rollout, learn, Network(initial, Trainable(), optimizer, schedule, mesh, extra=extra)


def timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    """The result of a call, and the seconds until it is complete."""
    begin = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - begin


def iterations(mesh: jax.sharding.Mesh) -> Iterator[dict[str, float]]:
    """Yields the seconds of a whole step, and of its pieces (rollout, scoring, update), each on its own prompts."""
    act, learn_from, network = halves(mesh)
    frozen, state = frozen_networks(), network.first_state(seed=0)
    act, learn = network.compile_read(act, frozen), network.compile(lambda state, seen: learn_from(state, seen, {}))
    roll = jax.jit(lambda params, batch, key: roll_out(MODEL, params, batch, key, SAMPLING))
    batches = prompts()
    while True:
        (state, _), whole = timed(lambda state, batch: learn(state, act(state, batch)), state, next(batches))
        _, rollout = timed(roll, state["params"]["policy"], next(batches), jax.random.key(2))
        seen, acted = timed(act, state, next(batches))
        (state, _), update = timed(learn, state, seen)
        yield {"seconds": whole, "rollout": rollout, "scoring": acted - rollout, "update": update}


def main() -> None:
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        measured = iterations(mesh)
        for _ in sys.stdin:
            print(json.dumps(next(measured)), flush=True)


if __name__ == "__main__":
    main()
