"""From `config.model` to the network that a run trains."""

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from ..checkpoints import Checkpoint, ForeignCheckpoint
from ..checkpoints.checkpoint import check_rows
from ..data.tokenizer import Tokenizer
from ..errors import UserError
from ..model import llama
from ..model.attention import IMPLEMENTATIONS
from ..model.config import PRESETS, FamilyName, LlamaConfig, RopeKind
from ..model.remat import KEPT, REMAT
from ..model.sharding import path_name
from ..settings.leaves import Count, OneOf, Positive, Range

Size = Annotated[int, Range(least=1, most=2**24)]
Dtype = Annotated[str, OneOf("float32", "bfloat16")]
"""Dtypes to train in. float16 is not among them: its gradients vanish unless the loss is scaled."""


@dataclass(frozen=True)
class RopeScalingSettings:
    """The section `config.model.rope_scaling`: how positions reach past the trained context.

    The fields are those of `model.config.RopeScaling`, which checks how they fit together.
    """

    kind: Annotated[str, OneOf(*RopeKind.__args__)]
    """The scheme: linear, ntk, yarn, llama3 or longrope."""

    factor: Annotated[float, Range(least=1)] | None = None
    """Target length divided by trained length. Default: follows from model.max_len."""

    original_max_len: Count | None = None
    """The trained length, in tokens. Default: that of the checkpoint."""

    beta_fast: Positive = 32.0
    """yarn: rotations per trained length above which a frequency is kept (arXiv:2309.00071, section 3.2)."""

    beta_slow: Positive = 1.0
    """yarn: rotations per trained length below which a frequency is interpolated (arXiv:2309.00071, section 3.2)."""

    attention_factor: Positive | None = None
    """yarn and longrope: scale of cosines and sines. Default: the scheme's formula."""

    low_freq_factor: Positive = 1.0
    """llama3: rotations per trained length below which a frequency is interpolated."""

    high_freq_factor: Positive = 4.0
    """llama3: rotations per trained length above which a frequency is kept."""

    truncate: bool = True
    """yarn: whether the indices of the border frequencies are rounded to whole ones."""

    short_factors: list[Positive] | None = None
    """longrope: divisor of each frequency within the trained length (arXiv:2402.13753)."""

    long_factors: list[Positive] | None = None
    """longrope: divisor of each frequency past the trained length."""


@dataclass(frozen=True)
class ModelSettings:
    """The section `config.model`. A field that is None keeps the value of the preset or of `config.init_from`."""

    preset: Annotated[str, OneOf(*PRESETS)] | None = None
    """Name of an architecture (`model/config.py` PRESETS). None: that of `config.init_from`."""

    dtype: Dtype = "float32"
    """Dtype of the computation; bfloat16 where the hardware has it."""

    param_dtype: Dtype = "float32"
    """Dtype in which parameters are stored."""

    attention: Annotated[str, OneOf(*IMPLEMENTATIONS)] = "auto"
    """Implementation of attention: xla, splash (TPU), cudnn (GPU), or auto, which chooses by device."""

    remat: Annotated[str, OneOf(*REMAT, several=KEPT)] = "none"
    """What a layer keeps for its backward pass; the rest is recomputed. none: everything; dots: products with weights;
    attention: attention's output; full: its input; offload: its input, in the host's memory. Or names of what it keeps
    beside its input, joined by commas: query, key, value, attention, residual (the stream after attention), gate, up;
    `model/remat.py` has the bytes and FLOPs of each."""

    dim: Size | None = None
    """Width of the residual stream."""

    n_layers: Annotated[int, Range(least=1, most=10_000)] | None = None
    """Number of layers."""

    n_heads: Size | None = None
    """Number of query heads."""

    n_kv_heads: Size | None = None
    """Number of key/value heads."""

    head_dim: Size | None = None
    """Width of a head."""

    ffn_dim: Size | None = None
    """Width of the feed-forward layers."""

    tied: bool | None = None
    """Whether the output head is the embedding."""

    norm_eps: Positive | None = None
    """Added to the mean square in RMSNorm."""

    unroll: Count | None = None
    """Layers that one step of the scan over layers computes."""

    vocab_size: Size | None = None
    """Rows of embedding and head. Rows beyond those of the files at `config.init_from` start as the mean of theirs."""

    qkv_bias: bool | None = None
    """Whether query, key and value have biases (Qwen2)."""

    o_bias: bool | None = None
    """Whether the attention's output has a bias."""

    mlp_bias: bool | None = None
    """Whether the feed-forward matrices have biases."""

    qk_norm: bool | None = None
    """Whether queries and keys are normalised by RMSNorm (Qwen3)."""

    window: Count | None = None
    """Positions that a token attends to, itself included (sliding window, Mistral)."""

    attention_scale: Positive | None = None
    """Factor of attention logits (Granite)."""

    embedding_multiplier: Positive | None = None
    """Factor of embeddings (Granite)."""

    residual_multiplier: Positive | None = None
    """Factor of each block's output before it is added to the residual stream (Granite)."""

    logit_divisor: Positive | None = None
    """Divisor of the output logits (Granite)."""

    family: Annotated[str, OneOf(*FamilyName.__args__)] | None = None
    """Name of the model family in Hugging Face's format, for exports."""

    max_len: Annotated[int, Range(least=1, most=2**30)] | None = None
    """The context, in tokens."""

    rope_theta: Annotated[float, Range(least=1)] | None = None
    """Base of the rotary frequencies."""

    rope_scaling: RopeScalingSettings | None = None
    """How positions reach past the trained context."""

    def changes(self) -> dict[str, Any]:
        """Fields of `LlamaConfig` that the section sets; `rope_scaling` as a dict of the fields that are set."""
        found = {name: value for name, value in vars(self).items() if value is not None and name != "preset"}
        if self.rope_scaling is not None:
            found["rope_scaling"] = {name: x for name, x in vars(self.rope_scaling).items() if x is not None}
        return found


