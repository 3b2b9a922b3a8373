"""Regex lists, meshes, and that a model is the same however it is split."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from camelid.model import llama, sharding
from camelid.model.config import PRESETS, LlamaConfig

CONFIG = LlamaConfig.preset("nano-test", tied=False)
MODEL = llama.build(CONFIG)
KEY = jax.random.key(0)
MESHES = {
    "8x1x1x1": {"data": 8},
    "1x8x1x1": {"fsdp": 8},
    "2x2x2x1": {"data": 2, "fsdp": 2, "tensor": 2},
    "1x2x2x2": {"fsdp": 2, "tensor": 2, "context": 2},
}
each_mesh = pytest.mark.parametrize("axes", MESHES.values(), ids=MESHES)


# --- regex lists ---


def test_the_first_pattern_that_matches_the_whole_path_wins():
    rules = [("layers/.*/q", "first"), ("layers/.*", "second"), ("embed", "third")]
    assert sharding.match(rules, "layers/attention/q") == "first"
    assert sharding.match(rules, "layers/attention/qq") == "second", "a pattern must match to the end"
    with pytest.raises(ValueError):
        sharding.match(rules, "embed/embedding")
    with pytest.raises(ValueError):
        sharding.match(rules, "my/layers/attention/q")


def test_a_path_that_nothing_matches_is_an_error_that_names_it_and_the_nearest():
    with pytest.raises(ValueError, match=r"parameter 'layers/mlp/gate'; the nearest is 'layers/mlp/gates'.*\('\.\*'"):
        sharding.match([("head/kernel", 1), ("layers/mlp/gates", 2)], "layers/mlp/gate")


def test_map_rules_gives_each_leaf_its_rule_and_keeps_the_tree():
    tree = {"a": {"b": 1, "c": [2, 3]}}
    assert sharding.map_rules([("a/c/1", "x"), (".*", "y")], tree) == {"a": {"b": "y", "c": ["y", "x"]}}


def test_biases_are_split_as_the_outputs_of_their_matrices_are():
    config = LlamaConfig.preset("nano-test", qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True)
    abstract = llama.build(config).abstract_params["layers"]
    specs = sharding.map_rules(sharding.PARTITION_RULES, {"layers": abstract})["layers"]
    assert specs["attention"]["q_norm"]["scale"] == specs["attention"]["o_bias"] == specs["mlp"]["down_bias"] == ()
    for part, names in {"attention": "qkv", "mlp": ("gate", "up")}.items():
        for name in names:
            assert specs[part][f"{name}_bias"] == (None, *specs[part][name][2:]), name


@pytest.mark.parametrize("name", ["llama-7b", "llama3.2-1b"])
def test_the_partition_rules_split_every_matrix_over_both_fsdp_and_tensor(name):
    abstract = llama.build(LlamaConfig.preset(name)).abstract_params
    specs = sharding.map_rules(sharding.PARTITION_RULES, abstract)
    for path, spec in jax.tree.leaves_with_path(specs, is_leaf=lambda x: isinstance(x, tuple)):
        norm = "norm" in sharding.path_name(path)
        assert set(spec) - {None} == (set() if norm else {"fsdp", "tensor"}), path


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("nano")])
def test_every_published_size_splits_over_fsdp_64(name):
    abstract = llama.build(LlamaConfig.preset(name)).abstract_params
    mesh = jax.sharding.AbstractMesh((1, 64, 1, 1), sharding.AXES)
    sharding.shardings(abstract, mesh)


# --- meshes ---


def test_a_mesh_has_four_axes_and_fsdp_takes_all_by_default():
    assert dict(sharding.make_mesh().shape) == {"data": 1, "fsdp": 8, "tensor": 1, "context": 1}
    assert dict(sharding.make_mesh({"tensor": 2, "data": -1}).shape) == dict(data=4, fsdp=1, tensor=2, context=1)
    assert dict(sharding.make_mesh({}, jax.devices()[:1]).shape) == dict.fromkeys(sharding.AXES, 1)
    assert set(sharding.make_mesh().axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"fsdp": 4}, r"'fsdp': 4.* does not fit 8 device"),
        ({"fsdp": 3, "data": -1}, "does not fit 8 device"),
        ({"fsdp": -1, "data": -1}, "or one -1"),
        ({"fsdp": 16}, "does not fit 8 device"),
        ({"fsdp": -2, "data": -4}, "does not fit 8 device"),
        ({"fsdp": 0}, "does not fit 8 device"),
        ({"model": 8}, "unknown mesh axis model; the axes are data, fsdp, tensor, context"),
    ],
)
def test_a_mesh_that_does_not_fit_is_an_error(axes, words):
    with pytest.raises(ValueError, match=words):
        sharding.make_mesh(axes)


def test_a_mesh_in_words_leaves_out_axes_of_one_device():
    assert sharding.mesh_words(sharding.make_mesh({"data": 2, "fsdp": 4}).shape) == "data 2 x fsdp 4"
    assert sharding.mesh_words(sharding.make_mesh({}, jax.devices()[:1]).shape) == "one device"


def test_an_axis_that_does_not_divide_is_an_error_that_names_the_parameter():
    mesh = sharding.make_mesh({"tensor": 8})
    with pytest.raises(ValueError, match=r"layers/attention/k \(2, 64, 2, 16\): mesh axis 'tensor' of size 8"):
        sharding.shardings(MODEL.abstract_params, mesh)
    with pytest.raises(ValueError, match="norm/scale has more axes than its shape"):
        sharding.shardings({"norm": {"scale": jnp.ones(8)}}, mesh, [(".*", ("fsdp", "tensor"))])


# --- initialisation ---


@functools.cache
def params_on_one_device():
    return jax.jit(MODEL.init)(KEY)


@each_mesh
def test_parameters_are_the_same_on_any_mesh_and_each_device_holds_only_its_part(axes):
    mesh = sharding.make_mesh(axes)
    with jax.set_mesh(mesh):
        params = jax.jit(MODEL.init, out_shardings=sharding.shardings(MODEL.abstract_params, mesh))(KEY)
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    for (path, leaf), expected in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(params_on_one_device()), strict=True
    ):
        np.testing.assert_array_equal(leaf, expected, err_msg=sharding.path_name(path))
        share = 1 if "norm" in sharding.path_name(path) else parts
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // share}, path


def test_initialising_a_large_model_takes_a_share_of_its_bytes_on_each_device():
    config = LlamaConfig.preset("llama3.2-1b")
    model, mesh = llama.build(config), sharding.make_mesh({"fsdp": 4, "tensor": 2})
    out = sharding.shardings(model.abstract_params, mesh)
    compiled = jax.jit(model.init, out_shardings=out).lower(KEY).compile()
    memory, whole = compiled.memory_analysis(), 4 * config.n_params
    assert memory.output_size_in_bytes == pytest.approx(whole / 8, rel=0.01)
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 0.4 * whole
    shapes = re.findall(r"= \w+\[([\d,]+)\]", compiled.as_text())
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert largest == max(leaf.size for leaf in jax.tree.leaves(model.abstract_params)) // 8, "no array is a whole leaf"


# --- the network under a mesh ---


@functools.cache
def batch():
    random = np.random.RandomState(0)
    tokens = random.randint(0, CONFIG.vocab_size, (8, 32))
    segments = np.sort(random.randint(1, 4, tokens.shape), axis=1)
    starts = np.array([[row.tolist().index(s) for s in row] for row in segments])
    return tokens, segments, np.arange(32)[None] - starts


def loss_and_logits(params, tokens, segments, positions):
    logits = MODEL.apply(params, tokens, segments, positions)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0]), logits


gradient = jax.value_and_grad(loss_and_logits, has_aux=True)


@functools.cache
def on_one_device():
    return jax.jit(gradient)(params_on_one_device(), *batch())


@each_mesh
def test_logits_and_gradients_are_those_of_one_device_on_any_mesh(axes):
    mesh = sharding.make_mesh(axes)
    rows = NamedSharding(mesh, PartitionSpec(sharding.BATCH, "context"))
    split = sharding.shardings(MODEL.abstract_params, mesh)
    params = jax.device_put(params_on_one_device(), split)
    with jax.set_mesh(mesh):
        (loss, logits), gradients = jax.jit(gradient)(params, *jax.device_put(batch(), rows))
    (expected_loss, expected_logits), expected = on_one_device()
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), gradients, expected)


@each_mesh
def test_devices_share_the_work(axes):
    mesh = sharding.make_mesh(axes)
    rows = NamedSharding(mesh, PartitionSpec(sharding.BATCH, "context"))
    args = jax.device_put(
        (params_on_one_device(), *batch()), (sharding.shardings(MODEL.abstract_params, mesh), rows, rows, rows)
    )
    with jax.set_mesh(mesh):
        split = jax.jit(MODEL.apply).lower(*args).compile()
    whole = jax.jit(MODEL.apply).lower(params_on_one_device(), *batch()).compile()
    share = split.cost_analysis()["flops"] / whole.cost_analysis()["flops"]
    assert share < 1.1 / 8
