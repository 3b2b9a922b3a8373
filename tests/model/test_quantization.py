"""Matrices in eight and four bits: their numbers, their products and gradients, against numpy."""

import math

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.model import quantization
from camelid.model.dynamic_codes import signed_codes, signed_table, signed_values
from camelid.model.quantization import BLOCKS, NF4, as_head, product, rows

encode = jax.jit(quantization.encode, static_argnames=("kind", "inputs"))
decode = jax.jit(quantization.decode, static_argnames=("inputs", "dtype"))
encode_table = jax.jit(quantization.encode_table, static_argnames="kind")
SHAPES = [((96, 40), 1), ((64, 3, 16), 1), ((3, 32, 40), 2), ((2, 16, 24), 2)]


def drawn(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 0.05, shape), jnp.float32)


def blocks_of(matrix, inputs, width):
    """[blocks, width, outputs] in numpy."""
    flat = np.asarray(matrix).reshape(int(np.prod(matrix.shape[:inputs])), -1)
    return flat.reshape(-1, width, flat.shape[1])


@pytest.mark.parametrize("shape, inputs", SHAPES)
def test_int8_and_int4_are_off_by_half_a_step_at_most(shape, inputs):
    matrix = drawn(shape)
    width = min(32, shape[inputs - 1])
    found = blocks_of(matrix, inputs, width)
    for kind, steps in (("int8", np.abs(found).max(1) / 127), ("int4", np.ptp(found, axis=1) / 15)):
        error = np.abs(blocks_of(decode(encode(kind, matrix, inputs), inputs, jnp.float32), inputs, width) - found)
        # Scale and offset are float16, off by 2^-11 of themselves.
        assert (error <= steps[:, None] * 0.5 + np.abs(found).max() * 2.0**-10).all()
        assert error.max() > steps.min() * 0.3


@pytest.mark.parametrize("shape, inputs", SHAPES)
def test_nf4_takes_the_nearest_of_its_sixteen_values(shape, inputs):
    matrix = drawn(shape)
    parts = encode("nf4", matrix, inputs)
    width = math.gcd(64, shape[inputs - 1])
    scales = quantization._scales(parts).reshape(-1, 1, int(np.prod(shape[inputs:])))
    largest = np.abs(blocks_of(matrix, inputs, width)).max(1, keepdims=True)
    np.testing.assert_allclose(scales, largest, atol=np.ptp(largest) / 100)
    ratio = blocks_of(matrix, inputs, width) / largest
    nearest = NF4[np.abs(ratio[..., None] - NF4).argmin(-1)]
    np.testing.assert_allclose(
        blocks_of(decode(parts, inputs, jnp.float32), inputs, width), nearest * np.asarray(scales), atol=1e-6
    )


def test_nf4_is_the_normal_float_of_the_paper():
    assert len(NF4) == 16 and (np.diff(NF4) > 0).all() and NF4[7] == 0
    np.testing.assert_allclose(NF4[[0, 1, 14, 15]], [-1.0, -0.69619, 0.72296, 1.0], atol=1e-5)


def outliers(sigma):
    """A normal matrix, 1,024 of whose million numbers are `sigma` deviations away, drawn with a fixed seed."""
    draw = np.random.default_rng(0)
    matrix = draw.normal(0, 1, (1024, 1024)).astype(np.float32)
    where = draw.integers(0, matrix.size, 1024)
    matrix.reshape(-1)[where] = sigma * draw.choice([-1, 1], 1024)
    return matrix


@pytest.mark.parametrize("sigma, theirs", [(100, 0.11907159), (250, 0.13150829)])
def test_outliers_spoil_no_more_of_nf4_than_in_bitsandbytes(sigma, theirs):
    """theirs: mean error of bitsandbytes 0.50.2, quantize_4bit(compress_statistics=True) and back. With steps of one
    size for all scales of a row it was 0.134 and 0.219."""
    matrix = outliers(sigma)
    found = decode(encode("nf4", jnp.asarray(matrix.T)), 1, jnp.float32).T
    assert np.abs(found - matrix).mean() == pytest.approx(theirs, rel=1e-4)


def test_scales_of_every_group_keep_their_precision():
    """Numpy's own second quantisation of more scales than one group has, and than a multiple of it."""
    matrix = np.random.default_rng(1).normal(0, 1, (128, 600)).astype(np.float32)
    matrix[:, 300] *= 1000
    largest = np.abs(matrix.reshape(2, 64, 600)).max(1)
    distance = largest - largest.mean(dtype=np.float64)
    expected = np.zeros((2, 600))
    for start in range(0, 600, 256):
        group = distance[:, start : start + 256]
        top = np.abs(group).max(1, keepdims=True)
        table = signed_table().astype(np.float64)
        expected[:, start : start + 256] = table[np.abs(group[..., None] / top[..., None] - table).argmin(-1)] * top
    parts = encode("nf4", jnp.asarray(matrix))
    assert parts["scale_scales"].shape == (2, 3)
    np.testing.assert_allclose(quantization._scales(parts), expected + largest.mean(), rtol=1e-4)


