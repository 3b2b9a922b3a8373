"""What a run carries from step to step, where each part of it lives, and how one step changes it.

State is a plain dict: params, opt_state, step, guard (what decides whether a step is skipped) and, where asked for,
ema. All of it is made already sharded.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from ..model.sharding import path_name, shardings
from ..model.weights import is_stacked
from .by_layer import ON_HOST, Optimizer
from .optimizer import Rules, join_frozen, split_frozen
from .randomness import purpose_key
from .thaw import ALL_LAYERS, Thaw, put, take

State = dict[str, Any]
LossFn = Callable[[Any, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array, dict[str, jax.Array]]]


class Guard(NamedTuple):
    """When a step is skipped: its loss, its gradient or the parameters after it are not finite, or its loss is more
    than `spike_sigma` standard deviations above the running mean of accepted steps (None: never), once `warmup` steps
    have been accepted."""

    spike_sigma: float | None = 10.0
    warmup: int = 50


DEFAULT_GUARD = Guard()


def init_state(
    init_params: Callable[[jax.Array], Any],
    optimizer: Optimizer,
    frozen: Rules,
    *,
    ema: bool,
    extra: Mapping[str, Any] | None = None,
    thaw: Thaw = ALL_LAYERS,
) -> Callable[[jax.Array], State]:
    """The function from a key to the first state, to be compiled with `state_shardings` as its output's."""

    def init(key: jax.Array) -> State:
        return state_of(init_params(key), optimizer, frozen, ema=ema, extra=extra, thaw=thaw)

    return init


def state_of(
    params: Any,
    optimizer: Optimizer,
    frozen: Rules,
    *,
    ema: bool,
    extra: Mapping[str, Any] | None = None,
    thaw: Thaw = ALL_LAYERS,
) -> State:
    """The state of a run that starts from `params`, with the entries of `extra` (scalars, or trees of them)."""
    trainable, rest = split_frozen(params, frozen)
    guard = {"mean": 0.0, "var": 0.0, "accepted": 0, "skipped": 0, "streak": 0}
    state = {
        "params": params,
        "opt_state": optimizer.init(take(trainable, thaw.rows(trainable, 0))),
        "step": jnp.zeros((), jnp.int32),
        "guard": {k: jnp.asarray(v, jnp.float32 if isinstance(v, float) else jnp.int32) for k, v in guard.items()},
    }
    state |= jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), dict(extra or {}))
    return state | ({"ema": join_frozen(_in_float32(trainable), jax.tree.map(jnp.copy, rest))} if ema else {})


