"""Losses against loops in float64 and numbers worked out by hand, their gradients, and what masks must hide."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.rlhf import losses as loss_functions
from camelid.rlhf.losses import kl_estimate

policy_loss = jax.jit(loss_functions.policy_loss, static_argnames=("clip", "clip_high", "aggregate"))
value_loss = jax.jit(loss_functions.value_loss, static_argnames="clip")
ranking_loss = jax.jit(loss_functions.ranking_loss, static_argnames=("kind", "centering"))
best_of_k_loss = jax.jit(loss_functions.best_of_k_loss)
cost_loss = jax.jit(loss_functions.cost_loss)
POISON = np.array([np.nan, np.inf, -np.inf], np.float32)


def log_sigmoid(x: float) -> float:
    """In float64, for arguments that do not overflow."""
    return -math.log(1.0 + math.exp(-x))


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def masked(B=5, T=9, seed=0):
    """A mask with padding on both sides and holes; each row has something real."""
    mask = (np.random.default_rng(seed).random((B, T)) < 0.6).astype(np.float32)
    mask[0], mask[1, :3], mask[2, -3:], mask[:, 4] = 1, 0, 0, 1
    return mask


def poisoned(mask, *arrays):
    return [jnp.asarray(np.where(mask > 0, x, np.resize(POISON, mask.shape))) for x in arrays]


def assert_stats(found, expected):
    for name, value in expected.items():
        assert found[name].dtype == jnp.float32 and found[name].shape == ()
        assert float(found[name]) == pytest.approx(value, rel=2e-5, abs=1e-6), name


# KL estimators --------------------------------------------------------------------------------------------------------

P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])


def test_kl_estimates_by_hand():
    # d = 0.5: exp(-0.5) - 1 + 0.5 = 0.1065307; d = -1: e - 2 = 0.7182818
    logp, ref_logp = jnp.array([-1.0, -3.0]), jnp.array([-1.5, -2.0])
    np.testing.assert_allclose(kl_estimate(logp, ref_logp, "k1"), [0.5, -1.0])
    np.testing.assert_allclose(kl_estimate(logp, ref_logp, "k2"), [0.125, 0.5])
    np.testing.assert_allclose(kl_estimate(logp, ref_logp, "k3"), [0.1065307, 0.7182818], rtol=1e-5)


def expectation(kind, p, q):
    """Of the estimate over tokens drawn from p."""
    return float(np.sum(p * np.asarray(kl_estimate(jnp.log(jnp.asarray(p)), jnp.log(jnp.asarray(q)), kind))))


def test_k1_and_k3_have_the_exact_kl_of_the_distribution_drawn_from_as_their_mean():
    exact, reverse = np.sum(P * np.log(P / Q)), np.sum(Q * np.log(Q / P))
    assert abs(exact - reverse) > 1e-3
    for kind in ("k1", "k3"):
        assert expectation(kind, P, Q) == pytest.approx(exact, rel=1e-5)
        assert expectation(kind, Q, P) == pytest.approx(reverse, rel=1e-5)
    assert expectation("k2", P, Q) == pytest.approx(0.5 * np.sum(P * np.log(P / Q) ** 2), rel=1e-5)
    assert abs(expectation("k2", P, Q) - exact) > 1e-3


def test_k3_is_never_negative_and_exact_for_small_differences():
    d = np.concatenate([np.logspace(-9, 1.5, 5000), -np.logspace(-9, 1.5, 5000)]).astype(np.float32)
    found = np.asarray(kl_estimate(jnp.asarray(d), jnp.zeros(len(d)), "k3"), np.float64)
    assert np.all(found >= 0)
    plain = np.abs(d) > 1e-3
    wide = d[plain].astype(np.float64)
    np.testing.assert_allclose(found[plain], np.expm1(-wide) + wide, rtol=2e-3)


def test_kl_of_bfloat16_is_reckoned_in_float32_and_other_kinds_are_refused():
    logp, ref_logp = jnp.array([-129.0, -3.0], jnp.bfloat16), jnp.array([-1.5, -2.984375], jnp.bfloat16)
    found = kl_estimate(logp, ref_logp, "k1")
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, [-127.5, -0.015625])
    with pytest.raises(ValueError, match=r"'k4'.*k1, k2, k3"):
        kl_estimate(logp, ref_logp, "k4")


# Policy ---------------------------------------------------------------------------------------------------------------


def policy_problem(seed=0, B=5, T=9):
    """Ratios from about 0.3 to 3, so that every branch of the clipping is taken."""
    old = normal(B, T, seed=seed) - 3
    logp = old + normal(B, T, seed=seed + 1, scale=0.4)
    return logp, old, normal(B, T, seed=seed + 2), masked(B, T, seed + 3)


def slow_policy_loss(logp, old, advantages, mask, clip, clip_high, aggregate):
    B, T = mask.shape
    per_row, ratios, clips, kls = [[] for _ in range(B)], [], [], []
    for b in range(B):
        for t in range(T):
            if mask[b, t]:
                advantage, log_ratio = float(advantages[b, t]), float(logp[b, t]) - float(old[b, t])
                ratio = math.exp(log_ratio)
                free, held = ratio * advantage, min(max(ratio, 1 - clip), 1 + clip_high) * advantage
                per_row[b].append(-min(free, held))
                ratios.append(ratio)
                clips.append(held < free)
                kls.append(ratio - 1 - log_ratio)
    tokens = [loss for row in per_row for loss in row]
    loss = {
        "token": sum(tokens) / len(tokens),
        "sequence": sum(sum(row) / len(row) for row in per_row) / B,
        "constant": sum(tokens) / (B * T),
    }[aggregate]
    stats = {"ratio": np.mean(ratios), "clip_fraction": np.mean(clips), "approx_kl": np.mean(kls)}
    return loss, stats


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
@pytest.mark.parametrize("clip, clip_high", [(0.2, None), (0.2, 0.28), (0.1, 0.5)])
def test_the_policy_loss_equals_a_loop_whatever_is_masked(aggregate, clip, clip_high):
    logp, old, advantages, mask = policy_problem()
    high = clip if clip_high is None else clip_high
    loss, stats = jax.jit(lambda *args: policy_loss(*args, clip=clip, clip_high=clip_high, aggregate=aggregate))(
        *poisoned(mask, logp, old, advantages), mask
    )
    expected, expected_stats = slow_policy_loss(logp, old, advantages, mask, clip, high, aggregate)
    assert 0 < expected_stats["clip_fraction"] < 1
    assert loss.dtype == jnp.float32 and float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert_stats(stats, expected_stats)


def one_row(log_ratios, advantages):
    """A policy loss of one row, as a function of its log-probabilities, and these."""
    advantages = jnp.array([advantages])
    old = jnp.full(advantages.shape, -2.0)

    def loss(logp):
        return policy_loss(logp, old, advantages, jnp.ones(advantages.shape), clip=0.2)

    return loss, old + jnp.array([log_ratios])


RATIOS = [1.5, 0.5, 1.1, 1.5, 0.5]
ADVANTAGES = [2.0, 2.0, 2.0, -1.0, -1.0]


def test_the_policy_loss_by_hand():
    # objectives: 1.2 * 2 (clipped), 0.5 * 2, 1.1 * 2, 1.5 * -1, 0.8 * -1 (clipped); their sum is 3.3
    loss, logp = one_row(np.log(RATIOS), ADVANTAGES)
    value, stats = loss(logp)
    assert float(value) == pytest.approx(-3.3 / 5, rel=1e-5)
    assert float(stats["clip_fraction"]) == pytest.approx(2 / 5)
    assert float(stats["ratio"]) == pytest.approx(5.1 / 5, rel=1e-5)


def test_clipped_tokens_have_a_gradient_of_exactly_0_and_others_that_of_their_ratio():
    loss, logp = one_row(np.log(RATIOS), ADVANTAGES)
    slope = np.asarray(jax.grad(lambda x: loss(x)[0])(logp))[0]
    assert slope[0] == slope[4] == 0.0
    np.testing.assert_allclose(slope[1:4], [-0.5 * 2 / 5, -1.1 * 2 / 5, 1.5 / 5], rtol=1e-5)


def test_before_any_update_the_gradient_is_that_of_plain_policy_gradient():
    loss, logp = one_row([0.0, 0.0, 0.0], [2.0, -1.0, 0.0])
    (_, stats), slope = jax.value_and_grad(loss, has_aux=True)(logp)
    np.testing.assert_allclose(slope, [[-2 / 3, 1 / 3, 0.0]], rtol=1e-6)
    assert float(stats["ratio"]) == 1.0 and float(stats["approx_kl"]) == float(stats["clip_fraction"]) == 0.0


def test_clip_higher_lets_a_good_token_rise_further_and_moves_nothing_else():
    logp, old = jnp.log(jnp.array([[1.25, 0.75]])), jnp.zeros((1, 2))
    ones = jnp.ones((1, 2))

    def slope(advantage, **clips):
        return jax.grad(lambda x: policy_loss(x, old, advantage * ones, ones, **clips)[0])(logp)[0]

    np.testing.assert_allclose(slope(1.0, clip=0.2), [0.0, -0.75 / 2], rtol=1e-6)
    np.testing.assert_allclose(slope(1.0, clip=0.2, clip_high=0.28), [-1.25 / 2, -0.75 / 2], rtol=1e-6)
    for clip_high in (None, 0.28):
        np.testing.assert_allclose(slope(-1.0, clip=0.2, clip_high=clip_high), [1.25 / 2, 0.0], rtol=1e-6)


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_what_is_masked_has_no_gradient_and_spoils_none(aggregate):
    logp, old, advantages, mask = policy_problem()

    def slope(logp, old, advantages):
        loss = lambda *args: policy_loss(*args, mask, clip=0.2, aggregate=aggregate)[0]  # noqa: E731
        return jax.grad(loss, argnums=(0, 1, 2))(logp, old, advantages)

    clean = slope(jnp.asarray(logp), jnp.asarray(old), jnp.asarray(advantages))
    for got, expected in zip(slope(*poisoned(mask, logp, old, advantages)), clean, strict=True):
        np.testing.assert_array_equal(got, expected)
        assert np.all(np.asarray(got)[mask == 0] == 0) and np.any(np.asarray(got) != 0)


@pytest.mark.parametrize("aggregate", ["token", "sequence"])
def test_padding_and_the_order_of_rows_do_not_matter(aggregate):
    problem = policy_problem()
    loss, stats = policy_loss(*problem, clip=0.2, aggregate=aggregate)
    for changed in (
        [np.pad(x, ((0, 0), (0, 4))) for x in problem],
        [np.pad(x, ((0, 0), (4, 0))) for x in problem],
        [x[[4, 0, 3, 1, 2]] for x in problem],
    ):
        other_loss, other_stats = policy_loss(*changed, clip=0.2, aggregate=aggregate)
        assert float(other_loss) == pytest.approx(float(loss), rel=1e-6)
        assert_stats(other_stats, {name: float(value) for name, value in stats.items()})


def test_microbatches_weighted_by_their_tokens_have_the_loss_and_gradient_of_the_whole():
    logp, old, advantages, mask = map(jnp.asarray, policy_problem(B=6))
    mask = mask.at[:2].set(0).at[0, 0].set(1)  # microbatches of very unequal counts

    def whole(logp):
        return policy_loss(logp, old, advantages, mask, clip=0.2)[0]

    def in_parts(logp):
        parts = [slice(0, 2), slice(2, 4), slice(4, 6)]
        losses = [policy_loss(logp[p], old[p], advantages[p], mask[p], clip=0.2)[0] for p in parts]
        return sum(loss * jnp.sum(mask[p]) for loss, p in zip(losses, parts, strict=True)) / jnp.sum(mask)

    (loss, slope), (part_loss, part_slope) = (jax.value_and_grad(f)(logp) for f in (whole, in_parts))
    assert float(part_loss) == pytest.approx(float(loss), rel=1e-5)
    np.testing.assert_allclose(part_slope, slope, rtol=1e-5, atol=1e-8)


def test_a_policy_loss_of_nothing_real_is_0_and_so_is_its_gradient():
    logp, old, advantages, mask = map(jnp.asarray, policy_problem())
    for aggregate in ("token", "sequence", "constant"):
        loss = lambda x, kind=aggregate: policy_loss(x, old, advantages, 0 * mask, clip=0.2, aggregate=kind)[0]  # noqa: E731
        value, slope = jax.value_and_grad(loss)(logp)
        assert float(value) == 0.0 and not np.any(slope)


def test_other_aggregates_are_refused():
    ones = jnp.ones((1, 2))
    with pytest.raises(ValueError, match=r"'mean'.*token, sequence, constant"):
        policy_loss(ones, ones, ones, ones, clip=0.2, aggregate="mean")


@pytest.mark.parametrize("advantage, log_ratio, expected", [(2.0, 100.0, -2.4), (-2.0, -200.0, 1.6)])
def test_a_ratio_beyond_float32_that_is_clipped_leaves_no_nan(advantage, log_ratio, expected):
    loss, logp = one_row([log_ratio], [advantage])
    (value, stats), slope = jax.value_and_grad(loss, has_aux=True)(logp)
    assert float(value) == pytest.approx(expected) and float(stats["clip_fraction"]) == 1.0
    np.testing.assert_array_equal(slope, [[0.0]])


# Values ---------------------------------------------------------------------------------------------------------------


def value_problem(seed=0):
    old = normal(5, 9, seed=seed)
    return old + normal(5, 9, seed=seed + 1, scale=0.4), old, normal(5, 9, seed=seed + 2), masked(seed=seed + 3)


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_value_loss_equals_a_loop_whatever_is_masked(clip):
    values, old, returns, mask = value_problem()
    losses, clips = [], []
    for v, o, r, real in zip(*(x.ravel().astype(np.float64) for x in (values, old, returns, mask)), strict=True):
        if real:
            free = (v - r) ** 2
            held = free if clip is None else (min(max(v, o - clip), o + clip) - r) ** 2
            losses.append(0.5 * max(free, held))
            clips.append(held > free + 1e-12)
    loss, stats = jax.jit(lambda *args: value_loss(*args, clip=clip))(*poisoned(mask, values, old, returns), mask)
    assert loss.dtype == jnp.float32 and float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(stats["clip_fraction"]) == pytest.approx(np.mean(clips), abs=1e-6)
    assert np.mean(clips) > 0 or clip is None


def test_the_value_loss_and_its_gradient_by_hand():
    # old 0, clip 0.5. Moved to 1, return 0: error 1, held at 0.5 less: 1 counts. Moved to 1, return 2: error 1, held at
    # 0.5 it is 2.25: that counts, and nothing pulls. Moved to 0.25, return 1: 0.5625.
    values, returns = jnp.array([[1.0, 1.0, 0.25, jnp.nan]]), jnp.array([[0.0, 2.0, 1.0, jnp.inf]])
    old, mask = jnp.zeros((1, 4)), jnp.array([[1, 1, 1, 0]])
    (loss, stats), slope = jax.value_and_grad(lambda v: value_loss(v, old, returns, mask, clip=0.5), has_aux=True)(
        values
    )
    assert float(loss) == pytest.approx(0.5 * (1 + 2.25 + 0.5625) / 3, rel=1e-6)
    assert float(stats["clip_fraction"]) == pytest.approx(1 / 3)
    np.testing.assert_allclose(slope, [[1 / 3, 0.0, -0.75 / 3, 0.0]], rtol=1e-6)


def test_values_within_the_clip_are_not_counted_as_clipped_for_their_rounding():
    values, old, returns = normal(3, 4, 500, scale=0.03)
    _, stats = value_loss(values, old, returns, np.ones((4, 500), np.float32), clip=1.0)
    assert float(stats["clip_fraction"]) == 0.0


def test_an_unclipped_value_is_pulled_to_its_return_however_far_it_moved():
    values, old, returns = jnp.array([[5.0]]), jnp.zeros((1, 1)), jnp.array([[7.0]])
    slope = jax.grad(lambda v: value_loss(v, old, returns, jnp.ones((1, 1)), clip=None)[0])(values)
    np.testing.assert_allclose(slope, [[-2.0]])


@pytest.mark.parametrize("clip", [0.2, None])
def test_gradients_of_the_value_loss_are_the_same_with_poison_under_the_mask(clip):
    values, old, returns, mask = value_problem()

    def slope(*args):
        return jax.grad(lambda *a: value_loss(*a, mask, clip=clip)[0], argnums=(0, 2))(*args)

    clean = slope(*map(jnp.asarray, (values, old, returns)))
    for got, expected in zip(slope(*poisoned(mask, values, old, returns)), clean, strict=True):
        np.testing.assert_array_equal(got, expected)
        assert np.all(np.asarray(got)[mask == 0] == 0) and np.any(np.asarray(got) != 0)


# Reward and cost models -----------------------------------------------------------------------------------------------


def test_the_ranking_loss_by_hand():
    # gaps 2 and -1: log(1 + exp(-2)) = 0.1269280, log(1 + exp(1)) = 1.3132617
    chosen, rejected = jnp.array([3.0, 0.0]), jnp.array([1.0, 1.0])
    loss, stats = ranking_loss(chosen, rejected)
    assert float(loss) == pytest.approx((0.1269280 + 1.3132617) / 2, rel=1e-6)
    assert_stats(stats, {"accuracy": 0.5, "gap": 0.5, "chosen": 1.5, "rejected": 1.0})
    with_margin, _ = ranking_loss(chosen, rejected, jnp.array([1.0, 0.0]))  # log(1 + exp(-(2 - 1))) = 0.3132617
    assert float(with_margin) == pytest.approx((0.3132617 + 1.3132617) / 2, rel=1e-6)
    centred, _ = ranking_loss(chosen, rejected, centering=0.01)  # sums 4 and 1: 0.01 * (16 + 1) / 2
    assert float(centred) - float(loss) == pytest.approx(0.085, rel=1e-5)


@pytest.mark.parametrize("kind", ["log_sigmoid", "log_exp"])
def test_both_forms_of_the_ranking_loss_are_one_function(kind):
    chosen, rejected, margin = normal(3, 20, scale=3)
    loss, stats = jax.jit(lambda *args: ranking_loss(*args, kind=kind, centering=0.1))(chosen, rejected, margin)
    terms = [
        -log_sigmoid(c - r - m) + 0.1 * (c + r) ** 2
        for c, r, m in zip(*(x.astype(np.float64) for x in (chosen, rejected, margin)), strict=True)
    ]
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)
    assert float(stats["accuracy"]) == pytest.approx(np.mean(chosen > rejected))


@pytest.mark.parametrize("kind", ["log_sigmoid", "log_exp"])
def test_scores_in_the_thousands_neither_overflow_nor_lose_their_gradient(kind):
    chosen, rejected = jnp.array([1e4, -1e4]), jnp.zeros(2)
    (loss, _), slope = jax.value_and_grad(lambda c: ranking_loss(c, rejected, kind=kind), has_aux=True)(chosen)
    assert float(loss) == pytest.approx(5e3)  # 0 and 10,000
    np.testing.assert_allclose(slope, [0.0, -0.5])


def test_equal_scores_are_half_right():
    _, stats = ranking_loss(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 1.0, 4.0]))
    assert float(stats["accuracy"]) == pytest.approx(0.5)


def test_pairs_of_weight_0_are_not_there_and_other_weights_are_shares():
    chosen, rejected, margin = normal(3, 6)
    real = slice(0, 4)
    weights = np.array([1, 1, 1, 1, 0, 0], np.float32)
    for scale in (1.0, 0.01, 7.0):
        loss, stats = ranking_loss(chosen, rejected, margin, weights=scale * weights, centering=0.1)
        expected, expected_stats = ranking_loss(chosen[real], rejected[real], margin[real], centering=0.1)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        assert_stats(stats, {name: float(value) for name, value in expected_stats.items()})
    twice, _ = ranking_loss(chosen, rejected, weights=np.array([2, 1, 0, 0, 0, 0], np.float32))
    repeated, _ = ranking_loss(chosen[[0, 0, 1]], rejected[[0, 0, 1]])
    assert float(twice) == pytest.approx(float(repeated), rel=1e-5)


def test_pairs_of_weight_0_spoil_no_gradient_whatever_they_hold():
    chosen, rejected, margin = normal(3, 6)
    weights = np.array([1, 0, 1, 0, 0, 1], np.float32)

    def slopes(*args):
        loss = lambda *a: ranking_loss(*a, weights=weights, centering=0.1)[0]  # noqa: E731
        return jax.grad(loss, argnums=(0, 1, 2))(*map(jnp.asarray, args))

    for got, expected in zip(
        slopes(*poisoned(weights, chosen, rejected, margin)), slopes(chosen, rejected, margin), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
        assert np.all((np.asarray(got) != 0) == (weights > 0))

    labels, costs = np.sign(normal(6, 2)), normal(6, 2, seed=1)
    cost_slope = jax.grad(lambda c: cost_loss(c, labels[:, 0], labels, weights)[0])
    dirty = np.where(weights[:, None] > 0, costs, np.nan)
    np.testing.assert_array_equal(cost_slope(jnp.asarray(dirty)), cost_slope(jnp.asarray(costs)))


def test_the_ranking_loss_runs_over_heads_and_refuses_other_kinds():
    chosen, rejected = normal(2, 3, 6)
    losses, _ = jax.vmap(lambda c, r: ranking_loss(c, r, weights=jnp.ones(6)))(chosen, rejected)
    np.testing.assert_allclose(
        losses, [ranking_loss(c, r)[0] for c, r in zip(chosen, rejected, strict=True)], rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"'hinge'.*log_sigmoid, log_exp"):
        ranking_loss(chosen[0], rejected[0], kind="hinge")


def test_bfloat16_scores_are_ranked_in_float32():
    chosen, rejected = jnp.array([257.0 - 1, 3.0], jnp.bfloat16), jnp.array([1.0, 2.984375], jnp.bfloat16)
    loss, stats = ranking_loss(chosen, rejected)
    assert loss.dtype == jnp.float32
    assert_stats(stats, {"gap": (255 + 0.015625) / 2})


def test_the_best_of_k_is_a_softmax_over_all_of_them():
    # scores 0, log 2, log 5: probabilities 1/8, 2/8, 5/8
    scores = jnp.log(jnp.array([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]))
    loss, stats = best_of_k_loss(scores, jnp.array([2, 1]))
    assert float(loss) == pytest.approx((math.log(8 / 5) + math.log(4)) / 2, rel=1e-6)
    assert float(stats["accuracy"]) == 0.5
    slope = jax.grad(lambda s: best_of_k_loss(s, jnp.array([2, 1]))[0])(scores)
    np.testing.assert_allclose(slope, np.array([[1, 2, -3], [1, -6, 5]]) / 16, rtol=1e-5, atol=1e-7)


def test_the_best_of_two_is_a_ranking_and_large_scores_do_not_overflow():
    chosen, rejected = normal(2, 8)
    pair, _ = ranking_loss(chosen, rejected)
    both, _ = best_of_k_loss(np.stack([rejected, chosen], axis=1), jnp.ones(8, jnp.int32))
    assert float(both) == pytest.approx(float(pair), rel=1e-5)
    large, slope = jax.value_and_grad(lambda s: best_of_k_loss(s, jnp.array([0]))[0])(jnp.array([[-1e4, 1e4]]))
    assert float(large) == pytest.approx(2e4)
    np.testing.assert_allclose(slope, [[-1.0, 1.0]])


def slow_cost_terms(costs, safer, safe):
    terms = []
    for (first, second), order, labels in zip(costs.astype(np.float64), safer, safe, strict=True):
        term = 0.0
        if order == 1:
            term -= log_sigmoid(second - first)
        if order == -1:
            term -= log_sigmoid(first - second)
        for cost, label in zip((first, second), labels, strict=True):
            if label == 1:
                term -= log_sigmoid(-cost)
            if label == -1:
                term -= log_sigmoid(cost)
        terms.append(term)
    return terms


def test_the_cost_loss_equals_a_loop_over_every_combination_of_labels():
    labels = np.array([(a, b, c) for a in (1, -1, 0) for b in (1, -1, 0) for c in (1, -1, 0)], np.float32)
    costs, weights = normal(len(labels), 2), np.linspace(0, 2, len(labels), dtype=np.float32)
    terms = slow_cost_terms(costs, labels[:, 0], labels[:, 1:])
    loss, _ = cost_loss(costs, labels[:, 0], labels[:, 1:])
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)
    weighted, _ = cost_loss(costs, labels[:, 0], labels[:, 1:], weights)
    assert float(weighted) == pytest.approx(np.average(terms, weights=weights), rel=1e-5)


def test_cost_statistics_and_the_way_costs_are_pushed():
    costs = jnp.array([[-1.0, 2.0], [-1.0, 2.0], [5.0, 5.0]])
    safer, safe = jnp.array([1.0, -1.0, 0.0]), jnp.array([[1.0, -1.0], [-1.0, 0.0], [0.0, 0.0]])
    (_, stats), slope = jax.value_and_grad(lambda c: cost_loss(c, safer, safe), has_aux=True)(costs)
    assert_stats(stats, {"accuracy": 1 / 2, "sign_accuracy": 2 / 3})  # of 2 known orders and 3 known signs
    assert slope[0, 0] > 0 > slope[0, 1]  # the safe, safer one down, the unsafe one up
    assert slope[1, 0] < 0 < slope[1, 1]
    np.testing.assert_array_equal(slope[2], [0.0, 0.0])
