"""camelid's side of `compare.py`: measures training and decoding in tokens per second."""

import functools
import json
import sys
import time

import jax
import jax.numpy as jnp

from camelid.model import decode, llama
from camelid.model.config import LlamaConfig
from camelid.model.logprobs import next_token_loss
from camelid.model.sampling import Sampling
from camelid.train.optimizer import OptimSettings, make_optimizer, make_schedule
from camelid.train.state import state_of
from camelid.train.trainable import Trainable
from camelid.train.update import make_update

ROWS = {"nano-8m": (8, 256), "nano-1m": (32, 128)}
PROMPT, NEW, STEPS = 32, 128, 3


@functools.cache
def training(name: str):
    """A function that runs training steps of a preset, and returns the number of tokens."""
    rows, length = ROWS[name]
    model = llama.build(LlamaConfig.preset(name))
    schedule = make_schedule(name="constant", lr=1e-4, total_steps=1000, warmup_steps=0, final=1.0)
    optimizer = make_optimizer(model.abstract_params, OptimSettings(), schedule)
    update = jax.jit(make_update(next_token_loss(model), optimizer, schedule), donate_argnums=0)
    init = jax.jit(lambda key: state_of(model.init(key), optimizer, Trainable(), ema=False))
    state = init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (rows, length + 1), 0, model.config.vocab_size)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_mask": jnp.ones((rows, length)),
        "segment_ids": jnp.ones((rows, length), jnp.int32),
        "positions": jnp.tile(jnp.arange(length), (rows, 1)),
    }

    def run() -> int:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = update(state, batch)
        jax.block_until_ready(metrics)
        return STEPS * rows * length

    return run


@functools.cache
def decoding(name: str, rows: int):
    """A function that decodes `rows` streams of a preset, and returns the number of new tokens."""
    model = llama.build(LlamaConfig.preset(name))
    params = jax.jit(model.init)(jax.random.key(0))
    prompt = jax.random.randint(jax.random.key(1), (rows, PROMPT), 3, model.config.vocab_size)
    lengths = jnp.full((rows,), PROMPT)
    sampling = Sampling(max_tokens=NEW, temperature=0.0)

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


def main() -> None:
    for line in sys.stdin:
        if line.strip() == "matmul":
            print(json.dumps(matmul()), flush=True)
            continue
        name, task, *rows = line.split()
        run = training(name) if task == "train" else decoding(name, int(rows[0]))
        config = LlamaConfig.preset(name)
        flops = config.flops_per_token(ROWS[name][1]) if task == "train" else config.flops_per_token(PROMPT + NEW) / 3
        begin = time.perf_counter()
        rate = run() / (time.perf_counter() - begin)
        print(json.dumps({"tokens_per_second": rate, "flops_per_second": rate * flops}), flush=True)


if __name__ == "__main__":
    main()
