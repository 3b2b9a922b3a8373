"""camelid's side of `compare.py`."""

import functools
import json
import sys
import time

import jax
import jax.numpy as jnp

from camelid.model import decode, llama
from camelid.model.config import LlamaConfig
from camelid.model.sampling import Sampling
from camelid.train.losses import next_token_loss
from camelid.train.optimizer import make_optimizer, make_schedule
from camelid.train.setup import EVERYTHING
from camelid.train.state import init_state, make_update

CONFIG = LlamaConfig.preset("nano-8m")
PROMPT, NEW, STEPS = 32, 128, 3


@functools.cache
def training():
    model = llama.build(CONFIG)
    schedule = make_schedule(name="constant", lr=1e-4, total_steps=1000, warmup_steps=0, final=1.0)
    optimizer = make_optimizer(model.abstract_params, name="adamw", schedule=schedule, weight_decay=0.1, clip_norm=1.0)
    update = jax.jit(make_update(next_token_loss(model), optimizer, schedule), donate_argnums=0)
    state = jax.jit(init_state(model.init, optimizer, EVERYTHING, ema=False))(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 257), 0, CONFIG.vocab_size)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_mask": jnp.ones((8, 256)),
        "segment_ids": jnp.ones((8, 256), jnp.int32),
        "positions": jnp.tile(jnp.arange(256), (8, 1)),
    }

    def run() -> int:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = update(state, batch)
        jax.block_until_ready(metrics)
        return STEPS * 8 * 256

    return run


@functools.cache
def decoding(rows: int):
    model = llama.build(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0))
    prompt = jax.random.randint(jax.random.key(1), (rows, PROMPT), 3, CONFIG.vocab_size)
    lengths = jnp.full((rows,), PROMPT)
    sampling = Sampling(max_tokens=NEW, temperature=0.0)

    def run() -> int:
        out = decode.generate(model, params, prompt, lengths, jax.random.key(2), sampling=sampling)
        return int(jnp.sum(out.lengths))

    return run


def matmul() -> dict[str, float]:
    size, repeats = 2048, 8
    product = jax.jit(lambda a: a @ a)
    a = jax.random.normal(jax.random.key(0), (size, size))
    product(a).block_until_ready()
    begin = time.perf_counter()
    for _ in range(repeats):
        product(a).block_until_ready()
    return {"flops_per_second": repeats * 2 * size**3 / (time.perf_counter() - begin)}


def main() -> None:
    runs = {"train": training, "decode1": lambda: decoding(1), "decode8": lambda: decoding(8)}
    flops = {"train": CONFIG.flops_per_token(256)}
    forward = CONFIG.flops_per_token(PROMPT + NEW) / 3
    for line in sys.stdin:
        task = line.strip()
        if task == "matmul":
            print(json.dumps(matmul()), flush=True)
            continue
        run = runs[task]()
        begin = time.perf_counter()
        rate = run() / (time.perf_counter() - begin)
        print(json.dumps({"tokens_per_second": rate, "flops_per_second": rate * flops.get(task, forward)}), flush=True)


if __name__ == "__main__":
    main()
