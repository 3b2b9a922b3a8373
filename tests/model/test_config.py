"""Presets against published numbers, and that every field of the config is read."""

import dataclasses
import functools
import json

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from camelid.model import llama
from camelid.model.cache import keep
from camelid.model.config import PRESETS, LlamaConfig, RopeScaling

# Parameter counts as the weights on Hugging Face hold them (no rotary buffers).
PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "mistral-7b": 7_241_732_096,
    "phi3-mini": 3_821_079_552,
}
# What a parameter count cannot tell, from Meta's params.json and Hugging Face's config.json:
# (norm eps, rotary base, trained context, query heads, key/value heads, head width).
PUBLISHED_FIELDS = {
    "llama-7b": (1e-6, 1e4, 2048, 32, 32, 128),
    "llama-13b": (1e-6, 1e4, 2048, 40, 40, 128),
    "llama-33b": (1e-6, 1e4, 2048, 52, 52, 128),
    "llama-65b": (1e-5, 1e4, 2048, 64, 64, 128),
    "llama2-7b": (1e-5, 1e4, 4096, 32, 32, 128),
    "llama2-13b": (1e-5, 1e4, 4096, 40, 40, 128),
    "llama2-70b": (1e-5, 1e4, 4096, 64, 8, 128),
    "llama3-8b": (1e-5, 5e5, 8192, 32, 8, 128),
    "llama3-70b": (1e-5, 5e5, 8192, 64, 8, 128),
    "llama3.2-1b": (1e-5, 5e5, 131_072, 32, 8, 64),
    "llama3.2-3b": (1e-5, 5e5, 131_072, 24, 8, 128),
    "smollm2-135m": (1e-5, 1e5, 8192, 9, 3, 64),
    "smollm2-360m": (1e-5, 1e5, 8192, 15, 5, 64),
    "smollm2-1.7b": (1e-5, 1.3e5, 8192, 32, 32, 64),
    "qwen2.5-0.5b": (1e-6, 1e6, 32_768, 14, 2, 64),
    "qwen2.5-1.5b": (1e-6, 1e6, 32_768, 12, 2, 128),
    "qwen2.5-7b": (1e-6, 1e6, 32_768, 28, 4, 128),
    "qwen3-0.6b": (1e-6, 1e6, 40_960, 16, 8, 128),
    "qwen3-1.7b": (1e-6, 1e6, 40_960, 16, 8, 128),
    "qwen3-4b": (1e-6, 1e6, 40_960, 32, 8, 128),
    "qwen3-8b": (1e-6, 1e6, 40_960, 32, 8, 128),
    "mistral-7b": (1e-5, 1e4, 32_768, 32, 8, 128),
    "phi3-mini": (1e-5, 1e4, 4096, 32, 32, 96),
}
SMALL = LlamaConfig.preset("nano-test", vocab_size=61, dim=32, ffn_dim=48, head_dim=16, attention="xla")
YARN = RopeScaling("yarn", 4.0, original_max_len=64)
LLAMA3 = RopeScaling("llama3", 4.0, original_max_len=64)


@pytest.mark.parametrize("name", PRESETS)
def test_n_params_counts_the_tree_and_equals_the_published_number(name):
    config = LlamaConfig.preset(name)
    counted = sum(leaf.size for leaf in jax.tree.leaves(llama.build(config).abstract_params))
    assert config.n_params == counted
    assert name.startswith("nano-") or counted == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED_FIELDS)
def test_a_presets_fields_are_the_published_ones(name):
    c = LlamaConfig.preset(name)
    assert (c.norm_eps, c.rope_theta, c.max_len, c.n_heads, c.n_kv_heads, c.head_dim) == PUBLISHED_FIELDS[name]
    expected = RopeScaling("llama3", 32.0, original_max_len=8192) if name.startswith("llama3.2") else None
    assert c.rope_scaling == expected


def test_presets_of_other_families_have_what_these_add_to_a_llama():
    for name, config in ((name, LlamaConfig.preset(name)) for name in PRESETS):
        assert (config.qkv_bias, config.qk_norm) == (name.startswith("qwen2"), name.startswith("qwen3"))
        assert config.window == {"mistral-7b": 4096, "phi3-mini": 2047}.get(name)
        family = name.split("-")[0].replace("qwen2.5", "qwen2")
        assert config.family == (family if family in ("qwen2", "qwen3", "mistral", "phi3") else "llama")


