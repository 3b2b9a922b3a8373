"""Rewards under a constraint: a cost that is held below a threshold by a Lagrange multiplier.

Safe RLHF (Dai et al., arXiv:2310.12773, section 3.3): maximise E[R] subject to E[C] <= d, by
max over the policy, min over lambda >= 0 of E[R] - lambda (E[C] - d).
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..data.tokenizer import Tokenizer
from ..train.adapters import Bases
from ..train.settings import Settings
from . import rewards


class Cost(NamedTuple):
    """grader: the one source of costs, under the name "cost". threshold: d, the mean cost of an answer that is
    allowed. first: the multiplier at the start. lr: its step for each unit of cost beyond the threshold. most: its
    upper end."""

    grader: rewards.Rewards
    threshold: float
    first: float
    lr: float
    most: float

    def update(self, multiplier: Float[Array, ""], mean_cost: Float[Array, ""]) -> Float[Array, ""]:
        """A step of projected gradient ascent on lambda (E[C] - d)."""
        return jnp.clip(multiplier + self.lr * (mean_cost - self.threshold), 0.0, self.most)


def combine(
    reward_advantages_RM: Float[Array, "R M"], cost_advantages_RM: Float[Array, "R M"], multiplier: Float[Array, ""]
) -> Float[Array, "R M"]:
    """(A_R - lambda A_C) / (1 + lambda): the objective's direction at a scale that does not grow with lambda."""
    return (reward_advantages_RM - multiplier * cost_advantages_RM) / (1.0 + multiplier)


def load(settings: Settings, tokenizer: Tokenizer, bases: Bases, dtype: str) -> tuple[Cost | None, Any]:
    """What `config.cost` describes and its model's parameters; None where it names no source."""
    section = settings.cost
    numbers = [section[name] for name in ("threshold", "first", "lr", "most")]
    source = section.source
    if source is None:
        return None, {}
    grader, params = rewards.load({"cost": source}, section.dotted("source"), tokenizer, bases, dtype)
    return Cost(grader, *numbers), params
