"""Adam with moments of a byte each: its numbers, its steps beside Adam's, where its state lies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from camelid.model.sharding import make_mesh
from camelid.train import adam_8bit
from camelid.train.adam_8bit import BLOCK, Blocks, scale_by_adam_8bit
from camelid.train.optimizer import OptimSettings, make_optimizer
from camelid.train.state import state_of, state_shardings
from camelid.train.trainable import Trainable

RULES = ((r".*", ("fsdp", None)),)
encode = jax.jit(adam_8bit.encode, static_argnames="signed")
decode = jax.jit(adam_8bit.decode, static_argnames="signed")


def drawn(shape, seed=0):
    """Numbers over several decades, as gradients are."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape) * 10.0 ** rng.uniform(-3, 0, shape), jnp.float32)


def dynamic_values(signed):
    """The 256 values in rising order: middles of equal parts of decades, twice as many in each as in the one below."""
    positive = []
    for decade in range(7):
        count = 2 ** (decade + (0 if signed else 1))
        edges = np.linspace(0.1, 1.0, count + 1)
        positive += list((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6))
    return np.sort([0.0, 1.0, *positive, *(-np.array(positive) if signed else [])])


@pytest.mark.parametrize("signed", [True, False])
def test_codes_stand_for_values_spaced_evenly_within_each_decade(signed):
    values = dynamic_values(signed)
    assert len(values) == len(np.unique(values)) == 256
    codes = Blocks(jnp.arange(256, dtype=jnp.uint8)[None], jnp.ones(1))
    np.testing.assert_allclose(decode(codes, signed)[0], values, rtol=5e-7)
    np.testing.assert_array_equal(encode(jnp.asarray(values, jnp.float32)[None], signed).codes, codes.codes)


@pytest.mark.parametrize("shape", [(8, 3 * BLOCK), (4, 300), (5, 7)])
@pytest.mark.parametrize("signed", [True, False])
def test_each_number_becomes_the_nearest_value_of_its_block(shape, signed):
    x = drawn(shape) if signed else jnp.abs(drawn(shape))
    found = encode(x, signed)
    width = min(BLOCK, shape[-1])
    blocks = -(-shape[-1] // width)
    assert found.codes.shape == shape and found.scales.shape == (shape[:1] if blocks == 1 else (shape[0], blocks))
    scales = np.repeat(found.scales.reshape(shape[0], blocks), width, axis=1)[:, : shape[-1]]
    nearest = np.abs(np.asarray(x / scales)[..., None] - dynamic_values(signed)).min(-1) * scales
    rounding = 1e-7 + np.spacing(np.abs(x))  # the last bit of x itself, as the difference is of two numbers like it
    assert np.all(np.abs(np.abs(decode(found, signed) - x) - nearest) <= 1e-4 * nearest + rounding)


def test_steps_are_adams_to_the_precision_of_a_byte():
    params = {"w": jnp.zeros((64, 256)), "small": jnp.zeros(16)}
    ours, adam = scale_by_adam_8bit(0.9, 0.95, 1e-8), optax.scale_by_adam(0.9, 0.95, 1e-8)
    state, expected_state = ours.init(params), adam.init(params)
    assert state.mu["w"].codes.dtype == jnp.uint8 and state.mu["small"].dtype == jnp.float32
    move, expected_move = jax.jit(ours.update), jax.jit(adam.update)
    for step in range(12):
        grads = {"w": drawn((64, 256), step), "small": drawn((16,), step)}
        (found, state), (expected, expected_state) = move(grads, state), expected_move(grads, expected_state)
    np.testing.assert_allclose(found["small"], expected["small"], rtol=1e-4, atol=1e-7)
    error = np.abs(found["w"] - expected["w"])
    assert 1e-4 < np.mean(error) < 0.02 and np.max(error) < 0.5 and np.abs(expected["w"]).mean() > 0.2


def test_a_second_moment_far_below_its_blocks_largest_divides_no_step_by_zero():
    """Eight decades apart, where a byte for the second moment itself would be 0."""
    grads = {"w": jnp.full((64, 256), 1e-4).at[:, 0].set(1.0)}
    optimizer = scale_by_adam_8bit(0.9, 0.95, 1e-8)
    state, move = optimizer.init(grads), jax.jit(optimizer.update)
    for _ in range(3):
        steps, state = move(grads, state)
    np.testing.assert_allclose(steps["w"], 1.0, rtol=0.3)


def test_it_minimises_as_adamw_does():
    target = drawn((64, 128))

    def loss(params):
        return jnp.mean((params["w"] - target) ** 2)

    lost = {}
    for name in ("adamw", "adamw8bit"):
        params = {"w": jnp.zeros_like(target)}
        optimizer = make_optimizer(
            params, OptimSettings(name=name, weight_decay=0.0, clip_norm=None), optax.constant_schedule(0.01)
        )
        state = optimizer.init(params)

        @jax.jit
        def step(params, state, optimizer=optimizer):
            return optimizer.move(jax.grad(loss)(params), state, params)[:2]

        for _ in range(200):
            params, state = step(params, state)
        lost[name] = float(loss(params))
    assert lost["adamw8bit"] < 0.05 * float(loss({"w": jnp.zeros_like(target)})) and lost["adamw"] <= lost["adamw8bit"]


def test_codes_and_scales_lie_where_their_parameter_lies():
    params = {"w": jnp.zeros((64, 512))}
    optimizer = make_optimizer(
        params, OptimSettings(name="adamw8bit", weight_decay=0.0, clip_norm=None), optax.constant_schedule(0.01)
    )
    abstract = jax.eval_shape(lambda: state_of(params, optimizer, Trainable(), ema=False))
    where = state_shardings(abstract, make_mesh({"fsdp": 8}), RULES)
    specs = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.spec)
        for path, x in jax.tree_util.tree_leaves_with_path(where["opt_state"])
    }
    assert {s for name, s in specs.items() if name.endswith(("codes", "scales"))} == {("fsdp", None)}
    assert sum(name.endswith("scales") for name in specs) == 2
