"""Models that give numbers: what they read, how their heads begin and are rescaled, and where trunks come from."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid import checkpoints
from camelid.checkpoints.saving import Checkpoints
from camelid.errors import UserError
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.sharding import make_mesh
from camelid.rlhf import rewards, scalar
from camelid.tests.rlhf.numpy_llama import hidden
from camelid.train.network import FrozenWeights

CONFIG = LlamaConfig.preset("nano-test", vocab_size=61, dim=32, n_heads=2, n_kv_heads=1, ffn_dim=48, unroll=1)
LENGTHS = np.array([7, 1, 10, 4], np.int32)


@pytest.fixture(scope="module")
def model():
    return scalar.build(CONFIG, heads=3)


@pytest.fixture(scope="module")
def params(model):
    drawn = jax.jit(model.init)(jax.random.key(0))
    return drawn | {"score": drawn["score"] | {"bias": jnp.array([0.5, -1.0, 2.0])}}


@pytest.fixture(scope="module")
def last_scores(model):
    return jax.jit(lambda params, tokens, lengths: scalar.last_scores(model, params, tokens, lengths))


def rows(width, filler=0):
    rng = np.random.default_rng(1)
    tokens_RT = np.full((len(LENGTHS), width), filler, np.int32)
    for row_T, length in zip(tokens_RT, LENGTHS, strict=True):
        row_T[:length] = rng.integers(1, 61, length)
    return tokens_RT


def test_a_score_is_that_of_the_last_real_token_whatever_the_padding(params, last_scores):
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), params["score"])
    narrow = rows(10)
    expected_RH = [
        hidden(CONFIG, params, row[:length])[-1] @ head["kernel"] + head["bias"]
        for row, length in zip(narrow, LENGTHS, strict=True)
    ]
    for tokens_RT in (narrow, rows(13), rows(13, filler=9)):
        found_RH = last_scores(params, tokens_RT, LENGTHS)
        assert found_RH.dtype == jnp.float32
        np.testing.assert_allclose(found_RH, expected_RH, rtol=0, atol=2e-5)


def test_heads_are_read_in_float32_from_a_network_in_bfloat16(params):
    model = scalar.build(CONFIG.replace(dtype="bfloat16"), heads=3)
    found = jax.jit(lambda tokens: model.apply(params, tokens))(rows(13))
    assert found.dtype == jnp.float32
    assert np.any(np.asarray(found.astype(jnp.bfloat16), np.float32) != np.asarray(found))


def test_a_head_begins_with_deviation_1_over_the_root_of_width_plus_1():
    config = CONFIG.replace(dim=624)
    head = scalar.init_head(jax.random.key(0), config, heads=50)
    assert head["kernel"].shape == (624, 50) and head["bias"].shape == (50,)
    assert float(jnp.std(head["kernel"])) == pytest.approx(0.04, rel=0.02)
    assert abs(float(jnp.mean(head["kernel"]))) < 1e-3 and not np.any(head["bias"])


def test_rescaled_heads_give_gain_times_the_score_plus_offset(params, last_scores):
    gain_H, offset_H = np.array([2.0, 0.1, -3.0], np.float32), np.array([1.0, -5.0, 0.25], np.float32)
    before_RH = np.asarray(last_scores(params, rows(10), LENGTHS))
    changed = scalar.rescale(params, gain_H, offset_H)
    np.testing.assert_allclose(last_scores(changed, rows(10), LENGTHS), before_RH * gain_H + offset_H, atol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, scalar.without_head(changed), scalar.without_head(params))


def test_an_ensemble_s_verdict_is_the_mean_less_some_deviations_over_heads():
    scores_RH = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    for pessimism in (0.0, 1.5):
        expected = [np.mean(row) - pessimism * np.sqrt(np.mean((row - np.mean(row)) ** 2)) for row in scores_RH]
        np.testing.assert_allclose(scalar.combine(jnp.array(scores_RH), pessimism), expected, rtol=1e-5)
    one_R1 = jnp.array(scores_RH[:, :1])
    np.testing.assert_array_equal(scalar.combine(one_R1, 3.0), scores_RH[:, 0])


# Checkpoints


def saved(folder, params, **manifest):
    manifest = {"config": {}, "tokenizer": {"fingerprint": "a"}, "model": CONFIG.to_dict()} | manifest
    with Checkpoints(folder) as store:
        store.save(1, {"params": params, "step": jnp.int32(1)}, manifest, force=True)
    return folder


@pytest.mark.parametrize("source", ["tied", "untied", "scalar", "policy"])
def test_a_trunk_is_loaded_from_any_model_without_its_heads(source, model, params, tmp_path):
    def drawn(config):
        return jax.jit(llama.build(config).init)(jax.random.key(5))

    untied = drawn(CONFIG.replace(tied=False))
    stored, manifest = {
        "tied": (drawn(CONFIG), {}),
        "untied": (untied, {}),
        "scalar": (params, {"kind": "scalar", "heads": 3}),
        "policy": ({"policy": untied, "critic": params}, {"policy": "policy"}),
    }[source]
    abstract = jax.eval_shape(scalar.build(CONFIG).init, jax.random.key(0))
    found = checkpoints.open(saved(tmp_path, stored, **manifest)).load_params(scalar.without_head(abstract), some=True)
    expected = stored.get("policy", stored)
    assert "head" in expected or source in ("tied", "scalar")
    assert found.keys() == {"embed", "layers", "norm"}
    jax.tree.map(np.testing.assert_array_equal, found, {name: expected[name] for name in found})


def test_a_trunk_of_another_size_does_not_fit(params, tmp_path):
    abstract = jax.eval_shape(scalar.build(CONFIG.replace(n_layers=3)).init, jax.random.key(0))
    with pytest.raises(UserError, match="does not fit"):
        checkpoints.open(saved(tmp_path, params, kind="scalar")).load_params(scalar.without_head(abstract), some=True)


def test_a_reward_model_is_loaded_whole_and_only_beside_its_own_tokenizer(model, params, last_scores, tmp_path):
    frozen = FrozenWeights(make_mesh({}, jax.devices()[:1]))

    def opened(path):
        found = checkpoints.open(path)
        found.tokenizer = SimpleNamespace(fingerprint="a", difference=lambda other: "they differ")
        return found

    path = saved(tmp_path / "scalar", params, kind="scalar", heads=3)
    found, loaded = rewards.load_model(opened(path), SimpleNamespace(fingerprint="a"), frozen, "bfloat16")
    assert (found.heads, found.config.dtype, found.config.n_layers) == (3, "bfloat16", CONFIG.n_layers)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    with pytest.raises(UserError, match="tokenizer"):
        rewards.load_model(opened(path), SimpleNamespace(fingerprint="b"), frozen, "float32")
    words = saved(tmp_path / "words", scalar.without_head(params))
    with pytest.raises(UserError, match="a language model; a reward or cost model comes from"):
        rewards.load_model(opened(words), SimpleNamespace(fingerprint="a"), frozen, "float32")
