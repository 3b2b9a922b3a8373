"""Rewards under a constraint: a Lagrange multiplier holds the mean cost of answers under a threshold.

Safe RLHF (Dai et al., arXiv:2310.12773, section 3.3) maximises E[R] subject to E[C] <= d: the policy maximises and
lambda >= 0 minimises E[R] - lambda (E[C] - d).
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..errors import UserError, shown
from ..settings.leaves import Finite, NotNegative, Only, Positive
from ..train.run import Run
from .rewards import Rewards, RewardSource, load_rewards


@dataclass(frozen=True)
class CostSettings:
    """The section `config.cost`: a cost whose mean is held under a threshold."""

    source: RewardSource | None = None
    """Where costs come from, as in `config.reward.sources`; a cost above 0 is unsafe. None: no constraint."""

    threshold: Annotated[Finite, Only("source", default=0.0)] = 0.0
    """d, the largest mean cost of answers that is allowed."""

    multiplier_init: Annotated[NotNegative, Only("source", default=1.0)] = 1.0
    """The multiplier lambda at the start of the run."""

    lr: Annotated[NotNegative, Only("source", default=0.1)] = 0.1
    """Learning rate of the multiplier: its change in a step for each unit of mean cost above the threshold."""

    multiplier_max: Annotated[Positive, Only("source", default=10.0)] = 10.0
    """Upper limit of the multiplier."""

    def check(self, where: str) -> None:
        if self.source is not None and self.multiplier_init > self.multiplier_max:
            raise UserError(
                f"{where}.multiplier_init = {shown(self.multiplier_init)}: give at most {where}.multiplier_max, "
                f"which is {shown(self.multiplier_max)}"
            )


class Cost(NamedTuple):
    """The cost of answers that a run holds under a threshold."""

    rewards: Rewards
    """The source of costs, as a `Rewards` with the one name "cost"."""

    settings: CostSettings
    """The section `config.cost`: threshold and multiplier."""

    def update(self, multiplier: Float[Array, ""], mean_cost: Float[Array, ""]) -> Float[Array, ""]:
        """The multiplier after a step of projected gradient ascent on lambda (E[C] - d)."""
        given = self.settings
        return jnp.clip(multiplier + given.lr * (mean_cost - given.threshold), 0.0, given.multiplier_max)


def combine(
    reward_advantages_RM: Float[Array, "R M"], cost_advantages_RM: Float[Array, "R M"], multiplier: Float[Array, ""]
) -> Float[Array, "R M"]:
    """Combines the advantages in reward, A_R, and in cost, A_C: (A_R - lambda A_C) / (1 + lambda).

    That is the direction of the constrained objective, at a scale that does not grow with lambda, the multiplier.
    """
    return (reward_advantages_RM - multiplier * cost_advantages_RM) / (1.0 + multiplier)


def load_cost(run: Run, settings: CostSettings) -> Cost | None:
    """Loads the cost that `config.cost` describes; None if it names no source."""
    if settings.source is None:
        return None
    return Cost(load_rewards(run, {"cost": settings.source}, "config.cost.source"), settings)
