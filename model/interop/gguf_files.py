"""GGUF, llama.cpp's one-file format: read through the `gguf` package in every encoding it can decode, and written.

Numbers are decoded row by row as they are read, so a file that fills memory when decoded never has to.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import gguf
import numpy as np
from etils import epath

from ..config import LlamaConfig, RopeScaling
from ..rope import frequencies, ntk_theta
from .tensors import GGUF, SHOWN, Index, Source, check_tensors

ARCHITECTURE = "llama"
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ENCODINGS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""What `write_file` can encode matrices in; vectors are always F32."""

ROPE_FACTORS = "rope_freqs.weight"


def is_file(path: epath.Path) -> bool:
    return path.suffix == ".gguf" and not path.is_dir()


def open_file(path: epath.PathLike) -> Source:
    """The checkpoint in a GGUF file, or in the parts of a split one, its tensors checked by name, shape and encoding,
    none of them decoded.

    `extra["fields"]` is the file's metadata, of which its tokenizer is a part. Raises ValueError for another
    architecture, tensors that do not fit, an encoding that the gguf package cannot decode, and a file cut short.
    """
    path = epath.Path(path)
    parts = _parts(path)
    fields = {name: field.contents() for name, field in parts[0][1].fields.items()}
    tensors = {tensor.name: tensor for _, reader in parts for tensor in reader.tensors}
    file_of = {tensor.name: file for file, reader in parts for tensor in reader.tensors}
    shapes = {name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in tensors.items()}
    config = read_config(fields, shapes, str(path))
    if ROPE_FACTORS in tensors:
        factors = _read_tensor(file_of[ROPE_FACTORS], tensors[ROPE_FACTORS])
        config = config.replace(rope_scaling=_llama3_scaling(config, factors, fields, str(path)))
    check_tensors(str(path), config, GGUF, shapes)
    known = gguf.quants._type_traits.keys()
    kinds = {tensor.tensor_type.name for tensor in tensors.values()}
    if strange := sorted(kinds - PLAIN.keys() - {kind.name for kind in known}):
        raise ValueError(f"{path}: tensors encoded as {', '.join(strange)}, which the gguf package cannot decode")

    def read(name: str, index: Index) -> np.ndarray:
        rows, *columns = index if index else (slice(None),)
        return _read_tensor(file_of[name], tensors[name], rows)[(slice(None), *columns)]

    def stored(name: str) -> dict[str, np.ndarray] | None:
        return _codes(file_of[name], tensors[name])

    dtype = PLAIN.get(tensors[GGUF.names["layers/attention/q"].format(0)].tensor_type.name, "float32")
    config = config.replace(param_dtype=dtype)
    return Source(str(path), GGUF, config, read, [file for file, _ in parts], stored, {"fields": fields})


PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
"""What llama.cpp's `gguf-split` calls the parts of a model, counted from 1."""


