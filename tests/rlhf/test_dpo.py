"""Direct preference optimisation: what is scored of a pair and which side goes where, against loops over tokens.

The network here is a table: the next token's logits are those of the token before it.
"""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from camelid.rlhf import dpo, kto
from camelid.tests.rlhf.numpy_llama import softmax

MODEL = SimpleNamespace(hidden=lambda params, tokens, segment_ids, positions: params["embed"]["embedding"][tokens])
HYPER = dpo.DPOSettings(
    "sigmoid", beta=0.3, label_smoothing=0.0, gamma=0.5, desirable_weight=1.0, undesirable_weight=0.7
)


def table(seed):
    rng = np.random.default_rng(seed)
    embedding, kernel = rng.normal(size=(12, 4)), rng.normal(size=(4, 12))
    return {"embed": {"embedding": np.float32(embedding)}, "head": {"kernel": np.float32(kernel)}}


POLICY, REFERENCE = table(0), table(1)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [3, 1]]
CHOSEN = [[5, 6, 11], [7, 11], [1, 11], [2, 4, 6, 8, 11]]
REJECTED = [[9, 11], [8, 9, 10, 11], [11], [3, 11]]
T = 10


def batch(filler=0):
    tokens = np.full((4, 2, T), filler, np.int32)
    mask, lengths = np.zeros((4, 2, T), np.float32), np.zeros((4, 2), np.int32)
    for pair in range(4):
        for side, answers in enumerate((CHOSEN, REJECTED)):
            row = PROMPTS[pair] + answers[pair]
            tokens[pair, side, : len(row)], lengths[pair, side] = row, len(row)
            mask[pair, side, len(PROMPTS[pair]) : len(row)] = 1.0
    return {"tokens": tokens, "answer_mask": mask, "lengths": lengths}


def slow_logp(params, prompt, answer) -> float:
    """Of an answer, token by token, each from the one before it."""
    logp_VV = np.log(softmax(np.float64(params["embed"]["embedding"]) @ params["head"]["kernel"]))
    row = prompt + answer
    return sum(logp_VV[row[i - 1], row[i]] for i in range(len(prompt), len(row)))


def slow_scores(params):
    return np.array(
        [[slow_logp(params, p, c), slow_logp(params, p, r)] for p, c, r in zip(PROMPTS, CHOSEN, REJECTED, strict=True)]
    )


LENGTHS = np.array([[len(c), len(r)] for c, r in zip(CHOSEN, REJECTED, strict=True)])


@pytest.mark.parametrize("filler", [0, 7])
def test_an_answer_s_score_is_the_sum_over_its_tokens_given_the_prompt(filler):
    found = jax.jit(lambda params, batch: dpo.score_pairs(MODEL, params, batch))(POLICY, batch(filler))
    np.testing.assert_allclose(found.logp, slow_scores(POLICY), rtol=1e-5)
    np.testing.assert_array_equal(found.tokens, LENGTHS)
    np.testing.assert_allclose(found.mean, slow_scores(POLICY) / LENGTHS, rtol=1e-5)


def test_prompts_with_the_answers_to_others_are_cut_where_the_row_ends():
    found, weights = jax.jit(kto.mismatch_answers)(batch(filler=7))
    assert weights.tolist() == [1.0] * 4
    for pair, prompt in enumerate(PROMPTS):
        answer = CHOSEN[(pair + 1) % 4][: T - len(prompt)]
        row, length = found["tokens"][pair, 0], len(prompt) + len(answer)
        assert row[:length].tolist() == prompt + answer and not np.any(row[length:])
        assert found["lengths"][pair, 0] == length
        np.testing.assert_array_equal(
            found["answer_mask"][pair, 0], [len(prompt) <= slot < length for slot in range(T)]
        )
    assert len(PROMPTS[2]) + len(CHOSEN[3]) == T  # and one that fills it


