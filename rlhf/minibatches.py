"""Epochs of minibatches over the rollouts of a step, in one scan on the device."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..model.sharding import BATCH, constrain
from ..train.state import State
from ..train.update import Update


def minibatch_order(key: jax.Array, rows: int, epochs: int, minibatches: int) -> jax.Array:
    """The rows of each update, int32 [epochs * minibatches, rows / minibatches]; each epoch permutes all rows anew."""
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
    """Updates the state on every minibatch of `rows`, for several epochs.

    Args:
      update: the update on one minibatch, {"rows": ..., "mix": ...}.
      state: the state before the first update.
      rows: arrays of R rows, R a multiple of `minibatches`.
      key: key of the permutations.
      epochs: passes over the rows.
      minibatches: updates of a pass.
      mix: rows of pretraining text. They are split evenly over the minibatches, in the same way in every epoch.
      target_kl: an update whose metric `policy/approx_kl` is above this is the last of the step. None: no limit.

    Returns:
      The new state and metrics. Updates without a token do not count: a metric is the mean over the updates that do,
      and `policy/updates` is their number. `policy/first_ratio_error` is the `policy/ratio_error` of the first of
      them, `streak` the largest; `lr`, `skipped` and `param_norm` are those of the last update.
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
    made_U *= each["tokens"] > 0  # an update without a token does not count
    made = jnp.sum(made_U)
    metrics = {name: jnp.sum(values_U * made_U) / jnp.maximum(made, 1.0) for name, values_U in each.items()}
    metrics |= {name: each[name][last] for name in ("lr", "skipped", "param_norm")}
    metrics["streak"] = jnp.max(each["streak"])
    if "policy/ratio_error" in each:
        metrics["policy/first_ratio_error"] = each["policy/ratio_error"][jnp.argmax(made_U)]
    metrics["policy/updates"] = made
    return state, metrics


def _split_rows(x: jax.Array) -> jax.Array:
    """Splits rows evenly over the devices again, since the permutation mixes them."""
    return constrain(x, BATCH, *[None] * (x.ndim - 1))
