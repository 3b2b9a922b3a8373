"""What is told of a step's answers, against Python's sets and sums over rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.rlhf.experience_metrics import distinct, explained_variance, kl_metrics, repetition, rollout_metrics
from camelid.rlhf.rollout import Rollout


def answers(R=12, M=9, vocab=4, seed=0):
    """Random answers over few tokens, the first as long as there is room and the second of one token."""
    rng = np.random.default_rng(seed)
    lengths_R = rng.integers(1, M + 1, R)
    lengths_R[:2] = M, 1
    mask_RM = (np.arange(M)[None] < lengths_R[:, None]).astype(np.float32)
    return rng.integers(0, vocab, (R, M)).astype(np.int32), mask_RM


def grams_of(tokens_RM, mask_RM, n) -> list[list[tuple]]:
    """Every n-gram of each answer."""
    said = [row[mask > 0].tolist() for row, mask in zip(tokens_RM, mask_RM, strict=True)]
    return [[tuple(row[i : i + n]) for i in range(len(row) - n + 1)] for row in said]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(("vocab", "seed"), [(3, 0), (40, 1), (100_000, 2)])
def test_distinct_and_repeated_ngrams_are_those_of_python_s_sets(n, vocab, seed):
    tokens_RM, mask_RM = answers(vocab=vocab, seed=seed)
    grams = grams_of(tokens_RM, mask_RM, n)
    every = list(itertools.chain(*grams))
    found = jax.jit(distinct, static_argnums=2)(tokens_RM, mask_RM, n)
    assert float(found) == pytest.approx(len(set(every)) / len(every), rel=1e-6)
    again = sum(len(row) - len(set(row)) for row in grams)
    found = jax.jit(repetition, static_argnums=2)(tokens_RM, mask_RM, n)
    assert float(found) == pytest.approx(again / len(every), rel=1e-5, abs=1e-6)


def test_what_stands_after_an_answer_is_not_counted():
    tokens_RM, mask_RM = answers()
    others_RM = np.where(mask_RM > 0, tokens_RM, 77)
    for n in (1, 2):
        assert float(distinct(tokens_RM, mask_RM, n)) == float(distinct(others_RM, mask_RM, n))
        assert float(repetition(tokens_RM, mask_RM, n)) == float(repetition(others_RM, mask_RM, n))


def test_an_answer_that_says_one_thing_over_and_over_and_one_that_never_does():
    ones = np.ones((2, 6), np.float32)
    same, different = np.full((2, 6), 5), np.arange(12).reshape(2, 6)
    assert float(repetition(same, ones, 2)) == pytest.approx(4 / 5)  # of five pairs of tokens four have stood before
    assert float(distinct(same, ones, 2)) == pytest.approx(1 / 10)
    assert float(repetition(different, ones, 2)) == 0.0 and float(distinct(different, ones, 2)) == 1.0


def test_the_share_of_variance_that_values_explain():
    rng = np.random.default_rng(0)
    _, mask_RM = answers()
    returns_RM = rng.normal(3.0, 2.0, mask_RM.shape).astype(np.float32)
    values_RM = returns_RM + rng.normal(1.0, 1.0, mask_RM.shape).astype(np.float32)
    nonsense_RM = np.where(mask_RM > 0, values_RM, 1e6).astype(np.float32)
    real = mask_RM > 0
    expected = 1 - np.var((returns_RM - values_RM)[real]) / np.var(returns_RM[real])
    assert 0.1 < expected < 0.9
    assert float(explained_variance(nonsense_RM, returns_RM, mask_RM)) == pytest.approx(expected, rel=1e-4)
    assert float(explained_variance(returns_RM + 5.0, returns_RM, mask_RM)) == pytest.approx(1.0, abs=1e-5)
    assert float(explained_variance(-returns_RM, returns_RM, mask_RM)) == pytest.approx(-3.0, rel=1e-4)
    assert float(explained_variance(values_RM, np.full_like(values_RM, 2.0), mask_RM)) == 0.0


def test_a_step_s_lengths_ends_and_differences_are_those_of_its_rows():
    tokens_RM, mask_RM = answers()
    rng = np.random.default_rng(3)
    logp_RM = -np.abs(rng.normal(size=mask_RM.shape)).astype(np.float32)
    drawn_RM = (logp_RM + rng.normal(scale=0.1, size=mask_RM.shape)).astype(np.float32)
    stopped_R = (rng.random(12) < 0.5).astype(np.float32)
    rows = Rollout(tokens_RM, mask_RM, mask_RM, jnp.array(mask_RM), drawn_RM, stopped_R, np.arange(12))
    found = rollout_metrics(rows, logp_RM)
    lengths = [int(mask.sum()) for mask in mask_RM]
    differences = [
        abs(a - b) for row in zip(logp_RM, drawn_RM, mask_RM, strict=True) for a, b, m in zip(*row, strict=True) if m
    ]
    expected = {
        "tokens/eos_rate": stopped_R.mean(),
        "tokens/length": np.mean(lengths),
        "tokens/length_max": max(lengths),
        "sampling/logprob_difference": np.mean(differences),
        "sampling/logprob_difference_max": max(differences),
    }
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-5), name
    for n in (1, 2):
        every = list(itertools.chain(*grams_of(tokens_RM, mask_RM, n)))
        assert float(found[f"diversity/distinct-{n}"]) == pytest.approx(len(set(every)) / len(every))


def test_divergences_are_sums_over_an_answer_and_means_over_answers():
    _, mask_RM = answers()
    rng = np.random.default_rng(4)
    logp_RM, ref_RM = -np.abs(rng.normal(size=(2, *mask_RM.shape))).astype(np.float32)
    exact_RM = np.abs(rng.normal(size=mask_RM.shape)).astype(np.float32)
    found = kl_metrics(logp_RM, ref_RM, exact_RM, mask_RM)
    by_row = {"kl": [], "kl_k2": [], "kl_k3": [], "kl_exact": []}
    for logp, ref, exact, mask in zip(logp_RM, ref_RM, exact_RM, mask_RM > 0, strict=True):
        d = (logp - ref)[mask].astype(np.float64)
        by_row["kl"].append(d.sum())
        by_row["kl_k2"].append((d**2 / 2).sum())
        by_row["kl_k3"].append((np.exp(-d) - 1 + d).sum())
        by_row["kl_exact"].append(exact[mask].sum())
    for name, sums in by_row.items():
        assert float(found[f"objective/{name}"]) == pytest.approx(np.mean(sums), rel=1e-5)
