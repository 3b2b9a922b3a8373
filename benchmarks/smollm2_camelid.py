"""camelid's side of `smollm2.py`. Arguments: the GGUF file, "float32" or "stored", and a path for shared files."""

import json
import resource
import sys
import time

import numpy as np
from smollm2_prompts import NEW, QUESTIONS

import camelid
from camelid.checkpoints.convert import to_huggingface
from camelid.model.sampling import Sampling

PROMPT, LENGTH = 32, 96


def main() -> None:
    path, kind, shared = sys.argv[1:]
    m = camelid.load(path, quantize=None if kind == "float32" else kind)
    prompts = [m.prompt(question) for question in QUESTIONS]

    def answer() -> dict[str, float]:
        """Writes greedy continuations, decoded one by one, and the logits of the longest prompt with its answer."""
        sampling = Sampling(max_tokens=NEW, temperature=0.0)
        answers = [m.complete([prompt], sampling)[0] for prompt in prompts]
        longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
        text = np.array([prompts[longest] + answers[longest]])
        with open(f"{shared}.json", "w") as file:
            json.dump({"prompts": prompts, "answers": answers, "text": text.tolist()}, file)
        np.save(f"{shared}.npy", m.logits(text))
        return {}

    def decode(rows: int) -> dict[str, float]:
        """The speed of decoding `rows` streams."""
        given = np.random.default_rng(0).integers(100, 40_000, (rows, PROMPT)).tolist()
        begin = time.perf_counter()
        answers = m.complete(given, Sampling(max_tokens=LENGTH, temperature=0.0), batch_size=rows)
        return {"tokens_per_second": sum(map(len, answers)) / (time.perf_counter() - begin)}

    for line in sys.stdin:
        match line.split():
            case ["export"]:
                found = to_huggingface(path, shared, dtype="float32") or {}
            case ["answer"]:
                found = answer()
            case ["decode", rows]:
                found = decode(int(rows))
            case ["memory"]:
                found = {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
