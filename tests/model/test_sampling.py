"""The drawn distribution against a slow one in numpy that sorts, and draws against the distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.model import sampling
from camelid.model.sampling import Sampling, row_sampling

draw_rows = jax.jit(sampling.draw)
reshape_rows = jax.jit(sampling.reshape_distribution)
VOCAB = 37


def reshape_distribution(settings, logits_RV, seen_RV=None):
    rows, _ = row_sampling([settings] * len(logits_RV), logits_RV.shape[1])
    return reshape_rows(rows, logits_RV, seen_RV)


def draw(settings, keys_R, logits_RV, seen_RV=None):
    rows, _ = row_sampling([settings] * len(logits_RV), logits_RV.shape[1])
    return draw_rows(rows, keys_R, logits_RV, seen_RV)


RESHAPINGS = [
    dict(),
    dict(temperature=0.7),
    dict(top_k=5),
    dict(top_p=0.8),
    dict(min_p=0.1),
    dict(repetition_penalty=1.7),
    dict(temperature=1.3, top_k=12, top_p=0.9, min_p=0.05, repetition_penalty=1.2),
    dict(top_k=VOCAB + 5, top_p=0.99),
]


def rows(count: int, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, VOCAB)).astype(np.float32) * scale, rng.random((count, VOCAB)) < 0.3


def slow_log_probs(logits, seen, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0):
    """One row, one transform after the other, each time renormalised, token by token."""
    scores = {}
    for token, logit in enumerate(logits.astype(np.float64)):
        if seen[token]:
            logit = logit / repetition_penalty if logit > 0 else logit * repetition_penalty
        scores[token] = logit / temperature
    ranked = sorted(scores, key=scores.get, reverse=True)
    if top_k:
        ranked = ranked[:top_k]

    def probs():
        total = sum(np.exp(scores[token]) for token in ranked)
        return {token: np.exp(scores[token]) / total for token in ranked}

    kept, mass = [], 0.0
    for token, prob in probs().items():
        if mass < top_p:
            kept.append(token)
        mass += prob
    ranked = kept
    ranked = [token for token, prob in probs().items() if prob >= min_p * probs()[ranked[0]]]
    out = np.full(len(logits), -np.inf)
    for token, prob in probs().items():
        out[token] = np.log(prob)
    return out


@pytest.mark.parametrize("options", RESHAPINGS, ids=str)
def test_the_distribution_and_both_log_probabilities_equal_slow_ones(options):
    logits_RV, seen_RV = rows(40)
    reshaped_RV = reshape_distribution(Sampling(**options), jnp.array(logits_RV), jnp.array(seen_RV))
    got_RV = np.asarray(jax.nn.log_softmax(reshaped_RV, axis=-1))
    want_RV = np.stack([slow_log_probs(*row, **options) for row in zip(logits_RV, seen_RV, strict=True)])
    np.testing.assert_array_equal(np.isneginf(got_RV), np.isneginf(want_RV))
    np.testing.assert_allclose(got_RV, want_RV, rtol=1e-4, atol=1e-5)

    keys_R = jax.random.split(jax.random.key(0), 40)
    tokens_R, model_R, drawn_R = draw(Sampling(**options), keys_R, jnp.array(logits_RV), jnp.array(seen_RV))
    chosen = np.arange(40), np.asarray(tokens_R)
    plain_RV = np.stack([slow_log_probs(*row) for row in zip(logits_RV, seen_RV, strict=True)])
    np.testing.assert_allclose(drawn_R, want_RV[chosen], atol=1e-4)
    np.testing.assert_allclose(model_R, plain_RV[chosen], atol=1e-4)


def test_a_tiny_top_p_keeps_the_likeliest_token_alone():
    logits_RV, _ = rows(20)
    kept_RV = reshape_distribution(Sampling(top_p=1e-6), jnp.array(logits_RV)) > -jnp.inf
    np.testing.assert_array_equal(kept_RV.sum(axis=-1), 1)
    np.testing.assert_array_equal(kept_RV.argmax(axis=-1), logits_RV.argmax(axis=-1))


def test_equal_logits_at_the_edge_are_kept_together():
    logits_RV = jnp.log(jnp.array([[0.4, 0.2, 0.2, 0.1, 0.1]]))
    for options in (dict(top_k=2), dict(top_p=0.5)):
        kept_V = (reshape_distribution(Sampling(**options), logits_RV) > -jnp.inf)[0]
        assert kept_V.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("vocab", [2, 37, 64, 129])
@pytest.mark.parametrize("options", [dict(), dict(temperature=1.5, top_p=0.9)], ids=str)
def test_frequencies_of_many_draws_fit_the_distribution(vocab, options):
    count = 20_000
    logits_V = np.random.default_rng(vocab).normal(size=vocab).astype(np.float32) * 1.5
    logits_RV = jnp.broadcast_to(logits_V, (count, vocab))
    tokens_R, _, _ = draw(Sampling(**options), jax.random.split(jax.random.key(vocab), count), logits_RV)
    probs_V = np.exp(slow_log_probs(logits_V, np.zeros(vocab, bool), **options))
    observed_V = np.bincount(np.asarray(tokens_R), minlength=vocab)
    assert not observed_V[probs_V == 0].any()
    likely_V = probs_V * count > 5
    expected_V = probs_V[likely_V] * count
    chi_square = np.sum((observed_V[likely_V] - expected_V) ** 2 / expected_V)
    freedom = max(likely_V.sum() - 1, 1)
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_temperature_zero_takes_the_likeliest_after_the_penalty():
    logits_RV = jnp.array([[2.0, 1.9, -1.0], [-2.0, -1.0, -1.1]])
    seen_RV = jnp.array([[True, False, False], [False, True, False]])
    keys_R = jax.random.split(jax.random.key(0), 2)
    greedy = draw(Sampling(temperature=0), keys_R, logits_RV)
    penalised = draw(Sampling(temperature=0, repetition_penalty=1.2), keys_R, logits_RV, seen_RV)
    assert greedy[0].tolist() == [0, 1]
    assert penalised[0].tolist() == [1, 2]
    np.testing.assert_array_equal(penalised[2], 0)
    np.testing.assert_allclose(penalised[1], jax.nn.log_softmax(logits_RV)[jnp.arange(2), jnp.array([1, 2])], 1e-6)


def test_a_draw_depends_on_its_own_key_and_row_alone():
    logits_RV, _ = rows(16)
    keys_R = jax.random.split(jax.random.key(3), 16)
    together_R, _, _ = draw(Sampling(), keys_R, jnp.array(logits_RV))
    for r in (0, 7, 15):
        alone_1, _, _ = draw(Sampling(), keys_R[r : r + 1], jnp.array(logits_RV[r : r + 1]))
        assert alone_1[0] == together_R[r]


def test_rows_with_settings_of_their_own_have_the_distributions_that_each_has_alone():
    logits_RV, seen_RV = (jnp.array(x) for x in rows(len(RESHAPINGS) + 1))
    settings = [*(Sampling(**options) for options in RESHAPINGS), Sampling(temperature=0, repetition_penalty=1.7)]
    keys_R = jax.random.split(jax.random.key(5), len(settings))
    together, _ = row_sampling(settings, VOCAB)
    reshaped_RV = sampling.reshape_distribution(together, logits_RV, seen_RV)
    drawn = sampling.draw(together, keys_R, logits_RV, seen_RV)
    for r, each in enumerate(settings):
        row = slice(r, r + 1)
        np.testing.assert_array_equal(reshaped_RV[row], reshape_distribution(each, logits_RV[row], seen_RV[row]))
        for got, want in zip(drawn, draw(each, keys_R[row], logits_RV[row], seen_RV[row]), strict=True):
            np.testing.assert_allclose(got[row], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5, 36, 37, 40])
def test_the_kth_largest_logit_is_that_of_a_sort(k):
    logits_RV, _ = rows(30)
    logits_RV[0, :20], logits_RV[1], logits_RV[2, 3:] = -np.inf, 0.0, np.finfo(np.float32).min
    logits_RV[3, ::2] = -0.0
    found_R1 = sampling._kth_largest(jnp.array(logits_RV), jnp.full(30, k))
    np.testing.assert_array_equal(found_R1[:, 0], -np.sort(-logits_RV, axis=1)[:, min(k, VOCAB) - 1])


def test_rows_of_one_batch_have_one_vocabulary():
    with pytest.raises(ValueError, match="unused"):
        row_sampling([Sampling(unused=((3, 5),)), Sampling()], VOCAB)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(max_tokens=0),
        dict(temperature=-0.1),
        dict(top_k=-1),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(min_p=1.5),
        dict(repetition_penalty=0.0),
        dict(n=0),
    ],
    ids=str,
)
def test_a_setting_out_of_bounds_is_named_with_its_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} {value}"):
        Sampling(**wrong)


def test_sampling_is_hashable_whatever_holds_the_stop_ids():
    assert hash(Sampling(stop_ids=[1, 2])) == hash(Sampling(stop_ids=(1, 2)))


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-9, 9e-6])
def test_a_temperature_near_0_is_greedy(temperature):
    logits_RV = jnp.asarray(np.random.default_rng(0).normal(size=(3, VOCAB)) * 8, jnp.float32)
    keys_R = jax.random.split(jax.random.key(0), 3)
    tokens_R, logprobs_R, sampling_logprobs_R = draw(Sampling(temperature=temperature, top_k=3), keys_R, logits_RV)
    np.testing.assert_array_equal(tokens_R, np.argmax(logits_RV, axis=1))
    assert np.isfinite(logprobs_R).all() and not np.any(sampling_logprobs_R)


@pytest.mark.parametrize(
    "given",
    [
        dict(stop_ids=5),
        dict(stop_ids=None),
        dict(stop_ids=("a",)),
        dict(stop_ids=(2**40,)),
        dict(stop_ids=(-1,)),
        dict(repetition_penalty=1e-39),
        dict(repetition_penalty=1e39),
    ],
)
def test_settings_that_a_device_cannot_hold_are_refused(given):
    with pytest.raises(ValueError, match=f"^sampling {next(iter(given))} .*: "):
        Sampling(**given)
