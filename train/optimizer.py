"""The optimiser and the learning rate of a run: clip, precondition, decay, multiply, step.

The optimiser sees the trainable parameters only. Lists of (regex over parameter paths, value) say which parameters
decay, are frozen or have another learning rate (`model.sharding.match`).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from ..errors import UserError, shown
from ..model.sharding import path_name
from ..settings.leaves import Count, OneOf, Only, Positive, Range, Regex, Share, Units, Unset
from ..settings.length import Length
from .adam_8bit import scale_by_adam_8bit
from .by_layer import Moved, Optimizer, at_once, by_layer, fold_in, largest_of, split_layers
from .trainable import Rules, by_rules

DEFAULTS: dict[str, dict[str, float]] = {
    "adamw": {"b1": 0.9, "b2": 0.95, "eps": 1e-8},
    "adamw8bit": {"b1": 0.9, "b2": 0.95, "eps": 1e-8},
    "lion": {"b1": 0.9, "b2": 0.99},
    "adafactor": {"decay_rate": 0.8, "eps": 1e-30, "clipping_threshold": 1.0},
    "muon": {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "momentum": 0.95, "ns_steps": 5},
}
"""Arguments of each optimiser with their defaults: LLaMA's betas for AdamW (arXiv:2302.13971, section 2.3), elsewhere
the papers' values: Lion (arXiv:2302.06675), Adafactor (arXiv:1804.04235), Muon (with consistent RMS,
arXiv:2502.16982)."""

SCHEDULES = ("cosine", "linear", "wsd", "constant")

SMALLEST_EPS = 1e-15
"""The smallest eps of all optimisers but adafactor: the root of float32's smallest number is 1e-19."""

OFFLOADED = ("adamw", "adamw8bit", "lion")
"""Optimisers that can move one layer at a time: the direction of a layer does not depend on other layers."""

DECAY: Rules = ((r".*(norm/scale|_bias)", False), (r".*", True))
"""Weight decay for all parameters but norms and biases."""

ARGUMENTS = tuple(dict.fromkeys(argument for taken in DEFAULTS.values() for argument in taken))
"""Names of the arguments that some optimiser takes."""


def _argument(name: str) -> Only:
    """Marks a field that is an argument of some optimisers."""
    return Only("name", *(optimizer for optimizer, taken in DEFAULTS.items() if name in taken))


@dataclass(frozen=True)
class OptimSettings:
    """The section `config.optim`. An argument of the optimiser that is None has the value in DEFAULTS."""

    name: Annotated[str, OneOf(*DEFAULTS)] = "adamw"
    """The optimiser: adamw, adamw8bit, lion, adafactor or muon."""

    lr: Annotated[float, Range(least=0, most=100)] = 3e-4
    """The highest learning rate."""

    weight_decay: Annotated[float, Range(least=0, most=1000)] = 0.1
    """Decoupled weight decay: its product with the learning rate is the share that a step takes off a parameter."""

    clip_norm: Annotated[Positive | None, Unset("no clipping")] = 1.0
    """Global norm to which gradients are clipped. None: they are not clipped."""

    accumulate: Count = 1
    """Parts of a batch that are computed one after the other, to save memory. The result does not depend on it."""

    decay: list[tuple[Regex, bool]] | None = None
    """(regex over parameter paths, whether the parameter decays); the first match counts. Default: all but norms and
    biases."""

    lr_multipliers: list[tuple[Regex, Annotated[float, Range(least=0, most=1e6)]]] | None = None
    """(regex over parameter paths, factor of the learning rate); the first match counts. Default: 1 everywhere."""

    frozen: list[tuple[Regex, bool]] | None = None
    """(regex over parameter paths, whether the parameter is frozen); the first match counts. Default: none is."""

    offload: Annotated[bool, Only("name", *OFFLOADED, default=False)] = False
    """Whether moments stay in the host's memory and come to the device layer by layer (adamw, adamw8bit, lion)."""

    b1: Annotated[float | None, Range(least=0, below=1), _argument("b1")] = None
    """Decay of the first moment."""

    b2: Annotated[float | None, Range(least=0, below=1), _argument("b2")] = None
    """Decay of the second moment; of Lion, of the momentum."""

    eps: Annotated[float | None, Range(above=0, most=1), _argument("eps")] = None
    """Added to the root of the second moment; for Adafactor, to the squared gradient."""

    momentum: Annotated[float | None, Range(least=0, below=1), _argument("momentum")] = None
    """Muon: decay of the momentum."""

    ns_steps: Annotated[int | None, Range(least=1, most=100), _argument("ns_steps")] = None
    """Muon: Newton-Schulz iterations."""

    decay_rate: Annotated[float | None, Range(above=0, most=1), _argument("decay_rate")] = None
    """Adafactor: exponent of the second moment's decay."""

    clipping_threshold: Annotated[float | None, Range(above=0), _argument("clipping_threshold")] = None
    """Adafactor: largest root mean square of a parameter's update, relative to the learning rate."""

    def check(self, where: str) -> None:
        if self.eps is not None and self.eps < SMALLEST_EPS and self.name != "adafactor":
            raise UserError(
                f"{where}.eps = {shown(self.eps)}: give {self.name} at least {SMALLEST_EPS:g}: the roots of second "
                "moments are 0 in float32 soon below that"
            )

    def arguments(self) -> dict[str, float]:
        """The arguments of the optimiser, defaults included. Raises UserError for an unknown optimiser or argument."""
        if self.name not in DEFAULTS:
            raise UserError(f"config.optim.name: no optimiser {self.name!r}; give one of {', '.join(DEFAULTS)}")
        given = {name: value for name in ARGUMENTS if (value := getattr(self, name)) is not None}
        if unknown := set(given) - set(DEFAULTS[self.name]):
            taken = ", ".join(DEFAULTS[self.name])
            raise UserError(f"config.optim: {self.name} does not take {', '.join(sorted(unknown))}; it takes {taken}")
        return DEFAULTS[self.name] | given


