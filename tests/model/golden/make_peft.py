"""Makes peft_*/ and peft.npz: adapters as PEFT saves them, and what Hugging Face's LLaMA computes with them.

The base is the case "grouped" of make_llama.py, the adapters' numbers are random. Stored per folder are the logits of
every third position.

Run by hand, from the repository's root, where torch, transformers and peft are installed:
`python -m tests.model.golden.make_peft`.
"""

from pathlib import Path

import numpy as np

from . import make_llama

FOLDER = Path(__file__).parent
FILE = FOLDER / "peft.npz"
BASE = make_llama.CASES["grouped"]
EVERY = 3

CASES: dict[str, dict] = {
    "plain": dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "o_proj"]),
    # Ranks and scales of their own: by module, and of one module by layer.
    "patterns": dict(
        r=3,
        lora_alpha=6,
        use_rslora=True,
        target_modules="all-linear",
        rank_pattern={"down_proj": 5, "self_attn.k_proj": 2},
        alpha_pattern={"down_proj": 9, "layers.1.mlp.up_proj": 20, "layers.0.self_attn.q_proj": 3},
    ),
    "dora": dict(r=2, lora_alpha=4, use_dora=True, target_modules=["q_proj", "k_proj", "o_proj", "gate_proj"]),
    "whole": dict(r=2, lora_alpha=4, target_modules=["up_proj"], modules_to_save=["lm_head", "embed_tokens"]),
}


def huggingface(case: dict, folder: Path) -> np.ndarray:
    """Saves adapters of random numbers; gives the logits [rows, LENGTH / EVERY, V]."""
    import peft
    import torch
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**BASE, attn_implementation="eager"))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in make_llama.weights(BASE).items()})
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **case))
    random = np.random.RandomState(3)
    with torch.no_grad():
        for _, parameter in sorted((n, p) for n, p in model.named_parameters() if p.requires_grad):
            parameter.add_(torch.from_numpy(0.3 * random.standard_normal(parameter.shape)).float())
        logits = model(torch.from_numpy(make_llama.batch(BASE)[0])).logits.numpy()[:, ::EVERY]
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    return logits


if __name__ == "__main__":
    np.savez_compressed(FILE, **{name: huggingface(case, FOLDER / f"peft_{name}") for name, case in CASES.items()})
    print(f"{FILE}: {FILE.stat().st_size / 1024:.0f} KiB")
