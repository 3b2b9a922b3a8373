"""Keys are derived from the run's seed and from what they are for, never carried from step to step."""

from zlib import crc32

import jax
from jaxtyping import Array, Key


def purpose_key(seed: int, purpose: str) -> Key[Array, ""]:
    """The key from which everything random of one kind derives."""
    return jax.random.fold_in(jax.random.key(seed), crc32(purpose.encode()))