@dataclass(frozen=True)
class ScheduleSettings:
    """The section `config.schedule`: the learning rate over the run."""

    name: Annotated[str, OneOf(*SCHEDULES)] = "cosine"
    """Shape of the descent: cosine, linear, wsd (warmup-stable-decay, arXiv:2404.06395, section 4) or constant."""

    warmup: Annotated[Length, Units("steps", "epochs", "tokens", "percent", least=0)] = Length(2.0, "percent")
    """Length of the linear rise at the start."""

    final: Annotated[Share, Only("name", *(x for x in SCHEDULES if x != "constant"), default=(0.1, 0.0))] = 0.1
    """The last learning rate, as a share of the highest."""

    decay: Annotated[Length | None, Units("steps", "epochs", "tokens", "percent", least=1)] = None
    """wsd: length of the descent at the end."""

    def check(self, where: str) -> None:
        if self.name == "wsd" and self.decay is None:
            raise UserError(f"{where}: wsd needs a length of its descent, such as {where}.decay_percent=20")
        if self.name != "wsd" and self.decay is not None:
            raise UserError(
                f"{self.decay.path} = {shown(self.decay.value)} does nothing where name is {self.name!r}: only wsd "
                "uses it, leave it None"
            )


def make_optimizer(
    params: Any, settings: OptimSettings, schedule: optax.Schedule, *, restarts: bool = False
) -> Optimizer:
    """The optimiser of the parameters that learn.

    A step is -schedule(step) * multiplier * (direction + weight_decay * parameter), where gradients are first clipped
    to a global norm of `settings.clip_norm`.

    Args:
      params: the tree of the parameters that learn; shapes suffice.
      settings: `config.optim`. `lr`, `frozen` and `accumulate` are not used here.
      schedule: the learning rate by step.
      restarts: whether `Optimizer.move` takes a `period` and starts over with empty moments of layers when it changes.

    Raises:
      UserError: an argument that the optimiser does not take, an offload that it cannot do, or rules that leave a
        parameter out.
    """
    arguments, weight_decay, clip_norm = settings.arguments(), settings.weight_decay, settings.clip_norm
    name, offload = settings.name, settings.offload
    decay, lr_multipliers = settings.decay or DECAY, settings.lr_multipliers or ((r".*", 1.0),)
    if offload:
        _check_offloads(name, restarts)
    direct = functools.partial(_DIRECTIONS[name], **arguments)
    if restarts:
        direct = functools.partial(_restarting, direct)

    def steps(part: Any, decayed: Any, multipliers: Any, *first: optax.GradientTransformation):
        return _in_float32(
            *first,
            direct(part),
            optax.add_decayed_weights(weight_decay, mask=decayed),
            optax.stateless(lambda updates, _: jax.tree.map(lambda u, m: u * m, updates, multipliers)),
            optax.scale_by_learning_rate(schedule),
        )

    trees = params, by_rules("decay", decay, params), by_rules("lr_multipliers", lr_multipliers, params)
    multiplier = max(float(multiplier) for _, multiplier in lr_multipliers)
    finite = _stays_finite(schedule, multiplier, weight_decay, clip_norm, arguments.get("eps"))
    if offload or (name == "adamw8bit" and not restarts):
        layers, rest = (steps(*parts) for parts in zip(*map(split_layers, trees), strict=True))
        return by_layer(layers, rest, clip_norm, finite, host=offload)
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm is not None else optax.identity()
    whole = at_once(steps(*trees, clip))
    return whole if name == "adafactor" else whole._replace(finite=finite)