def _parts(path: epath.Path) -> list[tuple[epath.Path, gguf.GGUFReader]]:
    """The file at `path`; where that is a part of a split model, whichever, all its parts in order, each checked."""
    reader = _reader(path)
    count, named = _number(reader, "split.count", 1), PART_NAME.fullmatch(path.name)
    if count <= 1:
        return [(path, reader)]
    if named is None or int(named["count"]) != count:
        raise ValueError(f"{path}: one of {count} parts, whose names end in -00001-of-{count:05d}.gguf and so on")
    files = [path.with_name(f"{named['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    if absent := [file.name for file in files if not file.exists()]:
        raise ValueError(
            f"{path}: {len(absent)} of its {count} parts are not beside it: {', '.join(absent[:SHOWN])}"
            f"{', ...' if len(absent) > SHOWN else ''}"
        )
    parts = [(file, reader if file == path else _reader(file)) for file in files]
    for number, (file, part) in enumerate(parts):
        if (_number(part, "split.no", -1), _number(part, "split.count", 1)) != (number, count):
            raise ValueError(f"{file}: says that it is another part than {number + 1} of {count}")
    names = [tensor.name for _, part in parts for tensor in part.tensors]
    expected = _number(parts[0][1], "split.tensors.count", len(names))
    if len(names) != expected or len(set(names)) != len(names):
        raise ValueError(f"{path}: its parts hold {len(set(names))} tensors; the first says {expected}")
    return parts


def _reader(path: epath.Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: no whole GGUF file ({error})") from None


def _number(reader: gguf.GGUFReader, key: str, default: int) -> int:
    value = reader.fields[key].contents() if key in reader.fields else default
    return value if isinstance(value, int) else default


def _read_tensor(path: epath.Path, tensor: gguf.ReaderTensor, rows: slice = slice(None)) -> np.ndarray:
    """Rows of a tensor, decoded. The file is mapped anew: pages of the reader's own map would stay in memory."""
    data = np.memmap(path, tensor.data.dtype, "r", tensor.data_offset, tensor.data.shape)[rows]
    kind = tensor.tensor_type
    if kind.name in ("F32", "F16"):
        return np.array(data)
    return gguf.quants.dequantize(data, kind)


def _codes(path: epath.Path, tensor: gguf.ReaderTensor) -> dict[str, np.ndarray] | None:
    """The codes of a tensor that is encoded as `quantization.py` encodes: Q8_0, Q4_1 and Q4_0, whose zero is code 8."""
    kind = tensor.tensor_type.name
    if kind not in ("Q8_0", "Q4_1", "Q4_0"):
        return None
    _, width = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    raw = np.memmap(path, np.uint8, "r", tensor.data_offset, tensor.data.shape)
    blocks = raw.reshape(len(raw), -1, width)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    if kind == "Q8_0":
        return {"int8": np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(len(raw), -1), "scales": scales}
    begin = 4 if kind == "Q4_1" else 2
    mins = (
        np.ascontiguousarray(blocks[..., 2:4]).view(np.float16)[..., 0] if kind == "Q4_1" else scales * np.float16(-8)
    )
    return {"int4": blocks[..., begin:].reshape(len(raw), -1), "scales": scales, "mins": mins}


def read_config(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> LlamaConfig:
    """The network of a file's metadata."""
    kind = fields.get("general.architecture")
    if kind != ARCHITECTURE:
        raise ValueError(f"{where}: architecture {kind!r}; known is {ARCHITECTURE!r}")

    def field(name: str, default: Any = None) -> Any:
        value = fields.get(f"{kind}.{name}", default)
        if value is None:
            raise ValueError(f"{where} does not say {kind}.{name}")
        return value

    dim, heads = field("embedding_length"), field("attention.head_count")
    head_dim = field("attention.key_length", dim // heads)
    if field("rope.dimension_count", head_dim) != head_dim or field("attention.value_length", head_dim) != head_dim:
        raise ValueError(f"{where}: rotary pairs or values that are not as wide as a head of {head_dim}")
    if field("expert_count", 0):
        raise ValueError(f"{where}: a mixture of {field('expert_count')} experts, which the network has not")
    table = GGUF.names["embed/embedding"]
    if table not in shapes:
        raise ValueError(f"{where}: 1 tensor(s) missing: {table}")
    vocab_size = shapes[table][0]
    tokens = len(fields.get("tokenizer.ggml.tokens", ()))
    if tokens and tokens != vocab_size:
        raise ValueError(f"{where}: its tokenizer has {tokens:,} tokens, its embedding {vocab_size:,} rows")
    return LlamaConfig(
        vocab_size=vocab_size,
        dim=dim,
        n_layers=field("block_count"),
        n_heads=heads,
        n_kv_heads=field("attention.head_count_kv", heads),
        ffn_dim=field("feed_forward_length"),
        head_dim=head_dim,
        norm_eps=_shortest(field("attention.layer_norm_rms_epsilon", 1e-5)),
        rope_theta=_shortest(field("rope.freq_base", 10_000.0)),
        rope_scaling=_read_scaling(fields, where),
        max_len=field("context_length"),
        tied=GGUF.names["head/kernel"] not in shapes,
    )


def _shortest(number: float) -> float:
    """The shortest decimal of a float32: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _read_scaling(fields: Mapping[str, Any], where: str) -> RopeScaling | None:
    prefix = f"{ARCHITECTURE}.rope.scaling."
    said = {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}
    # Old files say only a factor, and that it is linear goes without saying.
    factor = _shortest(said.pop("factor", fields.get(f"{ARCHITECTURE}.rope.scale_linear", 0.0)))
    kind = said.pop("type", "linear" if factor else "none")
    original = said.pop("original_context_length", fields[f"{ARCHITECTURE}.context_length"])
    if kind == "none":
        return None
    if kind == "linear":
        return RopeScaling(kind, factor or 1.0)
    if kind != "yarn":
        raise ValueError(f"{where}: rotary scaling {kind!r}; known are none, linear, yarn and rope_freqs")
    betas = {name: _shortest(said.pop(f"yarn_{name}")) for name in ("beta_fast", "beta_slow") if f"yarn_{name}" in said}
    if further := [f"{name} {value}" for name, value in said.items() if name != "finetuned" and value != 1]:
        raise ValueError(f"{where}: rotary scaling yarn with {', '.join(further)}, which the network has not")
    return RopeScaling(kind, factor or 1.0, original_max_len=original, **betas)


def _llama3_scaling(config: LlamaConfig, factors: np.ndarray, fields: Mapping[str, Any], where: str) -> RopeScaling:
    """The scaling that a table of divisors of the frequencies stands for: Llama 3's formula is written out in it."""
    original = fields.get(f"{ARCHITECTURE}.rope.scaling.original_context_length", 8192)
    plain, _ = frequencies(config.replace(rope_scaling=None))
    scaling = RopeScaling("llama3", max(float(f"{factors.max():.6g}"), 1.0), original_max_len=original)
    expected, _ = frequencies(config.replace(rope_scaling=scaling))
    if factors.shape != plain.shape or not np.allclose(plain / expected, factors, rtol=1e-3):
        raise ValueError(f"{where}: {ROPE_FACTORS} is not what Llama 3's rotary scaling gives")
    return scaling


# Export ---------------------------------------------------------------------------------------------------------------


def write_file(
    path: epath.PathLike,
    config: LlamaConfig,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[np.ndarray],
    *,
    encoding: str,
    fields: Mapping[str, Any],
    name: str,
) -> None:
    """Writes a GGUF file, tensor after tensor.

    shapes: of the tensors by their names there, in the order in which `tensors` gives them. encoding: of matrices, one
    of `ENCODINGS`; rows that its blocks do not divide are F16. fields: further metadata, the tokenizer's. Raises
    ValueError for an unknown encoding, and for a rotary scaling that the format cannot say.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"GGUF encoding {encoding!r}: give one of {', '.join(ENCODINGS)}")
    factors = _rope_factors(config)
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_name(name)
    _write_config(writer, config)
    for key, value in fields.items():
        _ADD[type(value)](writer, key, value)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if encoding == "F32" else f"MOSTLY_{encoding}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if factors is not None:
        shapes, tensors = {ROPE_FACTORS: factors.shape, **shapes}, itertools.chain([factors], tensors)
    kinds = {tensor: _kind_of(shape, encoding) for tensor, shape in shapes.items()}
    for tensor, shape in shapes.items():
        in_bytes = gguf.quant_shape_to_byte_shape(shape, kinds[tensor])
        writer.add_tensor_info(tensor, in_bytes, np.dtype(np.uint8), math.prod(in_bytes), raw_dtype=kinds[tensor])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for kind, value in zip(kinds.values(), tensors, strict=True):
        encoded = gguf.quants.quantize(np.ascontiguousarray(value, np.float32), kind)
        writer.write_tensor_data(encoded.view(np.uint8))
    writer.close()


def _kind_of(shape: tuple[int, ...], encoding: str) -> gguf.GGMLQuantizationType:
    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    kind = gguf.GGMLQuantizationType[encoding]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    return gguf.GGMLQuantizationType.F16 if shape[-1] % block else kind


_ADD = {
    str: gguf.GGUFWriter.add_string,
    bool: gguf.GGUFWriter.add_bool,
    int: gguf.GGUFWriter.add_uint32,
    float: gguf.GGUFWriter.add_float32,
    list: gguf.GGUFWriter.add_array,
}


def _write_config(writer: gguf.GGUFWriter, config: LlamaConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    scaling = config.rope_scaling
    writer.add_rope_freq_base(ntk_theta(config) if scaling is not None and scaling.kind == "ntk" else config.rope_theta)
    if scaling is not None and scaling.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.factor)
    if scaling is not None and scaling.kind in ("yarn", "llama3"):
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_len)


def _rope_factors(config: LlamaConfig) -> np.ndarray | None:
    """The table of divisors that says Llama 3's scaling; None where there is none. ValueError for what GGUF cannot."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind in ("linear", "ntk"):
        return None
    if scaling == RopeScaling("yarn", scaling.factor, scaling.original_max_len):
        return None
    if scaling.kind != "llama3":
        raise ValueError(f"GGUF cannot say the rotary scaling {scaling}")
    plain, _ = frequencies(config.replace(rope_scaling=None))
    return plain / frequencies(config)[0]
