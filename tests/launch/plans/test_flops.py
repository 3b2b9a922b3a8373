"""FLOPs counted in jaxprs equal closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from camelid.launch.plans.flops import flops_of
from camelid.model import llama
from camelid.model.attention import attention, splash
from camelid.model.config import LlamaConfig
from camelid.model.logprobs import next_token_loss
from camelid.model.remat import policy_of
from camelid.model.sharding import make_mesh

B, T = 2, 64
X = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 8 * 8 * 8


def counted(function, *args):
    return flops_of(jax.jit(function).trace(*args).jaxpr)


def tiny(**changes) -> llama.Model:
    fields = dict(n_layers=3, tied=False, attention="xla", unroll=1)
    return llama.build(LlamaConfig.preset("nano-test", **(fields | changes)))


def forward_flops(config: LlamaConfig) -> tuple[int, int, int]:
    """FLOPs of the products with weights of the layers, of attention (one block of 64 tokens), and of the head."""
    per_layer = (
        config.dim * config.head_dim * 2 * (config.n_heads + config.n_kv_heads) + 3 * config.dim * config.ffn_dim
    )
    scores = 2 * 2 * B * T * T * config.n_heads * config.head_dim
    return config.n_layers * 2 * B * T * per_layer, config.n_layers * scores, 2 * B * T * config.dim * config.vocab_size


def arguments(model: llama.Model):
    return model.abstract_params, jax.ShapeDtypeStruct((B, T), jnp.int32)


def test_a_forward_pass_is_twice_its_weights_for_each_token_and_its_scores():
    model = tiny()
    found = counted(model.apply, *arguments(model))
    assert found.total == found.matrix == sum(forward_flops(model.config))
    assert not found.bounds and not found.uncounted


@pytest.mark.parametrize(("remat", "again"), [("none", False), ("full", True)])
def test_a_step_is_three_forward_passes_and_what_is_recomputed(remat, again):
    model = tiny(remat=remat)
    layers, scores, head = forward_flops(model.config)
    gradient = jax.value_and_grad(lambda params, tokens: jnp.sum(model.apply(params, tokens)))
    found = counted(gradient, *arguments(model)).total
    # The last product of a layer, mlp/down, is not needed to differentiate the layer.
    down = 2 * B * T * model.config.n_layers * model.config.dim * model.config.ffn_dim
    assert found == 3 * (layers + scores + head) + again * (layers + scores - down)


def test_what_no_result_depends_on_is_not_counted():
    assert counted(lambda x: (x @ x, x + 1)[1], X).total == 0


def test_what_a_layer_keeps_is_not_counted_again():
    def of(remat: str) -> int:
        model = tiny(remat=remat)
        return counted(jax.grad(lambda params, tokens: jnp.sum(model.apply(params, tokens))), *arguments(model)).total

    config = tiny().config
    product = 2 * B * T * config.n_layers * config.dim
    assert of("gate") == of("up") == of("full") - product * config.ffn_dim
    assert of("query") == of("residual") == of("full") - product * config.n_heads * config.head_dim


@pytest.mark.parametrize(("remat", "forward"), [("attention", 1), ("full", 2)])
def test_splash_attention_runs_forward_once_where_a_layer_keeps_its_output(remat, forward):
    def layer(q):
        return jnp.sum(splash(q, q, q, jnp.ones((1, 256), jnp.int32), interpret=True) ** 2)

    q = jax.ShapeDtypeStruct((1, 256, 2, 128), jnp.float32)
    once = counted(layer, q).attention
    backward = counted(jax.value_and_grad(layer), q).attention - once
    found = counted(jax.value_and_grad(jax.checkpoint(layer, policy=policy_of(remat))), q).attention
    assert once and found == backward + forward * once


def test_the_training_loss_counts_its_chunks_of_tokens():
    model = tiny()
    ints, floats = (jax.ShapeDtypeStruct((B, T), dtype) for dtype in (jnp.int32, jnp.float32))
    batch = dict(tokens=ints, targets=ints, segment_ids=ints, positions=ints, loss_mask=floats, weights=floats)
    loss = next_token_loss(model)
    found = counted(jax.grad(lambda params, batch: loss(params, batch)[0]), model.abstract_params, batch)
    assert found.total == 3 * sum(forward_flops(model.config))


def test_scans_branches_and_loops_multiply():
    def turn(x, _):
        return x @ x, None

    assert counted(lambda x: jax.lax.scan(turn, x, length=7)[0], X).total == 7 * PRODUCT
    once, twice = lambda x: x @ x, lambda x: x @ x @ x
    assert counted(lambda p, x: jax.lax.cond(p, once, twice, x), True, X).total == 2 * PRODUCT

    fori = counted(lambda x: jax.lax.fori_loop(0, 5, lambda i, x: x @ x, x), X)
    assert fori.total == 5 * PRODUCT and not fori.bounds


def test_a_loop_with_a_limit_and_another_condition_is_a_bound():
    def generate(x):
        def more(carry):
            return (carry[0] < 9) & jnp.any(carry[1] > 0)

        return jax.lax.while_loop(more, lambda carry: (carry[0] + 2, carry[1] @ carry[1]), (1, x))

    found = counted(generate, X)
    assert found.total == 4 * PRODUCT and "limit of 4" in found.bounds[0]


def test_a_loop_without_a_limit_says_so():
    found = counted(lambda n, x: jax.lax.fori_loop(0, n, lambda i, x: x @ x, x), 3, X)
    assert found.total == PRODUCT and found.uncounted


def test_what_may_multiply_matrices_and_is_not_counted_is_named():
    assert "cholesky" in counted(jnp.linalg.cholesky, X).uncounted[0]


def test_a_convolution_counts_its_kernel_for_each_output():
    x, kernel = jax.ShapeDtypeStruct((2, 3, 16, 16), jnp.float32), jax.ShapeDtypeStruct((5, 3, 3, 3), jnp.float32)
    found = counted(lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME"), x, kernel)
    assert found.total == 2 * (2 * 5 * 16 * 16) * 3 * 3 * 3


H, K, E, LONG = 4, 2, 128, 1024


def heads(n, sharding=None):
    return jax.ShapeDtypeStruct((B, LONG, n, E), jnp.bfloat16, sharding=sharding)


def splash_gradient(window):
    def loss(q, k, v, segments):
        return jnp.sum(splash(q, k, v, segments, window=window).astype(jnp.float32))

    return jax.grad(loss, (0, 1, 2))


@pytest.mark.parametrize(("window", "blocks"), [(None, 3), (200, 3)])
def test_splash_attention_counts_the_blocks_that_its_mask_leaves(window, blocks):
    segments = jax.ShapeDtypeStruct((B, LONG), jnp.int32)
    found = counted(splash_gradient(window), heads(H), heads(K), heads(K), segments)
    # 2 x 2 blocks of 512 x 512, one in the future: 2 products forward, 4 for keys and values, 3 for queries.
    assert found.attention == (2 + 4 + 3) * 2 * B * H * blocks * 512 * 512 * E
    assert found.matrix == 2 * B * H * LONG * E and not found.bounds  # sums of output times its gradient


def test_splash_attention_on_a_mesh_counts_all_devices_as_the_busiest_one():
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "context": 2})
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    segments = jax.ShapeDtypeStruct((B, LONG), jnp.int32, sharding=rows)
    with jax.set_mesh(mesh):
        found = counted(splash_gradient(None), heads(H, rows), heads(2, rows), heads(2, rows), segments)
    # Of parts of 512 tokens in order, the second device computes two blocks; the first one waits for it.
    assert found.attention == (2 + 4 + 3) * 2 * B * H * 4 * 512 * 512 * E and not found.bounds


def test_cudnn_attention_counts_every_score(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)

    def loss(q, k, v, segments):
        return jnp.sum(attention(q, k, v, segments, "cudnn").astype(jnp.float32))

    segments = jax.ShapeDtypeStruct((B, LONG), jnp.int32)
    found = counted(jax.grad(loss, (0, 1, 2)), heads(H), heads(K), heads(K), segments)
    assert found.attention == (2 + 5) * 2 * B * H * LONG * LONG * E
    assert np.isclose(found.total, found.attention)
