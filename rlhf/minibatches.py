"""Several epochs of minibatches over the same rollouts, on the device: what PPO does between rollouts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..model.sharding import BATCH, constrain
from ..train.state import State
from ..train.update import Update


def minibatch_order(key: jax.Array, rows: int, epochs: int, minibatches: int) -> jax.Array:
    """Which rows each update sees, int32 [epochs * minibatches, rows / minibatches]: a fresh permutation an epoch."""
    keys_E = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(epochs))
    order_ER = jax.vmap(lambda epoch_key: jax.random.permutation(epoch_key, rows))(keys_E)
    return order_ER.reshape(epochs * minibatches, rows // minibatches)


def minibatch_epochs(
    update: Update,
    state: State,
    rows: Any,
    key: jax.Array,
    *,
    epochs: int,
    minibatches: int,
    mix: Mapping[str, Array] | None = None,
    target_kl: float | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """`update` on every minibatch of `rows` (arrays of R rows, R a multiple of `minibatches`), epoch after epoch.

    mix: further rows (of pretraining text), of which each minibatch gets its share, the same one in every epoch.
    target_kl: after an update whose `policy/approx_kl` is above it, the rest of the epochs is left out.

    Returns the state and the metrics: means over the updates that were made and had a token, of the first of them
    `policy/first_ratio_error` where there are ratios, the last value of counters, and `policy/updates`, how many.
    """
    total = jax.tree.leaves(rows)[0].shape[0]
    order_UK = minibatch_order(key, total, epochs, minibatches)
    shares = jax.tree.map(lambda x: x.reshape(minibatches, -1, *x.shape[1:]), dict(mix or {}))

    def one(carry, turn):
        state, stopped = carry
        chosen_K, number = turn
        batch = {"rows": jax.tree.map(lambda x: _split_rows(x[chosen_K]), rows)}
        batch |= {"mix": jax.tree.map(lambda x: _split_rows(x[number % minibatches]), shares)} if mix else {}
        if target_kl is None:
            state, metrics = update(state, batch)
            return (state, stopped), (metrics, jnp.float32(1))
        shapes = jax.eval_shape(update, state, batch)[1]
        skip = lambda state: (state, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))  # noqa: E731
        state, metrics = jax.lax.cond(stopped, skip, lambda state: update(state, batch), state)
        return (state, stopped | (metrics["policy/approx_kl"] > target_kl)), (metrics, 1.0 - stopped)

    numbers_U = jnp.arange(len(order_UK))
    (state, _), (each, made_U) = jax.lax.scan(one, (state, jnp.asarray(False)), (order_UK, numbers_U))
    last = jnp.int32(jnp.sum(made_U)) - 1
    made_U *= each["tokens"] > 0  # an update without a token is none
    made = jnp.sum(made_U)
    metrics = {name: jnp.sum(values_U * made_U) / jnp.maximum(made, 1.0) for name, values_U in each.items()}
    metrics |= {name: each[name][last] for name in ("lr", "skipped", "param_norm")}
    metrics["streak"] = jnp.max(each["streak"])
    if "policy/ratio_error" in each:
        metrics["policy/first_ratio_error"] = each["policy/ratio_error"][jnp.argmax(made_U)]
    metrics["policy/updates"] = made
    return state, metrics


def _split_rows(x: jax.Array) -> jax.Array:
    """Rows back over the devices, from wherever the permutation took them."""
    return constrain(x, BATCH, *[None] * (x.ndim - 1))
