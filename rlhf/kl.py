"""Controllers of the KL penalty's coefficient."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

Coefficient = float | Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class FixedKL:
    """A coefficient that stays constant."""

    def update(self, coef: Coefficient, kl: Coefficient, samples: int) -> Coefficient:
        """The coefficient of the next step, which is `coef`; the other arguments are those of `AdaptiveKL.update`."""
        return coef


@dataclasses.dataclass(frozen=True)
class AdaptiveKL:
    """Adapts the coefficient so that the KL of an answer stays near `target` (Ziegler et al., arXiv:1909.08593, section
    2.2).

    A step multiplies the coefficient by 1 + error * samples / horizon, where error = KL / target - 1, clipped to
    [-0.2, 0.2]. With 5 `horizon` samples or more in a step the coefficient could fall to 0 or below.
    """

    target: float
    """Mean KL of an answer that the coefficient is adapted to reach, in nats, above 0."""

    horizon: float
    """Number of answers over which the coefficient adapts, above 0."""

    def __post_init__(self):
        if not (self.target > 0 and self.horizon > 0):
            raise ValueError(f"target {self.target} nats, horizon {self.horizon} answers: give numbers above 0")

    def update(self, coef: Coefficient, kl: Coefficient, samples: int) -> Float[Array, ""]:
        """The coefficient after a step in which `samples` answers had a mean KL of `kl` nats."""
        error = jnp.clip(jnp.float32(kl) / self.target - 1.0, -0.2, 0.2)
        return coef * (1.0 + error * samples / self.horizon)
