"""Whether an engine's answers are the same bits in any company.

    JAX_PLATFORMS=cpu python benchmarks/serving_bits.py --prompts=200 --mixes=50

Every prompt is answered alone, in an engine that keeps nothing. Then all prompts are answered together, once for each
mix: in another order, at other moments, beside answers that are cancelled in the middle, with prefixes kept, in part or
not at all, and in a third of the mixes making room for each other. The command counts the answers whose tokens or
log-probabilities differ in any bit, and the programs that were compiled after the start. The network is `nano-1m` with
random weights; with --model a model of yours.
"""

import argparse
import math
import time

import jax
import numpy as np

import camelid
from camelid.checkpoints.language_model import LanguageModel
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sampling import Sampling
from camelid.model.sharding import make_mesh
from camelid.serve.engine import Engine
from camelid.serve.requests import Request


def random_model() -> LanguageModel:
    model = llama.build(LlamaConfig.preset("nano-1m", vocab_size=1024, max_len=256))
    params = jax.tree.map(lambda x: 2 * x, jax.jit(model.init)(jax.random.key(0)))
    return LanguageModel(model, params, None, None, make_mesh({}, jax.local_devices()[:1]))


def make_requests(count: int, vocab: int, rng: np.random.Generator) -> list[Request]:
    """Prompts of 1 to 120 tokens, half of which share their beginning, with settings of all kinds."""
    shared, found = rng.integers(1, vocab, 100).tolist(), []
    for i in range(count):
        own = rng.integers(1, vocab, rng.integers(1, 120)).tolist()
        sampling = Sampling(
            max_tokens=int(rng.integers(1, 24)),
            temperature=float(rng.choice([0.0, 0.7, 1.0, 1.4])),
            top_p=float(rng.choice([1.0, 0.9])),
            top_k=int(rng.choice([0, 40])),
            min_p=float(rng.choice([0.0, 0.02])),
            repetition_penalty=float(rng.choice([1.0, 1.2])),
        )
        prompt = shared[: rng.integers(1, 100)] + own[:20] if i % 2 else own
        found.append(Request(prompt, sampling, seed=i, top=int(rng.integers(0, 6))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="path of a model (default: random weights)")
    parser.add_argument("--prompts", type=int, default=200, help="number of prompts (default: 200)")
    parser.add_argument("--mixes", type=int, default=50, help="number of mixes (default: 50)")
    parser.add_argument("--rows", type=int, default=32, help="answers that are written at a time (default: 32)")
    args = parser.parse_args()

    model = random_model() if args.model is None else camelid.load(args.model)
    requests = make_requests(args.prompts, model.config.vocab_size, np.random.default_rng(0))
    how = dict(rows=args.rows, max_len=256, most_waiting=10 * args.prompts)
    with Engine(model, **how, blocks=0) as engine:
        alone = [engine.generate([request])[0][0].tokens for request in requests]

    compiled, begin, differ, answers, cached = [], time.monotonic(), 0, 0, 0
    made_room = 0
    for blocks, patience in ((0, math.inf), (40, 0.2), (None, math.inf)):  # nothing is kept, some of it, all
        with Engine(model, **how, blocks=blocks, patience=patience) as engine:
            listen = lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None  # noqa: E731
            jax.monitoring.register_event_duration_secs_listener(listen)
            for mix in range(args.mixes // 3 + (blocks is None) * (args.mixes % 3)):
                rng = np.random.default_rng(mix)
                submitted = {}
                for i in rng.permutation(len(requests)).tolist():
                    submitted[i] = engine.submit(requests[i])[0]
                    if rng.random() < 0.1:
                        engine.submit(requests[i])[0].cancel()
                    if rng.random() < 0.05:
                        time.sleep(0.01)
                for i, answer in submitted.items():
                    differ += answer.wait().tokens != alone[i]
                    cached += answer.cached
                answers += len(submitted)
            jax.monitoring.unregister_event_duration_listener(listen)
            made_room += engine.preemptions
    print(f"{answers:,} answers, {differ} differ, {len(compiled)} programs compiled after the start")
    print(f"{cached:,} tokens of prompts were copied, {made_room:,} answers made room for others")
    print(f"{time.monotonic() - begin:.0f} seconds")


if __name__ == "__main__":
    main()
