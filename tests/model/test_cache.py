"""Decoding: the key/value cache in codes of 8 bits, against numpy and the cache in floats; how weights are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.model import decode, llama, lora, speculative, storage
from camelid.model.attention import attend_cache
from camelid.model.cache import Cache, keep, make_cache
from camelid.model.config import LlamaConfig
from camelid.model.decoder import Decoder
from camelid.model.lora import Lora
from camelid.model.sampling import Sampling
from camelid.model.sharding import make_mesh, shardings
from camelid.model.weights import Weight

CONFIG = LlamaConfig.preset("nano-test", cache="int8")
B, K, G, S, E = 2, 2, 3, 9, 16


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("codes", [False, True])
def test_attention_reads_as_many_slots_as_it_is_told_and_more_change_no_bit(codes):
    slots, used = 512, 200
    cache = Cache(drawn(0, B * K, slots, E), drawn(1, B * K, slots, E))
    cache = cache.encode() if codes else cache
    q = drawn(2, B, 1, K * G, E)
    valid = jnp.broadcast_to(
        jnp.arange(slots)[None, None] < jnp.array([used, 3] * K).reshape(-1, 1, 1), (B * K, 1, slots)
    )
    attend = jax.jit(lambda filled: attend_cache(q, valid, *cache, filled=filled))
    found = attend(used)
    np.testing.assert_allclose(found, attend_cache(q, valid, *cache), atol=1e-4 if codes else 1e-6)
    for more in (used + 1, 256, 300, slots):
        np.testing.assert_array_equal(attend(more), found)
    assert not np.allclose(attend(100), found)
    np.testing.assert_array_equal(attend(jnp.array([used, used])), found)
    apart = attend(jnp.array([0, used]))
    np.testing.assert_array_equal(apart[1], found[1])
    assert np.all(apart[0] == 0)


@pytest.mark.parametrize("lead", [(3 * K,), (3, K)])
def test_rows_write_at_slots_of_their_own(lead):
    first, T = [5, 0, 7], 2
    old, new = drawn(0, 3, K, S, E), drawn(1, 3, T, K, E)
    expected = np.array(old)
    for b, slot in enumerate(first):
        expected[b, :, slot : slot + T] = np.swapaxes(new[b], 0, 1)
    cache = Cache(old.reshape(*lead, S, E), -old.reshape(*lead, S, E))
    found = cache.write(new, -new, jnp.array(first))
    np.testing.assert_array_equal(found.keys_LSE, expected.reshape(*lead, S, E))
    np.testing.assert_array_equal(found.values_LSE, -expected.reshape(*lead, S, E))


@pytest.mark.parametrize("lead", [(3 * K,), (3, K)])
@pytest.mark.parametrize("codes", [False, True])
def test_one_row_of_several_is_written_and_read_as_if_it_were_alone(lead, codes):
    old, new, q = drawn(0, 3, K, S, E), drawn(1, 1, 2, K, E), drawn(2, 1, 2, K * G, E)
    caches = [
        Cache(x, -x) for x in (old.reshape(*lead, S, E), old[1].reshape(*((1, K) if len(lead) > 1 else (K,)), S, E))
    ]
    whole, alone = (cache.encode() for cache in caches) if codes else caches
    written, expected = whole.write(new, -new, jnp.int32(3), jnp.int32(1)), alone.write(new, -new, jnp.int32(3))
    for found, one, before in zip(*map(jax.tree.leaves, (written, expected, whole)), strict=True):
        found, before = (np.array(x).reshape(3, K, *x.shape[len(lead) :]) for x in (found, before))
        np.testing.assert_array_equal(found[1], np.reshape(one, found[1].shape))
        np.testing.assert_array_equal(found[[0, 2]], before[[0, 2]])
    valid = jnp.broadcast_to(jnp.arange(S)[None] <= jnp.array([3, 4])[:, None], (*expected.keys_LSE.shape[:-2], 2, S))
    found = attend_cache(q, valid, *written, filled=jnp.int32(5), row=jnp.int32(1))
    np.testing.assert_array_equal(found, attend_cache(q, valid, *expected, filled=jnp.int32(5)))


def test_attention_over_codes_is_attention_over_the_vectors_that_they_stand_for():
    keys, values, q = drawn(0, B * K, S, E), drawn(1, B * K, S, E) * 3, drawn(2, B, 2, K * G, E)
    cache = Cache(keys, values).encode()
    valid = jnp.arange(S)[None, None] <= jnp.array([5, 6])[None, :, None]
    found = attend_cache(q, jnp.broadcast_to(valid, (B * K, 2, S)), *cache)

    for codes, scales, x in ((*cache[::2], keys), (*cache[1::2], values)):
        assert codes.dtype == jnp.int8 and scales.shape == (B * K, S)
        np.testing.assert_allclose(codes * scales[..., None], x, atol=0.51 * float(jnp.abs(x).max()) / 127)
        assert np.abs(codes).max(axis=-1).min() == 127  # each vector by its own largest number
    k, v = (np.asarray(c, np.float64) * np.asarray(s)[..., None] for c, s in (cache[::2], cache[1::2]))
    for b in range(B):
        for t, seen in enumerate((6, 7)):
            for h in range(K * G):
                row = b * K + h // G
                scores = k[row, :seen] @ np.asarray(q[b, t, h], np.float64) / E**0.5
                weights = np.exp(scores - scores.max())
                expected = weights @ v[row, :seen] / weights.sum()
                # Queries and weights are integers of 16 bits, codes of 8 would be off by 1e-2.
                np.testing.assert_allclose(found[b, t, h], expected, atol=5e-4)


@pytest.mark.parametrize("first", [4, (3, 6)], ids=["one slot", "a slot for each row"])
def test_what_is_written_is_encoded_and_the_rest_stays(first):
    config = CONFIG.replace(n_heads=K, n_kv_heads=K, head_dim=E)
    cache = make_cache(keep(config, drawn(0, B, 3, K, E), drawn(1, B, 3, K, E)), 1, S)
    k, v = drawn(2, B, 2, K, E), drawn(3, B, 2, K, E)
    written = cache.write(k, v, jnp.array(first))
    for codes, scales, old_codes, old_scales, new in (
        (*written[::2], *cache[::2], k),
        (*written[1::2], *cache[1::2], v),
    ):
        assert codes.dtype == jnp.int8
        for row in range(B * K):
            slot = np.broadcast_to(first, B)[row // K]
            rest = [s for s in range(S) if not slot <= s < slot + 2]
            np.testing.assert_array_equal(codes[row, jnp.array(rest)], old_codes[row, jnp.array(rest)])
            np.testing.assert_array_equal(scales[row, jnp.array(rest)], old_scales[row, jnp.array(rest)])
            found = codes[row, slot : slot + 2] * scales[row, slot : slot + 2, None]
            np.testing.assert_allclose(found, new[row // K, :, row % K], atol=0.02)


def test_a_cache_in_codes_takes_a_quarter_of_the_bytes_and_a_scale_for_each_vector():
    k, v = drawn(0, B, 3, K, E), drawn(1, B, 3, K, E)
    sizes = {
        kind: sum(x.nbytes for x in jax.tree.leaves(make_cache(keep(CONFIG.replace(cache=kind), k, v), 2, S)))
        for kind in (None, "int8")
    }
    vectors = 2 * (2 * B) * K * S
    assert sizes[None] == vectors * E * 4 and sizes["int8"] == vectors * (E + 4)


def test_decoding_over_codes_gives_nearly_the_same_distributions():
    params = llama.build(CONFIG).init(jax.random.key(0))
    tokens, lengths = decode.pad_prompts([[5, 9, 200, 31], [7, 8]])
    sampling = Sampling(max_tokens=12, temperature=0.0)
    exact, coded = (
        decode.generate(llama.build(CONFIG.replace(cache=kind)), params, tokens, lengths, jax.random.key(0), sampling)
        for kind in (None, "int8")
    )
    same = np.cumprod(np.asarray(exact.tokens == coded.tokens), axis=-1).astype(bool)  # until answers part
    assert same[..., :4].all()
    difference = np.abs(np.asarray(exact.logprobs - coded.logprobs))[same]
    assert 0 < difference.max() < 0.05


def some_answers(run, *networks, **options):
    tokens, lengths = decode.pad_prompts([[5, 9, 200, 31], [7, 8]] * 2)
    return run(*networks, tokens, lengths, jax.random.key(0), Sampling(max_tokens=12, temperature=0.0), **options)


EVERYTHING = LlamaConfig.preset(
    "nano-test",
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    qk_norm=True,
    window=4,
    attention_scale=0.3,
    embedding_multiplier=3.0,
    residual_multiplier=0.7,
    logit_divisor=0.5,
)
"""All that other families add to a LLaMA at once."""


@pytest.mark.parametrize("config", [CONFIG, EVERYTHING], ids=["int8", "everything"])
def test_answers_are_the_same_on_a_mesh_and_with_a_draft(config):
    model = llama.build(config)
    params = jax.tree.map(lambda x: x * 2 + 0.05 * drawn(6, *x.shape), model.init(jax.random.key(0)))
    alone = some_answers(decode.generate, model, params)
    mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        split = some_answers(decode.generate, model, jax.device_put(params, shardings(params, mesh)))
    near = jax.tree.map(lambda x: x + 0.03 * drawn(5, *x.shape), params)
    drafted = some_answers(speculative.generate, model, params, model, near, k=3)
    assert 0 < drafted.accepted.sum() < drafted.proposed.sum()
    prompt, answer = jnp.array([[5, 9, 200, 31]]), alone.tokens[0, 0]
    whole = jax.nn.log_softmax(model.apply(params, jnp.concatenate([prompt, answer[None]], axis=1)))[0, 3:-1]
    if config.cache is None:
        np.testing.assert_array_equal(whole.argmax(-1), answer)
        np.testing.assert_allclose(whole.max(-1), alone.logprobs[0, 0], atol=1e-3)
    for found in (split, drafted.answer):
        np.testing.assert_array_equal(found.tokens, alone.tokens)
        np.testing.assert_allclose(found.logprobs, alone.logprobs, atol=1e-3)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="cache 'int4': give int8, or None"):
        CONFIG.replace(cache="int4")


@pytest.mark.parametrize("kind", ["tied", "untied", "int8", "dora", "everything"])
def test_weights_compute_the_same_from_the_left_as_they_lie(kind):
    config = EVERYTHING if kind == "everything" else LlamaConfig.preset("nano-test", tied=kind != "untied")
    model = llama.build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    if kind == "everything":
        params = jax.tree.map(lambda x: x + 0.1 * drawn(6, *x.shape), params)
    if kind == "int8":
        params = storage.quantize(params, ((r".*norm/scale", None), (r".*", "int8")))
    if kind == "dora":
        params = lora.adapt(
            Lora(((r"layers/(attention|mlp)/.*", 2),), dora=True), params, model.abstract_params, jax.random.key(1)
        )
        params["layers"]["mlp"]["up"]["b"] += 0.1
    logits = []
    for positions in (1, 6):  # that a pass is said to take; it takes six
        decoder = Decoder(model.bind(params), positions)
        head = decoder.kernel.get_value()
        assert (isinstance(head, Weight) and "left" in head.parts) == (positions > 1)
        tokens = jnp.arange(6).reshape(2, 3)
        blank = jnp.zeros((2, 0, config.n_kv_heads, config.head_dim))
        caches = [make_cache(keep(config, blank, blank), 1, 3)] * config.n_layers
        logits.append(decoder(tokens, jnp.int32(0), jnp.zeros(2, jnp.int32), caches)[0])
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-5, atol=1e-5)
    assert np.abs(logits[0]).max() > 0.1
