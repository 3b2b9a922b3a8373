"""Forms that exist only because XLA's CPU backend is slow at the plain ones: the symptom of each, and figures.

Every function here computes what a line of plain jax.numpy would. On other backends the functions either choose the
plain form or cost nothing there, as noted. "1.4 times" means that the plain form takes 1.4 times the CPU time. The
figures are those of `benchmarks/xla_cpu.py` with jax 0.10.2 on 2 cores; a form that gains nothing with a new version of
JAX should go.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8, Shaped, UInt8

from .dynamic_codes import signed_table, signed_values
from .sharding import BATCH, axis_size, compile_platform, constrain
from .weights import CODE_PARTS


def is_backend() -> bool:
    """Whether a function traced here is compiled by XLA's CPU backend."""
    return compile_platform() == "cpu"


# Matrix products ------------------------------------------------------------------------------------------------------


def merged_rows(x_BT: Shaped[Array, "B T *inputs"], inputs: int) -> Shaped[Array, "BT width"]:
    """Rows and positions as one axis, and `inputs` trailing axes as one, for a matrix product.

    Symptom of two axes: the weights' gradient is computed from transposed copies (a gradient over 8 rows of 256 tokens:
    1.4 times). Other backends compute both forms alike.
    """
    return x_BT.reshape(-1, math.prod(x_BT.shape[x_BT.ndim - inputs :]))


def from_left(positions: int) -> bool:
    """Whether a decoder keeps its matrices as left factors, [outputs, inputs].

    Symptom of right factors, where a pass holds several positions: small products read the weights more slowly (8
    answers: 1.1 times). Eight streams of SmolLM2 decoded at 1.44 times the speed of Hugging Face with right factors, at
    1.97 times with left ones.
    A single position is matrix times vector, which reads right factors fastest.

    Args:
        positions: number of positions in a pass, of all rows together.
    """
    return positions > 1 and is_backend()


BLOCK_LOOPS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    "xla_cpu_prefer_vector_width": 512,
}
"""Compiler options with which `product_by_blocks` becomes one vectorised loop for each block."""


def compiler_options(params: Any) -> tuple[tuple[str, Any], ...]:
    """`BLOCK_LOOPS` for a network with quantised matrices on this backend, else no options.

    Empty also while another function is being traced: only the outermost compiled function may have options.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    quantized = any(path[-1].key in CODE_PARTS for path, _ in leaves)
    traced = any(isinstance(leaf, jax.core.Tracer) for _, leaf in leaves)
    return tuple(BLOCK_LOOPS.items()) if quantized and not traced and is_backend() else ()


def product_by_blocks(x_I: Float[Array, " I"], kind: str, flat: dict[str, Shaped[Array, "..."]]) -> Float[Array, " O"]:
    """One row times a matrix in codes of 8 or 4 bits: a sum for each block of codes, which is scaled afterwards.

    Symptom of decoding the matrix first: codes become float32 numbers in memory, once before the loop over tokens. With
    `BLOCK_LOOPS` each block is one vectorised loop over the codes in memory, and the chain of products alone takes half
    the time of one with float32 numbers. This needs at most 32 rows in a reduction, a sum over blocks that is a product
    with ones, and an x that is not computed again in every loop.

    Args:
        x_I: the row.
        kind: "int8" or "int4", the key of the codes in `flat`.
        flat: the matrix (`quantization.py`) with one input and one output axis, and scales in float32.
    """
    scales_bO = flat["scales"]
    blocks, outputs = scales_bO.shape
    # Bound to x, codes do not count as invariant in the decoding loop, before which XLA would turn them into floats.
    codes, x_I = jax.lax.optimization_barrier((flat[kind], x_I))
    x_b1n = _computed_once(x_I).reshape(blocks, -1)
    if kind == "int8":
        products = x_b1n[:, :, None] * codes.reshape(blocks, -1, outputs).astype(jnp.float32)
        sums_bO = jnp.sum(products, axis=1) * scales_bO
    else:
        # A byte is low + 16 high: x_low low + x_high high is (x_low - x_high / 16) low + (x_high / 16) byte.
        bytes_bhO = codes.reshape(blocks, -1, outputs)
        low_bh, high_bh = jnp.split(x_b1n, 2, axis=1)
        high_bh = high_bh / 16
        low_bh = low_bh - high_bh
        products = low_bh[:, :, None] * (bytes_bhO & 15).astype(jnp.float32)
        products += high_bh[:, :, None] * bytes_bhO.astype(jnp.float32)
        sums_bO = jnp.sum(products, axis=1) * scales_bO
        sums_bO += jnp.sum(x_b1n, axis=1, keepdims=True) * flat["mins"].astype(jnp.float32)
    return jnp.einsum("b,bo->o", jnp.ones(blocks), sums_bO)


def _computed_once(x_I: Float[Array, " I"]) -> Float[Array, " I"]:
    """Identity that stops XLA from fusing the producer of x into every consumer.

    Symptom without it: x is computed again for every block of codes (an answer of int8: 3.3 times; of int4: 2.6 times).
    A barrier in its place is dropped before fusion. A sum of two terms ends a fusion.
    """
    return jnp.sum(x_I[:, None] * jnp.array([[1.0, 0.0]]), axis=1)


def scale_values(codes: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Decodes the 8-bit codes of `dynamic_codes.signed_codes`: by a table look-up on CPU, by arithmetic elsewhere.

    Symptom of arithmetic on CPU: XLA recomputes a scale for each number that it scales (the loss of 32 tokens with nf4:
    1.2 times).
    """
    return jax.lax.platform_dependent(
        codes, cpu=lambda codes: jnp.asarray(signed_table())[codes], default=signed_values
    )


