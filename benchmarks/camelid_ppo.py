"""camelid's side of `ppo_compare.py`: an iteration of PPO as a run compiles it, one program; then its pieces alone."""

import json
import sys
import time
from collections.abc import Callable, Iterator
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
from camelid.rlhf.critic import Critic, initialiser
from camelid.rlhf.fit import compile_step
from camelid.rlhf.ppo import Hyper, Penalty, make_act, make_learn, make_loss
from camelid.rlhf.rewards import FIRST_STATS, ModelReward, Rewards, Shaping
from camelid.rlhf.rollout import roll_out
from camelid.train.optimizer import each_part, make_optimizer, make_schedule
from camelid.train.setup import Start, abstract_state, first_state
from camelid.train.state import Guard, make_update

HYPER = Hyper(
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
CRITICS = {"critic": Critic("value", SCALAR, start="")}
GRADERS = Rewards({"reward": ModelReward(SCALAR, weight=1.0, pessimism=0.0)}, {})


def prompts() -> Iterator[dict[str, np.ndarray]]:
    """Batches of random prompts, as `data.prompts` gives them."""
    rng = np.random.default_rng(0)
    lengths = np.full(task.PROMPTS, task.PROMPT, np.int32)
    while True:
        tokens = rng.integers(CONFIG.vocab_size, size=(task.PROMPTS, task.PROMPT), dtype=np.int32)
        index = np.arange(task.PROMPTS, dtype=np.int32)
        yield {"tokens": tokens, "lengths": lengths, "ids": prompt_ids(tokens, lengths), "index": index}


def frozen_networks() -> dict[str, Any]:
    """Reference and reward model, with random weights."""
    keys = jax.random.split(jax.random.key(1))
    return {"reference": jax.jit(MODEL.init)(keys[0]), "rewards": {"reward": jax.jit(SCALAR.init)(keys[1])}}


def halves() -> tuple[Callable, Callable, Start]:
    """The two halves of a step, and what the state is made of."""
    init = initialiser(MODEL, CRITICS)
    schedule = make_schedule(name="constant", lr=task.LR, total_steps=1, warmup_steps=0, final=1.0)
    how = dict(name="adamw", schedule=schedule, weight_decay=0.0, clip_norm=None, b2=0.999)
    networks = jax.eval_shape(init, jax.random.key(0))
    optimizer = each_part({name: make_optimizer(params, **how) for name, params in networks.items()})
    loss = make_loss(MODEL, CRITICS, HYPER, SAMPLING.temperature, ptx_coef=0.0)
    update = make_update(loss, optimizer, schedule, guard=Guard(spike_sigma=None))
    act = make_act(MODEL, CRITICS, GRADERS, None, SAMPLING, seed=0, score_parts=1)
    learn = make_learn(update, CRITICS, GRADERS, None, HYPER, PENALTY, Shaping(), seed=0)
    extra = {"kl_coef": PENALTY.coef, "score_stats": FIRST_STATS, "multiplier": 0.0}
    return act, learn, Start(optimizer, init, extra=extra)


def timed(function: Callable, *arguments: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - begin


def iterations(mesh: jax.sharding.Mesh) -> Iterator[dict[str, float]]:
    """Seconds of the whole, then of each piece on prompts of its own. Scoring is what `act` takes beyond a rollout."""
    act, learn, start = halves()
    abstract, frozen = abstract_state(start, mesh, None), frozen_networks()
    state = first_state(start, abstract, seed=0)
    step = compile_step(act, learn, frozen, {}, jax.tree.map(lambda x: x.sharding, abstract), host=None)
    roll = jax.jit(lambda params, batch, key: roll_out(MODEL, params, batch, key, SAMPLING))
    act, learn = jax.jit(act), jax.jit(learn, donate_argnums=0)
    batches = prompts()
    while True:
        (state, _), whole = timed(step, state, next(batches))
        _, rollout = timed(roll, state["params"]["policy"], next(batches), jax.random.key(2))
        seen, acted = timed(act, state, frozen, next(batches))
        (state, _), update = timed(learn, state, seen, {})
        yield {"seconds": whole, "rollout": rollout, "scoring": acted - rollout, "update": update}


def main() -> None:
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        measured = iterations(mesh)
        for _ in sys.stdin:
            print(json.dumps(next(measured)), flush=True)


if __name__ == "__main__":
    main()
