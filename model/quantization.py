"""Matrices in eight or four bits a number, multiplied without ever being whole in a wider type.

A quantised matrix is a dict of arrays (`weights.py`), cut into blocks along its input axis:

    {"int8": codes, "scales"}            scale * code, -127 to 127, blocks of 32
    {"int4": codes, "scales", "mins"}    scale * code + min, 0 to 15, blocks of 32
    {"nf4": codes, "scales", "scale_scales", "scale_means"}   largest magnitude * NF4[code], blocks of 64

Codes have the matrix's axes, the last input axis halved where a byte holds two: in a block of n rows byte i holds row i
low and row i + n/2 high. Scales have an entry a block. The first two are GGUF's Q8_0 and Q4_1, whose numbers they keep
exactly; nf4 is QLoRA's normal float, its scales quantised once more in groups of 256 (Dettmers et al. 2023,
arXiv:2305.14314).

Written here and not taken from qwix: that keeps one code a number (jnp.int4, which XLA's CPU backend unpacks at a tenth
of the speed), has neither offsets in floats as GGUF nor second-level scales, and works by intercepting calls of a flax
module, where here the tree of parameters decides.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import xla_cpu
from .dynamic_codes import signed_codes
from .sharding import axis_size

Parts = dict[str, Any]

BLOCKS = {"int8": 32, "int4": 32, "nf4": 64}
"""Rows of the input axis that share a scale; where an axis is not a multiple, the largest power of two that divides."""

_BELOW = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105)
_ABOVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1.0)
NF4 = np.array((*_BELOW, 0.0, *_ABOVE), np.float32)
"""The quantiles of a normal distribution, scaled to [-1, 1], with an exact 0 (arXiv:2305.14314, appendix E)."""

GROUP = 256
"""Scales of nf4 that share a second scale, as in QLoRA."""

TILE = 1 << 24
"""Numbers of a matrix that are decoded at a time."""


def kind_of(parts: Parts) -> str:
    return next(kind for kind in BLOCKS if kind in parts)


def encode(kind: str, matrix: Float[Array, "..."], inputs: int = 1) -> Parts:
    """Quantises a matrix.

    Args:
      kind: a key of BLOCKS.
      matrix: input axes, then output axes.
      inputs: number of input axes.

    Raises ValueError for an unknown kind and for an odd number of inputs.
    """
    if kind not in BLOCKS:
        raise ValueError(f"quantisation {kind!r}: give one of {', '.join(BLOCKS)}")
    axis = inputs - 1
    width = math.gcd(BLOCKS[kind], matrix.shape[axis])
    if width < 2:
        raise ValueError(f"a matrix {matrix.shape} whose inputs are odd in number cannot be quantised")
    blocks = _cut(matrix.astype(jnp.float32), axis, width)
    if kind == "int8":
        scales = (jnp.max(jnp.abs(blocks), axis=axis + 1) / 127).astype(jnp.float16)
        scales = jnp.where(scales > 0, scales, 1)
        codes = jnp.round(blocks / jnp.expand_dims(scales.astype(jnp.float32), axis + 1))
        return {"int8": _join(jnp.clip(codes, -127, 127).astype(jnp.int8), axis), "scales": scales}
    if kind == "int4":
        low, high = jnp.min(blocks, axis=axis + 1), jnp.max(blocks, axis=axis + 1)
        mins, scales = low.astype(jnp.float16), ((high - low) / 15).astype(jnp.float16)
        scales = jnp.where(scales > 0, scales, 1)
        steps = (blocks - jnp.expand_dims(mins, axis + 1)) / jnp.expand_dims(scales, axis + 1)
        codes = jnp.clip(jnp.round(steps), 0, 15).astype(jnp.uint8)
        return {"int4": _pack(codes, axis), "scales": scales, "mins": mins}
    largest = jnp.max(jnp.abs(blocks), axis=axis + 1)
    ratio = blocks / jnp.expand_dims(jnp.where(largest > 0, largest, 1.0), axis + 1)
    borders = jnp.asarray((NF4[1:] + NF4[:-1]) / 2)
    codes = jnp.searchsorted(borders, ratio.reshape(-1)).astype(jnp.uint8).reshape(ratio.shape)
    return {"nf4": _pack(codes, axis)} | _encode_scales(largest, inputs)


def _encode_scales(scales: jax.Array, inputs: int) -> Parts:
    """Scales in a byte each, as `dynamic_codes` has it: distances from the mean of the matrix, or of a head, over the
    largest of each `GROUP` on the last axis. A few scales many times larger than all others leave these exact."""
    last = scales.ndim - 1
    means = jnp.mean(scales, axis=(*range(inputs), last), keepdims=True)
    distance = scales - means
    window = (1,) * last + (GROUP,)
    ends = [(0, 0)] * last + [(0, -scales.shape[last] % GROUP)]
    largest = jax.lax.reduce_window(jnp.abs(distance), 0.0, jax.lax.max, window, window, ends)
    largest = jnp.where(largest > 0, largest, 1.0)
    return {
        "scales": signed_codes(distance / _of_each(largest, scales.shape)),
        "scale_scales": largest,
        "scale_means": means,
    }


def _scales(parts: Parts) -> jax.Array:
    if "scale_scales" not in parts:
        return parts["scales"].astype(jnp.float32)
    values = xla_cpu.scale_values(parts["scales"])
    return values * _of_each(parts["scale_scales"], values.shape) + parts["scale_means"]


def _of_each(groups: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What holds for each group, for each of its members on the last axis."""
    if groups.shape[-1] in (1, shape[-1]):
        return groups
    return jnp.repeat(groups, GROUP, axis=-1)[..., : shape[-1]]


