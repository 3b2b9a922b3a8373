"""llama.cpp's side of `smollm2.py`, on the GGUF file itself. Needs llama-cpp-python, not camelid."""

import json
import random
import resource
import sys
import time

from llama_cpp import Llama

PROMPT, LENGTH = 32, 96


def main() -> None:
    model = Llama(sys.argv[1], n_ctx=512, n_threads=2, verbose=False)
    numbers = random.Random(0)
    tokens = [numbers.randrange(100, 40_000) for _ in range(PROMPT)]
    for line in sys.stdin:
        if line.strip() == "memory":
            found = {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}
        else:
            model.reset()
            begin = time.perf_counter()
            count = 0
            for _ in model.generate(tokens, temp=0.0, repeat_penalty=1.0):
                count += 1
                if count == LENGTH:
                    break
            found = {"tokens_per_second": count / (time.perf_counter() - begin)}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