# Attention and the key/value cache ------------------------------------------------------------------------------------


def grouped_scores(q_BKGTE: Float[Array, "B K G T E"], k_BKSE: Float[Array, "B K S E"]) -> Float[Array, "B K GT S"]:
    """Float32 scores of the queries of each group, which stand below each other on one axis.

    Symptom of an axis for the group: over more than four axes XLA copies what it multiplies (a gradient over a row of
    2,048 tokens with 4 queries a group: 1.1 times; over 256 tokens no difference).
    """
    B, K, G, T, E = q_BKGTE.shape
    keys_BKES = jnp.swapaxes(k_BKSE, -1, -2)
    return jnp.matmul(q_BKGTE.reshape(B, K, G * T, E), keys_BKES, preferred_element_type=jnp.float32)


def times_codes(equation: str, x: Float[Array, "*L Q n"], codes: Int8[Array, "*L S E"]) -> Float[Array, "*L Q m"]:
    """einsum(equation, x, codes), a sum over x's last axis, in float32, from products of integers.

    Symptom of products of floats: XLA writes codes that are turned into floats to memory first (one answer to 1,000
    tokens: 1.2 times; 8 answers: 1.3 times). x becomes integers of two bytes, high + low / 254 in units of its row's
    largest / 127, off by at most 2^-16 of that unit's row maximum.
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    unit = jnp.where(largest > 0, largest / 127, 1.0)
    high = jnp.round(x / unit)
    low = jnp.round((x / unit - high) * 254)
    both = jnp.concatenate([high, low], axis=-2).astype(jnp.int8)
    sums = jnp.einsum(equation, both, codes, preferred_element_type=jnp.int32).astype(jnp.float32)
    high, low = jnp.split(sums, 2, axis=-2)
    return (high + low / 254) * unit


def rows_and_heads(x: Shaped[Array, "B K ..."]) -> Shaped[Array, "..."]:
    """Row and key/value head as one axis, [B * K, ...]; as two, [B, K, ...], where a mesh splits heads over `tensor`.

    Symptom of two axes of which one has size 1: XLA strips axes of size 1 from products, then writes the cache in two
    shapes and copies the cache at every step (an answer to 1,000 tokens: 1.2 times; 8 answers with one key/value head:
    1.2 times). A mesh that splits heads needs both axes, on any backend.
    """
    if axis_size("tensor") > 1:
        return constrain(x, BATCH, "tensor", *[None] * (x.ndim - 2))
    return constrain(x.reshape(-1, *x.shape[2:]), BATCH, *[None] * (x.ndim - 2))


def each_or_most(filled_R: Int[Array, " R"]) -> Int[Array, " R"] | Int[Array, ""]:
    """How many slots of each row attention reads, so that it goes through the rows one by one; on other backends, which
    compute all rows at once, the largest number.

    Symptom of one number: every row is read as far as the longest (8 rows at position 400: 1.05 times; one at 1,900
    beside 7 at 50: 1.29 times).
    """
    return filled_R if is_backend() else jnp.max(filled_R)
