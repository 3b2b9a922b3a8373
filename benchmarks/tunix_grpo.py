"""tunix's side of `grpo_compare.py`: its `GRPOLearner` with its own sampler. Needs google-tunix, not camelid.

The learner runs its own loop, and asks for a step's prompts when the step before is complete. The prompts come with the
next line of input. Argument: the folder that `camelid_side.py` has written.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

os.environ["TQDM_DISABLE"] = "1"

import grpo_task as task
import jax
import numpy as np
import optax
from tunix import ClusterConfig, GRPOConfig, GRPOLearner, RLCluster, RLTrainingConfig, Role, RolloutConfig
from tunix_side import load

ENDLESS = 10**9


class Words:
    """The tokenizer of `grpo_task.py`, with an id for padding and the end that the network never draws."""

    def __init__(self, vocab_size: int):
        self.outside = vocab_size

    def encode(self, text: str) -> list[int]:
        return task.encode(text)

    def decode(self, tokens: list[int]) -> str:
        return task.decode(tokens)

    def bos_id(self) -> int:
        return 0  # tunix reads it as none

    def eos_id(self) -> int:
        return self.outside

    def pad_id(self) -> int:
        return self.outside


class Clock:
    """Prints the seconds of each step and the mean reward of its answers, and waits for a line before the next."""

    def __init__(self, vocab_size: int, answers: TextIO):
        self.vocab_size, self.answers, self.rewards = vocab_size, answers, []

    def reward(self, prompts: list[str], completions: list[str], **_) -> list[float]:
        """The rewards of a step's answers."""
        self.rewards = [task.reward(answer) for answer in completions]
        return self.rewards

    def prompts(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields batches of random prompts, one for each line of input."""
        rng = np.random.default_rng(0)
        while sys.stdin.readline():
            begin = time.perf_counter()
            tokens = rng.integers(1, self.vocab_size, size=(task.PROMPTS, task.PROMPT))
            yield {"prompts": np.array([task.decode(row) for row in tokens.tolist()])}
            found = {"seconds": time.perf_counter() - begin, "reward": float(np.mean(self.rewards))}
            print(json.dumps(found), file=self.answers, flush=True)


def make_learner(folder: Path, clock_to: TextIO) -> tuple[GRPOLearner, Clock]:
    """The learner, and the clock that gives it prompts and rewards."""
    policy, reference = load(folder), load(folder)
    vocab_size = policy.config.vocab_size
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    training = RLTrainingConfig(
        actor_optimizer=optax.adamw(task.LR, b1=task.B1, b2=task.B2, eps=task.EPS, weight_decay=0.0),
        eval_every_n_steps=ENDLESS,
        max_steps=ENDLESS,
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=task.ANSWER,
        max_prompt_length=task.PROMPT,
        kv_cache_size=task.PROMPT + task.ANSWER,
        temperature=task.TEMPERATURE,
    )
    roles = dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh)
    cluster = RLCluster(
        actor=policy,
        reference=reference,
        tokenizer=Words(vocab_size),
        cluster_config=ClusterConfig(role_to_mesh=roles, training_config=training, rollout_config=rollout),
    )
    algorithm = GRPOConfig(
        num_generations=task.ANSWERS, beta=task.KL_COEF, kl_loss_mode="low_var_kl", epsilon=task.CLIP
    )
    clock = Clock(vocab_size, clock_to)
    return GRPOLearner(cluster, algorithm, reward_fns=clock.reward), clock


def main() -> None:
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        learner, clock = make_learner(Path(sys.argv[1]), answers)
        learner.train(clock.prompts())


if __name__ == "__main__":
    main()