def test_the_table_of_scales_is_that_of_the_arithmetic():
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(signed_table(), signed_values(jnp.asarray(codes)), rtol=1e-6)
    assert signed_table()[[0, 127, 255]] == pytest.approx([-0.99296874, 0, 1])  # bitsandbytes' first, middle and last
    np.testing.assert_array_equal(signed_codes(jnp.asarray(signed_table())), codes)


def test_bits_of_a_number():
    matrix = drawn((1024, 512))
    bits = {kind: sum(x.nbytes for x in encode(kind, matrix).values()) * 8 / matrix.size for kind in BLOCKS}
    assert bits == pytest.approx({"int8": 8.5, "int4": 5.0, "nf4": 4.127}, abs=2e-3)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_of_zeros_stays_zero(kind):
    matrix = drawn((128, 8)).at[64:].set(0.0)
    assert not np.asarray(decode(encode(kind, matrix), 1, jnp.float32))[64:].any()
    assert np.isfinite(decode(encode(kind, jnp.zeros((64, 4))), 1, jnp.float32)).all()


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("shape, inputs", SHAPES)
@pytest.mark.parametrize("tile", [1 << 24, 400])
def test_a_product_and_its_gradient_are_those_of_the_decoded_matrix(kind, shape, inputs, tile, monkeypatch):
    monkeypatch.setattr(quantization, "TILE", tile)
    parts = encode(kind, drawn(shape), inputs)
    x = drawn((2, 3, *shape[:inputs]), 1)
    whole = decode(parts, inputs, jnp.float32)

    def loss(times):
        return lambda x: jnp.sum(jnp.sin(times(x)))

    ours = jax.jit(jax.value_and_grad(loss(lambda x: product(x, parts))))(x)
    plain = jax.jit(jax.value_and_grad(loss(lambda x: jnp.tensordot(x, whole, inputs))))(x)
    for found, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("shape, inputs", SHAPES)
def test_one_row_by_blocks_gives_the_same(kind, shape, inputs):
    parts = encode(kind, drawn(shape), inputs)
    x = drawn((1, 1, *shape[:inputs]), 1)
    np.testing.assert_allclose(product(x, parts, by_blocks=True), product(x, parts), rtol=1e-4, atol=1e-6)


def test_no_decoded_matrix_is_kept_for_the_backward_pass():
    parts = jax.tree.map(lambda x: jnp.stack([x] * 8), encode("nf4", drawn((256, 256))))

    def loss(x, parts):
        return jnp.sum(jax.lax.scan(lambda x, layer: (product(x, layer), None), x, parts)[0])

    x = drawn((1, 2, 256), 1)
    text = jax.jit(jax.grad(loss)).lower(x, parts).compile().as_text()
    assert "f32[8,256,256]" not in text and "f32[2,256]" in text


@pytest.mark.parametrize("kind", BLOCKS)
def test_rows_of_a_table_are_those_of_the_head_that_it_makes(kind):
    sizes = jnp.linspace(1, 9, 600)[:, None]
    table = drawn((600, 128)) * sizes
    parts = encode_table(kind, table)
    tokens = jnp.array([[3, 599, 0], [3, 257, 7]])
    whole = decode(as_head(parts), 1, jnp.float32).T
    np.testing.assert_array_equal(rows(parts, tokens, jnp.float32), whole[tokens])
    assert np.abs((whole - table) / sizes).max() < {"int8": 1e-3, "int4": 0.02, "nf4": 0.05}[kind]


def test_numbers_are_ggufs():
    """What the gguf package decodes from the same codes: Q8_0 and Q4_1, rows being outputs there."""
    matrix = drawn((64, 6))
    for kind, name in (("int8", "Q8_0"), ("int4", "Q4_1")):
        parts = {n: np.asarray(x).T for n, x in encode(kind, matrix).items()}
        scales = parts["scales"][..., None].view(np.uint8)
        fields = [scales, *([parts["mins"][..., None].view(np.uint8)] if "mins" in parts else [])]
        codes = parts[kind].view(np.uint8).reshape(6, 2, -1)
        raw = np.concatenate([*fields, codes], axis=-1).reshape(6, -1)
        there = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
        np.testing.assert_allclose(there.T, decode(encode(kind, matrix), 1, jnp.float32), rtol=1e-6, atol=1e-7)


def test_a_mistake_says_what_there_is():
    with pytest.raises(ValueError, match="quantisation 'int3': give one of int8, int4, nf4"):
        encode("int3", drawn((32, 4)))
    with pytest.raises(ValueError, match="odd in number"):
        encode("int8", drawn((33, 4)))
