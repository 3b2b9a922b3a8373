"""The network against Hugging Face's LlamaForCausalLM, and what must hold for any LLaMA."""

import importlib.util
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.model import llama
from camelid.model.config import LlamaConfig, RopeScaling
from camelid.model.remat import KEPT, REMAT
from camelid.tests.model.golden import make_llama as golden

# float32 on both sides, the same sums in another order. A wrong epsilon (1e-5 for 1e-6) deviates 1,000 times as much.
RTOL, ATOL = 5e-5, 5e-5

NTK_FACTOR = 2.5
TINY = LlamaConfig.preset("nano-test", vocab_size=61, dim=32, ffn_dim=48, head_dim=16, tied=False)


def config_of(case: dict) -> LlamaConfig:
    """Hugging Face's settings in this package's words."""
    rope = dict(case["rope_parameters"])
    kind, theta = rope.pop("rope_type"), rope.pop("rope_theta")
    scaling = None
    if kind == "dynamic":
        scaling = RopeScaling("ntk", NTK_FACTOR)
    elif kind != "default":
        original = rope.pop("original_max_position_embeddings", None)
        scaling = RopeScaling(kind, original_max_len=original, **rope)
    return LlamaConfig(
        vocab_size=case["vocab_size"],
        dim=case["hidden_size"],
        n_layers=case["num_hidden_layers"],
        n_heads=case["num_attention_heads"],
        n_kv_heads=case["num_key_value_heads"],
        ffn_dim=case["intermediate_size"],
        head_dim=case["head_dim"],
        norm_eps=case["rms_norm_eps"],
        rope_theta=theta,
        rope_scaling=scaling,
        max_len=case["max_position_embeddings"],
        tied=case.get("tie_word_embeddings", False),
    )


def from_huggingface(config: LlamaConfig, weights: dict) -> llama.Params:
    """Matrices from [out, in] to [in, out], heads on their own axes, layers stacked."""
    D, H, K, E = config.dim, config.n_heads, config.n_kv_heads, config.head_dim

    def stack(name, convert=lambda w: w):
        return jnp.stack([convert(weights[f"model.layers.{i}.{name}.weight"]) for i in range(config.n_layers)])

    params = {
        "embed": {"embedding": weights["model.embed_tokens.weight"]},
        "layers": {
            "attention_norm": {"scale": stack("input_layernorm")},
            "attention": {
                "q": stack("self_attn.q_proj", lambda w: w.T.reshape(D, H, E)),
                "k": stack("self_attn.k_proj", lambda w: w.T.reshape(D, K, E)),
                "v": stack("self_attn.v_proj", lambda w: w.T.reshape(D, K, E)),
                "o": stack("self_attn.o_proj", lambda w: w.T.reshape(H, E, D)),
            },
            "mlp_norm": {"scale": stack("post_attention_layernorm")},
            "mlp": {
                "gate": stack("mlp.gate_proj", lambda w: w.T),
                "up": stack("mlp.up_proj", lambda w: w.T),
                "down": stack("mlp.down_proj", lambda w: w.T),
            },
        },
        "norm": {"scale": weights["model.norm.weight"]},
    }
    if not config.tied:
        params["head"] = {"kernel": weights["lm_head.weight"].T}
    return params


def cross_entropy(logits_BTV, targets_BT):
    logp_BTV = jax.nn.log_softmax(logits_BTV)
    return -jnp.mean(jnp.take_along_axis(logp_BTV, targets_BT[..., None], axis=-1))


def ours(case: dict) -> dict[str, np.ndarray]:
    """The counterpart of `golden.huggingface`, in its layout: gradients are taken through the conversion."""
    config = config_of(case)
    tokens, targets = golden.batch(case)

    def loss(weights):
        logits = llama.build(config).apply(from_huggingface(config, weights), tokens)
        return cross_entropy(logits, targets), logits

    weights = {name: jnp.asarray(w) for name, w in golden.weights(case).items()}
    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
    projected = {name: golden.project(np.asarray(g)) for name, g in gradients.items()}
    return {"logits": np.asarray(logits), "loss": np.asarray(value), **projected}


