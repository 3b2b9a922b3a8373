"""camelid's decoding of one prompt at a time, for `serve_compare.py`. Arguments: the GGUF file, a number of cores."""

import json
import os
import sys
import time

import numpy as np

import camelid
from camelid.model.sampling import Sampling

PROMPT, LENGTH = 136, 72
"""The mean lengths of the requests of `serve_load.py`."""


def main() -> None:
    os.sched_setaffinity(0, range(int(sys.argv[2])))  # before JAX starts its threads
    model = camelid.load(sys.argv[1])
    sampling = Sampling(max_tokens=LENGTH, temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
    for number, line in enumerate(sys.stdin):
        seconds, tokens, begin, cpu = float(line), 0, time.perf_counter(), time.process_time()
        while time.perf_counter() < begin + seconds:
            prompt = np.random.default_rng([number, tokens]).integers(100, 40_000, PROMPT).tolist()
            tokens += len(model.complete([prompt], sampling, seed=number)[0])
        took, used = time.perf_counter() - begin, time.process_time() - cpu
        print(json.dumps({"tokens_per_second": tokens / took, "tokens_per_cpu_second": tokens / used}), flush=True)


if __name__ == "__main__":
    main()
