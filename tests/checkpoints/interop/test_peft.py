"""PEFT's folders: its own logits from what it saved, back as they were written, and what is refused."""

import functools
import json
import os
import random
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from camelid.checkpoints.interop import huggingface, peft, peft_export
from camelid.model import llama, lora
from camelid.model.lora import Lora
from camelid.model.weights import join, without
from camelid.tests.checkpoints.interop import folders, torch_writer
from camelid.tests.checkpoints.interop.folders import TINY
from camelid.tests.model.golden import make_peft


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The networks that adapters were put on, by `make_peft.base_of`: {name: (config, params, apply)}."""
    found = {}
    for name in ("grouped", "tied", "phi3"):
        fields = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]} if name == "phi3" else {}
        settings, weights = make_peft.settings_of(name), make_peft.weights_of(name)
        folder = folders.write_golden_folder(tmp_path_factory.mktemp("base") / "a", settings, weights, **fields)
        source = huggingface.open_folder(folder)
        found[name] = source.config, folders.load(source), jax.jit(llama.build(source.config).apply)
    return found


@pytest.fixture(scope="module")
def base(bases):
    return bases["grouped"][:2]


def adapted(found: Lora, own, params):
    return join(own, without(params, without(params, lora.base_of(found, params))))


def part(params):
    """A base's matrices, as `read_folder` asks for them."""

    def read(path, layer):
        found = functools.reduce(lambda tree, name: tree[name], path.split("/"), params)
        return np.asarray(found if layer is None else found[layer])

    return read


@pytest.mark.parametrize("name", make_peft.CASES)
def test_what_peft_saved_gives_its_logits(name, bases):
    config, params, apply = bases[make_peft.base_of(name)]
    found, own = peft.read_folder(make_peft.FOLDER / f"peft_{name}", config, part(params))
    logits = apply(adapted(found, own, params), make_peft.tokens_of(make_peft.base_of(name)))
    with np.load(make_peft.FILE) as stored:
        expected = stored[name]
    found = np.asarray(logits)[:, :: make_peft.EVERY]
    np.testing.assert_allclose(found, expected, rtol=folders.RTOL, atol=folders.ATOL * np.abs(expected).max())


def test_the_adapters_are_described_as_camelid_names_them(base):
    config, _ = base
    found, own = peft.read_folder(make_peft.FOLDER / "peft_patterns", config)
    ranks = lora.ranks(found, llama.build(config).abstract_params)
    assert ranks == {
        **{f"layers/attention/{name}": 2 if name == "k" else 3 for name in "qkvo"},
        **{f"layers/mlp/{name}": 5 if name == "down" else 3 for name in ("gate", "up", "down")},
    }
    assert (found.alpha, found.rank_stabilized, found.dora) == (6, True, False)
    gains = {name: own["layers"]["mlp"][name]["gain"] for name in ("gate", "up", "down")}
    np.testing.assert_allclose(gains["gate"], [6 / 3**0.5] * 2, rtol=1e-6)
    np.testing.assert_allclose(gains["up"], [6 / 3**0.5, 20 / 3**0.5], rtol=1e-6)
    np.testing.assert_allclose(gains["down"], [9 / 5**0.5] * 2, rtol=1e-6)
    whole, _ = peft.read_folder(make_peft.FOLDER / "peft_whole", config)
    assert whole.trains_whole("head/kernel") and whole.trains_whole("embed/embedding")
    assert not whole.trains_whole("norm/scale") and not whole.trains_whole("layers/mlp/up")