def _longest(clip_norm: float | None, eps: float | None) -> float | jax.Array:
    """An upper bound of the numbers of a direction, for all optimisers but adafactor.

    A direction is a sign, a part of an orthogonal matrix scaled by the root of its size, or a mean of gradients, whose
    squares are finite, divided by at least `eps`.
    """
    if eps is None:
        return 1e9
    return 1e9 + (2.0**64 if clip_norm is None else jnp.minimum(clip_norm, 2.0**64)) / eps


def _stays_finite(
    schedule: optax.Schedule, multiplier: float, weight_decay: float, clip_norm: float | None, eps: float | None
) -> Callable[..., jax.Array]:
    """`Optimizer.finite` by bounds: the largest number of each parameter, and `_longest` for those of a direction.

    The step itself is then computed once, and no parameter is in memory twice.
    """

    def finite(grads, state, params, count, **further) -> jax.Array:
        del grads, state, further
        longest = _longest(clip_norm, eps)

        def stays(x: jax.Array) -> jax.Array:
            size = jnp.max(jnp.abs(x), initial=0.0).astype(jnp.float32)
            step = (longest + weight_decay * size) * multiplier * schedule(count)
            return size + step <= largest_of(x.dtype)

        return jax.tree.reduce(jnp.logical_and, jax.tree.map(stays, params), jnp.asarray(True))

    return finite


def _check_offloads(name: str, restarts: bool) -> None:
    if name not in OFFLOADED:
        raise UserError(
            f"config.optim.offload: {name} needs several layers at a time; {', '.join(OFFLOADED)} can be offloaded"
        )
    if restarts:
        raise UserError("config.optim.offload cannot be combined with lisa.period_steps: set optim.offload=False")


