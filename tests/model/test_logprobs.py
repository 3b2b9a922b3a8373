"""Chunked log-probabilities against whole logits in float64, their gradients, and what the compiled program holds."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.model.logprobs import CHUNK, head_kl, head_logprobs, masked_mean, next_token_loss, token_logprobs
from camelid.model.sharding import BATCH, make_mesh

SMALL = dict(vocab_size=96, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, max_len=64)


def reference(kernel_DV, hidden_BTD, targets_BT, logp_weight, log_z_weight):
    """logp, log_z, entropy, and by hand the gradients of sum(logp_weight logp + log_z_weight log_z): whole logits,
    float64."""
    kernel, hidden = np.asarray(kernel_DV, np.float64), np.asarray(hidden_BTD, np.float64)
    logits = hidden @ kernel
    top = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    chosen = np.take_along_axis(logits, targets_BT[..., None], -1)[..., 0]
    probs = np.exp(logits - log_z[..., None])
    one_hot = np.eye(kernel.shape[1])[targets_BT]
    slope = logp_weight[..., None] * (one_hot - probs) + log_z_weight[..., None] * probs
    entropy = -(probs * (logits - log_z[..., None])).sum(-1)
    return chosen - log_z, log_z, entropy, np.einsum("btd,btv->dv", hidden, slope), slope @ kernel.T


def problem(T, B=2, D=16, V=48, scale=1.0):
    rng = np.random.default_rng(T)
    kernel = rng.normal(size=(D, V)).astype(np.float32)
    hidden = (scale * rng.normal(size=(B, T, D))).astype(np.float32)
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    weights = rng.normal(size=(2, B, T)).astype(np.float32)
    return kernel, hidden, targets, *weights


@jax.jit
def scores_and_gradients(kernel, hidden, targets, logp_weight, log_z_weight):
    def weighted(kernel, hidden):
        scores = head_logprobs(kernel, hidden, targets)
        return jnp.sum(logp_weight * scores.logp + log_z_weight * scores.log_z), scores

    (_, scores), grads = jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True)(kernel, hidden)
    return *scores, *grads


@pytest.mark.parametrize("T", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 17])
def test_chunked_scores_and_gradients_equal_whole_logits_in_float64(T):
    args = problem(T)
    for found, expected in zip(scores_and_gradients(*args), reference(*args), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_logits_in_the_hundreds_do_not_overflow():
    args = problem(5, scale=100.0)
    for found, expected in zip(scores_and_gradients(*args), reference(*args), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("axes", [{"tensor": 4, "context": 2}, {"data": 2, "fsdp": 2, "context": 2}])
@pytest.mark.parametrize("T", [64, 2 * CHUNK + 2])
def test_scores_and_gradients_are_the_same_with_vocabulary_and_rows_split_over_devices(axes, T):
    args = problem(T, B=4)
    mesh = make_mesh(axes)
    specs = [("fsdp", "tensor"), (BATCH, "context", None), *3 * [(BATCH, "context")]]
    placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec))) for x, spec in zip(args, specs, strict=True)]
    with jax.set_mesh(mesh):
        results = scores_and_gradients(*placed)
    for found, expected in zip(results, reference(*args), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_scores_and_divergence_at_a_temperature_are_those_of_divided_logits(temperature):
    kernel, hidden, targets, *weights = problem(CHUNK + 3)
    other_kernel, other_hidden, *_ = problem(CHUNK + 3, scale=0.7)
    scores = head_logprobs(kernel, hidden, targets, temperature)
    expected = reference(kernel / temperature, hidden, targets, *weights)
    for found, value in zip(scores, expected[:3], strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-5, atol=2e-5)
    p, q = (
        np.asarray(jax.nn.log_softmax(h.astype(np.float64) @ k / temperature))
        for h, k in ((hidden, kernel), (other_hidden, other_kernel))
    )
    kl = head_kl(kernel, hidden, other_kernel, other_hidden, temperature)
    np.testing.assert_allclose(kl, (np.exp(p) * (p - q)).sum(-1), rtol=2e-5, atol=2e-5)
    assert np.mean(kl) > 0.01
    np.testing.assert_allclose(head_kl(kernel, hidden, kernel, hidden, temperature), 0, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_token_logprobs_reads_the_networks_own_head(tied):
    model = llama.build(LlamaConfig.from_dict(SMALL | {"tied": tied}))
    params = model.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 96, (2, 12)).astype(np.int32)
    batch = {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "segment_ids": np.repeat([[1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0]], 2, axis=0).astype(np.int32),
        "positions": np.repeat([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0]], 2, axis=0).astype(np.int32),
    }
    scores = jax.jit(lambda p, b: token_logprobs(model, p, b))(params, batch)
    logits = jax.jit(model.apply)(params, tokens, batch["segment_ids"], batch["positions"])
    logits = np.asarray(logits, np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    expected = np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0] - log_z
    np.testing.assert_allclose(scores.logp, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.log_z, log_z, rtol=1e-5, atol=1e-5)


def test_bfloat16_states_are_scored_in_float32():
    kernel, hidden, targets, *weights = problem(CHUNK + 3)
    rounded = np.asarray(jnp.asarray(hidden, jnp.bfloat16), np.float32), np.asarray(jnp.asarray(kernel, jnp.bfloat16))
    found = scores_and_gradients(kernel, jnp.asarray(hidden, jnp.bfloat16), targets, *weights)
    logp, log_z, _, kernel_grad, hidden_grad = reference(rounded[1], rounded[0], targets, *weights)
    assert [x.dtype for x in found] == [*4 * [jnp.float32], jnp.bfloat16]
    np.testing.assert_allclose(found[0], logp, rtol=1e-5, atol=1e-4)  # exact inputs: only products are rounded
    np.testing.assert_allclose(found[1], log_z, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found[3], kernel_grad, atol=0.02 * np.abs(kernel_grad).max())
    np.testing.assert_allclose(found[4], hidden_grad, atol=0.02 * np.abs(hidden_grad).max())


def loss_of_head(kernel, hidden, targets, mask, z_loss=0.0):
    """`next_token_loss` of a network whose hidden states are given."""
    model = llama.Model(None, None, lambda params, *_: params["hidden"], None, None, None)
    rows = dict(targets=targets, loss_mask=mask, tokens=None, segment_ids=None, positions=None)
    return next_token_loss(model, z_loss)({"head": {"kernel": kernel}, "hidden": hidden}, rows)[0]


@pytest.mark.parametrize("axes", [{}, {"tensor": 4, "context": 2}, {"data": 2, "fsdp": 2, "context": 2}])
@pytest.mark.parametrize("T", [8, 2 * CHUNK + 2])
def test_the_loss_and_its_gradient_taken_together_equal_whole_logits_in_float64(axes, T):
    kernel, hidden, targets, random, _ = problem(T, B=4)
    mask, z_loss = (random > 0).astype(np.float32), 0.01
    _, log_z, *_ = reference(kernel, hidden, targets, mask, mask)
    logp, _, _, *gradients = reference(kernel, hidden, targets, -mask, 2 * z_loss * log_z * mask)
    specs = [("fsdp", "tensor"), (BATCH, "context", None), *2 * [(BATCH, "context")]]
    mesh = make_mesh(axes, jax.devices()[: math.prod(axes.values())])
    placed = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
        for x, spec in zip((kernel, hidden, targets, mask), specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        loss, found = jax.jit(jax.value_and_grad(lambda *a: 3 * loss_of_head(*a, z_loss), argnums=(0, 1)))(*placed)
    np.testing.assert_allclose(loss, 3 * np.sum(mask * (z_loss * log_z**2 - logp)), rtol=1e-5)
    for gradient, expected in zip(found, gradients, strict=True):
        np.testing.assert_allclose(gradient, 3 * expected, rtol=2e-5, atol=1e-4)


def test_the_loss_of_bfloat16_states_is_in_float32_and_its_gradients_keep_their_dtypes():
    kernel, hidden, targets, *_ = problem(CHUNK + 3)
    hidden, mask = jnp.asarray(hidden, jnp.bfloat16), np.ones(targets.shape, np.float32)
    exact = np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float32), np.asarray(hidden, np.float32)
    logp, _, _, *gradients = reference(*exact, targets, -mask, 0 * mask)
    loss, found = jax.jit(jax.value_and_grad(loss_of_head, argnums=(0, 1)))(kernel, hidden, targets, mask)
    assert [x.dtype for x in (loss, *found)] == [jnp.float32, jnp.float32, jnp.bfloat16]
    np.testing.assert_allclose(loss, -logp.sum(), rtol=1e-5)
    for gradient, expected in zip(found, gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=0.02 * np.abs(expected).max())


def largest_array(compiled) -> int:
    """Elements of the largest array that a compiled program names."""
    shapes = re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", compiled.as_text())
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def compile_gradient(loss, T, V, mesh):
    def whole(*shape, spec, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    with jax.set_mesh(mesh):
        return (
            jax.jit(jax.grad(loss, argnums=(0, 1)))
            .lower(
                whole(16, V, spec=("fsdp", "tensor")),
                whole(4, T, 16, spec=(BATCH, "context", None)),
                whole(4, T, spec=(BATCH, "context"), dtype=jnp.int32),
            )
            .compile()
        )


@pytest.mark.parametrize("axes", [{}, {"fsdp": 4}, {"data": 2, "tensor": 2, "context": 2}])
def test_no_array_of_batch_by_time_by_vocabulary_exists_in_the_compiled_program(axes):
    T, V, split = 16 * CHUNK, 1024, math.prod(axes.values())
    mesh = make_mesh(axes, jax.devices()[:split])

    def chunked(kernel, hidden, targets):
        return jnp.sum(head_logprobs(kernel, hidden, targets).logp)

    def summed(kernel, hidden, targets):
        return loss_of_head(kernel, hidden, targets, jnp.ones(targets.shape))

    def naive(kernel, hidden, targets):
        logp = jax.nn.log_softmax(hidden @ kernel)
        return jnp.sum(jnp.take_along_axis(logp, targets[..., None], axis=-1))

    whole = 4 * T * V // split  # each device's part
    assert largest_array(compile_gradient(naive, T, V, mesh)) >= whole  # what would be found
    assert largest_array(compile_gradient(chunked, T, V, mesh)) <= whole // 8
    assert largest_array(compile_gradient(summed, T, V, mesh)) <= whole // 8


def test_next_token_loss_sums_over_trained_tokens_and_adds_the_z_loss():
    model = llama.build(LlamaConfig.from_dict(SMALL | {"tied": True}))
    params = model.init(jax.random.key(1))
    rng = np.random.default_rng(1)
    ones = np.ones((2, 8), np.int32)
    batch = {
        "tokens": rng.integers(0, 96, (2, 8)).astype(np.int32),
        "targets": rng.integers(0, 96, (2, 8)).astype(np.int32),
        "segment_ids": ones,
        "positions": np.cumsum(ones, axis=1, dtype=np.int32) - 1,
        "loss_mask": np.array([[0, 0, 1, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0, 0, 0]], np.float32),
    }
    loss, tokens, sums = jax.jit(next_token_loss(model, z_loss=0.1))(params, batch)
    logits = np.asarray(jax.jit(model.apply)(params, batch["tokens"]), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    logp = np.take_along_axis(logits, batch["targets"][..., None], -1)[..., 0] - log_z
    trained = batch["loss_mask"] == 1
    assert tokens == 5
    np.testing.assert_allclose(sums["nll"], -logp[trained].sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["log_z_squared"], (log_z[trained] ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(loss, -logp[trained].sum() + 0.1 * (log_z[trained] ** 2).sum(), rtol=1e-5)


def test_a_masked_mean_is_over_all_entries_and_ignores_what_is_masked_out():
    x = jnp.array([[1.0, 2.0, jnp.nan], [5.0, jnp.inf, 7.0]])
    mask = jnp.array([[1, 1, 0], [0, 0, 1]])
    assert masked_mean(x, mask) == pytest.approx((1 + 2 + 7) / 3)  # not the mean of the rows' means, 4.25
    assert masked_mean(x, jnp.zeros_like(mask)) == 0.0
    assert masked_mean(jnp.full(4096, 1.001, jnp.bfloat16), jnp.ones(4096)).dtype == jnp.float32


def test_a_masked_mean_over_shards_with_unequal_masks_is_that_of_the_whole():
    x, mask = np.arange(16.0, dtype=np.float32), (np.arange(16) % 5 < 2).astype(np.float32)
    rows = NamedSharding(make_mesh({"data": 8}), PartitionSpec("data"))
    found = jax.jit(masked_mean)(jax.device_put(x, rows), jax.device_put(mask, rows))
    np.testing.assert_allclose(found, x[mask == 1].mean(), rtol=1e-6)
