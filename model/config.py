"""The architecture of a LLaMA or a similar network (Qwen, Mistral, Phi-3, Granite), and published sizes by name."""

import dataclasses
import difflib
import math
from typing import Any, Literal, get_args

LARGEST = 2**31 - 1
"""Upper limit of the sizes of a network."""

RopeKind = Literal["linear", "ntk", "dynamic", "yarn", "longrope", "llama3"]
FamilyName = Literal["llama", "mistral", "qwen2", "qwen3", "phi3", "granite"]


def check_numbers(config: Any) -> None:
    """Raises ValueError unless each field of a dataclass fits its annotation.

    An int is from 1 to `LARGEST`, a float is positive and finite, a bool is True or False. None is allowed if the
    annotation names it.
    """
    for field in dataclasses.fields(config):
        kinds, value = get_args(field.type) or (field.type,), getattr(config, field.name)
        if value is None and type(None) in kinds:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        if bool in kinds and not isinstance(value, bool):
            raise ValueError(f"{field.name} {value!r}: give true or false")
        if int in kinds and not (whole and 1 <= value <= LARGEST):
            raise ValueError(f"{field.name} {value!r}: give a whole number from 1 to {LARGEST}")
        if float in kinds and not ((whole or isinstance(value, float)) and 0 < value < math.inf):
            raise ValueError(f"{field.name} {value!r}: give a number greater than 0")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are scaled to reach past the trained context (see `rope.frequencies`)."""

    kind: RopeKind
    """The scheme."""
    factor: float
    """Target length divided by trained length, 1 or more."""
    original_max_len: int | None = None
    """The trained length, in tokens. linear and ntk do not need it."""
    beta_fast: float = 32.0
    """yarn: rotations per trained length above which a frequency is kept (arXiv:2309.00071, section 3.2)."""
    beta_slow: float = 1.0
    """yarn: rotations per trained length below which a frequency is interpolated (arXiv:2309.00071, section 3.2)."""
    attention_factor: float | None = None
    """yarn, longrope: factor of cosines and sines. None: the scheme's formula."""
    low_freq_factor: float = 1.0
    """llama3: rotations per trained length below which a frequency is interpolated."""
    high_freq_factor: float = 4.0
    """llama3: rotations per trained length above which a frequency is kept."""
    truncate: bool = True
    """yarn: whether the indices of the border frequencies are rounded to whole numbers."""
    short_factors: tuple[float, ...] | None = None
    """longrope: divisor of each frequency within the trained length (LongRoPE, arXiv:2402.13753)."""
    long_factors: tuple[float, ...] | None = None
    """longrope: divisor of each frequency past the trained length."""

    def __post_init__(self):
        check_numbers(self)
        kinds = get_args(RopeKind)
        if self.kind not in kinds:
            raise ValueError(f"rope scaling kind {self.kind!r}: give one of {', '.join(kinds)}")
        if self.factor < 1:
            raise ValueError(f"rope scaling factor {self.factor}: give target length / trained length, 1 or more")
        if self.kind not in ("linear", "ntk") and self.original_max_len is None:
            raise ValueError(f"rope scaling {self.kind} needs original_max_len, the trained context in tokens")
        if self.kind == "longrope" and not (self.short_factors and self.long_factors):
            raise ValueError(
                "rope scaling longrope needs short_factors and long_factors, one number for each frequency"
            )
        if self.kind == "longrope" and self.original_max_len == 1 and self.attention_factor is None:
            raise ValueError("rope scaling longrope needs attention_factor where original_max_len is 1")
        if self.kind == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            factors = f"{self.low_freq_factor:g} and {self.high_freq_factor:g}"
            raise ValueError(f"rope scaling llama3 needs low_freq_factor below high_freq_factor, not {factors}")
        for name in ("short_factors", "long_factors"):  # JSON gives lists, and a config must be hashable
            if (factors := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(factors))
                if wrong := [x for x in factors if not isinstance(x, int | float) or not 0 < x < math.inf]:
                    raise ValueError(f"rope scaling {name} {wrong[0]!r}: give numbers greater than 0")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The architecture of a network, and how it is executed.

    The defaults are a LLaMA's (arXiv:2302.13971, section 2.2; grouped queries: arXiv:2307.09288).
    """

    vocab_size: int
    """V, the number of rows of embedding and output head."""
    dim: int
    """D, the width of the residual stream."""
    n_layers: int
    """N, the number of layers."""
    n_heads: int
    """H, the number of query heads."""
    n_kv_heads: int
    """K, the number of key/value heads, a divisor of H."""
    ffn_dim: int
    """F, the width of the feed-forward layers."""
    head_dim: int
    """E, the width of a head, an even number."""
    norm_eps: float = 1e-5
    """Number that is added to the mean square in RMSNorm."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Scaling of the rotary frequencies. None: none."""
    max_len: int = 2048
    """The context, in tokens."""
    tied: bool = False
    """Whether the output head is the embedding."""

    # Additions of other families, absent from a LLaMA.
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias (Qwen2, arXiv:2407.10671)."""
    o_bias: bool = False
    """Whether attention's output has a bias."""
    mlp_bias: bool = False
    """Whether the feed-forward matrices gate, up and down have a bias."""
    qk_norm: bool = False
    """Whether each query and key head is normalised by RMSNorm before rotation (Qwen3, arXiv:2505.09388)."""
    window: int | None = None
    """Number of positions that a token attends to, itself included (Mistral, arXiv:2310.06825). None: all."""
    attention_scale: float | None = None
    """Factor of attention's scores (Granite). None: 1 / sqrt(E)."""
    embedding_multiplier: float = 1.0
    """Factor of embeddings (Granite)."""
    residual_multiplier: float = 1.0
    """Factor of the output of attention and of the feed-forward layer before it is added (Granite)."""
    logit_divisor: float = 1.0
    """Divisor of logits (Granite)."""
    family: FamilyName = "llama"
    """Family as which the network is exported, if that family has all of its additions (`interop.families`)."""

    # Execution, which may differ between runs of one checkpoint.
    dtype: str = "float32"
    """Dtype of the computation."""
    param_dtype: str = "float32"
    """Dtype of the parameters."""
    attention: str = "auto"
    """Implementation of attention (`attention.attention`)."""
    remat: str = "none"
    """What a layer keeps for its backward pass, which recomputes the rest: a policy of `remat.py`."""
    unroll: int = 1
    """Number of layers that one turn of the scan over layers computes; on a CPU, all layers of a small model."""
    cache: str | None = None
    """Dtype of keys and values in the cache while decoding: int8, or None for `dtype`."""

    def __post_init__(self):
        check_numbers(self)
        if self.cache not in (None, "int8"):
            raise ValueError(f"cache {self.cache!r}: give int8, or None for keys and values in dtype")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}: change one")
        if self.family not in get_args(FamilyName):
            raise ValueError(f"family {self.family!r}: give one of {', '.join(get_args(FamilyName))}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd: give an even number")
        kind = None if self.rope_scaling is None else self.rope_scaling.kind
        if kind == "yarn" and self.rope_theta <= 1:
            raise ValueError(f"rope_theta {self.rope_theta}: rope scaling yarn needs a base above 1")
        if kind in ("ntk", "dynamic") and self.head_dim == 2:
            raise ValueError(f"rope scaling {kind} needs head_dim above 2")
        if self.rope_scaling is not None and self.rope_scaling.kind == "longrope":
            factors = (self.rope_scaling.short_factors, self.rope_scaling.long_factors)
            if {len(each) for each in factors} != {self.head_dim // 2}:
                raise ValueError(
                    f"rope scaling longrope has {len(factors[0])} short_factors and {len(factors[1])} long_factors; "
                    f"give {self.head_dim // 2} of each, head_dim / 2"
                )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "LlamaConfig":
        """The config of a name in `PRESETS`, with fields changed. Raises ValueError for an unknown name or field."""
        if name not in PRESETS:
            near = difflib.get_close_matches(name, PRESETS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(PRESETS)}"
            raise ValueError(f"no model preset {name!r}; {hint}")
        return cls.from_dict(PRESETS[name] | changes)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "LlamaConfig":
        """The config of plain values, the inverse of `to_dict`. n_kv_heads defaults to n_heads, head_dim to dim /
        n_heads. Raises ValueError for an unknown or missing field."""
        unknown = set(fields) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown model field(s) {', '.join(sorted(unknown))}: give fields of LlamaConfig")
        needed = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
        optional = ("n_kv_heads", "head_dim")
        if missing := [name for name in needed if name not in (*fields, *optional)]:
            raise ValueError(f"model field(s) {', '.join(missing)} missing: give them all")
        fields = {"n_kv_heads": fields["n_heads"], "head_dim": fields["dim"] // fields["n_heads"], **fields}
        if isinstance(fields.get("rope_scaling"), dict):
            fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for JSON, the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> "LlamaConfig":
        """A copy with fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def trained_len(self) -> int | None:
        """The context before any rotary scaling, in tokens; None if the scaling has no `original_max_len`."""
        return self.max_len if self.rope_scaling is None else self.rope_scaling.original_max_len

    def stretched(
        self, kind: RopeKind, *, max_len: int | None = None, factor: float | None = None, **fields: Any
    ) -> "LlamaConfig":
        """A copy whose rotary scaling, which replaces any other, reaches past the trained context.

        Args:
          kind: the scheme.
          max_len: the new context, in tokens. None: `factor` times the trained context.
          factor: new context divided by trained context. None: it follows from `max_len`.
          fields: further fields of `RopeScaling`.

        Raises ValueError if `max_len` and `factor` are both None, or if the trained context is not known or is longer.
        """
        trained = fields.pop("original_max_len", None) or self.trained_len
        if trained is None:
            raise ValueError(f"rope scaling {kind}: give original_max_len, which the scaling lacks")
        if max_len is None and factor is None:
            raise ValueError(f"rope scaling {kind}: give max_len, more than the trained context of {trained} tokens")
        scaling = RopeScaling(kind, factor or max_len / trained, original_max_len=trained, **fields)
        return self.replace(max_len=max_len or round(trained * scaling.factor), rope_scaling=scaling)

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        attention = self.dim * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        layer = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim + 2 * self.head_dim * self.qk_norm
        layer += self.head_dim * (self.n_heads + 2 * self.n_kv_heads) * self.qkv_bias + self.dim * self.o_bias
        layer += (2 * self.ffn_dim + self.dim) * self.mlp_bias
        return self.n_layers * layer + self.dim + self.vocab_size * self.dim * (1 if self.tied else 2)

    def flops_per_token(self, seq_len: int, frozen: bool = False, head: bool = True) -> float:
        """Model FLOPs of one training step per token (PaLM, arXiv:2204.02311, appendix B).

        They are 6 for each weight in a matrix product, and 12 N H E for each position that a token attends to: on
        average T / 2 positions in rows of T = `seq_len` tokens, or W - W^2 / 2T with a window W below T. Recomputation
        is not counted, so that model FLOPs utilisation (MFU) can be compared across remat policies.

        Args:
          seq_len: tokens of a row.
          frozen: whether the weights do not learn, as under adapters. Their own gradient is then not computed, which
            leaves 4 for each weight; products of adapters are not counted.
          head: whether the network has an output head over the vocabulary, which a scalar model has not.
        """
        attention = self.dim * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        weights = self.n_layers * (attention + 3 * self.dim * self.ffn_dim) + head * self.vocab_size * self.dim
        window = min(self.window or seq_len, seq_len)
        attended = window - window * window / (2 * seq_len)
        return (4.0 if frozen else 6.0) * weights + 12.0 * self.n_layers * attended * self.n_heads * self.head_dim


def _llama(dim: int, n_layers: int, n_heads: int, ffn_dim: int, **fields: Any) -> dict[str, Any]:
    sizes = dict(vocab_size=32_000, dim=dim, n_layers=n_layers, n_heads=n_heads, ffn_dim=ffn_dim)
    return sizes | fields


_LLAMA3 = dict(vocab_size=128_256, n_kv_heads=8, rope_theta=500_000.0, max_len=8192)
_LLAMA32_ROPE = dict(kind="llama3", factor=32.0, original_max_len=8192, low_freq_factor=1.0, high_freq_factor=4.0)
_LLAMA32 = _LLAMA3 | dict(tied=True, max_len=131_072, rope_scaling=_LLAMA32_ROPE)
_QWEN25 = dict(qkv_bias=True, family="qwen2", norm_eps=1e-6, rope_theta=1_000_000.0, max_len=32_768)
_QWEN3 = dict(
    vocab_size=151_936,
    head_dim=128,
    n_kv_heads=8,
    qk_norm=True,
    family="qwen3",
    norm_eps=1e-6,
    rope_theta=1_000_000.0,
    max_len=40_960,
)
_SMOLLM2 = dict(vocab_size=49_152, tied=True, max_len=8192, rope_theta=100_000.0)

PRESETS: dict[str, dict[str, Any]] = {
    "llama-7b": _llama(4096, 32, 32, 11_008, norm_eps=1e-6),
    "llama-13b": _llama(5120, 40, 40, 13_824, norm_eps=1e-6),
    "llama-33b": _llama(6656, 60, 52, 17_920, norm_eps=1e-6),
    "llama-65b": _llama(8192, 80, 64, 22_016, norm_eps=1e-5),
    "llama2-7b": _llama(4096, 32, 32, 11_008, max_len=4096),
    "llama2-13b": _llama(5120, 40, 40, 13_824, max_len=4096),
    "llama2-70b": _llama(8192, 80, 64, 28_672, max_len=4096, n_kv_heads=8),
    "llama3-8b": _llama(4096, 32, 32, 14_336, **_LLAMA3),
    "llama3-70b": _llama(8192, 80, 64, 28_672, **_LLAMA3),
    "llama3.2-1b": _llama(2048, 16, 32, 8192, **_LLAMA32),
    "llama3.2-3b": _llama(3072, 28, 24, 8192, **_LLAMA32),
    "smollm2-135m": _llama(576, 30, 9, 1536, n_kv_heads=3, **_SMOLLM2),
    "smollm2-360m": _llama(960, 32, 15, 2560, n_kv_heads=5, **_SMOLLM2),
    "smollm2-1.7b": _llama(2048, 24, 32, 8192, **(_SMOLLM2 | dict(rope_theta=130_000.0))),
    "qwen2.5-0.5b": _llama(896, 24, 14, 4864, vocab_size=151_936, n_kv_heads=2, tied=True, **_QWEN25),
    "qwen2.5-1.5b": _llama(1536, 28, 12, 8960, vocab_size=151_936, n_kv_heads=2, tied=True, **_QWEN25),
    "qwen2.5-7b": _llama(3584, 28, 28, 18_944, vocab_size=152_064, n_kv_heads=4, **_QWEN25),
    "qwen3-0.6b": _llama(1024, 28, 16, 3072, tied=True, **_QWEN3),
    "qwen3-1.7b": _llama(2048, 28, 16, 6144, tied=True, **_QWEN3),
    "qwen3-4b": _llama(2560, 36, 32, 9728, tied=True, **_QWEN3),
    "qwen3-8b": _llama(4096, 36, 32, 12_288, **_QWEN3),
    "mistral-7b": _llama(4096, 32, 32, 14_336, n_kv_heads=8, window=4096, max_len=32_768, family="mistral"),
    "phi3-mini": _llama(3072, 32, 32, 8192, vocab_size=32_064, window=2047, max_len=4096, family="phi3"),
    # For a CPU: 0.13 M, 0.92 M, 2.3 M and 8.3 M parameters with the vocabularies named.
    "nano-test": _llama(64, 2, 4, 192, vocab_size=512, n_kv_heads=2, max_len=256, tied=True, unroll=2),
    "nano-1m": _llama(128, 4, 4, 384, vocab_size=1024, n_kv_heads=2, max_len=512, tied=True, unroll=4),
    "nano-2m": _llama(192, 5, 6, 576, vocab_size=1024, n_kv_heads=2, max_len=512, tied=True, unroll=5),
    "nano-8m": _llama(288, 6, 6, 768, vocab_size=4096, max_len=1024, unroll=6),
}
