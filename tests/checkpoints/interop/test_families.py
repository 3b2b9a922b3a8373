"""Families beside LLaMA: transformers' logits, gradients and greedy answers, and what each is as a file."""

import functools
import json

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from camelid.checkpoints.interop import gguf_files, huggingface, tensors
from camelid.model import decode, llama, storage
from camelid.model.config import LlamaConfig
from camelid.model.sampling import Sampling
from camelid.model.sharding import path_name
from camelid.tests.checkpoints.interop import folders
from camelid.tests.checkpoints.interop.folders import TINY
from camelid.tests.model.golden import make_families as golden

GREEDY = Sampling(max_tokens=golden.ANSWER, temperature=0.0)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """opened(name): a case as a folder that nothing of camelid's wrote."""

    @functools.cache
    def one(name):
        kind, case = golden.CASES[name]
        said = {"architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower()}
        path = tmp_path_factory.mktemp("families") / name
        folder = folders.write_golden_folder(path, case, golden.weights(kind, case), **said)
        return huggingface.open_folder(folder)

    return one


@pytest.fixture(scope="module")
def stored():
    with np.load(golden.FILE) as file:
        return dict(file)


def whole_tensors(naming: tensors.Naming, config, params) -> dict[str, np.ndarray]:
    """Every tensor by its name there; of one that holds the rows of several of ours, all of them."""
    rows = {}
    placed = zip(tensors.places(config, naming), folders.in_order(config, params, naming), strict=True)
    for place, (name, value) in placed:
        rows.setdefault(name, {})[place.first_row] = value
    return {name: np.concatenate([parts[first] for first in sorted(parts)]) for name, parts in rows.items()}


@pytest.mark.parametrize("name", golden.CASES)
def test_logits_and_gradients_are_transformers(name, opened, stored):
    source = opened(name)
    model, params = llama.build(source.config), folders.load(source)
    tokens, targets = golden.batch()

    def loss(params):
        logits_BTV = model.apply(params, tokens)
        logp_BTV = jax.nn.log_softmax(logits_BTV)
        return -jnp.mean(jnp.take_along_axis(logp_BTV, targets[..., None], axis=-1)), logits_BTV

    gradients, logits_BTV = jax.jit(jax.grad(loss, has_aux=True))(params)
    expected = stored[f"{name}/logits"]
    np.testing.assert_allclose(logits_BTV[:, :: golden.EVERY], expected, rtol=5e-5, atol=5e-5 * np.abs(expected).max())
    there = whole_tensors(source.naming, source.config, jax.device_get(gradients))
    found = np.array([golden.project(there[tensor]) for tensor in sorted(there)])
    np.testing.assert_allclose(found, stored[f"{name}/gradients"], rtol=2e-4, atol=2e-5)


ANSWERED = [
    "qwen2",
    "qwen3_tied_biases_window",
    "mistral",
    "phi3",
    "phi3_longrope_past",
    "llama_biases",
    "granite_biases",
]


@pytest.mark.parametrize(
    ("name", "cache"), [(name, None) for name in ANSWERED] + [("mistral", "int8"), ("granite_biases", "int8")]
)
def test_greedy_answers_are_transformers(name, cache, opened, stored):
    """Past the window and from prompts of two lengths in one batch; with keys and values of eight bits, where the
    likeliest token wins by enough."""
    source = opened(name)
    tokens, _ = golden.batch()
    lengths = np.array(golden.PROMPTS, np.int32)
    model = llama.build(source.config.replace(cache=cache))
    out = decode.generate(model, folders.load(source), tokens[:, : max(lengths)], lengths, jax.random.key(0), GREEDY)
    same = np.asarray(out.tokens[:, 0]) == stored[f"{name}/answers"]
    assert same.all() if cache is None else same[:, 0].all() and same.mean() > 0.6


def write_gguf(path, config, params, encoding="F32"):
    values = (value for _, value in folders.in_order(config, params, gguf_files.naming_of(config)))
    gguf_files.write_file(path, config, values, encoding=encoding, fields={}, name="tiny")
    return path


@pytest.mark.parametrize("name", golden.CASES)
def test_what_is_written_comes_back_bit_for_bit(name, opened, tmp_path):
    source = opened(name)
    params = jax.device_get(folders.load(source))
    again = huggingface.open_folder(folders.write_folder(tmp_path / "a", source.config, params, max_file_bytes=9_000))
    assert again.config == source.config and len(again.files) > 3
    folders.assert_same_params(folders.load(again), params)
    if name == "qwen3_tied_biases_window":  # llama.cpp's Qwen3 has none
        with pytest.raises(ValueError, match="no architecture that joins attention_bias, head_dim, qk_norm, window"):
            gguf_files.naming_of(source.config)
        return
    source_too = gguf_files.open_file(write_gguf(tmp_path / "a.gguf", source.config, params))
    assert source_too.config == source.config
    folders.assert_same_params(folders.load(source_too), params)


@pytest.mark.parametrize("name", golden.CASES)
def test_a_written_folder_holds_transformers_tensors_and_fields(name, opened, tmp_path):
    source, (kind, case) = opened(name), golden.CASES[name]
    folder = folders.write_folder(tmp_path / "a", source.config, jax.device_get(folders.load(source)))
    found, expected = safetensors.numpy.load_file(folder / "model.safetensors"), golden.weights(kind, case)
    assert found.keys() == expected.keys()
    for tensor, value in expected.items():
        np.testing.assert_array_equal(found[tensor], value, err_msg=tensor)
    written = json.loads((folder / "config.json").read_text())
    assert (written["architectures"], written["model_type"]) == ([f"{kind}ForCausalLM"], kind.lower())
    if kind == "Phi3" and "rope_scaling" in case:  # as transformers 4 has it, which refuses further fields
        theirs = {name: value for name, value in case["rope_scaling"].items() if name != "rope_type"}
        assert written["rope_scaling"] == {"type": "longrope"} | theirs
    same = case.keys() - {"rope_scaling", "layer_types", "pad_token_id", "bos_token_id", "eos_token_id"}
    assert {field: written[field] for field in same} == {field: case[field] for field in same}


# As llama.cpp's conversion writes a tensor of Hugging Face's: the name, and whether rows of a head go side by side.
IN_LLAMA_CPP = {
    "self_attn.q_proj": ("attn_q", True),
    "self_attn.k_proj": ("attn_k", True),
    "self_attn.v_proj": ("attn_v", False),
    "self_attn.qkv_proj": ("attn_qkv", False),
    "self_attn.o_proj": ("attn_output", False),
    "self_attn.q_norm": ("attn_q_norm", False),
    "self_attn.k_norm": ("attn_k_norm", False),
    "mlp.gate_proj": ("ffn_gate", False),
    "mlp.up_proj": ("ffn_up", False),
    "mlp.gate_up_proj": ("ffn_up", False),
    "mlp.down_proj": ("ffn_down", False),
    "input_layernorm": ("attn_norm", False),
    "post_attention_layernorm": ("ffn_norm", False),
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def llama_cpp_tensors(kind: str, case: dict) -> dict[str, np.ndarray]:
    """What llama.cpp's conversion makes of a case: its LlamaModel, and so Mistral and Granite, permutes the rows of
    queries and keys and their biases (`permute`), the others do not."""
    found = {}
    for name, value in golden.weights(kind, case).items():
        module, suffix = name.rsplit(".", 1)
        if module in OUTSIDE:
            found[f"{OUTSIDE[module]}.{suffix}"] = value
            continue
        _, _, layer, inner = module.split(".", 3)
        theirs, permuted = IN_LLAMA_CPP[inner]
        if permuted and kind in ("Llama", "Mistral", "Granite"):
            heads = case["num_attention_heads" if inner.endswith("q_proj") else "num_key_value_heads"]
            value = (
                value.reshape(heads, 2, len(value) // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
            )
        found[f"blk.{layer}.{theirs}.{suffix}"] = value
    return found


@pytest.mark.parametrize(
    "name", ["qwen2", "qwen3", "mistral", "phi3", "phi3_longrope_past", "llama_biases", "granite_biases"]
)
def test_a_gguf_file_holds_what_llama_cpp_looks_for(name, opened, tmp_path):
    source, (kind, case) = opened(name), golden.CASES[name]
    file = write_gguf(tmp_path / "a.gguf", source.config, jax.device_get(folders.load(source)))
    reader = gguf.GGUFReader(file)
    found = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    expected = llama_cpp_tensors(kind, case)
    if rope := case.get("rope_scaling"):
        expected |= {f"rope_factors_{n}.weight": np.array(rope[f"{n}_factor"], np.float32) for n in ("short", "long")}
    assert found.keys() == expected.keys()
    for tensor, value in expected.items():
        np.testing.assert_array_equal(found[tensor], value, err_msg=tensor)
    said = {key: field.contents() for key, field in reader.fields.items()}
    architecture = {"Mistral": "llama"}.get(kind, kind.lower())
    assert said["general.architecture"] == architecture
    fields = {"attention.sliding_window": case.get("sliding_window")}
    if kind == "Granite":
        theirs = {"embedding_scale": "embedding_multiplier", "attention.scale": "attention_multiplier"}
        theirs |= {"residual_scale": "residual_multiplier", "logit_scale": "logits_scaling"}
        fields |= {key: pytest.approx(golden.MULTIPLIERS[field]) for key, field in theirs.items()}
    if name == "phi3_longrope_past":
        fields |= {"rope.scaling.original_context_length": 4}
        fields |= {"rope.scaling.attn_factor": pytest.approx((1 + np.log(128 / 4) / np.log(4)) ** 0.5)}
    assert {key: said.get(f"{architecture}.{key}") for key in fields} == fields


def test_codes_of_fused_matrices_are_kept_and_vectors_are_never_quantised(tmp_path):
    config = TINY.replace(family="phi3", dim=64)
    again = gguf_files.open_file(write_gguf(tmp_path / "a.gguf", config, folders.random_params(config), "Q8_0"))
    abstract = llama.build(config).abstract_params
    kept, expected = tensors.load_params(again, abstract, storage.rules_of("stored")), folders.load(again)
    assert {*kept["layers"]["attention"]["k"]} == {*kept["layers"]["mlp"]["up"]} == {"int8", "scales"}
    plain = jax.jit(lambda kept: storage.plain(kept, abstract))(kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), plain, expected)


@pytest.mark.parametrize("kind", [*storage.MATRICES])
def test_every_way_of_quantising_a_whole_network_leaves_norms_and_biases(kind):
    config = LlamaConfig.preset("nano-test", qkv_bias=True, o_bias=True, mlp_bias=True, qk_norm=True)
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(llama.build(config).abstract_params)]
    whole = {path for path in paths if storage.kind_at(storage.rules_of(kind), path) is None}
    attention = {
        f"layers/attention/{name}" for name in ("q_bias", "k_bias", "v_bias", "o_bias", "q_norm/scale", "k_norm/scale")
    }
    mlp = {f"layers/mlp/{name}_bias" for name in ("gate", "up", "down")}
    assert whole == attention | mlp | {"norm/scale", "layers/attention_norm/scale", "layers/mlp_norm/scale"}
    with pytest.raises(
        ValueError, match="of layers/attention/q_bias: only matrices can be quantised; put a rule with None before"
    ):
        storage.kind_at(((r".*", "int8"),), "layers/attention/q_bias")


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "phi3"])
def test_eight_devices_get_the_same_arrays(family, tmp_path):
    """Read from files of more parts than one, biases and norms with them."""
    config = TINY.replace(family=family, qkv_bias=family == "qwen2", qk_norm=family == "qwen3", dim=64)
    params = folders.random_params(config)
    source = huggingface.open_folder(folders.write_folder(tmp_path / "a", config, params, max_file_bytes=40_000))
    folders.assert_loads_in_parts(source, params)
