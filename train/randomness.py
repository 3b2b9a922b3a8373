"""Random keys, derived from the run's seed and a purpose, and never carried from step to step."""

from zlib import crc32

import jax
from jaxtyping import Array, Key


def purpose_key(seed: int, purpose: str) -> Key[Array, ""]:
    """The key of everything random that serves one purpose, such as "minibatches"."""
    return jax.random.fold_in(jax.random.key(seed), crc32(purpose.encode()))
