"""Makes llama.npz: what Hugging Face's LlamaForCausalLM computes for tiny random models.

Run by hand where torch and transformers are installed: `python make_llama.py`. Weights are not stored: both sides draw
them from numpy's RandomState, whose stream is frozen. Stored per case are all logits and, for every weight, its
gradient of the mean cross entropy times a fixed random vector, one number per row of the matrix, so that a deviation
anywhere in a gradient shows.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("llama.npz")
ROWS, LENGTH = 2, 24
FFN = 40

# Settings in Hugging Face's names. Widths are all different, so that no transposed weight fits by accident.
PLAIN = dict(
    vocab_size=57,
    hidden_size=32,
    intermediate_size=FFN,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    max_position_embeddings=2048,
    rms_norm_eps=1e-6,
    rope_parameters=dict(rope_type="default", rope_theta=10_000.0),
)


def _rope(rope_type: str, **fields) -> dict:
    return PLAIN | dict(rope_parameters=dict(rope_type=rope_type, rope_theta=10_000.0) | fields)


_YARN = dict(factor=4.0, original_max_position_embeddings=32)
_LLAMA3 = dict(factor=8.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0)

CASES: dict[str, dict] = {
    "plain": PLAIN,
    "grouped": PLAIN | dict(num_key_value_heads=2),
    "one_kv_head": PLAIN | dict(num_key_value_heads=1, rms_norm_eps=1e-5),
    "tied": PLAIN | dict(num_key_value_heads=2, tie_word_embeddings=True),
    "eps": PLAIN | dict(rms_norm_eps=1e-5),
    "theta": _rope("default", rope_theta=500_000.0),
    "linear": _rope("linear", factor=4.0),
    # Hugging Face stretches by the length at hand: 3 * LENGTH / 16 - (3 - 1) = 2.5, a fixed factor of 2.5 here.
    "ntk": _rope("dynamic", factor=3.0) | dict(max_position_embeddings=16),
    "yarn": _rope("yarn", **_YARN),
    "yarn_set": _rope("yarn", **_YARN, beta_fast=4.0, beta_slow=0.5, attention_factor=1.3),
    "llama3": _rope("llama3", **_LLAMA3),
    "llama3_set": _rope("llama3", **(_LLAMA3 | dict(low_freq_factor=0.5, high_freq_factor=2.0))),
}


def shapes(case: dict) -> dict[str, tuple[int, ...]]:
    """Hugging Face's parameter names and shapes; matrices are [out, in]."""
    width, ffn, head = case["hidden_size"], case["intermediate_size"], case["head_dim"]
    queries, keys = case["num_attention_heads"] * head, case["num_key_value_heads"] * head
    layer = {
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (ffn, width),
        "mlp.up_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    layers = range(case["num_hidden_layers"])
    out = {f"model.layers.{i}.{name}.weight": shape for i in layers for name, shape in layer.items()}
    out |= {"model.embed_tokens.weight": (case["vocab_size"], width), "model.norm.weight": (width,)}
    if not case.get("tie_word_embeddings"):
        out["lm_head.weight"] = (case["vocab_size"], width)
    return out


def weights(case: dict) -> dict[str, np.ndarray]:
    """Random weights: embeddings small, so that the norm's epsilon counts, queries large, so that rotation does."""
    random = np.random.RandomState(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = random.standard_normal(shape)
        if "norm" in name:
            return (1 + 0.3 * noise).astype(np.float32)
        scale = 0.02 if "embed" in name else 0.5 if "q_proj" in name or "k_proj" in name else 0.2
        return (scale * noise).astype(np.float32)

    return {name: draw(name, shape) for name, shape in sorted(shapes(case).items())}


def batch(case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets, [ROWS, LENGTH]."""
    random = np.random.RandomState(1)
    return tuple(random.randint(0, case["vocab_size"], (ROWS, LENGTH)) for _ in range(2))


def project(gradient: np.ndarray) -> np.ndarray:
    """A gradient matrix times a fixed random vector over its last axis; vectors stay whole."""
    if gradient.ndim == 1:
        return gradient
    return gradient @ np.random.RandomState(2).standard_normal(gradient.shape[-1]).astype(np.float32)


def huggingface(case: dict) -> dict[str, np.ndarray]:
    """{"logits": [ROWS, LENGTH, V], "loss": [], weight name: its gradient projected} in float32."""
    import torch
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**case, attn_implementation="eager"))
    state = {name: torch.from_numpy(value) for name, value in weights(case).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise RuntimeError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    tokens, targets = (torch.from_numpy(x) for x in batch(case))
    logits = model(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    gradients = {name: project(p.grad.numpy()) for name, p in model.named_parameters()}
    return {"logits": logits.detach().numpy(), "loss": loss.detach().numpy(), **gradients}


if __name__ == "__main__":
    golden = {name: huggingface(case) for name, case in CASES.items()}
    np.savez_compressed(FILE, **{f"{name}/{key}": x for name, values in golden.items() for key, x in values.items()})
    print(f"{FILE}: {FILE.stat().st_size / 1024:.0f} KiB")
