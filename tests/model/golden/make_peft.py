"""Makes peft_*/ and peft.npz: adapters as PEFT saves them, and what Hugging Face's LLaMA computes with them.

The base is the case "grouped" of make_llama.py, "tied" for adapters of that name, or "phi3" of make_families.py, whose
q, k and v are one tensor; the adapters' numbers are random. Stored per folder are the logits of
every third position.

Run by hand, from the repository's root, where torch, transformers and peft are installed:
`python -m tests.model.golden.make_peft [CASE ...]`.
"""

import sys
from pathlib import Path

import numpy as np

from . import make_families, make_llama

FOLDER = Path(__file__).parent
FILE = FOLDER / "peft.npz"
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
    # One layer alone, whose magnitudes are the base's elsewhere.
    "layers": dict(
        r=2, lora_alpha=4, use_dora=True, target_modules=["q_proj", "o_proj", "down_proj"], layers_to_transform=[1]
    ),
    "regex": dict(
        r=2,
        lora_alpha=3,
        use_rslora=True,
        target_modules=r".*layers\.\d\.(self_attn\.(q|v)_proj|mlp\.down_proj)",
        exclude_modules=r".*\.0\.self_attn\.v_proj",
        rank_pattern={r"layers\.1\.mlp\.down_proj": 4},
        alpha_pattern={r"1\.self_attn\..*": 6},
    ),
    # Copies of the base's embedding and head stand in the file.
    "table": dict(r=2, lora_alpha=4, target_modules=["k_proj", "embed_tokens", "lm_head"]),
    "tokens": dict(r=2, lora_alpha=4, target_modules=["q_proj"], trainable_token_indices=[40, 1, 5]),
    "norm": dict(r=2, lora_alpha=4, target_modules=["v_proj"], modules_to_save=["norm"]),
    "tied_whole": dict(
        r=2, lora_alpha=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    ),
    "tied_table": dict(r=2, lora_alpha=4, target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True),
    "tied_tokens": dict(r=2, lora_alpha=4, target_modules=["q_proj"], trainable_token_indices=[3, 50]),
    "phi3": dict(r=2, lora_alpha=4, target_modules="all-linear", alpha_pattern={"layers.1.mlp.gate_up_proj": 7}),
    "phi3_dora": dict(r=3, lora_alpha=4, use_dora=True, target_modules=["qkv_proj", "down_proj"]),
    "phi3_whole": dict(r=2, lora_alpha=4, target_modules=["o_proj"], modules_to_save=["qkv_proj", "gate_up_proj"]),
}
TORCH = ("norm",)
"""Saved as `adapter_model.bin`."""


def base_of(name: str) -> str:
    """The base of a case: "phi3", "tied" or "grouped"."""
    return next((base for base in ("phi3", "tied") if name.startswith(base)), "grouped")


def settings_of(base: str) -> dict:
    return make_families.CASES["phi3"][1] if base == "phi3" else make_llama.CASES[base]


def weights_of(base: str) -> dict[str, np.ndarray]:
    return make_families.weights("Phi3", settings_of(base)) if base == "phi3" else make_llama.weights(settings_of(base))


def tokens_of(base: str) -> np.ndarray:
    return make_families.batch()[0] if base == "phi3" else make_llama.batch(settings_of(base))[0]


def huggingface(name: str, folder: Path) -> np.ndarray:
    """Saves adapters of random numbers; gives the logits [rows, LENGTH / EVERY, V]."""
    case, base = CASES[name], base_of(name)
    settings = settings_of(base)
    import peft
    import torch
    import transformers

    kind = "Phi3" if base == "phi3" else "Llama"
    config = getattr(transformers, f"{kind}Config")(**settings, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    weights = {name: torch.from_numpy(value) for name, value in weights_of(base).items()}
    model.load_state_dict(weights, strict=not settings.get("tie_word_embeddings"))
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **case))
    random = np.random.RandomState(3)
    with torch.no_grad():
        for _, parameter in sorted((n, p) for n, p in model.named_parameters() if p.requires_grad):
            parameter.add_(torch.from_numpy(0.3 * random.standard_normal(parameter.shape)).float())
        logits = model(torch.from_numpy(tokens_of(base))).logits.numpy()[:, ::EVERY]
    model.save_pretrained(folder, safe_serialization=name not in TORCH)
    (folder / "README.md").unlink()
    return logits


if __name__ == "__main__":
    with np.load(FILE) as stored:
        kept = dict(stored)
    made = {name: huggingface(name, FOLDER / f"peft_{name}") for name in sys.argv[1:] or CASES}
    np.savez_compressed(FILE, **(kept | made))
    print(f"{FILE}: {FILE.stat().st_size / 1024:.0f} KiB")
