"""Hugging Face's side of `compare.py`: `LlamaForCausalLM` on PyTorch. Needs torch and transformers, not camelid."""

import functools
import json
import sys
import time

import torch
import transformers

COMMON = dict(num_attention_heads=6, num_key_value_heads=6, attn_implementation="sdpa", max_position_embeddings=1024)
SHAPES = {
    "nano-8m": dict(vocab_size=4096, hidden_size=288, num_hidden_layers=6, intermediate_size=768),
    "nano-1m": dict(
        vocab_size=1024,
        hidden_size=128,
        num_hidden_layers=4,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
}
CONFIGS = {name: transformers.LlamaConfig(**(COMMON | shape)) for name, shape in SHAPES.items()}
ROWS = {"nano-8m": (8, 256), "nano-1m": (32, 128)}
PROMPT, NEW, STEPS = 32, 128, 3


@functools.cache
def training(name: str):
    """A function that runs training steps of a shape, and returns the number of tokens."""
    config, (rows, length) = CONFIGS[name], ROWS[name]
    model = transformers.LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens = torch.randint(0, config.vocab_size, (rows, length + 1))

    def run() -> int:
        for _ in range(STEPS):
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return STEPS * rows * length

    return run


@functools.cache
def decoding(name: str, rows: int):
    """A function that decodes `rows` streams of a shape, and returns the number of new tokens."""
    config = CONFIGS[name]
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    prompt = torch.randint(3, config.vocab_size, (rows, PROMPT))
    mask = torch.ones_like(prompt)

    @torch.inference_mode()
    def run() -> int:
        out = model.generate(prompt, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
        return rows * (out.shape[1] - PROMPT)

    return run


def main() -> None:
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        name, task, *rows = line.split()
        run = training(name) if task == "train" else decoding(name, int(rows[0]))
        begin = time.perf_counter()
        tokens = run()
        print(json.dumps({"tokens_per_second": tokens / (time.perf_counter() - begin)}), flush=True)


if __name__ == "__main__":
    main()
