"""Rewards under a constraint: a cost that is held below a threshold by a Lagrange multiplier.

Safe RLHF (Dai et al., arXiv:2310.12773, section 3.3): maximise E[R] subject to E[C] <= d, by
max over the policy, min over lambda >= 0 of E[R] - lambda (E[C] - d).
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..errors import UserError, shown
from ..settings.leaves import Finite, NotNegative, Only, Positive
from ..train.run import Run
from .rewards import Rewards, Scorer, load_rewards


@dataclass(frozen=True)
class CostSettings:
    """The section `config.cost`: a cost whose mean is held under a threshold."""

    source: Scorer | None = None
    """Where costs come from, as in `config.reward.sources`; a cost above 0 is unsafe. None: no constraint."""

    threshold: Annotated[Finite, Only("source", default=0.0)] = 0.0
    """d, the mean cost of an answer that is allowed."""

    multiplier_init: Annotated[NotNegative, Only("source", default=1.0)] = 1.0
    """The multiplier lambda at the start."""

    lr: Annotated[NotNegative, Only("source", default=0.1)] = 0.1
    """Step of the multiplier for each unit of cost above the threshold."""

    multiplier_max: Annotated[Positive, Only("source", default=10.0)] = 10.0
    """The largest multiplier."""

    def check(self, where: str) -> None:
        if self.source is not None and self.multiplier_init > self.multiplier_max:
            raise UserError(
                f"{where}.multiplier_init = {shown(self.multiplier_init)}: give at most {where}.multiplier_max, "
                f"{shown(self.multiplier_max)}"
            )


class Cost(NamedTuple):
    """A cost that is held under a threshold."""

    rewards: Rewards
    """The one source of costs, under the name "cost"."""

    settings: CostSettings
    """Threshold and multiplier."""

    def update(self, multiplier: Float[Array, ""], mean_cost: Float[Array, ""]) -> Float[Array, ""]:
        """A step of projected gradient ascent on lambda (E[C] - d)."""
        given = self.settings
        return jnp.clip(multiplier + given.lr * (mean_cost - given.threshold), 0.0, given.multiplier_max)


def combine(
    reward_advantages_RM: Float[Array, "R M"], cost_advantages_RM: Float[Array, "R M"], multiplier: Float[Array, ""]
) -> Float[Array, "R M"]:
    """(A_R - lambda A_C) / (1 + lambda): the objective's direction at a scale that does not grow with lambda."""
    return (reward_advantages_RM - multiplier * cost_advantages_RM) / (1.0 + multiplier)


def load_cost(run: Run, settings: CostSettings) -> Cost | None:
    """The cost that `config.cost` describes; None where it names no source."""
    if settings.source is None:
        return None
    return Cost(load_rewards(run, {"cost": settings.source}, "config.cost.source"), settings)
