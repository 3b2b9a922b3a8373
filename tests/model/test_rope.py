"""Rotary embedding against Meta's complex numbers, and each scaling against its paper's words."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.model import rope
from camelid.model.config import LlamaConfig, RopeScaling

E = 16
PLAIN = LlamaConfig.preset("nano-test", head_dim=E)
PLAIN_FREQUENCIES = np.array([10_000.0 ** (-2 * i / E) for i in range(E // 2)])


def scaled(kind, factor, **fields):
    return rope.frequencies(PLAIN.replace(rope_scaling=RopeScaling(kind, factor, **fields)))


def meta_rotate(x_THE: np.ndarray, theta: float) -> np.ndarray:
    """Llama's own code: neighbours (2i, 2i + 1) are a complex number, times exp(j * position * theta^(-2i/E))."""
    T, H, width = x_THE.shape
    z = x_THE[..., 0::2] + 1j * x_THE[..., 1::2]
    for position in range(T):
        for i in range(width // 2):
            z[position, :, i] *= np.exp(1j * position * theta ** (-2 * i / width))
    return np.stack([z.real, z.imag], axis=-1).reshape(T, H, width)


def halves_rotate(x_THE: np.ndarray) -> np.ndarray:
    cos, sin = rope.angles(PLAIN, jnp.arange(len(x_THE))[None])
    return np.asarray(rope.rotate(jnp.asarray(x_THE, jnp.float32)[None], cos, sin))[0]


def test_metas_weights_permuted_give_metas_rotated_queries_permuted():
    random = np.random.RandomState(0)
    x_TD, w_DHE = random.standard_normal((9, 12)), random.standard_normal((12, 3, E))
    expected = meta_rotate(np.einsum("td,dhe->the", x_TD, w_DHE), PLAIN.rope_theta)
    actual = halves_rotate(np.einsum("td,dhe->the", x_TD, rope.from_interleaved(w_DHE)))
    np.testing.assert_allclose(rope.to_interleaved(actual), expected, atol=1e-5)


def test_scores_of_permuted_weights_equal_metas_scores():
    random = np.random.RandomState(1)
    x_TD, q_DHE, k_DHE = (random.standard_normal(shape) for shape in ((9, 12), (12, 3, E), (12, 3, E)))
    interleaved = [meta_rotate(np.einsum("td,dhe->the", x_TD, w), PLAIN.rope_theta) for w in (q_DHE, k_DHE)]
    halves = [halves_rotate(np.einsum("td,dhe->the", x_TD, rope.from_interleaved(w))) for w in (q_DHE, k_DHE)]
    expected, actual = (np.einsum("the,she->hts", *pair) for pair in (interleaved, halves))
    np.testing.assert_allclose(actual, expected, atol=2e-4 * np.abs(expected).max())


def test_permutations_undo_each_other_and_move_only_the_last_axis():
    w = np.arange(3 * 8).reshape(3, 8)
    np.testing.assert_array_equal(rope.from_interleaved(w)[0], [0, 2, 4, 6, 1, 3, 5, 7])
    np.testing.assert_array_equal(rope.to_interleaved(w)[0], [0, 4, 1, 5, 2, 6, 3, 7])
    np.testing.assert_array_equal(rope.to_interleaved(rope.from_interleaved(w)), w)
    np.testing.assert_array_equal(rope.from_interleaved(rope.to_interleaved(w)), w)


def test_rotation_keeps_lengths_and_depends_only_on_distance():
    random = np.random.RandomState(2)
    q, k = (np.broadcast_to(random.standard_normal(E), (40, 1, E)) for _ in range(2))
    turned_q, turned_k = halves_rotate(q), halves_rotate(k)
    np.testing.assert_allclose(np.linalg.norm(turned_q, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)
    scores = turned_q[:, 0] @ turned_k[:, 0].T
    for distance in (0, 3, 20):
        diagonal = np.diagonal(scores, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    assert abs(scores[3, 0] - scores[0, 0]) > 0.1


def test_plain_frequencies_are_powers_of_the_base():
    frequencies, amplitude = rope.frequencies(PLAIN)
    np.testing.assert_allclose(frequencies, PLAIN_FREQUENCIES, rtol=1e-6)
    assert frequencies.dtype == np.float32 and amplitude == 1


def test_linear_divides_every_frequency():
    frequencies, amplitude = scaled("linear", 4.0)
    np.testing.assert_allclose(frequencies, PLAIN_FREQUENCIES / 4, rtol=1e-6)
    assert amplitude == 1


def test_ntk_keeps_the_fastest_pair_and_divides_the_slowest_by_the_factor():
    frequencies, amplitude = scaled("ntk", 4.0)
    ratio = PLAIN_FREQUENCIES / frequencies
    assert ratio[0] == pytest.approx(1, rel=1e-6) and ratio[-1] == pytest.approx(4, rel=1e-6) and amplitude == 1
    np.testing.assert_allclose(ratio, [4 ** (i / (E // 2 - 1)) for i in range(E // 2)], rtol=1e-5)


def yarn_ratio(i: int, *, factor: float, original: int, beta_fast: float, beta_slow: float) -> float:
    """YaRN (arXiv:2309.00071, section 3.2): the pair that turns r times in L tokens is E ln(L / 2 pi r) / 2 ln b."""

    def border(rotations):
        return E * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(10_000.0))

    low, high = math.floor(border(beta_fast)), math.ceil(border(beta_slow))
    interpolated = min(max((i - max(low, 0)) / (high - max(low, 0)), 0), 1)
    return 1 / (interpolated / factor + 1 - interpolated)


@pytest.mark.parametrize("betas", [dict(beta_fast=32.0, beta_slow=1.0), dict(beta_fast=8.0, beta_slow=2.0)])
def test_yarn_keeps_fast_pairs_interpolates_slow_ones_and_ramps_between(betas):
    frequencies, amplitude = scaled("yarn", 4.0, original_max_len=2048, **betas)
    expected = [yarn_ratio(i, factor=4.0, original=2048, **betas) for i in range(E // 2)]
    np.testing.assert_allclose(PLAIN_FREQUENCIES / frequencies, expected, rtol=1e-5)
    assert expected[0] == 1 and expected[-1] == 4 and any(1 < ratio < 4 for ratio in expected)
    assert amplitude == pytest.approx(0.1 * math.log(4) + 1)


def test_yarns_attention_factor_scales_cos_and_sin():
    config = PLAIN.replace(rope_scaling=RopeScaling("yarn", 4.0, original_max_len=2048, attention_factor=1.5))
    cos, sin = rope.angles(config, jnp.arange(10)[None])
    np.testing.assert_allclose(cos**2 + sin**2, 1.5**2, rtol=1e-5)


def llama3_frequency(frequency: float, *, factor: float, original: int, low: float, high: float) -> float:
    """Llama 3.1 as Meta words it: by wavelength, with a smooth blend of the two inverse wavelengths between."""
    wavelength = 2 * math.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


@pytest.mark.parametrize(("low", "high"), [(1.0, 4.0), (0.5, 20.0)])
def test_llama3_follows_metas_wavelength_borders(low, high):
    fields = dict(original_max_len=1024, low_freq_factor=low, high_freq_factor=high)
    frequencies, amplitude = scaled("llama3", 8.0, **fields)
    expected = [llama3_frequency(f, factor=8.0, original=1024, low=low, high=high) for f in PLAIN_FREQUENCIES]
    np.testing.assert_allclose(frequencies, expected, rtol=1e-5)
    ratio = PLAIN_FREQUENCIES / expected
    assert ratio[0] == 1 and ratio[-1] == 8 and ((ratio > 1) & (ratio < 8)).any() and amplitude == 1


def test_angles_stay_float32_and_tell_neighbours_apart_at_long_positions():
    cos, sin = rope.angles(PLAIN.replace(dtype="bfloat16"), jnp.array([[8190, 8191]]))
    assert cos.dtype == sin.dtype == jnp.float32
    np.testing.assert_allclose(cos[0], np.cos(np.outer([8190, 8191], PLAIN_FREQUENCIES)), atol=2e-3)


def test_the_form_for_a_tpu_gives_the_same_bits_and_gradients(monkeypatch):
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.normal(size=(2, 5, 3, 8)), jnp.bfloat16) for _ in range(2))
    angle = rng.normal(size=(2, 5, 4)).astype(np.float32)

    def both():
        out, pull = jax.vjp(lambda x: rope.rotate(x, np.cos(angle), np.sin(angle)), x)
        return out, *pull(gradient)

    expected = both()
    monkeypatch.setattr(rope, "compile_platform", lambda: "tpu")
    for found, value in zip(both(), expected, strict=True):
        assert found.dtype == jnp.bfloat16 and np.array_equal(found, value)


def test_rotate_keeps_the_dtype_of_its_input():
    cos, sin = rope.angles(PLAIN, jnp.arange(3)[None])
    assert rope.rotate(jnp.ones((1, 3, 2, E), jnp.bfloat16), cos, sin).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(kind="cubic", factor=2.0), "'cubic': give one of linear, ntk, dynamic, yarn, longrope, llama3"),
        (dict(kind="linear", factor=0.5), "factor 0.5"),
        (dict(kind="yarn", factor=2.0), "yarn needs original_max_len"),
        (dict(kind="llama3", factor=2.0), "llama3 needs original_max_len"),
    ],
)
def test_a_scaling_that_makes_no_sense_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        RopeScaling(**fields)