def assert_same(actual: dict, expected: dict):
    """Every value within ATOL of the largest of its array, or RTOL of itself."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=RTOL, atol=ATOL * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("name", golden.CASES)
def test_logits_and_gradients_equal_the_stored_ones_of_hugging_face(name):
    with np.load(golden.FILE) as stored:
        prefix = f"{name}/"
        expected = {key.removeprefix(prefix): stored[key] for key in stored.files if key.startswith(prefix)}
    assert_same(ours(golden.CASES[name]), expected)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))),
    reason="torch and transformers are not installed: only stored numbers are compared",
)
@pytest.mark.parametrize("name", golden.CASES)
def test_logits_and_gradients_equal_those_of_hugging_face_computed_now(name):
    case = golden.CASES[name]
    assert_same(ours(case), golden.huggingface(case))


def test_a_packed_row_equals_hugging_faces_separate_rows():
    case = golden.CASES["grouped"]
    config = config_of(case)
    params = from_huggingface(config, golden.weights(case))
    first, second = golden.batch(case)[0]
    T = golden.LENGTH
    padding = np.zeros(5, int)
    tokens = np.concatenate([first, second, padding])[None]
    segments = np.repeat([1, 2, 0], [T, T, 5])[None]
    positions = np.concatenate([np.arange(T), np.arange(T), padding])[None]
    logits = jax.jit(llama.build(config).apply)(params, tokens, segments, positions)[0, : 2 * T]
    with np.load(golden.FILE) as stored:
        np.testing.assert_allclose(logits, stored["grouped/logits"].reshape(2 * T, -1), rtol=RTOL, atol=ATOL)


@pytest.fixture(scope="module")
def tiny():
    model = llama.build(TINY)
    return model._replace(apply=jax.jit(model.apply), hidden=jax.jit(model.hidden)), jax.jit(model.init)(
        jax.random.key(0)
    )


def tokens_of(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, TINY.vocab_size, (rows, length))


def test_a_token_changes_its_own_and_later_logits_and_none_before(tiny):
    model, params = tiny
    tokens = tokens_of(1, 20)
    changed = tokens.copy()
    changed[0, 11] = (changed[0, 11] + 1) % TINY.vocab_size
    before, after = (np.asarray(model.apply(params, t))[0] for t in (tokens, changed))
    np.testing.assert_array_equal(before[:11], after[:11])
    assert (np.abs(before[11:] - after[11:]).max(axis=-1) > 1e-4).all()


def test_shifting_all_positions_changes_nothing_but_stretching_them_does(tiny):
    model, params = tiny
    tokens, positions = tokens_of(1, 20), np.arange(20)[None]
    plain, shifted, stretched = (
        model.apply(params, tokens, positions_BT=p) for p in (positions, positions + 7, positions * 2)
    )
    np.testing.assert_allclose(shifted, plain, atol=1e-5)
    assert np.abs(stretched - plain).max() > 1e-3


def test_hidden_states_times_the_head_are_the_logits(tiny):
    model, params = tiny
    tokens = tokens_of(2, 9)
    hidden = np.asarray(model.hidden(params, tokens))
    expected = hidden @ np.asarray(params["head"]["kernel"])
    np.testing.assert_allclose(model.apply(params, tokens), expected, atol=1e-5)


def test_a_fresh_model_predicts_nearly_evenly_at_any_depth():
    for n_layers in (2, 16):
        model = llama.build(TINY.replace(n_layers=n_layers, dim=64))
        tokens = tokens_of(4, 64)
        params = jax.jit(model.init)(jax.random.key(1))
        loss = jax.jit(lambda p, t, m=model: cross_entropy(m.apply(p, t[:, :-1]), t[:, 1:]))(params, tokens)
        assert abs(loss - math.log(TINY.vocab_size)) < 0.7


def test_initial_weights_have_the_stated_spread_and_follow_the_key():
    config = TINY.replace(dim=64, n_layers=8)
    init = jax.jit(llama.build(config).init)
    params, other = init(jax.random.key(0)), init(jax.random.key(1))
    expected = {"q": 64**-0.5, "k": 64**-0.5, "v": 64**-0.5, "o": (2 * 8 * 4 * 16) ** -0.5}
    for name, std in expected.items():
        weight = params["layers"]["attention"][name]
        assert abs(np.std(weight) / std - 1) < 0.05, name  # cut at three sigma: 1.4% narrower
        assert np.abs(weight[0] - weight[1]).max() > 0, "layers start different"
        assert np.abs(weight - other["layers"]["attention"][name]).max() > 0
    for name, std in {"gate": 64**-0.5, "up": 64**-0.5, "down": (2 * 8 * 48) ** -0.5}.items():
        assert abs(np.std(params["layers"]["mlp"][name]) / std - 1) < 0.05, name


def gradients(config: LlamaConfig, params, tokens):
    def loss(params):
        return cross_entropy(llama.build(config).apply(params, tokens[:, :-1]), tokens[:, 1:])

    return jax.jit(jax.grad(loss)).lower(params).compile()


def test_remat_policies_give_the_same_gradients_in_less_memory():
    config = TINY.replace(n_layers=8)
    params = jax.jit(llama.build(config).init)(jax.random.key(0))
    tokens = tokens_of(4, 129)
    some = "attention,residual,gate,up"
    compiled = {name: gradients(config.replace(remat=name), params, tokens) for name in (*REMAT, some)}
    expected = compiled["none"](params)
    for name, gradient in compiled.items():
        jax.tree.map(
            lambda a, b, n=name: np.testing.assert_allclose(a, b, atol=1e-6, err_msg=n), gradient(params), expected
        )
    memory = {name: gradient.memory_analysis().temp_size_in_bytes for name, gradient in compiled.items()}
    assert memory["full"] < memory["attention"] < memory[some] < memory["dots"] < memory["none"], memory


def kept(config: LlamaConfig, B: int, T: int) -> int:
    """Bytes that the forward pass over the layers keeps for the backward pass."""
    model, tokens = llama.build(config), tokens_of(B, T)
    program = jax.make_jaxpr(jax.grad(lambda params: jnp.sum(model.apply(params, tokens))))(model.abstract_params)
    forward = next(e for e in program.jaxpr.eqns if e.primitive.name == "scan")
    return sum(x.aval.size * x.aval.dtype.itemsize for x in forward.outvars[forward.params["num_carry"] :])


@pytest.mark.parametrize("name", KEPT)
def test_a_layer_keeps_its_input_and_what_is_named(name):
    config, (B, T) = TINY.replace(n_layers=3, dtype="bfloat16", n_kv_heads=1), (2, 64)
    D, H, K, E, F = config.dim, config.n_heads, config.n_kv_heads, config.head_dim, config.ffn_dim
    width = dict(query=H * E, key=K * E, value=K * E, attention=H * E, residual=D, gate=F, up=F)[name]
    a_number_each = 2 * config.n_layers * B * T
    assert kept(config.replace(remat="full"), B, T) == a_number_each * D
    assert kept(config.replace(remat=name), B, T) == a_number_each * (D + width)
    assert kept(config.replace(remat=f"{name},gate"), B, T) == a_number_each * (D + width + (name != "gate") * F)


@pytest.mark.parametrize("remat", [*REMAT, ",".join(KEPT)])
def test_what_is_offloaded_are_the_inputs_of_layers_and_nothing_else(remat):
    config = TINY.replace(n_layers=3, remat=remat)
    model, tokens = llama.build(config), tokens_of(4, 64)
    loss = lambda params: jnp.sum(model.apply(params, tokens))  # noqa: E731
    program = equations(jax.make_jaxpr(jax.grad(loss))(model.abstract_params).jaxpr)
    moved = [x.aval for e in program if e.primitive.name == "device_put" for x in e.outvars]
    there = [x for x in moved if "host" in str(x.memory_space).lower()]
    assert [x.shape for x in there] == ([(4, 64, config.dim)] if remat == "offload" else [])


def test_an_unknown_remat_policy_is_an_error_that_lists_the_known():
    known = "give one of none, dots, .* or several of query, key, .* joined by commas"
    for remat in ("some", "attention,some", "full,gate", ""):
        with pytest.raises(ValueError, match=f"'{remat}': {known}"):
            llama.build(TINY.replace(remat=remat))


def equations(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def trace(config: LlamaConfig, rows: int = 2, length: int = 24):
    model = llama.build(config)
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    return list(equations(jax.make_jaxpr(model.apply)(model.abstract_params, tokens).jaxpr))


def test_the_traced_program_does_not_grow_with_depth():
    sizes = {n: len(trace(TINY.replace(n_layers=n))) for n in (2, 8)}
    assert sizes[2] == sizes[8]


def test_bfloat16_keeps_norm_softmax_angles_and_logits_in_float32():
    program = trace(TINY.replace(dtype="bfloat16"))
    precise = {"rsqrt", "exp", "cos", "sin", "reduce_sum", "reduce_max", "div"}
    seen = set()
    for equation in program:
        if equation.primitive.name in precise:
            seen.add(equation.primitive.name)
            dtypes = {v.aval.dtype for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)}
            assert dtypes <= {jnp.dtype("float32")}, equation
    assert {"rsqrt", "exp", "cos", "sin", "reduce_sum"} <= seen
    products = [equation for equation in program if equation.primitive.name == "dot_general"]
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype("bfloat16")}, "products are what is cheap"
    assert products[-1].outvars[0].aval.dtype == jnp.float32, "logits"
    assert sum(e.outvars[0].aval.dtype == jnp.float32 for e in products) == 2, "logits and attention scores"


def test_bfloat16_logits_are_near_those_of_float32(tiny):
    model, params = tiny
    tokens = tokens_of(2, 40)
    expected = np.asarray(model.apply(params, tokens))
    actual = np.asarray(jax.jit(llama.build(TINY.replace(dtype="bfloat16")).apply)(params, tokens))
    assert actual.dtype == np.float32
    error = np.abs(actual - expected).max() / expected.std()
    assert 0 < error < 0.1  # 8 bits of mantissa through two layers
