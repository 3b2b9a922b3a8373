"""Families of networks in other formats: what each adds to a LLaMA, and which of them can say a given network.

A family is a class of transformers' and an architecture of llama.cpp's. A network is written as its own family
(`LlamaConfig.family`) where that has all that the network adds to a LLaMA, else as the first one below that has.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ...model.config import LlamaConfig
from .tensors import GGUF, GGUF_IN_HALVES, GGUF_PHI3, HUGGING_FACE, PHI3, Naming


class Family(NamedTuple):
    """One format's form of a family. needs: additions (`additions`) that a network of it always has; may: those that it
    can have too. naming: of its tensors."""

    naming: Naming
    may: frozenset[str]
    needs: frozenset[str] = frozenset()


_SCALINGS = {kind: f"rope_scaling {kind}" for kind in ("linear", "dynamic", "yarn", "llama3", "longrope")}
_LINEAR, _DYNAMIC, _YARN, _LLAMA3, _LONGROPE = _SCALINGS.values()
_ANY = {"head_dim", *_SCALINGS.values()}

IN_HUGGING_FACE: dict[str, Family] = {
    "llama": Family(HUGGING_FACE, frozenset({"attention_bias", "mlp_bias"} | _ANY)),
    "mistral": Family(HUGGING_FACE, frozenset({"window"} | _ANY)),
    "qwen2": Family(HUGGING_FACE, frozenset({"window"} | _ANY), frozenset({"qkv_bias"})),
    "qwen3": Family(HUGGING_FACE, frozenset({"attention_bias", "window"} | _ANY), frozenset({"qk_norm"})),
    "phi3": Family(PHI3, frozenset({"window", _LONGROPE})),
    "granite": Family(HUGGING_FACE, frozenset({"attention_bias", "mlp_bias", "multipliers"} | _ANY)),
}
"""As transformers' classes compute them."""

_BIASES = {"attention_bias", "qkv_bias", "o_bias", "mlp_bias"}

IN_GGUF: dict[str, Family] = {
    "llama": Family(GGUF, frozenset(_BIASES | {"window", _LINEAR, _YARN, _LLAMA3, "head_dim"})),
    "qwen2": Family(GGUF_IN_HALVES, frozenset({"window", _LINEAR, _YARN}), frozenset({"qkv_bias"})),
    "qwen3": Family(GGUF_IN_HALVES, frozenset({"window", _LINEAR, _YARN, "head_dim"}), frozenset({"qk_norm"})),
    "phi3": Family(GGUF_PHI3, frozenset({"window", _LONGROPE})),
    "granite": Family(GGUF, frozenset({"attention_bias", "mlp_bias", "multipliers", _LINEAR, _YARN})),
}
"""As llama.cpp's loaders take them, windows aside: those it leaves out of all of these (docs/checkpoints.md)."""

ARCHITECTURES = {name: f"{name.capitalize()}ForCausalLM" for name in IN_HUGGING_FACE}
"""transformers' classes; the names of families are its `model_type`s."""

_QWEN = {"num_key_value_heads": 32, "sliding_window": 4096, "max_position_embeddings": 32_768}
DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "phi3": {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
}
"""What transformers takes for fields that a `config.json` leaves out, where it is not what it takes for a LLaMA."""

MULTIPLIERS = {
    "attention_scale": ("attention_multiplier", "attention.scale"),
    "embedding_multiplier": ("embedding_multiplier", "embedding_scale"),
    "residual_multiplier": ("residual_multiplier", "residual_scale"),
    "logit_divisor": ("logits_scaling", "logit_scale"),
}
"""Granite's multipliers: our name, that in a `config.json`, the key in a GGUF file."""


def multipliers(config: LlamaConfig) -> list[float]:
    """The values of `MULTIPLIERS`, in their order; that of attention said in any case."""
    return [getattr(config, name) or config.head_dim**-0.5 for name in MULTIPLIERS]


def additions(config: LlamaConfig) -> frozenset[str]:
    """What a network has that a LLaMA with heads of D / H and no rotary scaling has not."""
    others = (config.embedding_multiplier, config.residual_multiplier, config.logit_divisor)
    scaling = None if config.rope_scaling is None else _SCALINGS.get(config.rope_scaling.kind)
    has = {
        "attention_bias": config.qkv_bias and config.o_bias,
        "qkv_bias": config.qkv_bias and not config.o_bias,
        "o_bias": config.o_bias and not config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "qk_norm": config.qk_norm,
        "window": config.window is not None,
        "multipliers": config.attention_scale is not None or others != (1, 1, 1),
        "head_dim": config.head_dim * config.n_heads != config.dim,
        scaling: scaling is not None,  # ntk is nothing but another base
    }
    return frozenset(name for name, present in has.items() if present)


def family_in(families: Mapping[str, Family], config: LlamaConfig, software: str) -> str:
    """The family as which a network is written. Raises ValueError where none has all that it adds to a LLaMA."""
    found = additions(config)
    for name in (config.family, *families):
        if name in families and families[name].needs <= found <= families[name].needs | families[name].may:
            return name
    raise ValueError(f"{software} has no architecture that joins {', '.join(sorted(found))}: it cannot be written")
