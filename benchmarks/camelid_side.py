"""camelid's side of `compare.py`: measures training and decoding in tokens per second.

Argument: the folder in which the other sides find weights and batches.
"""

import functools
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from camelid.benchmarks import speed_task as task
from camelid.checkpoints.interop import huggingface, tensors
from camelid.model import decode, llama
from camelid.model.config import LlamaConfig
from camelid.model.logprobs import next_token_loss
from camelid.model.sampling import Sampling
from camelid.train.optimizer import OptimSettings, make_optimizer, make_schedule
from camelid.train.state import state_of
from camelid.train.trainable import Trainable
from camelid.train.update import make_update

OPTIM = OptimSettings(b1=task.B1, b2=task.B2, eps=task.EPS, weight_decay=task.WEIGHT_DECAY, clip_norm=task.CLIP_NORM)


@functools.cache
def network(name: str) -> llama.Model:
    """The network of a preset."""
    return llama.build(LlamaConfig.preset(name, rope_theta=task.ROPE_THETA))


def random_params(name: str) -> llama.Params:
    """The weights at the start, the same in each call."""
    return jax.jit(network(name).init)(jax.random.key(0))


def random_tokens(name: str) -> np.ndarray:
    """The batch of every training step: each token but a row's first is predicted."""
    rows, length = task.ROWS[name]
    return np.random.default_rng(1).integers(network(name).config.vocab_size, size=(rows, length + 1))


def write_folder(name: str, params: llama.Params, folder: Path) -> None:
    """Writes a network in Hugging Face's format."""
    config, values = network(name).config, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)
    parts = ((place, values[place.path]) for place in tensors.places(config, tensors.HUGGING_FACE))
    written = (
        tensors.write_part(tensors.HUGGING_FACE, place, value if place.layer is None else value[place.layer])
        for place, value in parts
    )
    huggingface.write_folder(folder, config, written)


class Training:
    """Training of a preset."""

    def __init__(self, name: str):
        model, tokens = network(name), random_tokens(name)
        schedule = make_schedule(name="constant", lr=task.LR, total_steps=1000, warmup_steps=0, final=1.0)
        optimizer = make_optimizer(model.abstract_params, OPTIM, schedule)
        loss_fn = next_token_loss(model)
        self.update = jax.jit(make_update(loss_fn, optimizer, schedule), donate_argnums=0)
        self.loss_sum = jax.jit(loss_fn)
        self.state = jax.jit(lambda params: state_of(params, optimizer, Trainable(), ema=False))(random_params(name))
        rows, length = task.ROWS[name]
        self.batch = {
            "tokens": jnp.asarray(tokens[:, :-1]),
            "targets": jnp.asarray(tokens[:, 1:]),
            "loss_mask": jnp.ones((rows, length)),
            "segment_ids": jnp.ones((rows, length), jnp.int32),
            "positions": jnp.tile(jnp.arange(length), (rows, 1)),
        }

    def run(self) -> int:
        """Takes the steps of a round, and returns the number of tokens."""
        for _ in range(task.STEPS):
            self.state, metrics = self.update(self.state, self.batch)
        jax.block_until_ready(metrics)
        return task.STEPS * self.batch["tokens"].size

    def loss(self) -> float:
        """The loss of the batch with the weights of now, in nats per token."""
        total, count, _ = self.loss_sum(self.state["params"], self.batch)
        return float(total / count)


@functools.cache
def training(name: str) -> Training:
    return Training(name)


@functools.cache
def decoding(name: str, rows: int):
    """A function that decodes `rows` streams of a preset, and returns the number of new tokens."""
    model, params = network(name), random_params(name)
    prompt = jax.random.randint(jax.random.key(1), (rows, task.PROMPT), 3, model.config.vocab_size)
    lengths = jnp.full((rows,), task.PROMPT)
    sampling = Sampling(max_tokens=task.NEW, temperature=0.0)

    def run() -> int:
        out = decode.generate(model, params, prompt, lengths, jax.random.key(2), sampling=sampling)
        return int(jnp.sum(out.lengths))

    return run


def matmul() -> dict[str, float]:
    """The speed of float32 products of 2048 x 2048 matrices, in FLOP/s."""
    size, repeats = 2048, 8
    product = jax.jit(lambda a: a @ a)
    a = jax.random.normal(jax.random.key(0), (size, size))
    product(a).block_until_ready()
    begin = time.perf_counter()
    for _ in range(repeats):
        product(a).block_until_ready()
    return {"flops_per_second": repeats * 2 * size**3 / (time.perf_counter() - begin)}


def timed(run, flops_per_token: float) -> dict[str, float]:
    """The speed of a function that returns a number of tokens."""
    begin = time.perf_counter()
    rate = run() / (time.perf_counter() - begin)
    return {"tokens_per_second": rate, "flops_per_second": rate * flops_per_token}


def main() -> None:
    shared = Path(sys.argv[1])
    for line in sys.stdin:
        match line.split():
            case ["matmul"]:
                found = matmul()
            case [name, "write"]:
                write_folder(name, random_params(name), shared / name)
                np.save(shared / name / "tokens.npy", random_tokens(name))
                found = {}
            case [name, "loss"]:
                found = {"loss": training(name).loss()}
            case [name, "train"]:
                found = timed(training(name).run, network(name).config.flops_per_token(task.ROWS[name][1]))
            case [name, "decode", rows]:
                flops = network(name).config.flops_per_token(task.PROMPT + task.NEW) / 3
                found = timed(decoding(name, int(rows)), flops)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