@pytest.mark.parametrize("name", ["plain", "patterns", "dora", "whole", "phi3", "phi3_dora", "phi3_whole"])
def test_what_is_written_says_what_was_read(name, bases, tmp_path):
    config = bases[make_peft.base_of(name)][0]
    found, own = peft.read_folder(make_peft.FOLDER / f"peft_{name}", config)
    peft_export.write_folder(tmp_path, found, own, config, base="there")
    again, own_again = peft.read_folder(tmp_path, config)
    assert again.targets == found.targets and again.whole == found.whole
    assert (again.dora, again.rank_stabilized) == (found.dora, found.rank_stabilized)
    assert jax.tree.structure(own_again) == jax.tree.structure(own)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), own_again, own)
    stored = safetensors.numpy.load_file(tmp_path / peft.WEIGHTS)
    expected = safetensors.numpy.load_file(make_peft.FOLDER / f"peft_{name}" / peft.WEIGHTS)
    assert stored.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(stored[key], value, err_msg=key)
    fields = json.loads((tmp_path / peft.CONFIG).read_text())
    assert fields["base_model_name_or_path"] == "there" and fields["peft_type"] == "LORA"


@pytest.mark.parametrize("name", make_peft.CASES)
def test_what_is_written_computes_what_was_read(name, bases, tmp_path):
    config, params, apply = bases[make_peft.base_of(name)]
    tokens = make_peft.tokens_of(make_peft.base_of(name))
    found, own = peft.read_folder(make_peft.FOLDER / f"peft_{name}", config, part(params))
    peft_export.write_folder(tmp_path, found, own, config, base="there")
    again, own_again = peft.read_folder(tmp_path, config)
    expected = apply(adapted(found, own, params), tokens)
    np.testing.assert_allclose(apply(adapted(again, own_again, params), tokens), expected, rtol=1e-5, atol=1e-4)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o666 & ~umask()}


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_embedding_that_is_the_head_is_written_as_both_and_a_norm_by_its_own_name(bases, tmp_path):
    """PEFT trains an embedding apart from the head that it is tied to, and takes "norm" for every layer's norms too."""
    config, params, _ = bases["tied"]
    found, own = peft.read_folder(make_peft.FOLDER / "peft_tied_whole", config)
    own["norm"] = {"scale": np.asarray(params["norm"]["scale"]) * 2}
    peft_export.write_folder(tmp_path, found, own, config, base="there")
    stored = safetensors.numpy.load_file(tmp_path / peft.WEIGHTS)
    np.testing.assert_array_equal(stored[f"{peft.PREFIX}lm_head.weight"], own["embed"]["embedding"])
    np.testing.assert_array_equal(stored[f"{peft.PREFIX}model.embed_tokens.weight"], own["embed"]["embedding"])
    fields = json.loads((tmp_path / peft.CONFIG).read_text())
    assert fields["modules_to_save"] == ["embed_tokens", "lm_head", "model.norm"]


def test_a_file_of_pytorch_and_names_with_the_adapters_own_are_read_too(base, tmp_path):
    config, params = base
    expected = peft.read_folder(make_peft.FOLDER / "peft_whole", config)[1]
    folder = shutil.copytree(make_peft.FOLDER / "peft_whole", tmp_path / "their")
    stored = safetensors.numpy.load_file(folder / peft.WEIGHTS)
    named = {
        f"_orig_mod.{name}".replace(".lora_A.", ".lora_A.default.").replace("d.w", "d.modules_to_save.default.w"): value
        for name, value in stored.items()
    }
    named[f"{peft.PREFIX}lm_head.original_module.weight"] = np.asarray(params["head"]["kernel"]).T
    (folder / peft.WEIGHTS).unlink()
    torch_writer.save_tensors(folder / peft.TORCH_WEIGHTS, named)
    jax.tree.map(np.testing.assert_array_equal, peft.read_folder(folder, config, part(params))[1], expected)


def test_layers_without_adapters_have_some_that_never_learn(bases):
    """Their products are zero, and so are the gradients of both factors."""
    config, params, apply = bases["grouped"]
    found, own = peft.read_folder(make_peft.FOLDER / "peft_layers", config, part(params))
    tokens = make_peft.tokens_of("grouped")
    gradient = jax.grad(lambda own: (apply(adapted(found, own, params), tokens) ** 2).sum())(own)
    for name in ("a", "b"):
        assert not np.any(gradient["layers"]["attention"]["q"][name][0]) and np.any(
            gradient["layers"]["attention"]["q"][name][1]
        )