def test_a_window_leaves_fewer_positions_to_see():
    config = LlamaConfig.preset("nano-test", n_layers=1)  # H E = 64
    whole = config.flops_per_token(8)  # which sees 8 / 2 = 4 positions on average
    assert config.replace(window=4).flops_per_token(8) == whole - 12 * 64 * 1  # 4 - 16 / 16 = 3
    assert config.replace(window=8).flops_per_token(8) == config.replace(window=99).flops_per_token(8) == whole


def test_nano_sizes_are_what_the_comment_beside_them_says():
    sizes = {"nano-test": 0.13e6, "nano-1m": 0.92e6, "nano-2m": 2.3e6, "nano-8m": 8.3e6}
    for name, size in sizes.items():
        assert LlamaConfig.preset(name).n_params == pytest.approx(size, rel=0.03)


def test_a_preset_takes_changes_and_a_dict_gives_it_back():
    config = LlamaConfig.preset("llama3.2-1b", n_layers=3, dtype="bfloat16")
    assert (config.n_layers, config.dtype, config.dim) == (3, "bfloat16", 2048)
    assert LlamaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LlamaConfig.preset("llama-7B"), "did you mean 'llama-7b'"),
        (lambda: LlamaConfig.preset("gpt"), "no model preset 'gpt'"),
        (
            lambda: LlamaConfig.from_dict({"vocab_size": 8, "dim": 4}),
            "n_layers, n_heads, ffn_dim missing: give them all",
        ),
        (lambda: LlamaConfig.preset("nano-test", n_layer=3), "unknown model field.* n_layer"),
        (lambda: LlamaConfig.preset("nano-test", n_kv_heads=3), "not a multiple of n_kv_heads 3"),
        (lambda: LlamaConfig.preset("nano-test", head_dim=15), "head_dim 15 is odd"),
        (
            lambda: LlamaConfig.preset("nano-test", head_dim=2, rope_scaling=RopeScaling("dynamic", 2.0, 128)),
            "rope scaling dynamic needs head_dim above 2",
        ),
        (
            lambda: RopeScaling("longrope", 2.0, 128, short_factors=[1.0], long_factors=[1.0, float("nan")]),
            "rope scaling long_factors nan: give numbers greater than 0",
        ),
        (lambda: LlamaConfig.preset("nano-test", window=0), "window 0: give a whole number from 1 to"),
        (
            lambda: LlamaConfig.preset("nano-test", attention_scale=0.0),
            "attention_scale 0.0: give a number",
        ),
        (
            lambda: LlamaConfig.preset("nano-test", logit_divisor=-2.0),
            "logit_divisor -2.0: give a number",
        ),
        (lambda: LlamaConfig.preset("nano-test", family="gemma"), "family 'gemma': give one of llama, mistral, qwen2"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_with_a_hint(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# --- every field is read ---

TOKENS = np.random.RandomState(0).randint(0, 61, (2, 48))


def draw(config: LlamaConfig):
    """Parameters of `config` that do not depend on how it initialises: attention sharp, embeddings small."""
    random = np.random.RandomState(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * random.standard_normal(leaf.shape), leaf.dtype),
        llama.build(config).abstract_params,
    )


@functools.cache
def logits(config: LlamaConfig):
    return np.asarray(jax.jit(llama.build(config).apply)(draw(config), TOKENS))


SHAPE_CHANGES = dict(
    vocab_size=62,
    dim=34,
    n_layers=3,
    n_heads=2,
    n_kv_heads=1,
    ffn_dim=50,
    head_dim=18,
    tied=False,
    param_dtype="bfloat16",
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    qk_norm=True,
)
VALUE_CHANGES = dict(
    norm_eps=1e-3,
    rope_theta=5e5,
    rope_scaling=RopeScaling("linear", 2.0),
    dtype="bfloat16",
    window=5,
    attention_scale=0.5,
    embedding_multiplier=0.01,
    residual_multiplier=0.3,
    logit_divisor=2.0,
)
EXECUTION_CHANGES = dict(remat="full", attention="splash", unroll=2, cache="int8")
# What the weights were trained for, read by training and generation, and how they are exported.
DESCRIPTIONS = {"max_len", "family"}


def test_the_changes_below_cover_every_field():
    tested = SHAPE_CHANGES.keys() | VALUE_CHANGES.keys() | EXECUTION_CHANGES.keys() | DESCRIPTIONS
    assert tested == {field.name for field in dataclasses.fields(LlamaConfig)}


@pytest.mark.parametrize("field", SHAPE_CHANGES)
def test_a_field_of_the_architecture_changes_the_parameters(field):
    def layout(config):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), llama.build(config).abstract_params)

    assert layout(SMALL) != layout(SMALL.replace(**{field: SHAPE_CHANGES[field]}))


