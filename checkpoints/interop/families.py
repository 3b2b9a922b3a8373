"""Families of networks in other formats: what each adds to a LLaMA, and which family can express a given network.

A family is a model class of transformers and an architecture of llama.cpp. A network is exported as its own family
(`LlamaConfig.family`) if that supports all that the network adds to a LLaMA, else as the first one below that does.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ...model.config import LlamaConfig
from .tensors import GGUF, GGUF_IN_HALVES, GGUF_PHI3, HUGGING_FACE, PHI3, Naming


class Family(NamedTuple):
    """A family in one format. Additions are named as in `additions`."""

    naming: Naming
    """The names and the layout of its tensors."""
    may: frozenset[str]
    """The additions that its networks can have."""
    needs: frozenset[str] = frozenset()
    """The additions that its networks always have."""


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
"""The families of transformers, with the additions that their classes compute."""

_BIASES = {"attention_bias", "qkv_bias", "o_bias", "mlp_bias"}

IN_GGUF: dict[str, Family] = {
    "llama": Family(GGUF, frozenset(_BIASES | {"window", _LINEAR, _YARN, _LLAMA3, "head_dim"})),
    "qwen2": Family(GGUF_IN_HALVES, frozenset({"window", _LINEAR, _YARN}), frozenset({"qkv_bias"})),
    "qwen3": Family(GGUF_IN_HALVES, frozenset({"window", _LINEAR, _YARN, "head_dim"}), frozenset({"qk_norm"})),
    "phi3": Family(GGUF_PHI3, frozenset({"window", _LONGROPE})),
    "granite": Family(GGUF, frozenset({"attention_bias", "mlp_bias", "multipliers", _LINEAR, _YARN})),
}
"""The families of llama.cpp, with the additions that it computes. Windows are an exception: llama.cpp ignores them in
these architectures (docs/checkpoints.md)."""

ARCHITECTURES = {name: f"{name.capitalize()}ForCausalLM" for name in IN_HUGGING_FACE}
"""{family: class of transformers}; a family's name is the `model_type` of transformers."""

_QWEN = {"num_key_value_heads": 32, "sliding_window": 4096, "max_position_embeddings": 32_768}
DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072},
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "phi3": {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
}
"""transformers' defaults for fields that a `config.json` leaves out, by family, where they differ from a LLaMA's."""

MULTIPLIERS = {
    "attention_scale": ("attention_multiplier", "attention.scale"),
    "embedding_multiplier": ("embedding_multiplier", "embedding_scale"),
    "residual_multiplier": ("residual_multiplier", "residual_scale"),
    "logit_divisor": ("logits_scaling", "logit_scale"),
}
"""Granite's multipliers: {field of `LlamaConfig`: (field of `config.json`, key in a GGUF file)}."""


def multipliers(config: LlamaConfig) -> list[float]:
    """The values of `MULTIPLIERS` in a network, in their order; the attention scale's default is written out."""
    return [getattr(config, name) or config.head_dim**-0.5 for name in MULTIPLIERS]


def additions(config: LlamaConfig) -> frozenset[str]:
    """The names of what a network adds to a LLaMA with heads of width D / H and no rotary scaling."""
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
        scaling: scaling is not None,  # ntk scaling is not listed: it is the same as another rotary base
    }
    return frozenset(name for name, present in has.items() if present)


def family_in(families: Mapping[str, Family], config: LlamaConfig, software: str) -> str:
    """The family as which a network is exported.

    Args:
      families: the families of a format.
      config: the network.
      software: name of the software that reads the format, for the message.

    Raises:
      ValueError: no family supports all that the network adds to a LLaMA.
    """
    found = additions(config)
    for name in (config.family, *families):
        if name in families and families[name].needs <= found <= families[name].needs | families[name].may:
            return name
    raise ValueError(f"{software} has no architecture that joins {', '.join(sorted(found))}: export another format")
