"""Rotary position embedding (RoFormer, arXiv:2104.09864) and its ways of stretching past the trained context.

Pairs are split in halves: component i turns with component i + E/2. Meta's checkpoints interleave them (2i with
2i + 1); `from_interleaved` and `to_interleaved` permute the rows of query and key weights at the border.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .config import LlamaConfig, RopeScaling
from .sharding import compile_platform


def frequencies(
    config: LlamaConfig, lengths_B: Int[Array, " B"] | None = None
) -> tuple[Float[np.ndarray | Array, "*B E/2"], float]:
    """Angle per position of each pair, in radians, float32, and the factor on cos and sin (1 but for yarn, longrope).

    lengths_B: of the rows, in tokens; dynamic and longrope turn by them and give frequencies for each row.
    """
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    scaling = config.rope_scaling
    if scaling is None:
        return (config.rope_theta**-pairs).astype(np.float32), 1.0
    if scaling.kind in _BY_LENGTH:
        return _BY_LENGTH[scaling.kind](config, scaling, pairs.astype(np.float32), lengths_B[:, None])
    stretched, amplitude = _SCALINGS[scaling.kind](config, scaling, pairs)
    return stretched.astype(np.float32), amplitude


def _linear(config: LlamaConfig, scaling: RopeScaling, pairs: np.ndarray) -> tuple[np.ndarray, float]:
    """Position interpolation (arXiv:2306.15595)."""
    return config.rope_theta**-pairs / scaling.factor, 1.0


def _ntk(config: LlamaConfig, scaling: RopeScaling, pairs: np.ndarray) -> tuple[np.ndarray, float]:
    """NTK-aware: the base grows so that the slowest pair is interpolated by exactly `factor`."""
    return ntk_theta(config) ** -pairs, 1.0


def ntk_theta(config: LlamaConfig) -> float:
    """The rotary base that NTK-aware scaling comes to."""
    width = config.head_dim
    return config.rope_theta * config.rope_scaling.factor ** (width / (width - 2))


def _yarn(config: LlamaConfig, scaling: RopeScaling, pairs: np.ndarray) -> tuple[np.ndarray, float]:
    """YaRN (arXiv:2309.00071, section 3.2): fast pairs kept, slow ones interpolated, a ramp between over pair index."""

    def pair_turning(rotations: float) -> float:
        turns = scaling.original_max_len / (rotations * 2 * math.pi)
        return config.head_dim * math.log(turns) / (2 * math.log(config.rope_theta))

    low, high = pair_turning(scaling.beta_fast), pair_turning(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    ramp = np.clip((np.arange(len(pairs)) - low) / max(high - low, 1e-3), 0, 1)
    kept = config.rope_theta**-pairs
    amplitude = scaling.attention_factor
    if amplitude is None:
        amplitude = 0.1 * math.log(scaling.factor) + 1.0
    return kept / scaling.factor * ramp + kept * (1 - ramp), amplitude


def _llama3(config: LlamaConfig, scaling: RopeScaling, pairs: np.ndarray) -> tuple[np.ndarray, float]:
    """Llama 3.1: as YaRN, with the ramp over the number of turns within the trained context."""
    kept = config.rope_theta**-pairs
    turns = scaling.original_max_len * kept / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    share_kept = np.clip((turns - low) / (high - low), 0, 1)
    return kept * share_kept + kept / scaling.factor * (1 - share_kept), 1.0


def _dynamic(config: LlamaConfig, scaling: RopeScaling, pairs: np.ndarray, lengths_B1: jax.Array):
    """NTK-aware with a base that grows with the row, from the trained length on (Hugging Face's `dynamic`)."""
    width, trained = config.head_dim, scaling.original_max_len
    beyond_B1 = jnp.maximum(lengths_B1, trained).astype(jnp.float32) / trained
    growth_B1 = (scaling.factor * beyond_B1 - (scaling.factor - 1)) ** (width / (width - 2))
    return (config.rope_theta * growth_B1) ** -pairs[None], 1.0


def _longrope(config: LlamaConfig, scaling: RopeScaling, pairs: np.ndarray, lengths_B1: jax.Array):
    """LongRoPE (arXiv:2402.13753): searched factors, one set for rows within the trained length, one for longer."""
    short, long = (np.array(f, np.float32)[None] for f in (scaling.short_factors, scaling.long_factors))
    amplitude = scaling.attention_factor
    if amplitude is None:
        amplitude = math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_len))
    divisors_Be = jnp.where(lengths_B1 > scaling.original_max_len, long, short)
    return config.rope_theta ** -pairs[None] / divisors_Be, amplitude


