"""The key/value cache of decoding: one for each layer, rows of slots, in floats or in codes of 8 bits."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from . import xla_cpu
from .config import LlamaConfig


class Cache(NamedTuple):
    """Keys and values of one layer: S slots for each row, key/value heads only.

    L stands for row and key/value head, as one axis or as two (`xla_cpu.rows_and_heads`). With scales, keys and values
    are int8 codes: a vector is its codes times its scale, and the scale is a 127th of the vector's largest number.
    """

    keys_LSE: Shaped[Array, "*L S E"]
    """Keys after their rotation, in floats or codes."""

    values_LSE: Shaped[Array, "*L S E"]
    """Values, in floats or codes."""

    key_scales_LS: Float[Array, "*L S"] | None = None
    """A scale for each key in codes; None for floats."""

    value_scales_LS: Float[Array, "*L S"] | None = None
    """A scale for each value in codes; None for floats."""

    @property
    def slots(self) -> int:
        """Number of slots of a row."""
        return self.keys_LSE.shape[-2]

    def write(
        self,
        k_BTKE: Float[Array, "B T K E"],
        v_BTKE: Float[Array, "B T K E"],
        slot: Int[Array, ""] | Int[Array, " B"],
        row: Int[Array, ""] | None = None,
    ) -> "Cache":
        """The cache with keys and values of T positions from `slot` on: one slot for all rows, or one for each.

        With `row`, they are of that row alone, B is 1, and there is one slot.
        """
        *lead, _, E = self.keys_LSE.shape
        if row is not None:
            lead = [1, *lead[1:]] if len(lead) > 1 else [k_BTKE.shape[2]]
        new = Cache(*(jnp.swapaxes(x_BTKE, 1, 2).reshape(*lead, -1, E) for x_BTKE in (k_BTKE, v_BTKE)))
        if self.key_scales_LS is not None:
            new = new.encode()
        if row is not None:
            first = row * lead[0], *[0] * (len(lead) - 1), slot

            def put(old, part):
                return jax.lax.dynamic_update_slice(old, part, (*first, *[0] * (old.ndim - len(first))))

            return jax.tree.map(put, self, new)
        if slot.ndim == 0:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=len(lead))
            return jax.tree.map(write, self, new)
        first_L = jnp.repeat(slot, math.prod(lead) // len(slot)).reshape(lead)
        write_head = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=0)
        for _ in lead:
            write_head = jax.vmap(write_head)
        return jax.tree.map(lambda old_LS, new_LT: write_head(old_LS, new_LT, first_L), self, new)

    def encode(self) -> "Cache":
        """The cache in codes of 8 bits."""

        def codes_of(x_LSE):
            scales_LS = jnp.max(jnp.abs(x_LSE.astype(jnp.float32)), axis=-1) / 127
            steps_LSE = x_LSE / jnp.where(scales_LS > 0, scales_LS, 1.0)[..., None]
            return jnp.round(steps_LSE).astype(jnp.int8), scales_LS

        (keys, key_scales), (values, value_scales) = codes_of(self.keys_LSE), codes_of(self.values_LSE)
        return Cache(keys, values, key_scales, value_scales)


def keep(config: LlamaConfig, k_BTKE: Float[Array, "B T K E"], v_BTKE: Float[Array, "B T K E"]) -> Cache:
    """Keys and values in the numbers that `config.cache` asks for, with axes [B, T, K, E], and scales [B, T, K]."""
    kept = Cache(k_BTKE, v_BTKE)
    return kept.encode() if config.cache == "int8" else kept


def make_cache(kept: Cache, repeats: int, slots: int) -> Cache:
    """A cache whose first slots hold prompts.

    Args:
        kept: keys and values of the prompts, from `keep`.
        repeats: number of consecutive rows that begin with each prompt.
        slots: slots of a row, at least the positions of `kept`.
    """

    def fill(x_BTK):  # and a last axis E, but for scales
        x_RKT = jnp.repeat(jnp.swapaxes(x_BTK, 1, 2), repeats, axis=0)
        room = [(0, 0)] * x_RKT.ndim
        room[2] = (0, slots - x_RKT.shape[2])
        return xla_cpu.rows_and_heads(jnp.pad(x_RKT, room))

    return jax.tree.map(fill, kept)
