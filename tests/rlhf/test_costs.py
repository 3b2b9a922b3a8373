"""Costs held under a threshold: the multiplier's ascent and the direction that it weighs, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from camelid.rlhf.costs import Cost, CostSettings, combine


@pytest.mark.parametrize(
    ("multiplier", "mean_cost", "expected"),
    [
        (1.0, 2.5, 1.4),  # 1 + 0.2 * (2.5 - 0.5)
        (1.0, 0.5, 1.0),  # at the threshold it stays
        (1.0, -1.5, 0.6),
        (0.1, -1.5, 0.0),  # not below 0, where a cost would be sought
        (0.0, -9.0, 0.0),
        (2.9, 9.0, 3.0),  # nor above its end
    ],
)
def test_the_multiplier_climbs_by_the_cost_beyond_the_threshold_within_its_ends(multiplier, mean_cost, expected):
    cost = Cost(None, CostSettings(threshold=0.5, lr=0.2, multiplier_max=3.0))
    found = cost.update(jnp.float32(multiplier), jnp.float32(mean_cost))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_a_cost_that_the_multiplier_presses_down_ends_at_its_threshold():
    cost, multiplier, costs = Cost(None, CostSettings(threshold=1.0)), jnp.float32(0.0), []
    for _ in range(300):
        costs.append(3.0 - float(multiplier))  # as if the policy answered at once
        multiplier = cost.update(multiplier, jnp.float32(costs[-1]))
    assert costs[0] == 3.0 and costs[-1] == pytest.approx(1.0, abs=1e-3)


def test_advantages_are_weighed_by_the_multiplier_at_a_scale_that_stays():
    rng = np.random.default_rng(0)
    reward_RM, cost_RM = rng.normal(size=(2, 4, 6)).astype(np.float32)
    for multiplier in (0.0, 0.7, 1e6):
        found = combine(jnp.array(reward_RM), jnp.array(cost_RM), jnp.float32(multiplier))
        expected = [
            [(reward_RM[r, t] - multiplier * cost_RM[r, t]) / (1 + multiplier) for t in range(6)] for r in range(4)
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(combine(reward_RM, cost_RM, jnp.float32(1e6)), -cost_RM, atol=1e-5)
