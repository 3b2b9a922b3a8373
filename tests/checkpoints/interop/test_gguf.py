"""GGUF files: back as they were written, numbers as the gguf package decodes them, rows where llama.cpp has them."""

import itertools
import math
import shutil

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from camelid.checkpoints.interop import gguf_files, huggingface, tensors
from camelid.model import llama, storage
from camelid.model.config import RopeScaling
from camelid.model.rope import ntk_theta
from camelid.model.weights import is_weight
from camelid.tests.checkpoints.interop import folders
from camelid.tests.checkpoints.interop.folders import TINY
from camelid.tests.model.golden import make_interop, make_llama

LLAMA3 = RopeScaling("llama3", 8.0, original_max_len=2048)
VARIANTS = {
    "plain": dict(n_kv_heads=4),
    "tied": dict(tied=True),
    "grouped": dict(),
    "one_kv_head": dict(n_kv_heads=1, norm_eps=1e-5, rope_theta=500_000.0),
    "linear": dict(rope_scaling=RopeScaling("linear", 2.3)),
    "yarn": dict(rope_scaling=RopeScaling("yarn", 4.0, original_max_len=128)),
    "llama3": dict(rope_scaling=LLAMA3),
}


def write(path, config, params, encoding="F32", **fields):
    """A file by camelid's own writer."""
    values = (value for _, value in folders.in_order(config, params, gguf_files.naming_of(config)))
    gguf_files.write_file(path, config, values, encoding=encoding, fields=fields, name="tiny")
    return path


def write_raw(path, fields, named, architecture="llama", **options):
    """A file by the gguf package alone. named: arrays, or pairs of encoded bytes and their kind."""
    writer = gguf.GGUFWriter(path, architecture, **options)
    for key, value in fields.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
        add[bool] = writer.add_bool
        add[type(value)](key if key.startswith("tokenizer.") else f"llama.{key}", value)
    for name, value in named.items():
        data, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def metadata(case: dict) -> dict:
    """What llama.cpp's converter writes of Hugging Face's settings, scaling aside."""
    return {
        "context_length": case["max_position_embeddings"],
        "embedding_length": case["hidden_size"],
        "block_count": case["num_hidden_layers"],
        "feed_forward_length": case["intermediate_size"],
        "attention.head_count": case["num_attention_heads"],
        "attention.head_count_kv": case["num_key_value_heads"],
        "attention.key_length": case["head_dim"],
        "attention.value_length": case["head_dim"],
        "rope.dimension_count": case["head_dim"],
        "attention.layer_norm_rms_epsilon": case["rms_norm_eps"],
        "rope.freq_base": case["rope_parameters"]["rope_theta"],
    }


def llama_cpp_tensors(case: dict) -> dict[str, np.ndarray]:
    """make_llama.py's weights under llama.cpp's names and in its order, by its converter's rules."""
    layer = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    heads = {"attn_q": case["num_attention_heads"], "attn_k": case["num_key_value_heads"]}
    named = {}
    for theirs, w in make_llama.weights(case).items():
        theirs = theirs.removesuffix(".weight")
        if theirs in whole:
            named[f"{whole[theirs]}.weight"] = w
            continue
        _, _, number, module = theirs.split(".", 3)
        name = layer[module]
        w = make_interop.pairs_side_by_side(w, heads[name]) if name in heads else w
        named[f"blk.{number}.{name}.weight"] = w
    return named