_SCALINGS = {"linear": _linear, "ntk": _ntk, "yarn": _yarn, "llama3": _llama3}
_BY_LENGTH = {"dynamic": _dynamic, "longrope": _longrope}


def angles(
    config: LlamaConfig, positions_BT: Int[Array, "B T"]
) -> tuple[Float[Array, "B T E/2"], Float[Array, "B T E/2"]]:
    """cos and sin for `rotate`, in float32: bfloat16 angles lose neighbouring positions past a few hundred."""
    frequency, amplitude = frequencies(config, jnp.max(positions_BT, axis=1) + 1)
    by_row = frequency[:, None, :] if frequency.ndim == 2 else frequency[None, None, :]
    angle_BTe = positions_BT[:, :, None].astype(jnp.float32) * by_row
    return jnp.cos(angle_BTe) * amplitude, jnp.sin(angle_BTe) * amplitude


def rotate(
    x_BTHE: Float[Array, "B T H E"], cos_BTe: Float[Array, "B T E/2"], sin_BTe: Float[Array, "B T E/2"]
) -> Float[Array, "B T H E"]:
    """Turns each pair (i, i + E/2) of every head by its position's angle; float32 inside, x's dtype outside."""
    if compile_platform() == "tpu" and x_BTHE.dtype in (jnp.bfloat16, jnp.float16):
        return _rotate_whole(x_BTHE, *(jnp.concatenate([each, each], axis=-1) for each in (cos_BTe, sin_BTe)))
    first, second = jnp.split(x_BTHE.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTe[:, :, None, :], sin_BTe[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTHE.dtype)


@jax.custom_vjp
def _rotate_whole(
    x_BTHE: Float[Array, "B T H E"], cos_BTE: Float[Array, "B T E"], sin_BTE: Float[Array, "B T E"]
) -> Float[Array, "B T H E"]:
    """`rotate` without halves of heads, for matrix units: a product with a permutation gives each number its partner.

    Such a product is exact, and the gradient is the opposite rotation. Symptom of halves on a TPU: arrays in float32 of
    half its vectors' width are written and read again. XLA then estimates 1.4 million cycles instead of 0.7 for the
    queries of a layer of llama-65b on v5p.
    """
    half = x_BTHE.shape[-1] // 2
    partner_EE = np.roll(np.eye(2 * half), half, axis=1) * np.repeat([1, -1], half)[:, None]
    partner_BTHE = jnp.matmul(x_BTHE, jnp.asarray(partner_EE, x_BTHE.dtype), preferred_element_type=jnp.float32)
    cos, sin = cos_BTE[:, :, None, :], sin_BTE[:, :, None, :]
    return (x_BTHE.astype(jnp.float32) * cos + partner_BTHE * sin).astype(x_BTHE.dtype)


_rotate_whole.defvjp(
    lambda x, cos, sin: (_rotate_whole(x, cos, sin), (cos, sin)),
    lambda turned, gradient: (_rotate_whole(gradient, turned[0], -turned[1]), None, None),
)


def from_interleaved(w: Float[np.ndarray, "*prefix E"]) -> Float[np.ndarray, "*prefix E"]:
    """Weights whose last axis is a head in Meta's order (pairs side by side) to the order of this file (halves)."""
    return np.concatenate([w[..., 0::2], w[..., 1::2]], axis=-1)


def to_interleaved(w: Float[np.ndarray, "*prefix E"]) -> Float[np.ndarray, "*prefix E"]:
    """The inverse of `from_interleaved`."""
    return np.stack(np.split(w, 2, axis=-1), axis=-1).reshape(w.shape)
