"""One optimiser step as a pure function of the state: gradients, the guard's decision, the move."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from ..settings.leaves import Count, Only, Positive, Unset, Whole
from .by_layer import Optimizer
from .randomness import purpose_key
from .state import State, in_float32
from .trainable import Trainable, join_frozen, split_frozen

LossFn = Callable[[Any, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]
"""loss_fn(params, rows) -> (sum of the loss over tokens, number of tokens, further sums by name)."""

Update = Callable[[State, Mapping[str, jax.Array]], tuple[State, dict[str, jax.Array]]]
"""update(state, batch) -> (the next state, float32 metrics of the step)."""


@dataclass(frozen=True)
class Guard:
    """The section `config.guard`: which steps are skipped beside those whose numbers are not finite."""

    spike_sigma: Annotated[Positive | None, Unset("no limit of the loss")] = 10.0
    """A step is skipped if its loss is more than this many standard deviations above the running mean of accepted
    steps. None: no loss is too high."""

    warmup_steps: Annotated[Whole, Only("spike_sigma", default=50)] = 50
    """Accepted steps before a loss can be too high."""

    max_streak: Count = 20
    """Skipped steps in a row that stop the run."""


def make_update(
    loss_fn: LossFn,
    optimizer: Optimizer,
    schedule: optax.Schedule,
    trainable: Trainable = Trainable(),  # noqa: B008
    *,
    accumulate: int = 1,
    guard: Guard = Guard(),
    ema_decay: float | None = None,
    perturb: Callable[[Any, jax.Array], Any] | None = None,
    seed: int = 0,
) -> Update:
    """The pure function of one optimiser step.

    Args:
      loss_fn: the loss. Its sums are divided once, by the tokens of the whole batch.
      optimizer: the optimiser of the parameters that learn.
      schedule: the learning rate by accepted steps, for the metrics.
      trainable: which parameters learn.
      accumulate: parts of a batch that are computed one after the other; the result does not depend on it.
      guard: which steps are skipped.
      ema_decay: decay of the moving average in the state; None where the state has none.
      perturb: perturb(params, number) -> the parameters that the loss sees, for dropout. The number counts all parts of
        all batches.
      seed: seed of the rounding of parameters in bfloat16.

    A batch without a token changes `step` and nothing else. The metrics are loss, the further sums per token, grad_norm
    (before clipping), update_norm (norm of the change of the stored parameters; 0 for a skipped step), param_norm
    (of the parameters that are not frozen, in all layers), lr, tokens, skipped (steps so far) and streak (skipped steps
    in a row).
    """

    def update(state: State, batch: Mapping[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        learns, rest = trainable.split(state["params"], state["step"])

        def sums(learns, rows, part):
            params = trainable.for_loss(learns, rest)
            if perturb is not None:
                params = perturb(params, state["step"] * accumulate + part)
            loss, tokens, extra = loss_fn(params, rows)
            return loss, (tokens, extra)

        gradient = jax.value_and_grad(sums, has_aux=True)
        found = gradient(learns, dict(batch), 0) if accumulate == 1 else _sum(gradient, learns, batch, accumulate)
        (loss, (tokens, extra)), grads = found
        per_token = 1.0 / jnp.maximum(tokens, 1.0)
        grads = jax.tree.map(lambda g: g * per_token, grads)
        loss, grad_norm = loss * per_token, optax.tree.norm(grads)

        counts, told, empty = state["guard"], trainable.optimizer_extra(state["step"]), tokens == 0
        accept = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & ~_is_spike(counts, loss, guard) & ~empty
        accept &= optimizer.finite(grads, state["opt_state"], learns, counts["accepted"], **told)
        key = jax.random.fold_in(purpose_key(seed, "rounding"), counts["accepted"])

        def move(old: State) -> tuple[State, jax.Array]:
            moved, opt_state, norm = optimizer.move(grads, old["opt_state"], old["params"], key, **told)
            new = old | {"params": moved, "opt_state": opt_state}
            if ema_decay is not None:
                new["ema"] = _average(old["ema"], trainable.merge(moved, rest), trainable, ema_decay)
            return new, norm

        # A condition and not a choice between results: what is updated can then be written in place.
        new, update_norm = jax.lax.cond(accept, move, lambda old: (old, 0.0), state | {"params": learns})
        params = trainable.merge(new["params"], rest)
        counts = _count(counts, loss, accept, empty)
        metrics = {
            "loss": loss,
            **{name: total * per_token for name, total in extra.items()},
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "param_norm": optax.tree.norm(in_float32(trainable.may_learn(params))),
            "lr": schedule(state["guard"]["accepted"]),
            "tokens": tokens,
            "skipped": counts["skipped"],
            "streak": counts["streak"],
        }
        new |= {"params": params, "step": state["step"] + 1, "guard": counts}
        return new, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return update


def _average(ema: Any, params: Any, trainable: Trainable, decay: float) -> Any:
    """The moving average after a step. Averages of frozen parameters keep their bits, and so do those that equal their
    parameters."""
    moving, still = split_frozen(ema, trainable.frozen)
    learnt = in_float32(trainable.may_learn(params))
    return join_frozen(jax.tree.map(lambda mean, p: mean + (1.0 - decay) * (p - mean), moving, learnt), still)


def _sum(grad_fn: Callable, trainable: Any, batch: Mapping[str, jax.Array], parts: int) -> Any:
    """The sum of grad_fn(trainable, rows, number) over equal parts of a batch, each with rows of every shard."""
    split = jax.tree.map(lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), dict(batch))

    def add(total, part):
        return jax.tree.map(jnp.add, total, grad_fn(trainable, *part)), None

    shapes = jax.eval_shape(grad_fn, trainable, jax.tree.map(lambda x: x[0], split), 0)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes)
    return jax.lax.scan(add, zeros, (split, jnp.arange(parts)))[0]


def _is_spike(counts: Mapping[str, jax.Array], loss: jax.Array, guard: Guard) -> jax.Array:
    if guard.spike_sigma is None:
        return jnp.asarray(False)
    border = counts["mean"] + guard.spike_sigma * (jnp.sqrt(counts["var"]) + 1e-3)
    return (counts["accepted"] >= guard.warmup_steps) & (loss > border)


def _count(
    counts: Mapping[str, jax.Array], loss: jax.Array, accept: jax.Array, empty: jax.Array
) -> dict[str, jax.Array]:
    """The guard's counters after a step: exponential mean and variance of accepted losses (over about 50), skipped
    steps, and the streak. An empty step counts neither as accepted nor as skipped."""
    weight = jnp.maximum(1.0 / (counts["accepted"] + 1.0), 0.02)
    delta = loss - counts["mean"]
    mean = counts["mean"] + weight * delta
    var = (1.0 - weight) * (counts["var"] + weight * delta * delta)
    skip = jnp.where(accept | empty, 0, 1)
    return {
        "mean": jnp.where(accept, mean, counts["mean"]),
        "var": jnp.where(accept, var, counts["var"]),
        "accepted": counts["accepted"] + jnp.where(accept, 1, 0),
        "skipped": counts["skipped"] + skip,
        "streak": jnp.where(accept, 0, counts["streak"] + skip),
    }