def divisors(theta: float, width: int, factor: float, trained: int, low=1.0, high=4.0) -> np.ndarray:
    """The table that llama.cpp's converter writes for Llama 3's scaling."""
    table = []
    for i in range(0, width, 2):
        wavelength = 2 * math.pi * theta ** (i / width)
        smooth = (trained / wavelength - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        table.append(1.0 if wavelength < trained / high else factor if wavelength > trained / low else between)
    return np.array(table, np.float32)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_written_in_f32_comes_back_tensor_for_tensor_and_config_for_config(name, tmp_path):
    config = TINY.replace(**VARIANTS[name])
    params = folders.random_params(config)
    source = gguf_files.open_file(write(tmp_path / "a.gguf", config, params))
    assert source.config == config
    folders.assert_same_params(folders.load(source), params)


def test_ntk_scaling_comes_back_as_the_larger_base_that_it_is(tmp_path):
    config = TINY.replace(rope_scaling=RopeScaling("ntk", 4.0))
    found = gguf_files.open_file(write(tmp_path / "a.gguf", config, folders.random_params(config))).config
    assert found.rope_theta == pytest.approx(ntk_theta(config), rel=1e-7)
    assert found == config.replace(rope_scaling=None, rope_theta=found.rope_theta)


def scaling_fields(case):
    rope = case["rope_parameters"]
    match rope["rope_type"]:
        case "linear":
            return {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}, {}
        case "yarn":
            original = rope["original_max_position_embeddings"]
            fields = {"type": "yarn", "factor": rope["factor"], "original_context_length": original}
            fields |= {f"yarn_{name}": rope[name] for name in ("beta_fast", "beta_slow") if name in rope}
            return {f"rope.scaling.{name}": value for name, value in fields.items()}, {}
        case "llama3":
            original = rope["original_max_position_embeddings"]
            table = divisors(rope["rope_theta"], case["head_dim"], rope["factor"], original)
            return {"rope.scaling.original_context_length": original}, {"rope_freqs.weight": table}
    return {}, {}


@pytest.mark.parametrize("name", ["plain", "grouped", "one_kv_head", "tied", "theta", "linear", "yarn", "llama3"])
def test_a_file_as_llama_cpp_converts_it_gives_transformers_logits(name, tmp_path):
    case = make_llama.CASES[name]
    fields, table = scaling_fields(case)
    file = write_raw(tmp_path / "a.gguf", metadata(case) | fields, table | llama_cpp_tensors(case))
    found = folders.logits(gguf_files.open_file(file), make_llama.batch(case)[0])
    with np.load(make_llama.FILE) as stored:
        expected = stored[f"{name}/logits"]
    np.testing.assert_allclose(found, expected, rtol=folders.RTOL, atol=folders.ATOL * np.abs(expected).max())


@pytest.mark.parametrize("name", ["plain", "grouped", "one_kv_head"])
def test_rows_of_queries_and_keys_are_stored_where_llama_cpp_looks_for_them(name, tmp_path):
    case = make_llama.CASES[name]
    source = huggingface.open_folder(folders.write_golden_folder(tmp_path / "a", case))
    file = write(tmp_path / "a.gguf", source.config, folders.load(source))
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    expected = llama_cpp_tensors(case)
    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        assert np.asarray(stored[name].data).tobytes() == value.tobytes(), name
        assert stored[name].shape.tolist() == list(value.shape[::-1]), "llama.cpp counts axes from the fastest"


def test_the_metadata_is_what_llama_cpp_reads(tmp_path):
    config = TINY.replace(rope_scaling=RopeScaling("yarn", 4.0, original_max_len=128))
    file = write(tmp_path / "a.gguf", config, folders.random_params(config), "Q8_0")
    found = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 7,
        "llama.vocab_size": 58,
        "llama.context_length": 512,
        "llama.embedding_length": 32,
        "llama.block_count": 3,
        "llama.feed_forward_length": 44,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10_000.0,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 128,
    }
    assert {name: found.get(name) for name in expected} == expected


def test_llama_3s_scaling_is_a_table_of_divisors_in_both_directions(tmp_path):
    config = TINY.replace(head_dim=64, rope_theta=500_000.0, rope_scaling=RopeScaling("llama3", 32.0, 8192))
    table = divisors(500_000.0, 64, 32.0, 8192)
    assert len(set(table.tolist())) == 5 and table[0] == 1 and table[-1] == 32
    stored = gguf.GGUFReader(write(tmp_path / "a.gguf", config, folders.random_params(config))).tensors
    assert stored[0].name == "rope_freqs.weight"
    np.testing.assert_allclose(stored[0].data, table, rtol=1e-6)
    # As llama.cpp's converter writes it: without the trained length.
    case = dict(vocab_size=58, num_hidden_layers=3, intermediate_size=44, num_key_value_heads=2, head_dim=64)
    case |= dict(max_position_embeddings=512, rope_parameters=dict(rope_theta=500_000.0))
    named = {tensor.name: np.asarray(tensor.data) for tensor in stored} | {"rope_freqs.weight": table}
    file = write_raw(tmp_path / "b.gguf", metadata(make_llama.PLAIN | case), named)
    assert gguf_files.open_file(file).config == config


