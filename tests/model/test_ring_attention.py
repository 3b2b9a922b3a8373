"""Ring attention and its gradients against a float64 loop in numpy, and a network that orders its rows in a zigzag."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from camelid.errors import UserError
from camelid.launch.plans.flops import flops_of
from camelid.model import llama, ring_attention
from camelid.model.attention import attention
from camelid.model.config import LlamaConfig
from camelid.model.remat import policy_of
from camelid.model.ring_attention import Zigzag, from_zigzag, to_zigzag
from camelid.model.sharding import BATCH, make_mesh, shardings
from camelid.tests.model.test_attention import compare, inputs, packed
from camelid.train.batches import check_rows

xla = functools.partial(attention, implementation="xla")
splash = functools.partial(ring_attention.attend, kernel="splash", interpret=True)


def in_zigzag(attend):
    """Attention of rows that are brought into the order of a zigzag, and back."""

    def function(q, k, v, segments, **fields):
        q, k, v, segments = map(to_zigzag, (q, k, v, jnp.asarray(segments)))
        return from_zigzag(attend(q, k, v, Zigzag(segments), **fields))

    return function


def scaled(attend):
    return lambda q, *args, **fields: attend(q * q.shape[-1] ** -0.5, *args, **fields)


def mesh(**axes: int) -> jax.sharding.Mesh:
    """A mesh of as many devices as its axes have."""
    return make_mesh(axes, jax.devices()[: math.prod(axes.values())])


@pytest.mark.parametrize("context", [2, 4, 8])
def test_in_a_zigzag_packed_rows_of_grouped_heads_equal_the_reference(context):
    compare(in_zigzag(xla), (1, 48, 4, 2, 8), mesh=mesh(context=context), tolerance=2e-6)


def test_heads_may_be_split_as_well_and_scores_scaled():
    compare(in_zigzag(xla), (2, 48, 4, 2, 8), mesh=mesh(fsdp=2, tensor=2, context=2), tolerance=2e-6, scale=0.4)


@pytest.mark.parametrize("window", [None, 2, 12, 13, 25, 40])
def test_contiguous_parts_equal_the_reference_with_windows_that_end_in_any_part(window):
    compare(xla, (1, 48, 2, 1, 8), mesh=mesh(context=4), tolerance=2e-6, window=window)


def test_splash_computes_the_blocks_of_a_zigzag():
    compare(scaled(in_zigzag(splash)), (1, 512, 2, 1, 64), mesh=mesh(context=2), tolerance=2e-6)


def test_splash_computes_the_blocks_of_a_window():
    compare(scaled(splash), (1, 256, 1, 1, 64), mesh=mesh(context=2), tolerance=2e-6, window=100)


def test_bfloat16_stays_within_a_percent():
    compare(in_zigzag(xla), (1, 48, 2, 1, 8), mesh=mesh(context=2), dtype=jnp.bfloat16, tolerance=0.01)


def test_rows_in_a_zigzag_have_chunks_of_both_ends_on_each_device():
    with jax.set_mesh(mesh(context=4)):
        row = np.asarray(jax.jit(to_zigzag)(jnp.broadcast_to(jnp.arange(16)[None], (2, 16))))[0]
    assert row.reshape(4, 2, 2).tolist() == [[[2 * d, 2 * d + 1], [14 - 2 * d, 15 - 2 * d]] for d in range(4)]


def test_blocks_that_no_query_sees_are_not_computed():
    """In a zigzag each of C devices computes (2 C + 2) blocks of chunks for every 2 C chunks: just over half of them.
    With a window a part meets no parts but its own and the one before it."""
    q, k, v, segments, _ = inputs(1, 8192, 1, 1, 8)
    whole = 4 * 8192**2 * 8
    with jax.set_mesh(mesh(context=8)):
        computed = flops_of(jax.jit(in_zigzag(xla)).trace(q, k, v, segments).jaxpr)
        near = flops_of(jax.jit(functools.partial(xla, window=1025)).trace(q, k, v, segments).jaxpr)
        computed, near = computed.total, near.total
    assert computed / whole == pytest.approx(0.5, abs=0.01)
    assert near / whole < 0.25


def test_a_layer_that_keeps_attention_does_not_go_around_the_ring_again():
    q, k, v, segments, _ = inputs(1, 64, 1, 1, 8)

    def flops(policy):
        attend = jax.checkpoint(lambda *qkv: in_zigzag(xla)(*qkv, segments), policy=policy_of(policy))
        gradient = jax.grad(lambda *qkv: jnp.sum(attend(*qkv) ** 2), (0, 1, 2))
        return flops_of(jax.jit(gradient).trace(q, k, v).jaxpr).total

    with jax.set_mesh(mesh(context=4)):
        assert flops("none") == flops("attention") == flops("full") * 7 / 9


def test_lengths_that_the_devices_do_not_divide_are_refused():
    q, k, v, segments, _ = inputs(2, 30, 1, 1, 8)
    with jax.set_mesh(mesh(context=4)):
        with pytest.raises(ValueError, match="xla attention takes rows of a multiple of 4 tokens, not 30"):
            ring_attention.attend(q, k, v, segments, kernel="xla")
        with pytest.raises(ValueError, match="splash attention takes rows of a multiple of 1024 tokens, not 30"):
            splash(q, k, v, Zigzag(jnp.asarray(segments)))
    with pytest.raises(UserError, match="seq_len 30 is not a multiple of 8, twice the mesh axis context; give 32"):
        check_rows(8, 30, 1, mesh(context=4), max_len=64)


@pytest.mark.parametrize(
    ("window", "axes"), [(None, {"fsdp": 2, "tensor": 2, "context": 2}), (9, {"context": 4})], ids=["zigzag", "window"]
)
def test_a_network_has_the_same_loss_and_gradients_on_meshes_with_and_without_context(window, axes):
    sizes = dict(vocab_size=32, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, ffn_dim=32, max_len=32)
    model = llama.build(LlamaConfig(**sizes, window=window, remat="full"))
    tokens, segments = jnp.asarray(np.random.RandomState(0).randint(32, size=(2, 32))), packed(2, 32)
    starts = np.maximum.accumulate(np.where(np.diff(segments, prepend=-1) != 0, np.arange(32), 0), axis=1)
    batch = tokens, jnp.asarray(segments), jnp.arange(32)[None] - starts

    def loss(params, tokens, segments, positions):
        logits = model.apply(params, tokens, segments, positions)
        chosen = jnp.take_along_axis(logits, jnp.roll(tokens, -1, axis=1)[..., None], -1)[..., 0]
        return jnp.mean((jax.nn.logsumexp(logits, axis=-1) - chosen) * (1 + jnp.arange(32.0)[None]))

    params = model.init(jax.random.key(0))
    expected = jax.jit(jax.value_and_grad(loss))(params, *batch)
    where = shardings(model.abstract_params, devices := mesh(**axes))
    with jax.set_mesh(devices):
        rows = jax.NamedSharding(devices, P(BATCH, "context"))
        found = jax.jit(jax.value_and_grad(loss))(jax.device_put(params, where), *jax.device_put(batch, rows))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), atol=2e-6 * np.abs(a).max())