@pytest.mark.parametrize("field", VALUE_CHANGES)
def test_a_field_without_parameters_changes_the_logits(field):
    assert np.abs(logits(SMALL) - logits(SMALL.replace(**{field: VALUE_CHANGES[field]}))).max() > 1e-3


@pytest.mark.parametrize(
    ("scaling", "field", "value"),
    [
        (RopeScaling("linear", 2.0), "kind", "ntk"),
        (RopeScaling("linear", 2.0), "factor", 3.0),
        (RopeScaling("ntk", 2.0), "factor", 3.0),
        (YARN, "factor", 8.0),
        (YARN, "original_max_len", 256),
        (YARN, "beta_fast", 2.0),
        (YARN, "beta_slow", 0.1),
        (YARN, "attention_factor", 1.0),
        (LLAMA3, "factor", 8.0),
        (LLAMA3, "original_max_len", 256),
        (LLAMA3, "low_freq_factor", 0.1),
        (LLAMA3, "high_freq_factor", 12.0),
    ],
)
def test_a_field_of_the_rope_scaling_changes_the_logits(scaling, field, value):
    config = SMALL.replace(rope_scaling=scaling)
    changed = SMALL.replace(rope_scaling=dataclasses.replace(scaling, **{field: value}))
    assert np.abs(logits(config) - logits(changed)).max() > 1e-3


def test_remat_changes_the_program_and_attention_which_kernel_runs():
    def program(config):
        model = llama.build(config)
        return str(jax.make_jaxpr(model.apply)(model.abstract_params, TOKENS))

    assert "remat" not in program(SMALL) and "remat" in program(SMALL.replace(remat=EXECUTION_CHANGES["remat"]))
    deep = SMALL.replace(n_layers=4, unroll=1)
    assert "unroll=2" not in program(deep) and "unroll=2" in program(deep.replace(unroll=EXECUTION_CHANGES["unroll"]))
    with pytest.raises(ValueError, match="splash attention takes rows"):
        program(SMALL.replace(attention=EXECUTION_CHANGES["attention"]))


# --- floating-point operations ---


def product_flops(jaxpr) -> float:
    """2 m n k for every matrix product, those in a scan times its length."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval, equation.outvars[0].aval
            total += 2.0 * out.size * np.prod([left.shape[axis] for axis in contracted])
        repeats = equation.params.get("length", 1)
        total += repeats * sum(map(product_flops, jax.extend.core.jaxprs_in_params(equation.params)))
    return total


@pytest.mark.parametrize("change", [{}, dict(tied=False, n_kv_heads=1), dict(n_layers=5, head_dim=64)])
def test_flops_per_token_equal_the_products_of_a_training_step(change):
    config = LlamaConfig.preset("nano-1m", attention="xla", unroll=1).replace(**change)
    T = 1024
    model = llama.build(config)

    def loss(params, tokens):
        return jnp.sum(model.apply(params, tokens) ** 2)

    tokens = jax.ShapeDtypeStruct((1, T), jnp.int32)
    counted = product_flops(jax.make_jaxpr(jax.grad(loss))(model.abstract_params, tokens).jaxpr)
    # The blocks on the diagonal are computed whole: a sixteenth more of attention than the ideal half.
    diagonal = 6.0 * config.n_layers * T * config.n_heads * config.head_dim / 16
    assert counted / T == pytest.approx(config.flops_per_token(T) + diagonal, rel=1e-3)


def test_the_cache_is_kept_as_the_field_says():
    k = jnp.zeros((1, 3, SMALL.n_kv_heads, SMALL.head_dim))
    kinds = [keep(config, k, k).keys_LSE.dtype for config in (SMALL, SMALL.replace(cache=EXECUTION_CHANGES["cache"]))]
    assert kinds == [jnp.float32, jnp.int8]