def test_old_files_that_say_only_a_factor_mean_linear_scaling():
    shapes = {"token_embd.weight": (58, 32)}
    fields = {f"llama.{key}": value for key, value in metadata(make_llama.PLAIN).items()}
    fields["general.architecture"] = "llama"
    for name in ("rope.scaling.factor", "rope.scale_linear"):
        found = gguf_files.read_config(fields | {f"llama.{name}": 4.0}, shapes, "")
        assert found.rope_scaling == RopeScaling("linear", 4.0)
    assert gguf_files.read_config(fields, shapes, "").rope_scaling is None


# Encodings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", gguf_files.ENCODINGS)
def test_matrices_are_what_the_gguf_package_makes_of_them(encoding, tmp_path):
    config = TINY.replace(ffn_dim=96)
    params = folders.random_params(config)
    source = gguf_files.open_file(write(tmp_path / "a.gguf", config, params, encoding))
    kind = Kind[encoding]
    assert source.config.param_dtype == {"F16": "float16", "BF16": "bfloat16"}.get(encoding, "float32")
    for name, value in folders.in_order(config, params, tensors.GGUF):
        expected = value
        if "norm" not in name:
            expected = gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
            assert encoding == "F32" or (expected != value).any()
        np.testing.assert_array_equal(source.read(name, ()), expected, err_msg=name)
        part = (slice(3, 9), slice(2, 31))[: value.ndim]
        np.testing.assert_array_equal(source.read(name, part), expected[part], err_msg=name)


