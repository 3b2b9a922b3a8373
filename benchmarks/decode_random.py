"""Decodes with a network of random weights, and compares its speed with the bandwidth of the device's memory.

    python benchmarks/decode_random.py --layers=8 --rows=8

The network has the width of LLaMA 7B in bfloat16. Each step reads all weights once, so that memory bandwidth bounds the
tokens of a second by rows x bandwidth / bytes. Prints a line of JSON.
"""

import argparse
import json
import statistics
import time

import jax

from camelid.checkpoints.language_model import LanguageModel
from camelid.launch.plans.stand_ins import tokenizer_of
from camelid.launch.plans.topologies import local
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sharding import make_mesh


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="llama-7b", help="preset of the network (default: llama-7b)")
    parser.add_argument("--layers", type=int, default=8, help="layers of the network (default: 8)")
    parser.add_argument("--rows", type=int, default=8, help="answers that are decoded together (default: 8)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer (default: 128)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds that are timed (default: 3)")
    args = parser.parse_args()
    sixteen = dict(dtype="bfloat16", param_dtype="bfloat16")
    model = llama.build(LlamaConfig.preset(args.preset, n_layers=args.layers, **sixteen))
    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = jax.jit(model.init)(jax.random.key(0))
    speaker = LanguageModel(model, params, tokenizer_of(model.config.vocab_size), None, mesh)

    def decode(seed: int) -> float:
        """Tokens a second of a round, by answers of full length."""
        begin = time.perf_counter()
        speaker.generate(["Once upon a time"] * args.rows, max_tokens=args.tokens, temperature=1.0, seed=seed)
        return args.rows * args.tokens / (time.perf_counter() - begin)

    decode(0)
    speed, bandwidth = statistics.median(decode(1 + n) for n in range(args.rounds)), local().chip.hbm_bandwidth
    bound = bandwidth and args.rows * bandwidth / (2 * model.config.n_params)
    found = {"device": jax.devices()[0].device_kind, "tokens_per_second": speed, "bound": bound}
    print(json.dumps(found | {"share_of_bound": bound and speed / bound}))


if __name__ == "__main__":
    main()
