"""Low-rank adapters: what they compute, what of them learns, and what is never formed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.model import decode, llama, lora, storage
from camelid.model.config import LlamaConfig
from camelid.model.lora import Lora, adapt, base_of, ranks
from camelid.model.sampling import Sampling
from camelid.model.sharding import PARTITION_RULES, make_mesh, shardings
from camelid.model.weights import join, without

MODEL = llama.build(LlamaConfig.preset("nano-test"))
TARGETS = ((r"layers/attention/.*", 4), (r"layers/mlp/.*", 3))
KINDS = {
    "lora": Lora(TARGETS),
    "rank_stabilized": Lora(TARGETS, rank_stabilized=True),
    "dora": Lora(TARGETS, dora=True),
    "pissa": Lora(TARGETS, init="pissa"),
    "dora_pissa": Lora(TARGETS, init="pissa", dora=True),
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 512, (2, 16)))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def adapted(kind, base):
    """The network with fresh adapters of that kind."""
    return jax.jit(lambda base: adapt(KINDS[kind], base, MODEL.abstract_params, jax.random.key(1)))(base)


plain = jax.jit(lambda tree: storage.plain(tree, MODEL.abstract_params))


def moved(tree, by=0.05):
    """The tree with everything that learns somewhere else."""

    def one(path, x):
        name = path[-1].key
        if name not in ("a", "b", "magnitude"):
            return x
        return x + by * np.random.default_rng(len(str(path))).normal(size=x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, tree)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_changes_nothing_and_a_moved_one_is_what_merging_gives(kind, params):
    apply = jax.jit(MODEL.apply)
    fresh = adapted(kind, params)
    np.testing.assert_allclose(apply(fresh, TOKENS), apply(params, TOKENS), atol=2e-5)
    other = moved(fresh)
    assert np.abs(apply(other, TOKENS) - apply(params, TOKENS)).max() > 0.1
    np.testing.assert_allclose(apply(plain(other), TOKENS), apply(other, TOKENS), rtol=1e-4, atol=1e-4)


def test_an_adapted_matrix_is_the_papers_formula(params):
    """base + alpha / r A B, in numpy; rsLoRA's alpha / sqrt(r); DoRA's magnitude times the direction."""
    for kind, gain in (("lora", 16 / 4), ("rank_stabilized", 16 / 2), ("dora", 16 / 4)):
        tree = moved(adapted(kind, params))
        whole = plain(tree)["layers"]["attention"]["o"]
        parts = jax.tree.map(np.asarray, tree["layers"]["attention"]["o"])
        for layer in range(MODEL.config.n_layers):
            change = np.einsum("her,rd->hed", parts["a"][layer], parts["b"][layer])
            expected = parts["base"][layer] + gain * change
            if kind == "dora":
                expected *= parts["magnitude"][layer] / np.sqrt((expected**2).sum((0, 1)))
            np.testing.assert_allclose(whole[layer], expected, rtol=1e-4, atol=1e-5)


def test_pissa_begins_with_the_strongest_directions(params):
    parts = adapted("pissa", params)["layers"]["mlp"]["gate"]
    for layer, matrix in enumerate(np.asarray(params["layers"]["mlp"]["gate"])):
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
        product = parts["gain"][layer] * parts["a"][layer] @ parts["b"][layer]
        np.testing.assert_allclose(product, (u[:, :3] * s[:3]) @ vt[:3], atol=1e-5)


def test_dora_takes_the_norm_for_a_constant(params):
    """Its gradient by the magnitude is that of the paper: the output's direction."""
    tree = moved(adapted("dora", params))
    own = without(tree, params)

    @jax.jit
    def out(own):
        return jnp.sum(MODEL.apply(join(own, params), TOKENS) ** 2)

    grads = jax.jit(jax.grad(out))(own)["layers"]["mlp"]["down"]
    step = 1e-3
    bumped = jax.tree.map(jnp.copy, own)
    place = bumped["layers"]["mlp"]["down"]
    place["magnitude"] = place["magnitude"].at[0, 5].add(step)
    slope = (out(bumped) - out(own)) / step
    np.testing.assert_allclose(grads["magnitude"][0, 5], slope, rtol=0.05, atol=1.0)


def test_no_gradient_as_large_as_a_matrix_is_formed(params):
    """Neither of the base nor of the output head: the compiled gradient has no array of their shapes but themselves."""
    model = llama.build(LlamaConfig.preset("nano-test", tied=False, ffn_dim=200))
    whole = jax.jit(model.init)(jax.random.key(0))
    tree = jax.jit(lambda whole: adapt(KINDS["lora"], whole, model.abstract_params, jax.random.key(1)))(whole)
    own = without(tree, whole)

    def loss(own, base):
        return jnp.sum(model.apply(join(own, base), TOKENS) ** 2)

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(own, whole))
    transposed = [line for line in jaxpr.splitlines() if "dot_general" in line and ":f32[64,200]" in line]
    assert not transposed
    full = str(jax.make_jaxpr(jax.grad(lambda base: loss(own, base)))(whole))
    assert [line for line in full.splitlines() if "dot_general" in line and ":f32[64,200]" in line]