def model_of(settings: ModelSettings, start: Checkpoint | None, tokenizer: Tokenizer | None) -> llama.Model:
    """The network of `config.model`: a preset with the tokenizer's vocabulary, or that of the checkpoint `start`.

    Where `rope_scaling` is set for the network of `start`, lengths that it leaves out follow from the trained length
    (`LlamaConfig.stretched`).
    """
    changes, preset = settings.changes(), settings.preset
    if (preset is None) == (start is None):
        raise UserError("the architecture is that of config.model.preset or of config.init_from: set one of the two")
    try:
        if preset is None:
            stored = config = start.config
            if "rope_scaling" in changes:
                config = config.stretched(**changes.pop("rope_scaling"), max_len=changes.pop("max_len", None))
            _check_grows(start, changes.get("vocab_size"))
            config = LlamaConfig.from_dict(config.to_dict() | changes)
        else:
            config = LlamaConfig.preset(
                preset, **(({"vocab_size": tokenizer.vocab_size} if tokenizer else {}) | changes)
            )
        _check_execution(config)
        model = llama.build(config)
        if preset is None:
            _check_shapes(start.name, stored.replace(vocab_size=config.vocab_size), model)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}") from None
    name = f"preset {preset}" if start is None else start.name
    check_rows(tokenizer, config.vocab_size, name, "config.model.vocab_size={}")
    return model


def _check_grows(start: Checkpoint, vocab_size: int | None) -> None:
    """Raises UserError where `config.model.vocab_size` asks for rows that loading cannot add."""
    own = start.config.vocab_size
    if vocab_size is None or vocab_size == own:
        return
    if vocab_size < own:
        raise UserError(f"config.model.vocab_size {vocab_size:,} is less than the {own:,} of {start.name}")
    if not isinstance(start, ForeignCheckpoint):
        raise UserError(
            f"config.model.vocab_size {vocab_size:,}: {start.name} has {own:,} rows and is a checkpoint of "
            f"camelid's: `camelid convert {start.name} OUTPUT --vocab_size={vocab_size}` makes one with more"
        )


def _check_shapes(path: str, stored: LlamaConfig, model: llama.Model) -> None:
    """Raises ValueError where leaves of `config.model` give the network other shapes than the checkpoint has."""
    there, asked = (
        {path_name(key_path): leaf.shape for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (llama.build(stored).abstract_params, model.abstract_params)
    )
    if different := [name for name in {**there, **asked} if there.get(name) != asked.get(name)]:
        name, old, new = different[0], stored.to_dict(), model.config.to_dict()
        sizes = [field for field in new if field not in ("dtype", "param_dtype", "attention", "remat", "unroll")]
        changed = [f"{field} = {new[field]}" for field in sizes if old[field] != new[field]]
        raise ValueError(
            f"{', '.join(changed)}: {name} is {there.get(name, 'not there')} in {path} and would be "
            f"{asked.get(name, 'not there')}; only a network of a preset can have other sizes"
        )


def _check_execution(config: LlamaConfig) -> None:
    """Raises errors for dtypes and attention here, which would otherwise come up in the first step."""
    for name in (config.dtype, config.param_dtype):
        jnp.dtype(name)
    if config.attention not in IMPLEMENTATIONS:
        raise ValueError(f"attention {config.attention!r}: give one of {', '.join(IMPLEMENTATIONS)}")