def _in_float32(*chain: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The chain with state and arithmetic in float32, whatever the dtype of the parameters."""
    optimizer = optax.chain(*chain)

    def cast(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(updates, state, params, **further):
        return optimizer.update(cast(updates), state, cast(params), **further)

    return optax.GradientTransformationExtraArgs(lambda params: optimizer.init(cast(params)), update)


def _adamw(params, b1, b2, eps):
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def _adamw8bit(params, b1, b2, eps):
    return scale_by_adam_8bit(b1, b2, eps)


def _lion(params, b1, b2):
    return optax.scale_by_lion(b1=b1, b2=b2)


def _adafactor(params, decay_rate, eps, clipping_threshold):
    return optax.chain(
        optax.scale_by_factored_rms(decay_rate=decay_rate, epsilon=eps),
        optax.clip_by_block_rms(clipping_threshold),
        optax.scale_by_param_block_rms(),
    )


def _muon(params, b1, b2, eps, momentum, ns_steps):
    """Orthogonalised momentum for the matrices inside the layers, Adam for embedding, head, norms and biases."""

    def axes(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: _matrix_axes(path_name(path)), tree)

    # At learning rate -1 optax's alias gives the direction itself; the chain in `make_optimizer` sets sign and rate.
    # For all other parameters the alias uses Adam with Nesterov momentum, hence the partition.
    matrices = contrib.muon(
        -1.0, ns_steps=ns_steps, beta=momentum, eps=eps, consistent_rms=0.2, muon_weight_dimension_numbers=axes
    )
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "adam" if _matrix_axes(path_name(path)) is None else "muon", params
    )
    return optax.partition({"muon": matrices, "adam": _adamw(params, b1, b2, eps)}, labels)


def _matrix_axes(name: str) -> contrib.MuonDimensionNumbers | None:
    """Input and output axes of a stacked layer matrix (axis 0 is the layer); None for parameters that Adam moves."""
    if name.endswith(("attention/q", "attention/k", "attention/v")):
        return contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=(2, 3))
    if name.endswith("attention/o"):
        return contrib.MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=3)
    if name.endswith(("mlp/gate", "mlp/up", "mlp/down")):
        return contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return None


def _restarting(
    make: Callable[[Any], optax.GradientTransformation], params: Any
) -> optax.GradientTransformationExtraArgs:
    """The direction of `make(params)`, with separate states for layers and for all other parameters.

    The layers' state, counts included, is initialised again whenever `update` gets another `period` than before.
    """

    layers, rest = (make(part) for part in split_layers(params))

    def init(params):
        stack, others = split_layers(params)
        return {"layers": layers.init(stack), "rest": rest.init(others), "period": jnp.zeros((), jnp.int32)}

    def update(updates, state, params, *, period, **_):
        (stack_updates, updates), (stack, others) = split_layers(updates), split_layers(params)
        begins = period != state["period"]
        before = jax.tree.map(lambda new, old: jnp.where(begins, new, old), layers.init(stack), state["layers"])
        stack_updates, of_layers = layers.update(stack_updates, before, stack)
        updates, of_rest = rest.update(updates, state["rest"], others)
        return updates | stack_updates, {"layers": of_layers, "rest": of_rest, "period": period}

    return optax.GradientTransformationExtraArgs(init, update)


def each_part(optimizers: Mapping[str, Optimizer]) -> Optimizer:
    """The optimiser of several networks in one tree: each has its own, which sees and clips its network alone."""

    def init(params):
        return {name: optimizer.init(params[name]) for name, optimizer in optimizers.items()}

    def each(grads, state, params, key):
        for number, (name, optimizer) in enumerate(optimizers.items()):
            yield optimizer, (grads[name], state[name], params[name], fold_in(key, number))

    def move(grads, state, params, key=None):
        moved = dict(
            zip(optimizers, (o.move(*arguments) for o, arguments in each(grads, state, params, key)), strict=True)
        )
        params, state, norms = ({name: done[i] for name, done in moved.items()} for i in range(3))
        return params, state, optax.tree.norm(norms)

    def finite(grads, state, params, count):
        parts = (o.finite(grads[name], state[name], params[name], count) for name, o in optimizers.items())
        return functools.reduce(jnp.logical_and, parts)

    return Optimizer(init, move, finite)


def waiting(optimizer: Optimizer, updates: int) -> Optimizer:
    """`optimizer` for a network that begins to learn after a number of updates. Until then its gradient must be 0.

    Where the gradient is 0, weight decay moves nothing, and moments and counts do not change.
    """

    def move(grads, state, params, key=None, **further) -> Moved:
        learns = jax.tree.reduce(jnp.logical_or, jax.tree.map(lambda g: jnp.any(g != 0), grads), jnp.asarray(False))
        learn = lambda: optimizer.move(grads, state, params, key, **further)  # noqa: E731
        return jax.lax.cond(learns, learn, lambda: (params, state, jnp.zeros(())))

    def finite(grads, state, params, count, **further) -> jax.Array:
        return optimizer.finite(grads, state, params, count - updates, **further)

    return Optimizer(optimizer.init, move, finite)


_DIRECTIONS = {"adamw": _adamw, "adamw8bit": _adamw8bit, "lion": _lion, "adafactor": _adafactor, "muon": _muon}


def make_schedule(
    *, name: str, lr: float, total_steps: int, warmup_steps: int, final: float, decay_steps: int | None = None
) -> optax.Schedule:
    """The learning rate by step: a linear rise to `lr`, then a descent to `final * lr`.

    Args:
      name: shape of the descent: cosine (LLaMA: final 0.1, 2,000 steps of warm-up), linear, constant (no descent) or
        wsd, which stays at `lr` and falls linearly at the end (warmup-stable-decay, arXiv:2404.06395, section 4).
      lr: the highest learning rate.
      total_steps: number of steps.
      warmup_steps: steps of the rise.
      final: the last learning rate, as a share of `lr`.
      decay_steps: steps of wsd's descent.
    """
    if warmup_steps > total_steps:
        raise UserError(f"config.schedule: warm-up of {warmup_steps} steps in a run of {total_steps}; shorten it")
    rest = max(total_steps - warmup_steps, 1)
    if name == "cosine":
        after = optax.cosine_decay_schedule(lr, rest, alpha=final)
    elif name == "linear":
        after = optax.linear_schedule(lr, lr * final, rest)
    elif name == "constant":
        after = optax.constant_schedule(lr)
    elif name == "wsd":
        if decay_steps is None or decay_steps > rest:
            raise UserError("config.schedule: wsd needs a length of decay that fits after the warm-up, e.g. 20 percent")
        after = optax.join_schedules(
            [optax.constant_schedule(lr), optax.linear_schedule(lr, lr * final, decay_steps)], [rest - decay_steps]
        )
    else:
        raise UserError(f"config.schedule.name: no schedule {name!r}; give cosine, linear, wsd or constant")
    rise = optax.linear_schedule(lr / max(warmup_steps, 1), lr, max(warmup_steps - 1, 1))
    return optax.join_schedules([rise, after], [warmup_steps])
