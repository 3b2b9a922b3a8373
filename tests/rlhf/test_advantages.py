"""Advantages against sums written out in numpy and numbers worked out by hand; what masks must hide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from camelid.model.sharding import make_mesh
from camelid.rlhf import advantages as functions
from camelid.rlhf.advantages import GROUP_KINDS

gae = jax.jit(functions.gae, static_argnames=("gamma", "lam"))
group_advantages = jax.jit(functions.group_advantages, static_argnames="kind")
whiten = jax.jit(functions.whiten, static_argnames="shift_mean")
POISON = [np.nan, np.inf, -np.inf]


def problem(B=5, T=9, seed=0):
    """Rewards, values and a mask with padding on both sides, holes, and one row in which nothing is real."""
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, B, T)).astype(np.float32)
    mask = (rng.random((B, T)) < 0.6).astype(np.float32)
    mask[0], mask[1, :3], mask[2, -3:], mask[-1] = 1, 0, 0, 0
    return rewards, values, mask


def poisoned(mask, *arrays):
    """The arrays with nan and infinities wherever mask is 0."""
    filler = np.resize(np.array(POISON, np.float32), mask.shape)
    return [np.where(mask > 0, x, filler) for x in arrays]


def slow_gae(rewards, values, mask, gamma, lam):
    """The definition itself: discounted sums of the errors of all later real steps, each row by itself."""
    advantages, returns = np.zeros(mask.shape), np.zeros(mask.shape)
    for row in range(len(mask)):
        steps = [t for t in range(mask.shape[1]) if mask[row, t]]
        value_after = [float(values[row, t]) for t in steps[1:]] + [0.0] * bool(steps)
        errors = [
            float(rewards[row, t]) + gamma * after - float(values[row, t])
            for t, after in zip(steps, value_after, strict=True)
        ]
        for i, t in enumerate(steps):
            advantages[row, t] = sum((gamma * lam) ** (j - i) * errors[j] for j in range(i, len(steps)))
            returns[row, t] = advantages[row, t] + values[row, t]
    return advantages, returns


def test_gae_by_hand():
    # errors: 3 - 2 = 1, 2 + 0.5 * 2 - 1 = 2, 1 + 0.5 * 1 - 0.5 = 1; advantages 1, 2 + 0.25 * 1, 1 + 0.25 * 2.25
    rewards, values = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[0.5, 1.0, 2.0]])
    advantages, returns = gae(rewards, values, jnp.ones((1, 3)), gamma=0.5, lam=0.5)
    np.testing.assert_allclose(advantages, [[1.5625, 2.25, 1.0]])
    np.testing.assert_allclose(returns, [[2.0625, 3.25, 3.0]])


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (0.7, 0.0), (1.0, 1.0)])
def test_gae_is_the_sum_of_later_errors_whatever_stands_where_nothing_is_real(gamma, lam):
    rewards, values, mask = problem()
    found = jax.jit(lambda *args: gae(*args, gamma=gamma, lam=lam))(*poisoned(mask, rewards, values), mask)
    for got, expected in zip(found, slow_gae(rewards, values, mask, gamma, lam), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        assert np.all(np.asarray(got)[mask == 0] == 0)


def test_without_discounting_a_return_is_the_sum_of_rewards_to_come_and_does_not_grow_with_padding():
    rewards = jnp.array([[0.0, 0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 2.0]])
    mask = jnp.array([[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    values = jnp.array(np.random.default_rng(0).normal(size=(2, 5)))
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    np.testing.assert_allclose(returns, 2.0 * mask, rtol=1e-5)


@pytest.mark.parametrize("places", [[0, 1, 2, 3], [3, 4, 5, 6], [0, 2, 3, 6], [1, 3, 4, 5]], ids=str)
def test_where_the_real_steps_stand_in_a_row_does_not_matter(places):
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(2, 3, 4)).astype(np.float32)
    dense = gae(rewards, values, np.ones((3, 4)), gamma=0.9, lam=0.8)
    mask = np.zeros((3, 7), np.float32)
    mask[:, places] = 1
    spread = np.full((2, 3, 7), np.nan, np.float32)
    spread[:, :, places] = rewards, values
    for got, expected in zip(gae(*spread, mask, gamma=0.9, lam=0.8), dense, strict=True):
        np.testing.assert_array_equal(np.asarray(got)[:, places], expected)


def test_gae_of_rows_in_another_order_is_in_that_order():
    rewards, values, mask = problem()
    order = np.array([3, 0, 4, 2, 1])
    whole = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    for got, expected in zip(gae(rewards[order], values[order], mask[order], gamma=0.9, lam=0.8), whole, strict=True):
        np.testing.assert_array_equal(got, np.asarray(expected)[order])


def test_gradients_of_gae_are_its_weights_and_0_where_nothing_is_real():
    rewards, values, mask = problem()
    first = np.array([np.argmax(row) for row in mask])

    def first_advantages(rewards, values):
        advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.5)
        return jnp.sum(advantages[np.arange(len(mask)), first])

    by_rewards, by_values = jax.grad(first_advantages, argnums=(0, 1))(
        *map(jnp.asarray, poisoned(mask, rewards, values))
    )
    expected_rewards, expected_values = np.zeros((2, *mask.shape))
    for row in range(len(mask)):
        for i, t in enumerate(np.flatnonzero(mask[row])):
            weight = 0.45**i  # of the i-th error, in which the value stands with -1, in the one before with gamma
            expected_rewards[row, t] = weight
            expected_values[row, t] = -weight + (0.9 * 0.45 ** (i - 1) if i else 0.0)
    np.testing.assert_allclose(by_rewards, expected_rewards, atol=1e-6)
    np.testing.assert_allclose(by_values, expected_values, atol=1e-6)


def test_integer_rewards_count_as_numbers_and_advantages_keep_their_fractions():
    rewards, mask = np.array([[0, 1, 3]], np.int32), np.array([[1, 1, 1]], np.int32)
    values = np.array([[0.7, 0.2, 0.1]], np.float32)
    advantages, returns = gae(jnp.asarray(rewards), values, jnp.asarray(mask), gamma=1.0, lam=1.0)
    assert advantages.dtype == returns.dtype == jnp.float32
    np.testing.assert_allclose(advantages, [[3.3, 3.8, 2.9]], rtol=1e-6)  # 4 - 0.7, 4 - 0.2, 3 - 0.1


def test_bfloat16_is_reckoned_in_float32():
    rewards, values, mask = problem()
    rewards, values = jnp.asarray(rewards, jnp.bfloat16), jnp.asarray(values, jnp.bfloat16)
    rounded = np.asarray(rewards, np.float32), np.asarray(values, np.float32)
    for got, expected in zip(
        gae(rewards, values, mask, gamma=0.9, lam=0.9), slow_gae(*rounded, mask, 0.9, 0.9), strict=True
    ):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    white = whiten(rewards, mask)
    real = rounded[0][mask > 0].astype(np.float64)
    assert white.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(white)[mask > 0], (real - real.mean()) / real.std(), rtol=1e-5, atol=1e-5)
    assert group_advantages(rewards, kind="rloo").dtype == jnp.float32


def test_whitening_by_hand():
    # real: 1, 3, 5, 7; mean 4, population variance (9 + 1 + 1 + 9) / 4 = 5
    x, mask = jnp.array([[1.0, 3.0, 99.0], [-99.0, 5.0, 7.0]]), jnp.array([[1, 1, 0], [0, 1, 1]])
    white = np.array([[-3.0, -1.0, 0.0], [0.0, 1.0, 3.0]]) / np.sqrt(5)
    np.testing.assert_allclose(whiten(x, mask), white, rtol=1e-6)
    np.testing.assert_allclose(whiten(x, mask, shift_mean=False), (white + 4) * np.asarray(mask), rtol=1e-6)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_ignores_what_is_masked_and_keeps_gradients_finite(shift_mean):
    x, weight, mask = problem(seed=2)
    (dirty,) = poisoned(mask, x)

    def total(x):
        return jnp.sum(weight * whiten(x, mask, shift_mean=shift_mean))

    clean_slope, dirty_slope = jax.grad(total)(jnp.asarray(x)), jax.grad(total)(jnp.asarray(dirty))
    np.testing.assert_array_equal(whiten(dirty, mask, shift_mean=shift_mean), whiten(x, mask, shift_mean=shift_mean))
    np.testing.assert_array_equal(dirty_slope, clean_slope)
    assert np.all(np.asarray(dirty_slope)[mask == 0] == 0) and np.any(np.asarray(dirty_slope) != 0)
    step = 1e-2 * np.random.default_rng(3).normal(size=x.shape).astype(np.float32) * mask
    np.testing.assert_allclose(total(x + step) - total(x - step), 2 * np.sum(step * clean_slope), rtol=0.02, atol=1e-4)


def test_whitening_what_does_not_vary_or_is_all_masked_gives_0():
    same = jnp.full((2, 3), 4.0)
    np.testing.assert_array_equal(whiten(same, jnp.ones((2, 3))), np.zeros((2, 3)))
    np.testing.assert_array_equal(whiten(same, jnp.ones((2, 3)), shift_mean=False), same)
    np.testing.assert_array_equal(whiten(same, jnp.zeros((2, 3))), np.zeros((2, 3)))
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(whiten(x, jnp.ones((2, 3)))[0]))(same)))


def test_whitening_over_shards_with_unequal_masks_is_that_of_the_whole():
    x, _, mask = problem(B=8, T=6, seed=4)
    x += np.arange(8, dtype=np.float32)[:, None]  # each shard's own mean is another
    rows = NamedSharding(make_mesh({"data": 8}), PartitionSpec("data"))
    found = jax.jit(whiten)(jax.device_put(x, rows), jax.device_put(mask, rows))
    real = x[mask > 0].astype(np.float64)
    np.testing.assert_allclose(np.asarray(found)[mask > 0], (real - real.mean()) / real.std(), rtol=1e-5, atol=1e-5)


def slow_group(scores, kind):
    out = np.zeros(scores.shape)
    for row in range(len(scores)):
        group = [float(s) for s in scores[row]]
        mean = sum(group) / len(group)
        for i, score in enumerate(group):
            others = group[:i] + group[i + 1 :]
            if kind == "rloo":
                out[row, i] = score - sum(others) / len(others)
            else:
                std = (sum((s - mean) ** 2 for s in group) / (len(group) - 1)) ** 0.5
                out[row, i] = (score - mean) / (std + 1e-4 if kind == "grpo" else 1.0)
    return out


def test_group_advantages_by_hand():
    scores = jnp.array([[1, 2, 3, 6]])  # mean 3, variance (4 + 1 + 0 + 9) / 3
    np.testing.assert_allclose(group_advantages(scores, kind="dr_grpo"), [[-2, -1, 0, 3]], rtol=1e-6)
    np.testing.assert_allclose(  # 1 - 11 / 3, 2 - 10 / 3, 3 - 9 / 3, 6 - 6 / 3
        group_advantages(scores, kind="rloo"), [[-8 / 3, -4 / 3, 0, 4]], rtol=1e-6
    )
    np.testing.assert_allclose(
        group_advantages(scores, kind="grpo"), np.array([[-2, -1, 0, 3]]) / np.sqrt(14 / 3), rtol=1e-4
    )


@pytest.mark.parametrize("kind", GROUP_KINDS)
@pytest.mark.parametrize("n", [2, 5])
def test_group_advantages_equal_loops_and_each_group_stands_alone(kind, n):
    scores = 3 * np.random.default_rng(n).normal(size=(4, n)).astype(np.float32)
    found = jax.jit(lambda s: group_advantages(s, kind=kind))(scores)
    np.testing.assert_allclose(found, slow_group(scores, kind), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.sum(found, axis=1), np.zeros(4), atol=1e-5)
    np.testing.assert_allclose(group_advantages(scores[::-1], kind=kind), found[::-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["rloo", "dr_grpo"])
def test_a_groups_average_gradient_is_unbiased_only_without_its_own_score_in_the_baseline(kind):
    """Two actions of probability p and 1 - p, scores 1 and 0, groups of 2: E[sum A grad log p] against d E[score]."""
    p, scores, slopes = 0.3, np.array([1.0, 0.0]), np.array([0.7, -0.3])  # d log prob / d logit: 1 - p and -p
    mean_gradient = 0.0
    for first in (0, 1):
        for second in (0, 1):
            pair = [first, second]
            probability = np.prod([p if action == 0 else 1 - p for action in pair])
            advantages = group_advantages(jnp.asarray(scores[pair])[None], kind=kind)[0]
            mean_gradient += probability * np.mean(np.asarray(advantages) * slopes[pair])
    exact = p * (1 - p)
    assert mean_gradient == pytest.approx(exact if kind == "rloo" else exact / 2, rel=1e-5)


@pytest.mark.parametrize("kind", GROUP_KINDS)
@pytest.mark.parametrize("score", [0.1, 100.1, 1e6 / 3])
def test_equal_scores_have_advantages_of_exactly_0_and_finite_gradients(kind, score):
    scores = jnp.full((2, 6), score)
    np.testing.assert_array_equal(group_advantages(scores, kind=kind), np.zeros((2, 6)))
    slope = jax.grad(lambda s: jnp.sum(group_advantages(s, kind=kind)[:, 0]))(scores)
    assert np.all(np.isfinite(slope))


def test_a_group_needs_two_answers_and_a_known_kind():
    with pytest.raises(ValueError, match="2"):
        group_advantages(jnp.ones((3, 1)), kind="grpo")
    with pytest.raises(ValueError, match=r"'gpro'.*grpo, dr_grpo, rloo"):
        group_advantages(jnp.ones((3, 2)), kind="gpro")
