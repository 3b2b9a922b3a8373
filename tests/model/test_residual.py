"""The residual stream split over the mesh axis `tensor`, against the network on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from camelid.model import llama, residual
from camelid.model.config import LlamaConfig
from camelid.model.sharding import BATCH, make_mesh, shardings

CONFIG = LlamaConfig.preset("nano-test", n_layers=2, remat="attention,residual", max_len=64)


def loss_and_gradient(params, tokens):
    return jax.value_and_grad(lambda p: jnp.mean(llama.build(CONFIG).hidden(p, tokens) ** 2))(params)


@pytest.mark.parametrize(
    ("length", "where"), [(32, ("context", "tensor")), (30, "context"), (1, "context")], ids=["divided", "30", "1"]
)
def test_positions_are_split_over_tensor_where_it_divides_them(length, where):
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    with jax.set_mesh(mesh):
        x_BTD = jnp.ones((2, length, 8))
        for function, split in ((residual.by_position, True), (residual.scattered, True), (residual.gathered, False)):
            found = jax.jit(lambda x, f=function: f(2 * x))(jax.device_put(x_BTD, NamedSharding(mesh, PartitionSpec())))
            if function is residual.by_position or where != "context":
                expected = NamedSharding(mesh, PartitionSpec(BATCH, where if split else "context", None))
                assert found.sharding.is_equivalent_to(expected, 3), function


@pytest.mark.parametrize("length", [32, 30])
def test_a_split_stream_gives_the_loss_and_gradients_of_one_device(length):
    params = jax.jit(llama.build(CONFIG).init)(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (4, length)).astype(np.int32)
    expected = jax.jit(loss_and_gradient)(params, tokens)
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "context": 2})
    with jax.set_mesh(mesh):
        there = jax.device_put(params, shardings(params, mesh))
        rows = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec(BATCH, "context")))
        found = jax.jit(loss_and_gradient)(there, rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_a_gradient_that_is_kept_apart_is_the_same(monkeypatch):
    monkeypatch.setattr(residual, "compile_platform", lambda: "tpu")
    x = jnp.arange(6.0).reshape(1, 2, 3)
    square = lambda x: jnp.sum(residual.read_apart(jnp.sin(x)) ** 2)  # noqa: E731
    np.testing.assert_allclose(jax.grad(square)(x), 2 * jnp.sin(x) * jnp.cos(x), rtol=1e-6)
    assert "optimization_barrier" in str(jax.make_jaxpr(jax.grad(square))(x))
