"""camelid's side of `grpo_compare.py`: times a step of the recipe `grpo`, with a reward that is a Python function."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import jax
import numpy as np

from camelid.benchmarks import grpo_task as task
from camelid.benchmarks.camelid_side import network, random_params
from camelid.model.decode import prompt_ids
from camelid.model.sampling import Sampling
from camelid.model.sharding import make_mesh
from camelid.rlhf.experience import make_rollout
from camelid.rlhf.grpo import GRPOSettings, make_learn, make_loss
from camelid.rlhf.reward_functions import of_callable
from camelid.rlhf.rewards import FIRST_STATS, FunctionReward, Rewards, Shaping
from camelid.rlhf.rollout import Experience
from camelid.train.network import InitialParams, Network, together
from camelid.train.optimizer import OptimSettings, each_part, make_optimizer, make_schedule
from camelid.train.trainable import Trainable
from camelid.train.update import Guard, make_update

MODEL = network(task.SHAPE)
SETTINGS = GRPOSettings(clip=task.CLIP, kl_coef=task.KL_COEF)
SAMPLING = Sampling(max_tokens=task.ANSWER, temperature=task.TEMPERATURE, n=task.ANSWERS)
OPTIM = OptimSettings(weight_decay=0.0, clip_norm=None, b1=task.B1, b2=task.B2, eps=task.EPS)
REWARDS = Rewards(
    {}, {"reward": FunctionReward(of_callable(lambda record, answer: task.reward(answer), "reward"), 1.0)}
)


def prompts() -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of random prompts in the form of `data.prompts`."""
    rng = np.random.default_rng(0)
    lengths = np.full(task.PROMPTS, task.PROMPT, np.int32)
    while True:
        tokens = rng.integers(1, MODEL.config.vocab_size, size=(task.PROMPTS, task.PROMPT), dtype=np.int32)
        index = np.arange(task.PROMPTS, dtype=np.int32)
        yield {"tokens": tokens, "lengths": lengths, "ids": prompt_ids(tokens, lengths), "index": index}


def add_scores(experience: Experience) -> Experience:
    """Scores the texts of all answers on the host."""
    tokens_RT, index_R = jax.device_get((experience.rows.tokens_RT, experience.rows.index_R))
    texts = [task.decode(row.tolist()) for row in tokens_RT[:, -task.ANSWER :]]
    scores = REWARDS.of_functions([{} for _ in index_R], texts)
    return experience._replace(scores=experience.scores | jax.device_put(scores))


def make_step(mesh: jax.sharding.Mesh) -> tuple[Callable, dict]:
    """The function step(state, prompts) -> (state, metrics) of a GRPO step, and the state before the first step."""
    initial = together({"policy": InitialParams(MODEL.init, lambda abstract: random_params(task.SHAPE))})
    schedule = make_schedule(name="constant", lr=task.LR, total_steps=1, warmup_steps=0, final=1.0)
    policy = {"policy": MODEL.abstract_params}
    optimizer = each_part({name: make_optimizer(params, OPTIM, schedule) for name, params in policy.items()})
    learner = Network(initial, Trainable(), optimizer, schedule, mesh, extra={"score_stats": FIRST_STATS})
    update = make_update(
        make_loss(MODEL, SETTINGS, task.TEMPERATURE), optimizer, schedule, guard=Guard(spike_sigma=None)
    )
    worth = SimpleNamespace(rewards=REWARDS, shaping=Shaping(), sampling=SAMPLING)
    frozen = {"reference": random_params(task.SHAPE), "rewards": {}}
    draw = learner.compile_read(make_rollout(MODEL, {}, REWARDS, None, SAMPLING, seed=0, score_parts=1), frozen)
    learn_from_scores = make_learn(update, worth, SETTINGS, seed=0)
    learn = learner.compile(lambda state, experience: learn_from_scores(state, experience, {}))
    return lambda state, batch: learn(state, add_scores(draw(state, batch))), learner.first_state(seed=0)


def steps(mesh: jax.sharding.Mesh) -> Iterator[dict[str, float]]:
    """Yields the seconds of a step, and the mean reward of its answers."""
    step, state = make_step(mesh)
    for batch in prompts():
        begin = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        seconds = time.perf_counter() - begin
        yield {"seconds": seconds, "reward": float(metrics["objective/rewards"])}


def main() -> None:
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        measured = steps(mesh)
        for _ in sys.stdin:
            print(json.dumps(next(measured)), flush=True)


if __name__ == "__main__":
    main()
