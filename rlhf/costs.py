"""Rewards under a constraint: a cost that is held below a threshold by a Lagrange multiplier.

Safe RLHF (Dai et al., arXiv:2310.12773, section 3.3): maximise E[R] subject to E[C] <= d, by
max over the policy, min over lambda >= 0 of E[R] - lambda (E[C] - d).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..train.run import Run
from .rewards import Rewards, load_rewards


class Cost(NamedTuple):
    """A cost that is held under a threshold."""

    rewards: Rewards
    """The one source of costs, under the name "cost"."""
    threshold: float
    """d, the mean cost of an answer that is allowed."""
    first: float
    """The multiplier at the start."""
    lr: float
    """The multiplier's step for each unit of cost beyond the threshold."""
    most: float
    """The largest multiplier."""

    def update(self, multiplier: Float[Array, ""], mean_cost: Float[Array, ""]) -> Float[Array, ""]:
        """A step of projected gradient ascent on lambda (E[C] - d)."""
        return jnp.clip(multiplier + self.lr * (mean_cost - self.threshold), 0.0, self.most)


def combine(
    reward_advantages_RM: Float[Array, "R M"], cost_advantages_RM: Float[Array, "R M"], multiplier: Float[Array, ""]
) -> Float[Array, "R M"]:
    """(A_R - lambda A_C) / (1 + lambda): the objective's direction at a scale that does not grow with lambda."""
    return (reward_advantages_RM - multiplier * cost_advantages_RM) / (1.0 + multiplier)


def load(run: Run) -> Cost | None:
    """What `config.cost` describes; None where the recipe has no costs, or the section names no source."""
    if "cost" not in run.config:
        return None
    section = run.config.cost
    numbers = [section[name] for name in ("threshold", "first", "lr", "most")]
    if section.source is None:
        return None
    return Cost(load_rewards(run, {"cost": section.source}, "config.cost.source"), *numbers)
