"""Controllers of the KL penalty's coefficient."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

Coefficient = float | Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class FixedKL:
    """The coefficient stays as it is."""

    def update(self, coef: Coefficient, kl: Coefficient, samples: int) -> Coefficient:
        """The coefficient of the next step."""
        return coef


@dataclasses.dataclass(frozen=True)
class AdaptiveKL:
    """Holds the KL of an answer near `target` nats (Ziegler et al., arXiv:1909.08593, section 2.2).

    The relative error, clipped to 0.2, moves the coefficient by its share: over `horizon` samples, by all of it.
    Keep a step's samples well below 5 times `horizon`: from there on the coefficient could fall to 0 or below.
    Raises ValueError unless both are above 0.
    """

    target: float
    horizon: float

    def __post_init__(self):
        if not (self.target > 0 and self.horizon > 0):
            raise ValueError(f"target {self.target} nats and horizon {self.horizon} samples must be above 0")

    def update(self, coef: Coefficient, kl: Coefficient, samples: int) -> Float[Array, ""]:
        """The coefficient after a step in which `samples` answers had a mean KL of `kl` nats."""
        error = jnp.clip(jnp.float32(kl) / self.target - 1.0, -0.2, 0.2)
        return coef * (1.0 + error * samples / self.horizon)