def test_adapters_of_matrices_that_are_one_there_are_joined(bases, tmp_path):
    """q and v of Phi-3's qkv_proj with ranks and scales of their own and k without adapters, for two layers alike."""
    config, params, apply = bases["phi3"]
    made = Lora(targets=(("layers/attention/q", 3), ("layers/attention/v|layers/mlp/.*", 2)), alpha=6)
    own = without(
        jax.tree.map(np.asarray, lora.adapt(made, params, params, jax.random.key(1))), lora.base_of(made, params)
    )
    random = np.random.RandomState(0)
    for part_of, name in (("attention", "q"), ("attention", "v"), ("mlp", "gate"), ("mlp", "up"), ("mlp", "down")):
        own["layers"][part_of][name] = learnt(own["layers"][part_of][name], random)
    peft_export.write_folder(tmp_path, made, own, config, base="there")
    found, read = peft.read_folder(tmp_path, config)
    assert lora.ranks(found, params) == {
        **{f"layers/attention/{name}": 5 for name in "qkv"},
        "layers/mlp/gate": 4,
        "layers/mlp/up": 4,
        "layers/mlp/down": 2,
    }
    tokens = make_peft.tokens_of("phi3")
    expected = apply(adapted(made, own, params), tokens)
    assert np.abs(expected - apply(params, tokens)).max() > 0.1
    np.testing.assert_allclose(apply(adapted(found, read, params), tokens), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            Lora((("layers/attention/q", 2),), whole=("layers/attention/v",)),
            "model.layers.0.self_attn.qkv_proj.weight is one module in PEFT, but layers/attention/q has adapters, "
            "layers/attention/k has none, layers/attention/v has other weights: merge the adapters instead",
        ),
        (Lora((("layers/mlp/up", 2),), dora=True), "layers/mlp/gate has none, layers/mlp/up has adapters with magnitu"),
    ],
)
def test_what_peft_has_one_module_for_is_trained_in_one_way_or_refused(chosen, message, bases, tmp_path):
    config, params, _ = bases["phi3"]
    tree = lora.adapt(chosen, params, params, jax.random.key(1))
    own = jax.tree.map(np.asarray, without(tree, lora.base_of(chosen, params)))
    with pytest.raises(ValueError, match=message):
        peft_export.write_folder(tmp_path / "out", chosen, own, config, base="there")
    assert not (tmp_path / "out").exists()


def test_adapters_that_began_as_principal_components_become_ordinary_ones(tmp_path):
    params = jax.tree.map(np.asarray, llama.build(TINY).init(jax.random.key(0)))
    made = Lora(targets=(("layers/attention/[qo]|layers/mlp/down", 3),), alpha=6, init="pissa")
    tree = lora.adapt(made, params, params, jax.random.key(1))
    own = jax.tree.map(np.asarray, without(tree, lora.base_of(made, params)))
    random = np.random.RandomState(0)
    for name in ("q", "o"):
        own["layers"]["attention"][name] = learnt(own["layers"]["attention"][name], random)
    peft_export.write_folder(tmp_path, made, own, TINY, base="there")
    found, read = peft.read_folder(tmp_path, TINY)
    assert {rank for _, rank in found.targets} == {6}
    tokens = np.arange(24).reshape(2, 12)
    apply = jax.jit(llama.build(TINY).apply)
    expected = apply(adapted(made, own, params), tokens)
    assert np.abs(expected - apply(params, tokens)).max() > 0.1
    np.testing.assert_allclose(apply(adapted(found, read, params), tokens), expected, atol=1e-4)


def learnt(parts, random):
    return parts | {name: parts[name] + 0.1 * random.standard_normal(parts[name].shape) for name in ("a", "b")}


