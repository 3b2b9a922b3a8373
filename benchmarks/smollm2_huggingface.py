"""Hugging Face's side of `smollm2.py`, on the folder that camelid exported. Needs torch and transformers only."""

import json
import resource
import sys
import time

import numpy as np
import torch
import transformers
from smollm2_prompts import NEW

PROMPT, LENGTH = 32, 96


@torch.inference_mode()
def greedy(model, tokens: torch.Tensor, new: int, *, stops: bool) -> torch.Tensor:
    """Greedy continuations.

    Args:
      model: the model.
      tokens: [B, T], the prompts.
      new: largest number of new tokens.
      stops: whether the end-of-text token ends a continuation.

    Returns:
      [B, new], the new tokens.
    """
    further = {} if stops else {"min_new_tokens": new, "eos_token_id": None}
    mask = torch.ones_like(tokens)
    return model.generate(tokens, attention_mask=mask, max_new_tokens=new, do_sample=False, **further)[
        :, tokens.shape[1] :
    ]


def agree(model, shared: str) -> dict[str, float]:
    """Compares with camelid's files: the number of equal continuations, and the largest difference of a logit."""
    with open(f"{shared}.json") as file:
        found = json.load(file)
    same = [
        greedy(model, torch.tensor([prompt]), NEW, stops=False)[0].tolist() == answer
        for prompt, answer in zip(found["prompts"], found["answers"], strict=True)
    ]
    with torch.inference_mode():
        logits = model(torch.tensor(found["text"])).logits.numpy()
    error = np.abs(logits - np.load(f"{shared}.npy")).max()
    return {"same": sum(same), "prompts": len(same), "logits": float(error)}


def main() -> None:
    transformers.logging.set_verbosity_error()
    shared = sys.argv[1]
    model = transformers.AutoModelForCausalLM.from_pretrained(shared, dtype=torch.float32).eval()
    model.generation_config.pad_token_id = 0
    for line in sys.stdin:
        match line.split():
            case ["agree"]:
                found = agree(model, shared)
            case ["decode", rows]:
                tokens = torch.from_numpy(np.random.default_rng(0).integers(100, 40_000, (int(rows), PROMPT)))
                begin = time.perf_counter()
                count = greedy(model, tokens, LENGTH, stops=False).numel()
                found = {"tokens_per_second": count / (time.perf_counter() - begin)}
            case ["memory"]:
                found = {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
