"""Losses of policies that learn from preferences directly, against loops in float64 and numbers worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.rlhf import losses as loss_functions

best_of_k_loss, cost_loss = jax.jit(loss_functions.best_of_k_loss), jax.jit(loss_functions.cost_loss)
dpo_loss = jax.jit(loss_functions.dpo_loss, static_argnames=("beta", "kind", "label_smoothing"))
kto_loss = jax.jit(loss_functions.kto_loss, static_argnames=("beta", "desirable_weight", "undesirable_weight"))
orpo_loss = jax.jit(loss_functions.orpo_loss, static_argnames="beta")
ranking_loss = jax.jit(loss_functions.ranking_loss, static_argnames=("kind", "centering"))
simpo_loss = jax.jit(loss_functions.simpo_loss, static_argnames=("beta", "gamma"))


def log_sigmoid(x: float) -> float:
    """In float64, for arguments that do not overflow."""
    return -math.log(1.0 + math.exp(-x))


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def assert_stats(found, expected):
    for name, value in expected.items():
        assert found[name].dtype == jnp.float32 and found[name].shape == ()
        assert float(found[name]) == pytest.approx(value, rel=2e-5, abs=1e-6), name


def slow_dpo(h, beta, kind, e):
    right, wrong = -log_sigmoid(beta * h), -log_sigmoid(-beta * h)
    return {
        "sigmoid": (1 - e) * right + e * wrong,
        "robust": ((1 - e) * right - e * wrong) / (1 - 2 * e),
        "hinge": max(0.0, 1 - beta * h),
        "ipo": (h - 1 / (2 * beta)) ** 2,
    }[kind]


@pytest.mark.parametrize(
    "kind, e", [("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.0), ("robust", 0.2), ("hinge", 0.0), ("ipo", 0.0)]
)
def test_dpo_equals_a_loop(kind, e):
    logps = normal(4, 12, scale=4) - 30
    loss, stats = jax.jit(lambda *args: dpo_loss(*args, beta=0.3, kind=kind, label_smoothing=e))(*logps)
    chosen, rejected = (0.3 * (logps[i] - logps[i + 2]).astype(np.float64) for i in (0, 1))
    expected = np.mean([slow_dpo(h, 0.3, kind, e) for h in (chosen - rejected) / 0.3])
    assert loss.dtype == jnp.float32 and float(loss) == pytest.approx(expected, rel=1e-4)
    means = {"chosen": chosen.mean(), "rejected": rejected.mean(), "margin": (chosen - rejected).mean()}
    means["accuracy"] = np.mean(chosen > rejected)
    assert_stats(stats, {f"rewards/{name}": value for name, value in means.items()})


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "hinge", "ipo"])
def test_dpo_raises_the_chosen_answer_as_much_as_it_lowers_the_rejected_one(kind):
    policy, ref = normal(2, 2, 6), normal(2, 6, seed=1)
    chosen, rejected = jnp.asarray(policy[0, 0]), jnp.asarray(policy[0, 1])
    loss = lambda c, r: dpo_loss(c, r, *ref, beta=0.1, kind=kind)[0]  # noqa: E731
    by_chosen, by_rejected = jax.grad(loss, argnums=(0, 1))(chosen, rejected)
    assert np.all(np.asarray(by_chosen) < 0)  # gaps here are far below the 5 and 10 at which ipo and hinge have enough
    np.testing.assert_allclose(by_rejected, -by_chosen, rtol=1e-6)


def test_dpo_at_the_reference_by_hand():
    same = jnp.array([-30.0, -50.0]), jnp.array([-40.0, -20.0])
    expected = {"sigmoid": math.log(2), "robust": math.log(2), "hinge": 1.0, "ipo": 25.0}  # (1 / (2 * 0.1))^2
    for kind, value in expected.items():
        assert float(dpo_loss(*same, *same, beta=0.1, kind=kind)[0]) == pytest.approx(value, rel=1e-6)


def test_ipo_and_hinge_stop_where_they_have_enough():
    zeros = jnp.zeros(1)
    enough = lambda h, kind: jax.value_and_grad(  # noqa: E731
        lambda c: dpo_loss(c, zeros, zeros, zeros, beta=0.5, kind=kind)[0]
    )(jnp.array([h]))
    assert [float(x.sum()) for x in enough(1.0, "ipo")] == [0.0, 0.0]  # 1 / (2 beta)
    assert float(enough(3.0, "ipo")[1][0]) > 0  # and comes back from beyond
    assert [float(x.sum()) for x in enough(3.0, "hinge")] == [0.0, 0.0]
    assert float(enough(1.0, "hinge")[1][0]) == -0.5


def test_the_robust_loss_of_labels_flipped_at_its_rate_is_on_average_that_of_right_labels():
    chosen, rejected, ref_chosen, ref_rejected = normal(4, 7, scale=2)
    e = 0.15
    right = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.4, kind="robust", label_smoothing=e)[0]
    flipped = dpo_loss(rejected, chosen, ref_rejected, ref_chosen, beta=0.4, kind="robust", label_smoothing=e)[0]
    clean = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.4)[0]
    assert float((1 - e) * right + e * flipped) == pytest.approx(float(clean), rel=1e-4)
    assert abs(float(right) - float(clean)) > 1e-3


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "hinge", "ipo"])
def test_dpo_of_far_apart_log_probabilities_is_finite(kind):
    chosen, zeros = jnp.array([1e4, -1e4]), jnp.zeros(2)
    smoothing = 0.1 if kind in ("sigmoid", "robust") else 0.0
    loss = lambda c: dpo_loss(c, zeros, zeros, zeros, beta=1.0, kind=kind, label_smoothing=smoothing)[0]  # noqa: E731
    value, slope = jax.value_and_grad(loss)(chosen)
    assert np.isfinite(value) and np.all(np.isfinite(slope)) and slope[1] < 0


def test_other_kinds_of_dpo_are_refused():
    one = jnp.ones(1)
    with pytest.raises(ValueError, match=r"'slic'.*sigmoid"):
        dpo_loss(one, one, one, one, beta=0.1, kind="slic")


def test_label_smoothing_is_less_than_half_and_only_where_it_is_read():
    one = jnp.ones(1)
    for kind, e in [("sigmoid", 0.5), ("robust", 0.5), ("sigmoid", -0.1), ("ipo", 0.1), ("hinge", 0.1)]:
        with pytest.raises(ValueError, match="label_smoothing"):
            dpo_loss(one, one, one, one, beta=0.1, kind=kind, label_smoothing=e)


def test_bfloat16_log_probabilities_are_subtracted_in_float32():
    policy, ref = jnp.array([-129.0], jnp.bfloat16), jnp.array([-1.5], jnp.bfloat16)  # 127.5 apart
    other = jnp.array([-257.0 + 1], jnp.bfloat16), jnp.array([-2.984375], jnp.bfloat16)  # 253.015625 apart
    _, stats = dpo_loss(policy, other[0], ref, other[1], beta=1.0)
    assert_stats(stats, {"rewards/chosen": -127.5, "rewards/rejected": -253.015625, "rewards/margin": 125.515625})
    loss, stats = kto_loss(other[0], other[1], jnp.array([1]), jnp.float32(0.0), beta=1.0)
    assert loss.dtype == jnp.float32
    assert_stats(stats, {"rewards/chosen": -253.015625})


def test_a_policy_that_is_the_reference_is_half_right():
    same = jnp.array([-30.0, -50.0])
    assert float(dpo_loss(same, same, same, same, beta=0.1)[1]["rewards/accuracy"]) == 0.5


def test_kto_equals_a_loop_and_pushes_each_answer_its_way():
    policy, ref = normal(2, 10, scale=3)
    desirable = (np.arange(10) % 3 > 0).astype(np.float32)
    options = dict(beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
    terms = []
    for p, r, good in zip(policy.astype(np.float64), ref.astype(np.float64), desirable, strict=True):
        gain = 0.2 * (p - r - 0.7)
        terms.append(1.5 * (1 - math.exp(log_sigmoid(gain))) if good else 0.5 * (1 - math.exp(log_sigmoid(-gain))))
    (loss, stats), slope = jax.value_and_grad(
        lambda p: kto_loss(p, ref, desirable, jnp.float32(0.7), **options), has_aux=True
    )(jnp.asarray(policy))
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)
    assert np.all((np.asarray(slope) < 0) == (desirable == 1))
    rewards = 0.2 * (policy - ref)
    assert_stats(
        stats,
        {"rewards/chosen": rewards[desirable == 1].mean(), "rewards/rejected": rewards[desirable == 0].mean()},
    )


def test_ktos_reference_point_is_never_negative_and_has_no_gradient():
    policy, ref = jnp.asarray(normal(4)), jnp.zeros(4)
    loss = lambda kl: kto_loss(policy, ref, jnp.array([1, 0, 1, 0]), kl, beta=0.5)[0]  # noqa: E731
    assert float(loss(jnp.float32(-3.0))) == float(loss(jnp.float32(0.0))) != float(loss(jnp.float32(1.0)))
    assert float(jax.grad(loss)(jnp.float32(1.0))) == 0.0


def test_kto_by_hand():
    # beta (r - z) = log 3: sigmoid is 3/4. A good answer loses 1/4, a bad one 3/4.
    policy = jnp.full(2, 2 * math.log(3) + 1)
    loss, _ = kto_loss(policy, jnp.zeros(2), jnp.array([1, 0]), jnp.float32(1.0), beta=0.5)
    assert float(loss) == pytest.approx(0.5, rel=1e-6)
    only_good, _ = kto_loss(policy, jnp.zeros(2), jnp.array([1, 1]), jnp.float32(1.0), beta=0.5, desirable_weight=2.0)
    assert float(only_good) == pytest.approx(0.5, rel=1e-6)


def test_simpo_equals_a_loop_with_its_margin():
    chosen, rejected = -np.abs(normal(2, 10))
    loss, stats = simpo_loss(chosen, rejected, beta=2.0, gamma=0.8)
    expected = np.mean([-log_sigmoid(2 * (float(c) - float(r)) - 0.8) for c, r in zip(chosen, rejected, strict=True)])
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert_stats(stats, {"rewards/margin": 2 * (chosen - rejected).mean(), "rewards/chosen": 2 * chosen.mean()})
    far = simpo_loss(jnp.array([-1e4]), jnp.zeros(1), beta=1.0, gamma=0.0)[0]
    assert float(far) == pytest.approx(1e4)


def test_orpo_by_hand_and_against_a_loop():
    # probabilities 3/4 and 1/2: odds 3 and 1, -log(3 / 4) = 0.2876821
    loss, _ = orpo_loss(jnp.log(jnp.array([0.75])), jnp.log(jnp.array([0.5])), beta=1.0)
    assert float(loss) == pytest.approx(0.2876821, rel=1e-5)
    chosen, rejected = -np.abs(normal(2, 20, scale=2))
    terms = []
    for c, r in zip(chosen.astype(np.float64), rejected.astype(np.float64), strict=True):
        log_odds = [x - math.log(1 - math.exp(x)) for x in (c, r)]
        terms.append(-log_sigmoid(log_odds[0] - log_odds[1]))
    loss, _ = jax.jit(lambda *args: orpo_loss(*args, beta=0.1))(chosen, rejected)
    assert float(loss) == pytest.approx(0.1 * np.mean(terms), rel=1e-4)


def test_orpo_is_finite_for_certain_and_for_impossible_answers():
    logps = jnp.array([0.0, -1e-8, -1e-3, -1.0, -1e4])
    for other in (logps, logps[::-1]):
        loss, slopes = jax.value_and_grad(lambda *a: orpo_loss(*a, beta=1.0)[0], argnums=(0, 1))(logps, other)
        assert np.isfinite(loss)
        assert all(np.all(np.isfinite(slope)) for slope in slopes)


@pytest.mark.parametrize("seed", [0, 1])
def test_preference_losses_do_not_depend_on_the_order_of_a_batch(seed):
    order = np.random.default_rng(seed).permutation(9)
    a, b, c, d = normal(4, 9, seed=seed)
    low, lower, good = -np.abs(a), -np.abs(b), (c > 0).astype(np.float32)
    losses = [
        lambda i: ranking_loss(a[i], b[i], c[i], weights=np.abs(d)[i]),
        lambda i: best_of_k_loss(np.stack([a, b, c], axis=1)[i], np.arange(9)[i] % 3),
        lambda i: cost_loss(np.stack([a, b], axis=1)[i], np.sign(c)[i], np.sign(np.stack([c, d], axis=1))[i]),
        lambda i: dpo_loss(a[i], b[i], c[i], d[i], beta=0.5),
        lambda i: kto_loss(a[i], b[i], good[i], jnp.float32(0.1), beta=0.5),
        lambda i: simpo_loss(low[i], lower[i], beta=2.0, gamma=0.5),
        lambda i: orpo_loss(low[i], lower[i], beta=0.5),
    ]
    for loss in losses:
        assert float(loss(order)[0]) == pytest.approx(float(loss(np.arange(9))[0]), rel=1e-5)