def _in_float32(params: Any) -> Any:
    """A copy in float32, in which a moving average takes steps that parameters of 16 bits would not."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)


def state_shardings(abstract: State, mesh: jax.sharding.Mesh, rules: Rules) -> State:
    """A sharding for each leaf: optimiser moments, and the scales of their blocks, lie where their parameter lies,
    those of a few layers as all layers would, everything else on every device. Arrays under `by_layer.ON_HOST`
    lie in the host's memory."""
    params = shardings(abstract["params"], mesh, rules)
    by_path = {
        path_name(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(abstract["params"]), jax.tree.leaves(params), strict=True
        )
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def like_its_parameter(path, leaf):
        parts = path_name(path).split("/")
        sharding = of_parts(parts, leaf)
        return sharding.with_memory_kind("pinned_host") if ON_HOST in parts and leaf.ndim else sharding

    def of_parts(parts, leaf):
        for start in range(len(parts)):
            suffix = "/".join(parts[start:])
            shape, sharding = by_path.get(suffix.removesuffix("/codes").removesuffix("/scales"), (None, None))
            if shape is None:
                continue
            sharding = NamedSharding(mesh, PartitionSpec(*sharding.spec[: leaf.ndim]))  # scales may lack the last axis
            alike = suffix.endswith("/scales") or (is_stacked(suffix) and shape[1:] == leaf.shape[1:])
            if shape == leaf.shape or (alike and _divides(sharding, leaf.shape)):
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(like_its_parameter, abstract)


def _divides(sharding: NamedSharding, shape: tuple[int, ...]) -> bool:
    """Whether an array of `shape` can be laid out so."""
    try:
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True


def make_update(
    loss_fn: LossFn,
    optimizer: Optimizer,
    schedule: optax.Schedule,
    *,
    frozen: Rules = ((r".*", False),),
    accumulate: int = 1,
    guard: Guard = DEFAULT_GUARD,
    ema_decay: float | None = None,
    perturb: Callable[[Any, jax.Array], Any] | None = None,
    thaw: Thaw = ALL_LAYERS,
    seed: int = 0,
) -> Callable[[State, Mapping[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """The pure function `update(state, batch) -> (state, metrics)` of one optimiser step.

    loss_fn(params, rows) gives (sum of the loss over tokens, number of tokens, dict of further sums): with `accumulate`
    > 1 the batch is walked through in that many parts and sums are divided once, by the whole batch's tokens, so that
    the result does not depend on `accumulate`. perturb(params, pass) gives the parameters that the loss sees instead,
    for dropout; passes over parts of batches are numbered from the first step on. thaw: which layers learn. seed: of
    the rounding of parameters in bfloat16. A batch without a token changes `step` and nothing else.

    Metrics are float32 scalars: loss, the further sums per token, grad_norm (before clipping), update_norm (of the
    difference in the stored parameters; 0 where the step is skipped), param_norm (of what is not frozen, in all
    layers), lr, tokens, skipped (so far) and streak (skips in a row).
    """

    def update(state: State, batch: Mapping[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        trainable, rest = split_frozen(state["params"], frozen)
        layers = thaw.rows(trainable, state["step"])

        def sums(learning, rows, part):
            params = thaw.network(learning, trainable, rest, layers)
            if perturb is not None:
                params = perturb(params, state["step"] * accumulate + part)
            loss, tokens, extra = loss_fn(params, rows)
            return loss, (tokens, extra)

        (loss, (tokens, extra)), grads = _accumulate(
            jax.value_and_grad(sums, has_aux=True), take(trainable, layers), batch, accumulate
        )
        per_token = 1.0 / jnp.maximum(tokens, 1.0)
        grads = jax.tree.map(lambda g: g * per_token, grads)
        loss = loss * per_token
        grad_norm = optax.tree.norm(grads)
        empty, news, counts = tokens == 0, thaw.news(state["step"]), state["guard"]
        accept = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & ~_is_spike(counts, loss, guard) & ~empty
        key = jax.random.fold_in(purpose_key(seed, "rounding"), counts["accepted"])
        accept &= optimizer.finite(grads, state["opt_state"], take(trainable, layers), counts["accepted"], **news)

        def move(old):
            learning = take(old["params"], layers)
            moved, opt_state, norm = optimizer.move(grads, old["opt_state"], learning, key, **news)
            params = put(moved, old["params"], layers)
            new = old | {"params": params, "opt_state": opt_state}
            if ema_decay is not None:
                moving, still = split_frozen(old["ema"], frozen)
                average = optax.incremental_update(_in_float32(params), moving, 1.0 - ema_decay)
                new["ema"] = join_frozen(average, still)
            return new, norm

        # A condition and not a choice between results: what is updated can then be written in place.
        new, update_norm = jax.lax.cond(accept, move, lambda old: (old, 0.0), state | {"params": trainable})
        params = join_frozen(new["params"], rest)

        counts = _watch(counts, loss, accept, empty)
        new_state = new | {"params": params, "step": state["step"] + 1, "guard": counts}
        metrics = {
            "loss": loss,
            **{name: total * per_token for name, total in extra.items()},
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "param_norm": optax.tree.norm(_in_float32(new["params"])),
            "lr": schedule(state["guard"]["accepted"]),
            "tokens": tokens,
            "skipped": counts["skipped"],
            "streak": counts["streak"],
        }
        return new_state, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

    return update


def _accumulate(grad_fn: Callable, trainable: Any, batch: Mapping[str, jax.Array], parts: int) -> Any:
    """Sums what grad_fn(trainable, rows, number) gives of `parts` equal parts of the batch, each with rows of every
    shard."""
    if parts == 1:
        return grad_fn(trainable, dict(batch), 0)
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
    return (counts["accepted"] >= guard.warmup) & (loss > border)


def _watch(
    counts: Mapping[str, jax.Array], loss: jax.Array, accept: jax.Array, empty: jax.Array
) -> dict[str, jax.Array]:
    """Running mean and variance of accepted losses (exponential, about the last 50), and the counters of skips; a step
    without a token is none."""
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