@pytest.mark.parametrize("name, gone", [("whole", "lm_head"), ("whole", "embed_tokens"), ("table", "lm_head")])
def test_one_of_a_tied_embedding_and_head_alone_is_refused(name, gone, bases, tmp_path):
    config, params, _ = bases["tied"]
    folder = shutil.copytree(make_peft.FOLDER / f"peft_tied_{name}", tmp_path / "their")
    holds(lambda t: {key: value for key, value in t.items() if gone not in key})(folder)
    saved = [kept for kept in ("lm_head", "embed_tokens") if kept != gone]
    says(modules_to_save=saved if name == "whole" else None, target_modules=["q_proj", "embed_tokens"])(folder)
    if name == "whole":
        says(target_modules=["q_proj"])(folder)
    message = f"embedding and output head of the base are one, but .*{gone}.weight was not trained with the other"
    with pytest.raises(ValueError, match=message):
        peft.read_folder(folder, config, part(params))


def test_a_tied_embedding_and_head_that_came_apart_are_refused(bases, tmp_path):
    config, params, _ = bases["tied"]
    folder = shutil.copytree(make_peft.FOLDER / "peft_tied_whole", tmp_path / "their")
    holds(lambda t: t | {f"{peft.PREFIX}lm_head.weight": t[f"{peft.PREFIX}lm_head.weight"] + 0.1})(folder)
    with pytest.raises(ValueError, match="the two different values: untie the base"):
        peft.read_folder(folder, config, part(params))


def test_a_copy_of_another_base_is_refused_and_one_in_sixteen_bits_is_not(base):
    config, params = base
    other = jax.tree.map(lambda x: np.asarray(x)[::-1], params)
    folder = make_peft.FOLDER / "peft_table"
    with pytest.raises(
        ValueError, match=r"its copy of lm_head.weight is not that of the base: give the base of these adapters"
    ):
        peft.read_folder(folder, config, part(other))
    halves = jax.tree.map(lambda x: np.asarray(x).astype(np.float16), params)
    assert peft.read_folder(folder, config, part(halves))[0].trains_whole("embed/embedding")
    with pytest.raises(ValueError, match="adapters of the embedding need the base that they were trained on"):
        peft.read_folder(make_peft.FOLDER / "peft_tokens", config)
    with pytest.raises(ValueError, match="DoRA of only some layers of layers/attention/o needs the base"):
        peft.read_folder(make_peft.FOLDER / "peft_layers", config)


# Refusals -------------------------------------------------------------------------------------------------------------

UP = "base_model.model.model.layers.1.mlp.up_proj"


def says(**fields):
    def spoil(folder):
        file = folder / peft.CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return spoil


def holds(change):
    def spoil(folder):
        file = folder / peft.WEIGHTS
        safetensors.numpy.save_file(change(safetensors.numpy.load_file(file)), file)

    return spoil


def without_layer(tensors):
    return {name: value for name, value in tensors.items() if not name.startswith(UP)}


