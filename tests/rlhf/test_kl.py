"""The KL controllers: the paper's formula by hand, on numbers and inside compiled loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.rlhf.kl import AdaptiveKL, FixedKL


@pytest.mark.parametrize(
    "kl, expected",
    [
        (6.0, 0.05),  # on target
        (6.6, 0.05 * 1.00512),  # 10% above: 1 + 0.1 * 512 / 10,000
        (5.7, 0.05 * 0.99744),  # 5% below: 1 - 0.05 * 0.0512
        (60.0, 0.05 * 1.01024),  # held at 20%: 1 + 0.2 * 0.0512
        (0.0, 0.05 * 0.98976),
        (-3.0, 0.05 * 0.98976),  # an estimate may be negative
    ],
)
def test_an_adaptive_coefficient_by_hand_on_numbers_and_traced_arrays(kl, expected):
    controller = AdaptiveKL(target=6.0, horizon=10_000)
    on_numbers = controller.update(0.05, kl, 512)
    compiled = jax.jit(controller.update)(jnp.float32(0.05), jnp.float32(kl), jnp.int32(512))
    for found in (on_numbers, compiled):
        assert found.dtype == jnp.float32
        assert float(found) == pytest.approx(expected, rel=1e-6)


def test_a_fixed_coefficient_stays_whatever_the_kl():
    assert float(FixedKL().update(0.05, 1e6, 512)) == pytest.approx(0.05)
    assert float(jax.jit(FixedKL().update)(jnp.float32(0.2), jnp.float32(jnp.nan), 8)) == pytest.approx(0.2)


def test_a_kl_that_falls_with_the_coefficient_is_brought_to_its_target_from_both_sides():
    controller = AdaptiveKL(target=4.0, horizon=100.0)

    def step(coef, _):
        kl = 1.0 / coef
        return controller.update(coef, kl, 10), kl

    for first in (0.02, 5.0):
        _, kl = jax.lax.scan(step, jnp.float32(first), None, length=600)
        assert abs(kl[0] - 4.0) > 1.0
        assert kl[-1] == pytest.approx(4.0, rel=1e-3)
        distance = np.abs(np.asarray(kl) - 4.0)
        assert np.all(np.diff(distance) <= 1e-5)  # and without overshooting at this pace


@pytest.mark.parametrize("settings", [(0.0, 100.0), (-1.0, 100.0), (6.0, 0.0), (6.0, -5.0), (float("nan"), 100.0)])
def test_target_and_horizon_must_be_positive(settings):
    with pytest.raises(ValueError, match=r"target|horizon"):
        AdaptiveKL(*settings)


def test_controllers_are_values():
    assert AdaptiveKL(6.0, 100.0) == AdaptiveKL(6.0, 100.0) != AdaptiveKL(6.0, 200.0)
    assert len({FixedKL(), FixedKL(), AdaptiveKL(6.0, 100.0)}) == 2
    with pytest.raises(AttributeError):
        AdaptiveKL(6.0, 100.0).target = 3.0
