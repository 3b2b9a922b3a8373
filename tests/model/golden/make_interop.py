"""Makes interop.npz, meta_columns/ and meta_rows/, which other formats' readers are tested against.

They hold rotary settings as transformers reads and writes them, and checkpoints as Meta's code splits and PyTorch saves
them, with the logits that Hugging Face's LlamaForCausalLM computes for each. Weights are those of make_llama.py. Stored
per case are the `config.json` of `save_pretrained` and the logits of every third position.

Run by hand, from the repository's root, where torch and transformers (5 or later) are installed:
`python -m tests.model.golden.make_interop`.
"""

import json
from pathlib import Path

import numpy as np

from . import make_llama

FOLDER = Path(__file__).parent
FILE = FOLDER / "interop.npz"
EVERY = 3
LENGTH = make_llama.LENGTH
PAIRS = make_llama.PLAIN["head_dim"] // 2

_YARN = dict(factor=4.0, original_max_position_embeddings=32)
_LONGROPE = dict(
    short_factor=[1.0 + 0.1 * i for i in range(PAIRS)],
    long_factor=[1.0 + 0.9 * i for i in range(PAIRS)],
)


def _case(rope_type: str, max_position_embeddings: int, **fields) -> dict:
    rope = dict(rope_type=rope_type, rope_theta=10_000.0) | fields
    return make_llama.PLAIN | dict(rope_parameters=rope, max_position_embeddings=max_position_embeddings)


# Texts have LENGTH = 24 tokens: within the trained length, at its end, or past it.
CASES: dict[str, dict] = {
    "dynamic_within": _case("dynamic", 32, factor=3.0),
    "dynamic_to_the_end": _case("dynamic", LENGTH, factor=3.0),
    "dynamic_past": _case("dynamic", 10, factor=2.0),
    "longrope_within": _case("longrope", 96, factor=4.0, original_max_position_embeddings=LENGTH, **_LONGROPE),
    "longrope_past": _case("longrope", 64, factor=4.0, original_max_position_embeddings=16, **_LONGROPE),
    "longrope_no_factor": _case("longrope", 32, original_max_position_embeddings=16, **_LONGROPE),
    "longrope_set": _case(
        "longrope", 64, factor=4.0, original_max_position_embeddings=16, attention_factor=1.4, **_LONGROPE
    ),
    # As Phi 3 says it: the trained length beside the rotary settings, the one among them not meant.
    "longrope_beside": _case("longrope", 64, original_max_position_embeddings=48, **_LONGROPE)
    | dict(original_max_position_embeddings=16),
    "yarn_untruncated": _case("yarn", 128, **_YARN, truncate=False),
    "yarn_mscale": _case("yarn", 128, **_YARN, mscale=0.707, mscale_all_dim=0.3),
    "yarn_one_mscale": _case("yarn", 128, **_YARN, mscale=0.707),
    "yarn_no_factor": _case("yarn", 96, factor=None, original_max_position_embeddings=32),
    "mistral": make_llama.PLAIN | dict(num_key_value_heads=2, sliding_window=None),
}

META = make_llama.PLAIN | dict(num_hidden_layers=1, num_key_value_heads=2, vocab_size=58, head_dim=8, rms_norm_eps=1e-5)
"""A LLaMA with grouped queries whose heads are as wide as Meta's `params.json` has to have it: width / heads."""


def huggingface(case: dict, weights: dict[str, np.ndarray], kind: str = "Llama") -> tuple[np.ndarray, str]:
    """Logits [rows, LENGTH / EVERY, V] in float32 and the `config.json` that transformers writes."""
    import torch
    import transformers

    config = getattr(transformers, f"{kind}Config")(**case, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    with torch.no_grad():
        logits = model(torch.from_numpy(make_llama.batch(case)[0])).logits
    model.config.architectures = [f"{kind}ForCausalLM"]
    return logits.numpy()[:, ::EVERY], model.config.to_json_string()


def meta_names(case: dict) -> dict[str, str]:
    """Meta's names by Hugging Face's."""
    layer = {
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
    for i in range(case["num_hidden_layers"]):
        names |= {f"model.layers.{i}.{theirs}": f"layers.{i}.{metas}" for theirs, metas in layer.items()}
    return {f"{theirs}.weight": f"{metas}.weight" for theirs, metas in names.items()}


def pairs_side_by_side(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix in Meta's order: the inverse of `permute` in transformers' conversion script."""
    return w.reshape(heads, 2, len(w) // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


def write_meta(folder: Path, case: dict, weights: dict[str, np.ndarray], dtype: str, embedding_axis: int) -> None:
    """Two model-parallel parts: column-parallel layers split by outputs, row-parallel ones by inputs, norms in both."""
    import torch

    heads = {"wq": case["num_attention_heads"], "wk": case["num_key_value_heads"]}
    parts = [{}, {}]
    for theirs, name in meta_names(case).items():
        w, module = weights[theirs], name.split(".")[-2]
        if module in heads:
            w = pairs_side_by_side(w, heads[module])
        axis = {"wo": 1, "w2": 1, "tok_embeddings": embedding_axis}.get(module, 0)
        pieces = [w, w] if module.endswith("norm") else np.split(w, 2, axis=axis)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = torch.from_numpy(piece).clone(memory_format=torch.contiguous_format).to(getattr(torch, dtype))
    for number, part in enumerate(parts):
        part["rope.freqs"] = torch.ones(case["head_dim"] // 2, dtype=torch.float16)
        folder.mkdir(exist_ok=True)
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    params = dict(dim=case["hidden_size"], n_layers=case["num_hidden_layers"], n_heads=case["num_attention_heads"])
    params |= dict(n_kv_heads=case["num_key_value_heads"], norm_eps=case["rms_norm_eps"], vocab_size=-1, multiple_of=8)
    (folder / "params.json").write_text(json.dumps(params))


def rounded(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights as bfloat16 keeps them."""
    import torch

    return {name: torch.from_numpy(w).bfloat16().float().numpy() for name, w in weights.items()}


if __name__ == "__main__":
    golden = {}
    for name, case in CASES.items():
        kind = "Mistral" if name == "mistral" else "Llama"
        golden[f"{name}/logits"], golden[f"{name}/config"] = huggingface(case, make_llama.weights(case), kind)
    whole = make_llama.weights(META)
    for name, weights, dtype, axis in (
        ("meta_columns", whole, "float32", 1),
        ("meta_rows", rounded(whole), "bfloat16", 0),
    ):
        write_meta(FOLDER / name, META, weights, dtype, axis)
        golden[f"{name}/logits"], _ = huggingface(META, weights)
    np.savez_compressed(FILE, **golden)
    print(f"{FILE}: {FILE.stat().st_size / 1024:.0f} KiB")