def cut_short(folder):
    file = folder / peft.WEIGHTS
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (says(peft_type="IA3"), "peft_type is 'IA3'; camelid reads only LORA"),
        (says(bias="some"), "bias is 'some'; camelid reads only 'none'"),
        (says(alora_invocation_tokens=[1, 2]), r"alora_invocation_tokens is \[1, 2\]"),
        (says(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4', which changed the base"),
        (says(init_lora_weights="olora"), "init_lora_weights is 'olora'"),
        (lambda folder: (folder / peft.CONFIG).write_text("{"), "adapter_config.json is not JSON"),
        (cut_short, r"adapter_model.safetensors: no whole safetensors file \("),
        (holds(without_layer), r"no adapters of model.layers.1.mlp.up_proj, which target_modules in adapter_config"),
        (
            says(layers_to_transform=[0]),
            "adapters of model.layers.1.mlp.up_proj, which target_modules in adapter_config",
        ),
        (says(layers_to_transform=0), "adapters of model.layers.1.mlp.up_proj, which target_modules"),
        (says(layers_to_transform=[1, 0], layers_pattern="blocks"), "adapters of model.layers.0.mlp.up_proj, which"),
        (
            says(exclude_modules=["layers.1.mlp.up_proj"]),
            "adapters of model.layers.1.mlp.up_proj, which target_modules",
        ),
        (
            says(target_modules=["down_proj"]),
            "no adapters of model.layers.0.mlp.down_proj, which|adapters of .*up_proj",
        ),
        (
            says(target_modules=".*down_proj"),
            "no adapters of model.layers.0.mlp.down_proj, which|adapters of .*up_proj",
        ),
        (says(target_modules="all-linear"), "no adapters of model.layers.0.self_attn.q_proj, which|no adapters of"),
        (says(target_modules="(up"), r"target_modules has '\(up', which is no regular expression"),
        (says(target_modules="(.*x)*up_proj"), "target_modules has .*, which has more repeats than names"),
        (says(target_modules=".*.*.*.*.*.*.*y"), "target_modules has .*, which has more repeats"),
        (says(rank_pattern={"up_proj": 3}), "adapters of model.layers.0.mlp.up_proj have rank 2, .* says 3"),
        (says(r=4), "adapters of model.layers.0.mlp.up_proj have rank 2, but adapter_config.json says 4"),
        (says(rank_pattern={"up_proj": 2.5}), "rank_pattern says 2.5 for 'up_proj': give a number over 0"),
        (says(alpha_pattern={"up_proj": "x"}), "alpha_pattern says 'x' for 'up_proj': give a number over 0"),
        (says(lora_alpha=0), "lora_alpha is 0: give a number over 0"),
        (says(r=True), "r is True"),
        (says(use_dora=True), "the tensors of model.layers.0.mlp.up_proj do not fit use_dora True in adapter_config"),
        (
            says(modules_to_save=["lm_head", "norm"]),
            "has no model.layers.0.input_layernorm.weight, which modules_to",
        ),
        (says(modules_to_save=["up_proj"]), "adapters of model.layers.0.mlp.up_proj, which"),
        (says(modules_to_save=[f"a{i}" for i in range(2001)]), "modules_to_save lists 2,001 names: give at most 2,000"),
        (
            holds(lambda t: t | {"base_model.model.lm_head.weight": np.zeros((99, 32), np.float32)}),
            r"lm_head.weight \[99, 32\] has no place on \[57, 32\]: `camelid convert --vocab_size=99` of the base adds",
        ),
        (says(lora_bias=True), "lora_bias is True; camelid reads only False"),
        (says(target_parameters=["mlp"]), r"target_parameters is \['mlp'\]"),
        (says(use_new_kind={"a": 1}), r"use_new_kind is \{'a': 1\}, and camelid knows no such field"),
        (
            holds(lambda t: t | {f"{UP}.lora_A.weight": np.zeros((3, 32), np.float32)}),
            rf"{UP}.lora_B.weight \[40, 2\] has no place on \[40, 32\]",
        ),
        (
            holds(lambda t: t | {f"{UP}.lora_A.weight": np.zeros((), np.float32)}),
            rf"{UP}.lora_A.weight \[\] has no place on \[40, 32\]",
        ),
        (
            holds(lambda t: {name: value for name, value in t.items() if name != f"{UP}.lora_A.weight"}),
            rf"{UP}.lora_B.weight \[40, 2\] has no place|{UP} has b but not both lora_A and lora_B",
        ),
        (
            holds(lambda t: t | {"base_model.model.model.layers.2.mlp.up_proj.lora_A.weight": np.zeros((2, 32))}),
            r"1 tensor\(s\) with no place in the network: base_model.model.model.layers.2.mlp.up_proj.lora_A.weight",
        ),
        (
            holds(lambda t: t | {f"{UP}.lora_B.bias": np.zeros(40, np.float32)}),
            rf"1 tensor\(s\) with no place in the network: {UP}.lora_B.bias \[40\]",
        ),
    ],
)
def test_what_the_network_cannot_take_is_refused_with_what_and_where(spoil, message, base, tmp_path):
    folder = shutil.copytree(make_peft.FOLDER / "peft_whole", tmp_path / "their")
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        peft.read_folder(folder, base[0])
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


