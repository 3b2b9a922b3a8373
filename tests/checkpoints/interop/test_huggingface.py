"""Hugging Face's folders: back as they were written, transformers' own logits, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from camelid.checkpoints.interop import huggingface
from camelid.model import llama
from camelid.model.config import LlamaConfig, RopeScaling
from camelid.model.rope import ntk_theta
from camelid.model.sharding import make_mesh
from camelid.tests.checkpoints.interop import folders
from camelid.tests.checkpoints.interop.folders import TINY
from camelid.tests.model.golden import make_interop, make_llama

PAIRS = TINY.head_dim // 2
LLAMA3 = RopeScaling("llama3", 8.0, original_max_len=64, low_freq_factor=0.5, high_freq_factor=3.0)
YARN = RopeScaling("yarn", 4.0, original_max_len=128)
YARN_SET = RopeScaling("yarn", 4.0, 128, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3, truncate=False)
LONGROPE = RopeScaling(
    "longrope", 4.0, 128, short_factors=(1.0,) * PAIRS, long_factors=tuple(1 + 0.5 * i for i in range(PAIRS))
)
VARIANTS: dict[str, dict] = {
    "plain": dict(n_kv_heads=4),
    "tied": dict(tied=True),
    "grouped": dict(),
    "one_kv_head": dict(n_kv_heads=1, norm_eps=1e-5, rope_theta=500_000.0),
    "bfloat16": dict(param_dtype="bfloat16"),
    "float16": dict(param_dtype="float16"),
    "linear": dict(rope_scaling=RopeScaling("linear", 4.0)),
    "llama3": dict(rope_scaling=LLAMA3),
    "yarn": dict(rope_scaling=YARN),
    "yarn_set": dict(rope_scaling=YARN_SET),
    "dynamic": dict(rope_scaling=RopeScaling("dynamic", 4.0, original_max_len=128)),
    "longrope": dict(rope_scaling=LONGROPE),
    "longrope_set": dict(rope_scaling=RopeScaling(**(vars(LONGROPE) | dict(attention_factor=1.2)))),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_written_comes_back_tensor_for_tensor_and_config_for_config(name, tmp_path):
    config = TINY.replace(**VARIANTS[name])
    params = folders.random_params(config)
    source = huggingface.open_folder(folders.write_folder(tmp_path / "a", config, params))
    assert source.config == config
    folders.assert_same_params(folders.load(source), params)


def test_ntk_scaling_comes_back_as_the_larger_base_that_it_is(tmp_path):
    config = TINY.replace(rope_scaling=RopeScaling("ntk", 4.0))
    found = huggingface.open_folder(folders.write_folder(tmp_path / "a", config)).config
    assert found == config.replace(rope_scaling=None, rope_theta=ntk_theta(config))
    assert found.rope_theta == pytest.approx(10_000 * 4 ** (16 / 14))


def test_many_files_and_an_index_are_one_folder(tmp_path):
    params = folders.random_params(TINY)
    folder = folders.write_folder(tmp_path / "a", TINY, params, max_file_bytes=40_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert all((folder / file).stat().st_size < 45_000 for file in files)
    assert {file.name for file in folder.iterdir()} == {*files, "config.json", "model.safetensors.index.json"}
    held = {name: file for file in files for name in safetensors.numpy.load_file(folder / file)}
    assert held == index["weight_map"]
    assert index["metadata"]["total_size"] == TINY.n_params * 4
    source = huggingface.open_folder(folder)
    folders.assert_same_params(folders.load(source), params)
    assert [file.name for file in source.files] == ["config.json", *files]


@pytest.mark.parametrize("name", make_llama.CASES)
def test_transformers_weights_and_settings_give_transformers_logits(name, tmp_path):
    case = make_llama.CASES[name]
    source = huggingface.open_folder(folders.write_golden_folder(tmp_path / "a", case))
    found = folders.logits(source, make_llama.batch(case)[0])
    with np.load(make_llama.FILE) as stored:
        expected = stored[f"{name}/logits"]
    np.testing.assert_allclose(found, expected, rtol=folders.RTOL, atol=folders.ATOL * np.abs(expected).max())


@pytest.mark.parametrize("name", make_interop.CASES)
def test_every_rotary_scaling_gives_transformers_logits_from_either_side_of_the_trained_length(name, tmp_path):
    case = make_interop.CASES[name]
    with np.load(make_interop.FILE) as stored:
        expected, written = stored[f"{name}/logits"], json.loads(str(stored[f"{name}/config"]))
    named = {name: written[name] for name in ("architectures", "model_type")}
    folder = folders.write_golden_folder(tmp_path / "a", case, **named)
    source = huggingface.open_folder(folder)
    found = folders.logits(source, make_llama.batch(case)[0])[:, :: make_interop.EVERY]
    np.testing.assert_allclose(found, expected, rtol=folders.RTOL, atol=folders.ATOL * np.abs(expected).max())
    assert huggingface.read_config(written, "written by transformers") == source.config
    again = folders.write_folder(tmp_path / "b", source.config, folders.load(source))
    assert huggingface.open_folder(again).config == source.config


@pytest.mark.parametrize("name", [*make_llama.CASES, *make_interop.CASES])
@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_the_older_spelling_of_rotary_settings_says_the_same(name, kind):
    case = {"model_type": "llama"} | (make_llama.CASES | make_interop.CASES)[name]
    new = huggingface.read_config(case, "new")
    rope = dict(case["rope_parameters"])
    old = case | {"rope_parameters": None, "rope_theta": rope.pop("rope_theta"), "rope_scaling": None}
    if rope["rope_type"] != "default":
        old["rope_scaling"] = {kind: rope.pop("rope_type"), **rope}
    assert huggingface.read_config(old, "old") == new
    assert new.rope_theta == case["rope_parameters"]["rope_theta"]


def test_a_config_says_its_rotary_settings_in_the_spelling_that_every_version_of_transformers_reads():
    written = huggingface.write_config(TINY.replace(rope_theta=5e5, rope_scaling=LLAMA3))
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 0.5,
        "high_freq_factor": 3.0,
        "original_max_position_embeddings": 64,
    }
    assert written["rope_theta"] == 5e5 and written["rope_scaling"] == scaling
    assert huggingface.write_config(TINY)["rope_scaling"] is None
    assert "rope_parameters" not in written, "a second spelling could come to disagree"
    # transformers 4.57 looks for longrope's trained length beside the settings, and takes the factor from the lengths.
    longer = huggingface.write_config(TINY.replace(rope_scaling=RopeScaling(**(vars(LONGROPE) | dict(factor=2.0)))))
    assert (longer["original_max_position_embeddings"], longer["max_position_embeddings"]) == (128, 512)
    assert longer["rope_scaling"]["attention_factor"] == pytest.approx((1 + np.log(2) / np.log(128)) ** 0.5)


def test_dynamic_scaling_may_be_used_past_the_trained_length_that_the_config_names():
    config = TINY.replace(max_len=400, rope_scaling=RopeScaling("dynamic", 4.0, original_max_len=100))
    written = huggingface.write_config(config)
    assert written["max_position_embeddings"] == 100
    assert huggingface.read_config(written, "again") == config


def test_fields_that_a_config_leaves_out_are_transformers_defaults():
    least = dict(vocab_size=58, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=44)
    assert huggingface.read_config(least | {"model_type": "llama"}, "") == LlamaConfig(
        58, 32, 1, 4, n_kv_heads=4, ffn_dim=44, head_dim=8, norm_eps=1e-6, rope_theta=10_000.0, max_len=2048
    )


def test_eight_devices_get_the_same_arrays_and_read_only_their_parts(tmp_path):
    params = folders.random_params(TINY)
    folder = folders.write_folder(tmp_path / "a", TINY, params, max_file_bytes=40_000)
    folders.assert_loads_in_parts(huggingface.open_folder(folder), params)


def test_a_network_that_was_first_built_under_a_mesh_is_loaded_anywhere(tmp_path):
    config = TINY.replace(max_len=999)
    params = folders.random_params(config.replace(max_len=1))
    folder = folders.write_folder(tmp_path / "a", config.replace(max_len=1), params)
    with jax.set_mesh(make_mesh({"fsdp": -1})):
        llama.build(config)
    source = huggingface.open_folder(folder)
    found = folders.load(source._replace(config=config))
    folders.assert_same_params(found, params)
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(found)} == {1}


def test_tensors_are_cast_to_the_dtypes_asked_for(tmp_path):
    params = folders.random_params(TINY)
    source = huggingface.open_folder(folders.write_folder(tmp_path / "a", TINY, params))
    found = folders.load(source._replace(config=TINY.replace(param_dtype="bfloat16")))
    expected = {"scale": params["norm"]["scale"].astype(ml_dtypes.bfloat16)}
    folders.assert_same_params(found["norm"], expected)
    assert found["layers"]["attention"]["q"].dtype == jnp.bfloat16


def test_the_head_of_a_tied_network_may_be_stored_again_and_frequencies_and_value_heads_are_not_read(tmp_path):
    config = TINY.replace(tied=True)
    params = folders.random_params(config)
    folder = folders.write_folder(tmp_path / "a", config, params)
    head = {"lm_head.weight": params["embed"]["embedding"], "v_head.summary.weight": np.ones((1, 32), np.float32)}
    edit_tensors(
        folder,
        lambda t: (
            t
            | head
            | {
                f"model.layers.0.self_attn.rotary_emb.{x}": np.ones(PAIRS, np.float32)
                for x in ("inv_freq", "cos_cached")
            }
        ),
    )
    folders.assert_same_params(folders.load(huggingface.open_folder(folder)), params)


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"base_model.model.{name.replace('q_proj.', 'q_proj.base_layer.')}",
        lambda name: name.replace("model.layers.1.", "model.layers.1._orig_mod.").replace("lm_head", "module.lm_head"),
        lambda name: name.removeprefix("model."),
        lambda name: f"_orig_mod.{name.removeprefix('model.')}",
    ],
)
def test_names_that_wrappers_left_behind_load(rename, tmp_path):
    params = folders.random_params(TINY)
    folder = folders.write_folder(tmp_path / "a", TINY, params)
    edit_tensors(folder, lambda t: {rename(name): value for name, value in t.items()})
    folders.assert_same_params(folders.load(huggingface.open_folder(folder)), params)


def test_a_bare_model_loads_where_the_embedding_is_its_head_and_is_refused_elsewhere(tmp_path):
    tied = TINY.replace(tied=True)
    params = folders.random_params(tied)
    folder = folders.write_folder(tmp_path / "a", tied, params, architectures=["LlamaModel"])
    edit_tensors(folder, lambda t: {name.removeprefix("model."): value for name, value in t.items()})
    folders.assert_same_params(folders.load(huggingface.open_folder(folder)), params)
    says(tie_word_embeddings=False)(folder)
    with pytest.raises(ValueError, match=r"has no output head \(lm_head.weight\), as a bare model class"):
        huggingface.open_folder(folder)


def test_one_tensor_under_two_names_is_refused(tmp_path):
    folder = folders.write_folder(tmp_path / "a", TINY)
    edit_tensors(folder, lambda t: t | {f"module.{NORM}": t[NORM]})
    with pytest.raises(ValueError, match=f"{NORM} and module.{NORM} are both {NORM}: keep one"):
        huggingface.open_folder(folder)


def test_a_single_file_beside_an_index_is_told_and_read_as_transformers_does(tmp_path):
    old, new = folders.random_params(TINY, 1), folders.random_params(TINY, 2)
    folder = folders.write_folder(tmp_path / "a", TINY, new, max_file_bytes=40_000)
    single = folders.write_folder(tmp_path / "b", TINY, old) / "model.safetensors"
    shutil.copy(single, folder)
    with pytest.warns(
        UserWarning, match="both model.safetensors and model.safetensors.index.json; the single file is read"
    ):
        source = huggingface.open_folder(folder)
    folders.assert_same_params(folders.load(source), old)
    edit_tensors(folder, lambda t: {name: value for name, value in t.items() if name != NORM})
    with pytest.raises(ValueError, match="with different tensors: move away the one that is out of date"):
        huggingface.open_folder(folder)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return folders.write_folder(tmp_path_factory.mktemp("written") / "their", TINY)


def edit_tensors(folder, change):
    file = folder / "model.safetensors"
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(file)), file)


def says(**fields):
    def spoil(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return spoil


def holds(change):
    return lambda folder: edit_tensors(folder, change)


def cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


def unfetched(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1a\nsize 9\n")


def indexed(weight_map):
    return lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps(weight_map))


def without_weights(folder):
    (folder / "model.safetensors").unlink()


Q, UP, NORM = "model.layers.1.self_attn.q_proj.weight", "model.layers.2.mlp.up_proj.weight", "model.norm.weight"
BIAS = "model.layers.0.self_attn.q_proj.bias"
ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
RAMP = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def rope(**fields):
    return says(rope_parameters=fields, rope_scaling=None)


REFUSED = {
    "another architecture": (
        says(architectures=["MixtralForCausalLM"]),
        "architecture 'MixtralForCausalLM'; known are Llama",
    ),
    "no architecture": (says(architectures=None, model_type="gemma"), "architecture model_type 'gemma'"),
    "another activation": (says(hidden_act="gelu"), "hidden_act is 'gelu'; camelid supports only 'silu'"),
    "two architectures": (says(model_type="mistral"), "architectures LlamaForCausalLM but model_type 'mistral'"),
    "biases that are not there": (
        says(attention_bias=True),
        r"12 tensor\(s\) missing: model.layers.0.self_attn.k_proj.b",
    ),
    "a window that LLaMA's class ignores": (
        says(sliding_window=4096),
        "sliding_window is 4096, which LlamaForCausalLM ignores",
    ),
    "a network that sees what follows": (says(is_causal=False), "is_causal is False; camelid supports only True"),
    "a part of all heads": (says(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5; camelid supports only 1.0"),
    "a part of heads": (rope(rope_type="default", partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    "unknown scaling": (rope(rope_type="mrope"), "rotary scaling is 'mrope'; known are default, linear, dynamic"),
    "settings for each kind of layer": (rope(full_attention=ROPE), "rope_parameters has different rotary settings"),
    "a ramp of no width": (
        rope(**RAMP | {"low_freq_factor": 4.0}),
        "rope scaling llama3 needs low_freq_factor below high_freq_factor, not 4 and 4",
    ),
    "a stretch of one token": (
        rope(rope_type="longrope", original_max_position_embeddings=1, short_factor=[1.0] * 8, long_factor=[1.0] * 8),
        "rope scaling longrope needs attention_factor where original_max_len is 1",
    ),
    "no factor": (rope(rope_type="linear"), "has no factor"),
    "a factor below one": (rope(rope_type="linear", factor=0.5), "rope scaling factor 0.5"),
    "too few factors": (
        rope(rope_type="longrope", factor=2.0, short_factor=[1.0], long_factor=[1.0]),
        f"longrope has 1 short_factors and 1 long_factors; give {PAIRS} of each",
    ),
    "heads that do not divide": (says(num_key_value_heads=3), "n_heads 4 is not a multiple of n_kv_heads 3"),
    "a missing tensor": (
        holds(lambda t: {name: x for name, x in t.items() if name != UP}),
        rf"1 tensor\(s\) missing: {UP} \[44, 32\]",
    ),
    "a surplus tensor": (
        holds(lambda t: t | {BIAS: np.zeros(64, np.float32)}),
        rf"1 tensor\(s\) with no place in the network: {BIAS} \[64\]",
    ),
    "another shape": (
        holds(lambda t: t | {Q: np.ascontiguousarray(t[Q].T)}),
        rf"of another shape: {Q} \[32, 64\], the config says \[64, 32\]",
    ),
    "more layers than said": (says(num_hidden_layers=2), r"9 tensor\(s\) with no place in the network: model.layers.2"),
    "fewer rows than said": (says(vocab_size=60), r"embed_tokens.weight \[58, 32\], the config says \[60, 32\]"),
    "integers": (holds(lambda t: t | {Q: t[Q].astype(np.int8)}), f"tensors that are not F32, F16, BF16: {Q} I8"),
    "a quantised network": (
        lambda folder: (
            says(quantization_config={"quant_method": "gptq", "bits": 4})(folder),
            edit_tensors(folder, lambda t: t | {Q.replace("weight", "qweight"): np.zeros((4, 64), np.int32)}),
        ),
        "config.json: the model is quantised by 'gptq': give the original model",
    ),
    "a file cut short": (cut_short, r"model.safetensors: no whole safetensors file \("),
    "a file that Git has not fetched": (
        unfetched,
        r"model.safetensors: no whole .*: fetch the file with `git lfs pull`",
    ),
    "an index of absent files": (
        indexed({"weight_map": {NORM: "model-00001-of-00002.safetensors", Q: "model.safetensors"}}),
        r"index.json names 1 missing file\(s\): .*model-00001-of-00002.safetensors: no such file$",
    ),
    "an index of nothing": (indexed({"metadata": {}}), "index.json has no weight_map"),
    "an index that is no JSON": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
        "index.json is not JSON",
    ),
    "no weights": (without_weights, "no model.safetensors, model.safetensors.index.json, pytorch_model.bin or"),
    "a head that is not the embedding": (
        says(tie_word_embeddings=True),
        "config.json has tie_word_embeddings true, but lm_head.weight and model.embed_tokens.weight differ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_network_cannot_be_is_refused_with_what_and_where(name, written, tmp_path):
    spoil, message = REFUSED[name]
    folder = shutil.copytree(written, tmp_path / "their")
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        huggingface.open_folder(folder)
    assert str(error.value).startswith(str(folder)) and "\n" not in str(error.value)


def test_long_lists_of_tensors_are_cut(written, tmp_path):
    folder = shutil.copytree(written, tmp_path / "their")
    edit_tensors(folder, lambda t: {NORM: t[NORM]})
    with pytest.raises(ValueError, match=r"29 tensor\(s\) missing: .*; \.\.\.$") as error:
        huggingface.open_folder(folder)
    assert str(error.value).count("weight [") == 10
