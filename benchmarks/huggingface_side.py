"""Hugging Face's side of `compare.py`: `LlamaForCausalLM` on PyTorch. Needs torch and transformers, not camelid.

Argument: the folder that `camelid_side.py` has written.
"""

import functools
import json
import sys
import time
from pathlib import Path

import numpy as np
import speed_task as task
import torch
import transformers


def load(folder: Path) -> transformers.LlamaForCausalLM:
    """The network of a folder in Hugging Face's format."""
    return transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)


class Training:
    """Training of a folder's network on its batch."""

    def __init__(self, folder: Path):
        self.model = load(folder).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=task.LR,
            betas=(task.B1, task.B2),
            eps=task.EPS,
            weight_decay=task.WEIGHT_DECAY,
            fused=True,
        )
        self.tokens = torch.from_numpy(np.load(folder / "tokens.npy"))

    def _loss(self) -> torch.Tensor:
        logits = self.model(input_ids=self.tokens[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.tokens[:, 1:].flatten())

    def run(self) -> int:
        """Takes the steps of a round, and returns the number of tokens."""
        for _ in range(task.STEPS):
            self._loss().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), task.CLIP_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return task.STEPS * self.tokens[:, 1:].numel()

    @torch.no_grad()
    def loss(self) -> float:
        """The loss of the batch with the weights of now, in nats per token."""
        return self._loss().item()


@functools.cache
def training(folder: Path) -> Training:
    return Training(folder)


@functools.cache
def decoding(folder: Path, rows: int):
    """A function that decodes `rows` streams of a folder's network, and returns the number of new tokens."""
    model = load(folder).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    prompt = torch.randint(3, model.config.vocab_size, (rows, task.PROMPT))
    mask = torch.ones_like(prompt)
    settings = dict(max_new_tokens=task.NEW, min_new_tokens=task.NEW, do_sample=False)

    @torch.inference_mode()
    def run() -> int:
        return rows * (model.generate(prompt, attention_mask=mask, **settings).shape[1] - task.PROMPT)

    return run


def timed(run) -> dict[str, float]:
    """The speed of a function that returns a number of tokens."""
    begin = time.perf_counter()
    tokens = run()
    return {"tokens_per_second": tokens / (time.perf_counter() - begin)}


def main() -> None:
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    shared = Path(sys.argv[1])
    for line in sys.stdin:
        match line.split():
            case [name, "loss"]:
                found = {"loss": training(shared / name).loss()}
            case [name, "train"]:
                found = timed(training(shared / name).run)
            case [name, "decode", rows]:
                found = timed(decoding(shared / name, int(rows)))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