def test_rows_that_blocks_do_not_divide_are_f16(tmp_path):
    params = folders.random_params(TINY)
    source = gguf_files.open_file(write(tmp_path / "a.gguf", TINY, params, "Q4_0"))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert {kinds.pop(f"blk.{i}.ffn_down.weight") for i in range(3)} == {"F16"}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {"Q4_0"}
    down = params["layers"]["mlp"]["down"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(folders.load(source)["layers"]["mlp"]["down"], down)


@pytest.mark.parametrize("encoding", ["Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("head_dim", [32, 16])
def test_codes_that_are_kept_mean_what_they_are_decoded_to(encoding, head_dim, tmp_path):
    config = TINY.replace(ffn_dim=96, head_dim=head_dim)
    source = gguf_files.open_file(write(tmp_path / "a.gguf", config, folders.random_params(config), encoding))
    abstract = llama.build(config).abstract_params
    kept = tensors.load_params(source, abstract, storage.rules_of("stored"))
    # A block of 32 inputs goes over two heads of 16: such an output matrix is decoded.
    assert is_weight(kept["layers"]["attention"]["q"]) and is_weight(kept["layers"]["mlp"]["down"])
    assert is_weight(kept["layers"]["attention"]["o"]) == (head_dim == 32)
    expected, found = folders.load(source), jax.jit(lambda kept: storage.plain(kept, abstract))(kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), found, expected)


WIDE = TINY.replace(dim=256, n_layers=1, ffn_dim=512, head_dim=64)
WIDE_CASE = make_llama.PLAIN | dict(
    vocab_size=58, hidden_size=256, num_hidden_layers=1, intermediate_size=512, num_key_value_heads=2, head_dim=64
)
QUANTISED = [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_XS, Kind.IQ4_NL, Kind.Q8_0]


def test_k_quants_are_what_the_gguf_package_makes_of_their_bytes(tmp_path):
    random, named, expected = np.random.RandomState(0), {}, {}
    kinds = itertools.cycle(QUANTISED)
    for place in tensors.places(WIDE, tensors.GGUF):
        if "norm" in place.name:
            named[place.name] = expected[place.name] = np.ones(place.shape_there, np.float32)
            continue
        kind = next(kinds)
        data = random.randint(0, 256, gguf.quant_shape_to_byte_shape(place.shape_there, kind)).astype(np.uint8)
        data &= 0b10111111  # so that no scale of a block, which may lie anywhere, is infinite or no number
        named[place.name], expected[place.name] = (data, kind), gguf.quants.dequantize(data, kind)
    file = write_raw(tmp_path / "a.gguf", metadata(WIDE_CASE), named)
    assert {tensor.tensor_type for tensor in gguf.GGUFReader(file).tensors} == {*QUANTISED, Kind.F32}
    source = gguf_files.open_file(file)
    assert source.config == WIDE.replace(max_len=2048)
    for name, value in expected.items():
        part = (slice(5, 40), slice(30, 250))[: value.ndim]
        np.testing.assert_array_equal(source.read(name, ()), value, err_msg=name)
        np.testing.assert_array_equal(source.read(name, part), value[part], err_msg=name)
    up = np.asarray(folders.load(source)["layers"]["mlp"]["up"])[0]
    np.testing.assert_array_equal(up, expected["blk.0.ffn_up.weight"].T)


def test_eight_devices_get_the_same_arrays_and_read_only_their_parts(tmp_path):
    params = folders.random_params(TINY)
    folders.assert_loads_in_parts(gguf_files.open_file(write(tmp_path / "a.gguf", TINY, params)), params)


# Refusals -------------------------------------------------------------------------------------------------------------

PLAIN_CASE = make_llama.CASES["grouped"]
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
BIAS, UP = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}, "blk.1.ffn_up.weight"


@pytest.mark.parametrize(
    "fields, named, message",
    [
        ({"expert_count": 8}, {}, "a mixture of 8 experts"),
        ({"attention.head_count_kv": 3}, {}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        (YARN | {"rope.freq_base": 1.0}, {}, "rope_theta 1.0: rope scaling yarn needs a base above 1"),
        ({"rope.dimension_count": 8}, {}, "not as wide as a head of 16"),
        ({"attention.value_length": 8}, {}, "not as wide as a head of 16"),
        ({"block_count": None}, {}, "has no llama.block_count"),
        ({"block_count": 3}, {}, r"9 tensor\(s\) missing: blk.2"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, {}, "its tokenizer has 2 tokens, but its embedding 57 rows"),
        ({"rope.scaling.type": "su"}, {}, "rotary scaling is 'su'; known are none, linear, yarn"),
        ({"attention.causal": False}, {}, "its attention is not causal"),
        (
            {"rope.scaling.attn_factor": 1.5},
            {},
            "rope.scaling.attn_factor is 1.5; camelid supports it with",
        ),
        (YARN | {"rope.scaling.yarn_attn_factor": 1.5}, {}, "scaling yarn has yarn_attn_factor 1.5, which"),
        (
            {},
            {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)},
            "rope_freqs.weight is not a table of Llama 3's",
        ),
        ({}, {"rope_freqs.weight": np.ones(4, np.float32)}, "rope_freqs.weight is not a table of Llama 3's"),
        ({}, BIAS, r"5 tensor\(s\) missing: blk.0.attn_k.bias"),
        (
            {},
            {"blk.0.attn_qkv.weight": np.zeros((96, 32), np.float32)},
            "no place in the network: blk.0.attn_qkv.weight",
        ),
        ({}, {UP: None}, rf"1 tensor\(s\) missing: {UP} \[40, 32\]"),
        ({}, {UP: np.zeros((32, 40), np.float32)}, rf"of another shape: {UP} \[32, 40\], the config says \[40, 32\]"),
        ({}, {"token_embd.weight": None}, "has no matrix token_embd.weight, the embedding"),
        ({}, {UP: np.zeros((40, 32))}, "tensors encoded as F64, which the gguf package cannot decode"),
    ],
)
def test_what_the_network_cannot_be_is_refused_with_what_and_where(fields, named, message, tmp_path):
    fields = {key: value for key, value in (metadata(PLAIN_CASE) | fields).items() if value is not None}
    named = {name: value for name, value in (llama_cpp_tensors(PLAIN_CASE) | named).items() if value is not None}
    file = write_raw(tmp_path / "a.gguf", fields, named)
    with pytest.raises(ValueError, match=message) as error:
        gguf_files.open_file(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_multipliers_of_another_architecture_than_granite_are_ignored_as_in_llama_cpp(tmp_path):
    """Checked against llama.cpp: a `llama` with these keys has the logits of one without."""
    keys = {"logit_scale": 0.5, "attention.scale": 0.5, "embedding_scale": 3.0, "residual_scale": 0.3}
    file = write_raw(tmp_path / "a.gguf", metadata(PLAIN_CASE) | keys, llama_cpp_tensors(PLAIN_CASE))
    config = gguf_files.open_file(file).config
    assert config.attention_scale is None
    assert (config.logit_divisor, config.embedding_multiplier, config.residual_multiplier) == (1, 1, 1)


def test_big_endian_numbers_are_read_and_codes_refused(tmp_path):
    """The package turns numbers, and takes the bytes of blocks as they lie."""
    named = llama_cpp_tensors(PLAIN_CASE)
    big = write_raw(tmp_path / "big.gguf", metadata(PLAIN_CASE), named, endianess=gguf.GGUFEndian.BIG)
    little = write_raw(tmp_path / "little.gguf", metadata(PLAIN_CASE), named)
    folders.assert_same_params(folders.load(gguf_files.open_file(big)), folders.load(gguf_files.open_file(little)))
    named[UP] = (gguf.quants.quantize(named[UP], Kind.BF16), Kind.BF16)
    big = write_raw(tmp_path / "big.gguf", metadata(PLAIN_CASE), named, endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(ValueError, match=r"has BF16 in big-endian order, .*: convert it with `gguf-conv"):
        gguf_files.open_file(big)


def test_another_architecture_is_refused(tmp_path):
    file = write_raw(tmp_path / "a.gguf", {}, {}, architecture="gemma2")
    with pytest.raises(ValueError, match=r"architecture is 'gemma2'; known are llama, qwen2, qwen3, phi3, granite$"):
        gguf_files.open_file(file)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    file = write(tmp_path / "a.gguf", TINY, folders.random_params(TINY))
    size = file.stat().st_size
    for length in (0, 3, 20, 30, 200, 1000, 1500, 3000, size // 2, size - 4):
        shutil.copy(file, tmp_path / "short.gguf")
        with open(tmp_path / "short.gguf", "r+b") as opened:
            opened.truncate(length)
        with pytest.raises(ValueError, match=r"short.gguf: no whole GGUF file \("):
            gguf_files.open_file(tmp_path / "short.gguf")


@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("dynamic", 4.0, original_max_len=128),
        RopeScaling("yarn", 4.0, original_max_len=128, attention_factor=1.3),
        RopeScaling("yarn", 4.0, original_max_len=128, truncate=False),
        RopeScaling("longrope", 4.0, 128, short_factors=(1.0,) * 8, long_factors=(2.0,) * 8),
    ],
)
def test_a_scaling_that_the_format_cannot_say_is_not_written(scaling, tmp_path):
    config = TINY.replace(rope_scaling=scaling)
    with pytest.raises(ValueError, match=f"(GGUF cannot express|no architecture that joins) .*{scaling.kind}"):
        write(tmp_path / "a.gguf", config, folders.random_params(config))
    assert not list(tmp_path.iterdir())


def test_an_encoding_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="GGUF encoding 'Q4_K_M': give one of F32, F16, BF16, Q8_0"):
        write(tmp_path / "a.gguf", TINY, folders.random_params(TINY), "Q4_K_M")
    assert not list(tmp_path.iterdir())
