"""What each form of `model/xla_cpu.py` gains on XLA's CPU backend over the plain one.

    JAX_PLATFORMS=cpu python benchmarks/xla_cpu.py

For each form two processes do the same work, one of them with the form replaced. Rounds alternate between them. The
table has the median over rounds of the CPU time of the plain form divided by that of camelid's. A form whose ratio is 1
with a new version of JAX should go. The network is 512 wide, with 6 layers, 8 heads and 4 key/value heads, and a
vocabulary of 8,192, in float32 with random weights; answers are greedy and have 64 tokens.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from compare import Side, spread
from rich.console import Console
from rich.table import Table

from camelid.model import decode, llama, slots, storage, xla_cpu
from camelid.model.config import LlamaConfig
from camelid.model.dynamic_codes import signed_values
from camelid.model.logprobs import next_token_loss
from camelid.model.rows import make_decoder
from camelid.model.sampling import Sampling

SHAPE = dict(vocab_size=8192, dim=512, n_layers=6, n_heads=8, n_kv_heads=4, ffn_dim=1408, tied=True)


def scores_by_group(q_BKGTE, k_BKSE):
    scores = jnp.einsum("bkgte,bkse->bkgts", q_BKGTE, k_BKSE, preferred_element_type=jnp.float32)
    return scores.reshape(*scores.shape[:2], -1, scores.shape[-1])


PLAIN: dict[str, Callable] = {
    "merged_rows": lambda x, inputs: x.reshape(*x.shape[:2], -1),
    "from_left": lambda positions: False,
    "_computed_once": lambda x: x,
    "scale_values": signed_values,
    "grouped_scores": scores_by_group,
    "times_codes": lambda equation, x, codes: jnp.einsum(equation, x.astype(jnp.float32), codes.astype(jnp.float32)),
    "rows_and_heads": lambda x: x,
    "each_or_most": jnp.max,
}
"""The plain form of each function."""


def answers(rows: int, prompt: int, quantize: str | None = None, **changes) -> Callable[[], object]:
    """Decoding of `rows` prompts of `prompt` tokens."""
    model = llama.build(LlamaConfig.from_dict(SHAPE | changes))
    params = jax.jit(model.init)(jax.random.key(0))
    if quantize is not None:
        params = storage.quantize(params, storage.rules_of(quantize))
    prompts = np.random.default_rng(0).integers(1, 8192, (rows, prompt)).tolist()
    settings = Sampling(max_tokens=64, temperature=0)
    return lambda: decode.generate(model, params, *decode.pad_prompts(prompts), jax.random.key(1), settings)


def gradient(rows: int, tokens: int, quantize: str | None = None, **changes) -> Callable[[], object]:
    """The gradient of the loss; of a quantised network, whose matrices have none, the loss alone."""
    model = llama.build(LlamaConfig.from_dict(SHAPE | changes))
    params, loss = jax.jit(model.init)(jax.random.key(0)), next_token_loss(model)
    tokens_BT = np.random.default_rng(0).integers(1, 8192, (rows, tokens)).astype(np.int32)
    ones_BT = np.ones_like(tokens_BT)
    positions_BT = np.broadcast_to(np.arange(tokens, dtype=np.int32), tokens_BT.shape)
    batch = dict(tokens=tokens_BT, targets=tokens_BT, segment_ids=ones_BT, positions=positions_BT)
    batch["loss_mask"] = ones_BT.astype(np.float32)
    of_loss = lambda params, batch: loss(params, batch)[0]  # noqa: E731
    if quantize is not None:
        params = storage.quantize(params, storage.rules_of(quantize))
    compute = jax.jit(of_loss if quantize is not None else jax.grad(of_loss))
    return lambda: compute(params, batch)


def steps(positions: list[int]) -> Callable[[], object]:
    """20 steps of a server's rows, which are at these positions."""
    model = llama.build(LlamaConfig.from_dict(SHAPE))
    params = jax.jit(model.init)(jax.random.key(0))
    R = len(positions)
    decoder = jax.jit(lambda params: make_decoder(model.config, R, False, params))(params)
    rows = jax.jit(lambda: slots.empty(model.config, R, 2048))()
    rows = rows._replace(slot=jnp.array(positions), stopped_R=jnp.zeros(R, bool))
    forward = jax.jit(lambda decoder, rows: slots.forward(decoder, rows)[1])

    return lambda: [forward(decoder, rows) for _ in range(20)]


WORK: dict[str, list[tuple[str, Callable[[], Callable]]]] = {
    "merged_rows": [("gradient, 8 rows of 256 tokens", lambda: gradient(8, 256))],
    "from_left": [("8 answers", lambda: answers(8, 24))],
    "_computed_once": [
        ("1 answer, int8", lambda: answers(1, 24, "int8")),
        ("1 answer, int4", lambda: answers(1, 24, "int4")),
    ],
    "scale_values": [
        ("loss, nf4, 1 row of 32 tokens", lambda: gradient(1, 32, "nf4")),
    ],
    "grouped_scores": [
        ("gradient, 8 rows of 256 tokens", lambda: gradient(8, 256)),
        ("gradient, 1 row of 2,048 tokens, 16 heads", lambda: gradient(1, 2048, n_heads=16)),
    ],
    "times_codes": [
        ("1 answer to 1,000 tokens, int8 cache", lambda: answers(1, 1000, cache="int8")),
        ("8 answers to 1,000 tokens, int8 cache", lambda: answers(8, 1000, cache="int8")),
    ],
    "rows_and_heads": [
        ("1 answer to 1,000 tokens", lambda: answers(1, 1000)),
        ("8 answers to 1,000 tokens, 1 key/value head", lambda: answers(8, 1000, n_kv_heads=1)),
    ],
    "each_or_most": [
        ("20 steps of 8 rows at position 400", lambda: steps([400] * 8)),
        ("20 steps of 8 rows, 7 at position 50 and 1 at 1,900", lambda: steps([50] * 7 + [1900])),
    ],
}
"""Work in which each form counts."""


def serve(form: str, plain: bool) -> None:
    """Does the work named in each line of input, and prints its CPU seconds."""
    if plain:
        setattr(xla_cpu, form, PLAIN[form])
    made = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in made:
            made[name] = dict(WORK[form])[name]()
        begin = time.process_time()
        jax.block_until_ready(made[name]())
        print(json.dumps({"seconds": time.process_time() - begin}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=PLAIN, default=list(PLAIN), help="default: all")
    parser.add_argument("--rounds", type=int, default=7, help="number of timed rounds (default: 7)")
    parser.add_argument("--serve", choices=PLAIN, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        return serve(args.serve, args.plain)

    table = Table("form", "work", "plain / camelid", "spread")
    for form in args.forms:
        for work, _ in WORK[form]:
            sides = [Side.start(sys.executable, "xla_cpu.py", f"--serve={form}", *more) for more in ((), ("--plain",))]
            rounds = [[side.measure(work)["seconds"] for side in sides] for _ in range(args.rounds + 2)][2:]
            for side in sides:
                side.stop()
            ours, plain = zip(*rounds, strict=True)
            table.add_row(form, work, *spread(plain, ours))
    Console().print(table)


if __name__ == "__main__":
    main()
