"""Makes families.npz: what transformers' classes of other families than LLaMA compute for tiny random networks.

Run by hand, from the repository's root, where torch and transformers (5 or later) are installed:
`python -m tests.model.golden.make_families`. Weights are not stored: both sides draw them from numpy's RandomState.
Stored per case are the logits of every fifth position; for every weight, in the order of their names, its gradient of
the mean cross entropy times two fixed random arrays of its shape; and greedy answers to the first tokens of each row.
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("families.npz")
ROWS, LENGTH, EVERY = 2, 25, 5
PROMPTS, ANSWER = (18, 6), 8

# Widths are all different, so that no transposed or swapped weight fits by accident; heads are half as wide as D / H
# where a family allows that.
SIZES = dict(
    vocab_size=57,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)
WIDE = SIZES | dict(head_dim=16)
LONGROPE = dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.3, 1.6], long_factor=[1.0, 2.0, 3.5, 5.0], original=16)
MULTIPLIERS = dict(embedding_multiplier=6.0, attention_multiplier=0.11, residual_multiplier=0.4, logits_scaling=3.0)


def _longrope(original: int) -> dict:
    settings = {name: value for name, value in LONGROPE.items() if name != "original"}
    return dict(rope_scaling=settings, original_max_position_embeddings=original)


CASES: dict[str, tuple[str, dict]] = {
    "qwen2": ("Qwen2", SIZES | dict(tie_word_embeddings=True)),
    "qwen2_window": ("Qwen2", SIZES | dict(use_sliding_window=True, sliding_window=5, max_window_layers=0)),
    "qwen3": ("Qwen3", WIDE),
    "qwen3_tied_biases_window": (
        "Qwen3",
        WIDE
        | dict(
            num_key_value_heads=4,
            tie_word_embeddings=True,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=9,
            layer_types=["sliding_attention"] * 2,
        ),
    ),
    "mistral": ("Mistral", WIDE | dict(sliding_window=7)),
    "mistral_one_kv_head": ("Mistral", WIDE | dict(sliding_window=3, num_key_value_heads=1, tie_word_embeddings=True)),
    "phi3": ("Phi3", SIZES | dict(sliding_window=6)),
    "phi3_longrope_past": ("Phi3", SIZES | dict(num_key_value_heads=4) | _longrope(4)),
    "phi3_longrope_within": ("Phi3", SIZES | dict(tie_word_embeddings=True) | _longrope(64)),
    "llama_biases": ("Llama", WIDE | dict(attention_bias=True, mlp_bias=True)),
    "granite": ("Granite", SIZES | MULTIPLIERS | dict(tie_word_embeddings=True)),
    "granite_biases": ("Granite", SIZES | MULTIPLIERS | dict(attention_bias=True, mlp_bias=True)),
}


def shapes(kind: str, case: dict) -> dict[str, tuple[int, ...]]:
    """Hugging Face's parameter names and shapes; matrices are [out, in]."""
    width, ffn = case["hidden_size"], case["intermediate_size"]
    head = case.get("head_dim", width // case["num_attention_heads"])
    q, kv = case["num_attention_heads"] * head, case["num_key_value_heads"] * head
    heads = {"q_proj": (q, width), "k_proj": (kv, width), "v_proj": (kv, width)}
    branches = {"gate_proj": (ffn, width), "up_proj": (ffn, width)}
    if kind == "Phi3":
        heads, branches = {"qkv_proj": (q + 2 * kv, width)}, {"gate_up_proj": (2 * ffn, width)}
    attention = heads | {"o_proj": (width, q)}
    mlp = branches | {"down_proj": (width, ffn)}
    layer = {f"self_attn.{name}.weight": shape for name, shape in attention.items()}
    layer |= {f"mlp.{name}.weight": shape for name, shape in mlp.items()}
    layer |= {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    biased = attention if case.get("attention_bias") else heads if kind == "Qwen2" else {}
    layer |= {f"self_attn.{name}.bias": shape[:1] for name, shape in biased.items()}
    layer |= {f"mlp.{name}.bias": shape[:1] for name, shape in (mlp if case.get("mlp_bias") else {}).items()}
    if kind == "Qwen3":
        layer |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    layers = range(case["num_hidden_layers"])
    out = {f"model.layers.{i}.{name}": shape for i in layers for name, shape in layer.items()}
    out |= {"model.embed_tokens.weight": (case["vocab_size"], width), "model.norm.weight": (width,)}
    if not case.get("tie_word_embeddings"):
        out["lm_head.weight"] = (case["vocab_size"], width)
    return out


def weights(kind: str, case: dict) -> dict[str, np.ndarray]:
    """Random weights, with queries and keys large, so that rotation and the window count."""
    random = np.random.RandomState(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = random.standard_normal(shape)
        if "norm" in name:
            return (1 + 0.3 * noise).astype(np.float32)
        large = any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "bias"))
        return ((0.5 if large else 0.2) * noise).astype(np.float32)

    return {name: draw(name, shape) for name, shape in sorted(shapes(kind, case).items())}


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets, [ROWS, LENGTH]."""
    random = np.random.RandomState(1)
    return tuple(random.randint(0, SIZES["vocab_size"], (ROWS, LENGTH)) for _ in range(2))


def project(gradient: np.ndarray) -> np.ndarray:
    """A gradient times two fixed random arrays of its shape."""
    directions = np.random.RandomState(2).standard_normal((2, *gradient.shape))
    return np.sum(directions * gradient, axis=tuple(range(1, directions.ndim)))


def huggingface(kind: str, case: dict) -> dict[str, np.ndarray]:
    """{"logits": [ROWS, LENGTH / EVERY, V], "gradients": [weights, 2], "answers": [ROWS, ANSWER]}."""
    import torch
    import transformers

    config = getattr(transformers, f"{kind}Config")(**case, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    state = {name: torch.from_numpy(value) for name, value in weights(kind, case).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise RuntimeError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    tokens, targets = (torch.from_numpy(x) for x in batch())
    logits = model(tokens).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = {name: project(p.grad.double().numpy()) for name, p in model.named_parameters()}
    with torch.no_grad():
        greedy = dict(do_sample=False, max_new_tokens=ANSWER)
        drawn = [model.generate(row[None, :n], **greedy)[0, n:] for row, n in zip(tokens, PROMPTS, strict=True)]
    return {
        "logits": logits.detach().numpy()[:, ::EVERY],
        "gradients": np.array([gradients[name] for name in sorted(gradients)], np.float32),
        "answers": torch.stack(drawn).numpy().astype(np.int32),
    }


if __name__ == "__main__":
    golden = {name: huggingface(kind, case) for name, (kind, case) in CASES.items()}
    np.savez_compressed(FILE, **{f"{name}/{key}": x for name, values in golden.items() for key, x in values.items()})
    print(f"{FILE}: {FILE.stat().st_size / 1024:.0f} KiB")