@pytest.mark.parametrize("quantize", [None, "int8", "int4", "nf4"])
def test_answers_are_those_of_the_merged_matrices(params, quantize):
    base = params if quantize is None else jax.jit(lambda p: storage.quantize(p, storage.MATRICES[quantize]))(params)
    tree = moved(adapted("lora", base))
    lengths, sampling = jnp.array([16, 9]), Sampling(max_tokens=6)
    merged = plain(tree)
    found, expected = (
        decode.generate(MODEL, each, TOKENS, lengths, jax.random.key(2), sampling) for each in (tree, merged)
    )
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)


def test_taking_apart_and_joining_are_inverse(params):
    tree = adapt(KINDS["dora_pissa"], params, MODEL.abstract_params, jax.random.key(1))
    own = without(tree, params)
    assert set(own) == {"layers"} and set(own["layers"]) == {"attention", "mlp"}
    assert set(own["layers"]["mlp"]["up"]) == {"a", "b", "a0", "b0", "gain", "magnitude"}
    joined = join(own, params)
    assert jax.tree.structure(joined) == jax.tree.structure(tree)
    assert joined["layers"]["mlp"]["up"]["base"] is params["layers"]["mlp"]["up"]


def test_what_is_trained_whole_is_no_part_of_the_base(params):
    chosen = Lora(((r"layers/attention/[qv]", 2),), whole=(r".*norm/scale", r"embed/embedding"))
    base = base_of(chosen, params)
    assert set(base) == {"layers"} and set(base["layers"]) == {"attention", "mlp"}
    own = without(adapt(chosen, params, MODEL.abstract_params, jax.random.key(1)), base)
    assert set(own) == {"embed", "norm", "layers"} and set(own["layers"]["attention"]) == {"q", "v"}


def test_dropout_drops_an_adapters_inputs_and_keeps_their_mean(params):
    tree = moved(adapted("lora", params), by=0.01)
    apply = jax.jit(MODEL.apply)
    expected = apply(tree, TOKENS)
    dropped = jax.jit(lambda key: MODEL.apply(lora.with_dropout(tree, key, 0.5), TOKENS))
    several = [dropped(jax.random.key(k)) for k in range(24)]
    spread = np.std(several, axis=0)
    assert spread.max() > 1e-3 and not np.allclose(several[0], several[1])
    far = np.abs(np.mean(several, axis=0) - expected) / (spread / np.sqrt(len(several)) + 1e-5)
    assert np.mean(far) < 2.0
    np.testing.assert_allclose(apply(lora.with_dropout(tree, jax.random.key(0), 0.0), TOKENS), expected, atol=1e-5)


def test_parts_lie_on_a_mesh_as_their_matrix_would(params):
    tree = jax.eval_shape(lambda p: adapt(KINDS["dora"], p, MODEL.abstract_params, jax.random.key(1)), params)
    where = shardings(tree, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), PARTITION_RULES)
    specs = {name: tuple(s.spec) for name, s in where["layers"]["attention"]["q"].items()}
    assert specs["base"] == (None, "fsdp", "tensor", None)
    assert specs["a"] == (None, "fsdp", None) and specs["b"] == (None, None, "tensor", None)
    assert specs["magnitude"] == (None, "tensor", None) and specs["gain"] == (None,)
    down = {name: tuple(s.spec) for name, s in where["layers"]["mlp"]["down"].items()}
    assert down["a"] == (None, "tensor", None) and down["b"] == (None, None, "fsdp")


def test_a_sharded_adapted_network_computes_the_same(params):
    tree = moved(adapted("lora", params))
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    placed = jax.device_put(tree, shardings(tree, mesh, PARTITION_RULES))
    with jax.set_mesh(mesh):
        found = jax.jit(MODEL.apply)(placed, TOKENS)
    np.testing.assert_allclose(found, jax.jit(MODEL.apply)(tree, TOKENS), rtol=1e-4, atol=1e-5)


def test_a_pattern_for_all_matrices_of_layers_passes_over_biases_and_norms_of_heads():
    config = MODEL.config.replace(qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True)
    chosen = Lora(((r"layers/(attention|mlp)/.*", 2),))
    plain = ranks(chosen, MODEL.abstract_params)
    assert ranks(chosen, llama.build(config).abstract_params) == plain == dict.fromkeys(plain, 2) and len(plain) == 7


@pytest.mark.parametrize(
    "chosen, message",
    [
        (Lora(((r"layers/attn/.*", 4),)), "name no parameter; give regexes of paths like layers/attention/q"),
        (Lora(((r".*norm/scale", 4),)), "no matrix between activations; name it in lora.whole"),
        (Lora(((r".*/q", 4), (r"layers/.*_norm/.*", 4))), "layers/attention_norm/scale, which is no matrix between"),
        (Lora(((r"layers/attention/k", 64),)), "give at most its smaller side"),
        (Lora(((r"layers/.*/q", 4),), whole=(r"layers/attention/q",)), "targets and whole both name"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(chosen, message, params):
    with pytest.raises(ValueError, match=message):
        adapt(chosen, params, MODEL.abstract_params, jax.random.key(0))
    with pytest.raises(ValueError, match="lora init 'svd'"):
        Lora(TARGETS, init="svd")