def test_kto_s_point_of_reference_is_the_divergence_on_answers_to_other_prompts():
    prepare = jax.jit(dpo.make_prepare(MODEL, dataclasses.replace(HYPER, kind="kto")))
    prepared = prepare(POLICY, REFERENCE, batch())
    gaps = [
        slow_logp(POLICY, prompt, CHOSEN[(i + 1) % 4]) - slow_logp(REFERENCE, prompt, CHOSEN[(i + 1) % 4])
        for i, prompt in enumerate(PROMPTS)
    ]
    np.testing.assert_allclose(prepared["kl"], np.full(4, max(np.mean(gaps), 0.0)), rtol=1e-4)
    turned = prepare(REFERENCE, POLICY, batch())
    assert {np.mean(gaps) > 0, float(turned["kl"][0]) > 0} == {True, False}  # never below 0
    np.testing.assert_allclose(prepared["reference"], slow_scores(REFERENCE), rtol=1e-5)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def slow_loss(hyper, kl):
    """Of each pair, and the mean gap of what its sides are worth."""
    own, ref = slow_scores(POLICY), slow_scores(REFERENCE)
    h, e = (own - ref)[:, 0] - (own - ref)[:, 1], hyper.label_smoothing
    reward, mean = hyper.beta * (own - ref), own / LENGTHS
    odds = np.exp(mean) / (1.0 - np.exp(mean))
    point = hyper.beta * kl
    right, wrong = -np.log(sigmoid(hyper.beta * h)), -np.log(sigmoid(-hyper.beta * h))
    return {
        "sigmoid": (1 - e) * right + e * wrong,
        "robust": ((1 - e) * right - e * wrong) / (1 - 2 * e),
        "hinge": np.maximum(0.0, 1.0 - hyper.beta * h),
        "ipo": (h - 1.0 / (2.0 * hyper.beta)) ** 2,
        "kto": ((1 - sigmoid(reward[:, 0] - point)) + 0.7 * (1 - sigmoid(point - reward[:, 1]))) / 2.0,
        "simpo": -np.log(sigmoid(hyper.beta * (mean[:, 0] - mean[:, 1]) - hyper.gamma)),
        "orpo": -mean[:, 0] - hyper.beta * np.log(sigmoid(np.log(odds[:, 0] / odds[:, 1]))),
    }[hyper.kind].mean()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", dpo.KINDS)
def test_each_kind_s_loss_is_the_paper_s_over_pairs_however_they_are_walked_through(kind, parts):
    hyper = dataclasses.replace(HYPER, kind=kind, label_smoothing=0.2 if kind in ("sigmoid", "robust") else 0.0)
    prepared = jax.device_get(jax.jit(dpo.make_prepare(MODEL, hyper))(POLICY, REFERENCE, batch()))
    loss_fn = jax.jit(dpo.make_loss(MODEL, hyper))
    found = [loss_fn(POLICY, {name: x[part::parts] for name, x in prepared.items()}) for part in range(parts)]
    loss, pairs = (float(sum(part[i] for part in found)) for i in (0, 1))
    assert pairs == 4
    assert loss / pairs == pytest.approx(slow_loss(hyper, float(prepared["kl"][0])), rel=1e-4)
    assert hyper.has_reference == bool(np.any(prepared["reference"]))
    told = sum(part[2]["logps/chosen"] for part in found) / 4
    assert float(told) == pytest.approx(slow_scores(POLICY)[:, 0].mean(), rel=1e-5)


@pytest.mark.parametrize("kind", dpo.KINDS)
def test_a_step_against_the_gradient_makes_the_chosen_answers_likelier_beside_the_rejected(kind):
    hyper = dataclasses.replace(HYPER, kind=kind)
    prepared = jax.jit(dpo.make_prepare(MODEL, hyper))(POLICY, POLICY, batch())
    grads = jax.jit(jax.grad(lambda params: dpo.make_loss(MODEL, hyper)(params, prepared)[0]))(POLICY)
    moved = jax.tree.map(lambda p, g: p - 1e-3 * g, POLICY, grads)
    gaps = []
    for params in (POLICY, moved):
        mean_B2 = np.asarray(dpo.score_pairs(MODEL, params, batch()).mean)
        gaps.append((mean_B2[:, 0] - mean_B2[:, 1]).mean())
    assert gaps[1] > gaps[0]