def _cut(x: jax.Array, axis: int, width: int) -> jax.Array:
    """Blocks on an axis of their own: [..., axis / width, width, ...]."""
    return x.reshape(*x.shape[:axis], -1, width, *x.shape[axis + 1 :])


def _join(blocks: jax.Array, axis: int) -> jax.Array:
    return blocks.reshape(*blocks.shape[:axis], -1, *blocks.shape[axis + 2 :])


def _pack(codes: jax.Array, axis: int) -> jax.Array:
    """Two codes of four bits in a byte, from the two halves of each block."""
    low, high = jnp.split(codes, 2, axis=axis + 1)
    return _join(low | (high << 4), axis)


def _unpack(packed: jax.Array, axis: int, blocks: int) -> jax.Array:
    """Codes by blocks, [..., blocks, width, ...]."""
    halves = _cut(packed, axis, packed.shape[axis] // blocks)
    return jnp.concatenate([halves & 15, halves >> 4], axis=axis + 1)


def decode(parts: Parts, inputs: int, dtype: Any) -> Float[Array, "..."]:
    """Decodes a quantised matrix to an ordinary array; the arithmetic is in float32.

    Args:
      parts: the codes and scales that `encode` returns.
      inputs: number of input axes of the matrix, which come first.
      dtype: of the returned array.
    """
    axis, kind = inputs - 1, kind_of(parts)
    scales = _scales(parts)
    if kind == "int8":
        codes = _cut(parts["int8"], axis, parts["int8"].shape[axis] // scales.shape[axis])
    else:
        codes = _unpack(parts[kind], axis, scales.shape[axis])
    values = _nf4(codes) if kind == "nf4" else codes.astype(jnp.float32)
    values *= jnp.expand_dims(scales, axis + 1)
    if kind == "int4":
        values += jnp.expand_dims(parts["mins"].astype(jnp.float32), axis + 1)
    return _join(values, axis).astype(dtype)


def _nf4(codes: jax.Array) -> jax.Array:
    """The table's entries by halving, which vectorises where a lookup does not."""
    values: list[Any] = list(NF4)
    for bit in range(4):
        chosen = (codes >> bit) & 1 == 1
        values = [jnp.where(chosen, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def product(
    x: Float[Array, "B T *inputs"], parts: Parts, out_dtype: Any = None, *, by_blocks: bool = False
) -> Float[Array, "B T *outputs"]:
    """x's features times the matrix, in x's dtype, the result in `out_dtype` (default: x's).

    A matrix is decoded a tile of its outputs at a time, here and again in the backward pass, and is itself taken for a
    constant. by_blocks: a single row is multiplied with the codes themselves (`xla_cpu.product_by_blocks`).
    """
    inputs = x.ndim - 2
    B, T = x.shape[:2]
    outputs = parts["scales"].shape[inputs:]
    flat = _flat(parts, inputs)
    x_BTI = x.reshape(B, T, -1)
    dtype = jnp.dtype(out_dtype or x.dtype)
    if by_blocks and B * T == 1 and "nf4" not in flat:
        row_I = x_BTI.reshape(-1).astype(jnp.float32)
        out_BTO = xla_cpu.product_by_blocks(row_I, kind_of(flat), flat)[None, None].astype(dtype)
    else:
        out_BTO = _times(x_BTI, flat, dtype)
    return out_BTO.reshape(B, T, *outputs)


def _flat(parts: Parts, inputs: int) -> Parts:
    """The same matrix with one input and one output axis, and scales in numbers of their own."""
    outputs = math.prod(parts["scales"].shape[inputs:])
    whole = {name: part for name, part in parts.items() if not name.startswith("scale")} | {"scales": _scales(parts)}
    return {name: part.reshape(-1, outputs) for name, part in whole.items()}


def _tiles(flat: Parts) -> int:
    """How many tiles of its outputs a matrix is decoded in. One where a mesh splits it: a device then holds a part."""
    outputs = flat["scales"].shape[1]
    numbers = flat[kind_of(flat)].size * (1 if "int8" in flat else 2)
    if axis_size("fsdp") * axis_size("tensor") > 1:
        return 1
    wanted = -(-numbers // TILE)
    return next(count for count in range(wanted, outputs + 1) if outputs % count == 0)


def _tile(flat: Parts, number: jax.Array, tiles: int) -> Parts:
    width = flat["scales"].shape[1] // tiles
    return {name: jax.lax.dynamic_slice_in_dim(x, number * width, width, axis=1) for name, x in flat.items()}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _times(x_BTI: Float[Array, "B T I"], flat: Parts, dtype: Any) -> Float[Array, "B T O"]:
    def one(tile: Parts) -> jax.Array:
        return jnp.matmul(x_BTI, decode(tile, 1, x_BTI.dtype), preferred_element_type=dtype)

    tiles = _tiles(flat)
    if tiles == 1:
        return one(flat)
    out_NBTo = jax.lax.map(lambda number: one(_tile(flat, number, tiles)), jnp.arange(tiles))
    return jnp.moveaxis(out_NBTo, 0, 2).reshape(*x_BTI.shape[:2], -1)


def _times_forward(x_BTI, flat, dtype):
    return _times(x_BTI, flat, dtype), (jnp.zeros((0,), x_BTI.dtype), flat)


def _times_backward(dtype, kept, grad_BTO):
    """The gradient by x: back through the same matrix, decoded once more. None for the matrix itself."""
    like, flat = kept
    grad_BTO = grad_BTO.astype(like.dtype)
    tiles = _tiles(flat)
    if tiles == 1:
        return grad_BTO @ decode(flat, 1, like.dtype).T, None
    B, T = grad_BTO.shape[:2]
    parts_NBTo = jnp.moveaxis(grad_BTO.reshape(B, T, tiles, -1), 2, 0)

    def add(total_BTI, turn):
        number, part_BTo = turn
        matrix = decode(_tile(flat, number, tiles), 1, like.dtype)
        return total_BTI + jnp.matmul(part_BTo, matrix.T, preferred_element_type=jnp.float32), None

    inputs = flat[kind_of(flat)].shape[0] * (1 if "int8" in flat else 2)
    total_BTI, _ = jax.lax.scan(add, jnp.zeros((B, T, inputs), jnp.float32), (jnp.arange(tiles), parts_NBTo))
    return total_BTI.astype(like.dtype), None


_times.defvjp(_times_forward, _times_backward)


# The embedding, whose rows are looked up and which may be the output head too -----------------------------------------


def encode_table(kind: str, table_VD: Float[Array, "V D"]) -> Parts:
    """Quantises an embedding table, with blocks along its last axis, so that `rows` can look up single tokens.

    Args:
      kind: a key of BLOCKS.
      table_VD: the embedding.
    """
    return jax.tree.map(jnp.transpose, encode(kind, table_VD.T))


def rows(parts: Parts, tokens_BT: jax.Array, dtype: Any) -> Float[Array, "B T D"]:
    """The embeddings of tokens."""
    shared = {"scale_scales": GROUP, "scale_means": len(parts["scales"])}  # how many rows have one
    found = {name: part[tokens_BT // shared.get(name, 1)] for name, part in parts.items()}
    first = {name: jnp.moveaxis(part, -1, 0) for name, part in found.items()}
    return jnp.moveaxis(decode(first, 1, dtype), 0, -1)


def as_head(parts: Parts) -> Parts:
    """The embedding as the output head's matrix."""
    return jax.tree.map(jnp.transpose, parts)