@pytest.mark.parametrize("begin", [True, False, "gaussian", "eva", None])
def test_adapters_that_leave_the_base_as_it_is_are_read_however_they_began(begin, base, tmp_path):
    folder = shutil.copytree(make_peft.FOLDER / "peft_whole", tmp_path / "their")
    says(init_lora_weights=begin)(folder)
    assert peft.read_folder(folder, base[0])[0].targets


def test_biases_are_written_and_read_where_peft_keeps_them(tmp_path):
    """PEFT 0.21 with bias="all": inside of a module that has adapters, in their place in one that has none."""
    config = folders.TINY.replace(family="qwen2", qkv_bias=True)
    chosen = Lora(((r"layers/attention/q", 2),), whole=(r".*(q|k)_bias",))
    params = folders.random_params(config)
    own = without(lora.adapt(chosen, params, params, jax.random.key(0)), lora.base_of(chosen, params))
    peft_export.write_folder(tmp_path / "a", chosen, own, config, base="there")
    stored = safetensors.numpy.load_file(tmp_path / "a" / peft.WEIGHTS)
    layer = f"{peft.PREFIX}model.layers.0.self_attn"
    q_bias, k_bias = (params["layers"]["attention"][f"{x}_bias"][0].reshape(-1) for x in "qk")
    np.testing.assert_array_equal(stored[f"{layer}.q_proj.base_layer.bias"], q_bias)
    np.testing.assert_array_equal(stored[f"{layer}.k_proj.bias"], k_bias)
    assert json.loads((tmp_path / "a" / peft.CONFIG).read_text())["bias"] == "all"
    found, again = peft.read_folder(tmp_path / "a", config)
    assert found.targets == ((r"layers/attention/q", 2),)
    folders.assert_same_params(again, jax.device_get(own))


SPOILT = [None, True, -1, 0, 7, 10**30, 1e300, "", "x", "(", "../../x", "a" * 5000, [], [3], ["x"], [[]], {}, {"x": 1}]


def test_no_single_change_of_a_config_gives_anything_but_adapters_or_one_line(base, tmp_path):
    """Every field of a config that PEFT wrote, by everything that a field may wrongly be."""
    config, params = base
    folder = shutil.copytree(make_peft.FOLDER / "peft_regex", tmp_path / "their")
    file = folder / peft.CONFIG
    fields, refused, accepted = json.loads(file.read_text()), 0, 0
    expected = peft.read_folder(folder, config, part(params))
    meant = ("r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "target_modules", "exclude_modules")
    for name in fields:
        for value in SPOILT:
            file.write_text(json.dumps(fields | {name: value}))
            try:
                found = peft.read_folder(folder, config, part(params))
                accepted += 1
            except ValueError as error:
                assert str(error).startswith(str(folder)) and "\n" not in str(error) and len(str(error)) < 1000
                refused += 1
                continue
            if name not in meant:
                assert found[0] == expected[0], (name, value)
                jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
    assert refused > 300 and accepted > 200, (refused, accepted)


def test_no_damage_of_a_file_of_adapters_gives_anything_but_one_line(base, tmp_path):
    config, params = base
    draw = random.Random(1)
    for name in ("norm", "tokens"):
        folder = shutil.copytree(make_peft.FOLDER / f"peft_{name}", tmp_path / name)
        file = peft.weight_file(folder)
        whole = file.read_bytes()
        for _ in range(60):
            spoilt = bytearray(whole)
            for _ in range(draw.randint(1, 3)):
                spoilt[draw.randrange(min(len(spoilt), 1500))] = draw.choice([0, 0x2E, 0xFF, draw.randrange(256)])
            file.write_bytes(spoilt)
            try:
                peft.read_folder(folder, config, part(params))
            except ValueError as error:
                assert str(error).startswith(str(folder)) and "\n" not in str(error)
