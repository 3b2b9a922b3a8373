"""Reads and writes GGUF, llama.cpp's one-file format, with the `gguf` package, which decodes its encodings.

Only the rows that are read are decoded, so a file whose decoded numbers exceed the memory can be read.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import gguf
import numpy as np
from etils import epath

from ...model.config import LlamaConfig, RopeScaling
from ...model.rope import frequencies, ntk_theta
from .families import IN_GGUF, MULTIPLIERS, family_in, multipliers
from .headers import MOST_LAYERS, Header, located, missing_message, shown, unreadable_error
from .tensors import GGUF, Index, Naming, TensorSource, check_tensors, places, shapes_there

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ENCODINGS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""The encodings of matrices that `write_file` knows; vectors are always F32."""

ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


def is_file(path: epath.Path) -> bool:
    """Whether a path is a GGUF file by its name."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


class _Reader(gguf.GGUFReader):
    """The package's reader with a check of the counts and lengths in a file.

    The package trusts them, and would loop over empty values past the end of a damaged file.
    """

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(f"it has {len(self.data)} bytes, but its fields need {end} or more")
        return super()._get(int(offset), dtype, count, override_order)


def open_file(path: epath.PathLike) -> TensorSource:
    """Opens a GGUF file, or all parts of a split one, and checks its tensors without decoding them.

    Args:
      path: the file, or any part of a split one.

    Returns:
      The source; its `extra["fields"]` is the file's metadata, which includes the tokenizer.

    Raises:
      ValueError: the network does not support the architecture, tensors do not fit, the gguf package cannot decode an
        encoding, or the file is cut short.
    """
    path = epath.Path(path)
    parts = _parts(path)
    fields = _contents(path, parts[0][1])
    tensors = {tensor.name: tensor for _, reader in parts for tensor in reader.tensors}
    file_of = {tensor.name: file for file, reader in parts for tensor in reader.tensors}
    shapes = {name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in tensors.items()}
    with located(str(path)):
        config, header = read_config(fields, shapes, str(path)), Header(fields, str(path))
    if ROPE_FACTORS in tensors:
        factors = _read_tensor(file_of[ROPE_FACTORS], tensors[ROPE_FACTORS])
        config = config.replace(rope_scaling=_llama3_scaling(config, factors, header))
    tables = [name for name in (SHORT_FACTORS, LONG_FACTORS) if name in tensors]
    if tables or fields.get(f"{fields['general.architecture']}.rope.scaling.type") == "longrope":
        if len(tables) < 2:
            raise ValueError(f"{path} has rotary scaling longrope, but lacks {SHORT_FACTORS} or {LONG_FACTORS}")
        factors = [_read_tensor(file_of[name], tensors[name]) for name in tables]
        config = config.replace(rope_scaling=_longrope_scaling(config, *factors, header))
    elif header.number(amplitude := f"{fields['general.architecture']}.rope.scaling.attn_factor", 1.0) != 1:
        raise ValueError(f"{path}: {amplitude} is {fields[amplitude]:g}; camelid supports it with longrope only")
    naming = IN_GGUF[fields["general.architecture"]].naming
    check_tensors(str(path), config, naming, shapes)
    known = gguf.quants._type_traits.keys()
    kinds = {tensor.tensor_type.name for tensor in tensors.values()}
    if strange := sorted(kinds - PLAIN.keys() - {kind.name for kind in known}):
        raise ValueError(f"{path} has tensors encoded as {', '.join(strange)}, which the gguf package cannot decode")
    if any(reader.byte_order == "S" for _, reader in parts) and kinds - {"F32", "F16"}:
        said = f"{', '.join(sorted(kinds - {'F32', 'F16'}))} in big-endian order, which the gguf package cannot decode"
        raise ValueError(f"{path} has {said}: convert it with `gguf-convert-endian {path} little`")

    def read(name: str, index: Index) -> np.ndarray:
        rows, *columns = index if index else (slice(None),)
        return _read_tensor(file_of[name], tensors[name], rows)[(slice(None), *columns)]

    def stored(name: str) -> dict[str, np.ndarray] | None:
        return _codes(file_of[name], tensors[name])

    dtype = PLAIN.get(tensors[naming.names["layers/attention/q"].format(0)].tensor_type.name, "float32")
    config = config.replace(param_dtype=dtype)
    return TensorSource(str(path), naming, config, read, [file for file, _ in parts], stored, {"fields": fields})


PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
"""Matches the names that llama.cpp's `gguf-split` gives the parts of a model, counted from 1."""


def _parts(path: epath.Path) -> list[tuple[epath.Path, gguf.GGUFReader]]:
    """The file at `path` with its reader; if it is a part of a split model, all parts in order.

    Raises:
      ValueError: a part is missing, or the parts do not belong together.
    """
    reader = _reader(path)
    count, named = _number(reader, "split.count", 1), PART_NAME.fullmatch(path.name)
    if count <= 1:
        return [(path, reader)]
    if named is None or int(named["count"]) != count:
        raise ValueError(f"{path} is one of {count} parts: rename them to end in -00001-of-{count:05d}.gguf and so on")
    files = [path.with_name(f"{named['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    if missing := [file for file in files if not file.exists()]:
        raise ValueError(
            f"{path}: {len(missing)} of its {count} parts are missing beside it: {missing_message(missing[0])}"
        )
    parts = [(file, reader if file == path else _reader(file)) for file in files]
    for number, (file, part) in enumerate(parts):
        if (_number(part, "split.no", -1), _number(part, "split.count", 1)) != (number, count):
            raise ValueError(f"{file}: its metadata does not say that it is part {number + 1} of {count}")
    names = [tensor.name for _, part in parts for tensor in part.tensors]
    expected = _number(parts[0][1], "split.tensors.count", len(names))
    if len(names) != expected or len(set(names)) != len(names):
        raise ValueError(f"{path}: its parts hold {len(set(names))} tensors, but the first part says {expected}")
    return parts


def _reader(path: epath.Path) -> _Reader:
    try:
        return _Reader(path)
    except (ValueError, OSError, LookupError, OverflowError) as error:
        raise unreadable_error(path, "GGUF file", error) from None


def _contents(path: epath.Path, reader: gguf.GGUFReader) -> dict[str, Any]:
    try:
        return {name: field.contents() for name, field in reader.fields.items()}
    except UnicodeDecodeError as error:
        raise unreadable_error(path, "GGUF file", error) from None


def _number(reader: gguf.GGUFReader, key: str, default: int) -> int:
    value = reader.fields[key].contents() if key in reader.fields else default
    return value if isinstance(value, int) else default


def _read_tensor(path: epath.Path, tensor: gguf.ReaderTensor, rows: slice = slice(None)) -> np.ndarray:
    """Reads and decodes rows of a tensor. Maps the file again, as pages of the reader's own map stay in memory."""
    data = np.memmap(path, tensor.data.dtype, "r", tensor.data_offset, tensor.data.shape)[rows]
    kind = tensor.tensor_type
    if kind.name in ("F32", "F16"):
        return np.array(data)
    return gguf.quants.dequantize(data, kind)


def _codes(path: epath.Path, tensor: gguf.ReaderTensor) -> dict[str, np.ndarray] | None:
    """The codes of a tensor in the form of `quantization.py`; None unless it is encoded as Q8_0, Q4_1 or Q4_0.

    Q4_0 has no minimum; its zero is the code 8.
    """
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
    """The network that a file's metadata describes.

    Args:
      fields: metadata by key.
      shapes: the shapes of the tensors by name.
      where: path of the file, for messages.

    Raises:
      ValueError: camelid's network does not support a field, or a value is wrong.
    """
    fields = Header(fields, where)
    kind = fields.text("general.architecture")
    if kind not in IN_GGUF:
        raise ValueError(f"{where}: architecture is {shown(kind)}; known are {', '.join(IN_GGUF)}")

    def size(name: str, default: int | None = None, **limits: int) -> int:
        return fields.integer(f"{kind}.{name}", default, **limits)

    dim, heads = size("embedding_length"), size("attention.head_count")
    head_dim = size("attention.key_length", dim // heads)
    if size("rope.dimension_count", head_dim) != head_dim or size("attention.value_length", head_dim) != head_dim:
        raise ValueError(f"{where}: rotary pairs or values are not as wide as a head of {head_dim}")
    if experts := size("expert_count", 0, low=0):
        raise ValueError(f"{where} is a mixture of {experts} experts, which camelid does not support")
    table = GGUF.names["embed/embedding"]
    if len(shapes.get(table, ())) != 2:
        raise ValueError(f"{where} has no matrix {table}, the embedding, so it does not hold a language model")
    vocab_size = shapes[table][0]
    tokens = len(fields.texts("tokenizer.ggml.tokens"))
    if tokens and tokens != vocab_size:
        raise ValueError(f"{where}: its tokenizer has {tokens:,} tokens, but its embedding {vocab_size:,} rows")
    if not fields.flag(f"{kind}.attention.causal", True):
        raise ValueError(f"{where}: its attention is not causal, which camelid does not support")
    window = size("attention.sliding_window", 0, low=0) or None
    multiplied = MULTIPLIERS if "multipliers" in IN_GGUF[kind].may else {}  # llama.cpp ignores them in the others
    said = {ours: f"{kind}.{key}" for ours, (_, key) in multiplied.items() if fields.get(f"{kind}.{key}")}
    scales = {ours: fields.number(key) for ours, key in said.items()}
    return LlamaConfig(
        vocab_size=vocab_size,
        dim=dim,
        n_layers=size("block_count", high=MOST_LAYERS),
        n_heads=heads,
        n_kv_heads=size("attention.head_count_kv", heads),
        ffn_dim=size("feed_forward_length"),
        head_dim=head_dim,
        norm_eps=_shortest(fields.number(f"{kind}.attention.layer_norm_rms_epsilon", 1e-5)),
        rope_theta=_shortest(fields.number(f"{kind}.rope.freq_base", 10_000.0)),
        rope_scaling=_read_scaling(fields, kind),
        max_len=size("context_length"),
        tied=GGUF.names["head/kernel"] not in shapes,
        qkv_bias=_holds(shapes, "layers/attention/q_bias"),
        o_bias=_holds(shapes, "layers/attention/o_bias"),
        mlp_bias=_holds(shapes, "layers/mlp/down_bias"),
        qk_norm=_holds(shapes, "layers/attention/q_norm/scale"),
        window=window,
        family="mistral" if kind == "llama" and window else kind,
        # An attention scale of 0 means the default, as in llama.cpp.
        **{name: _shortest(scale) for name, scale in scales.items()},
    )


def _holds(shapes: Mapping[str, tuple[int, ...]], path: str) -> bool:
    """Whether a file has the parameter at camelid's `path`."""
    return GGUF.names[path].format(0) in shapes


def _shortest(number: float) -> float:
    """Rounds a float32 to its shortest decimal: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _read_scaling(fields: Header, architecture: str) -> RopeScaling | None:
    """The rotary scaling in a file's metadata; None without one, or if tensors hold it (llama3, longrope)."""
    prefix = f"{architecture}.rope.scaling."
    said = Header({name: value for name, value in fields.items() if name.startswith(prefix)}, fields.where)
    # Old files have only this factor, of a linear scaling.
    old = fields.number(f"{architecture}.rope.scale_linear", 0.0, low=-1.0)
    factor = _shortest(said.number(f"{prefix}factor", old, low=-1.0)) or 1.0
    kind = said.text(f"{prefix}type", "none" if factor == 1.0 else "linear")
    if kind in ("none", "longrope"):  # longrope's factors are tensors
        return None
    if kind == "linear":
        return RopeScaling(kind, factor)
    if kind != "yarn":
        known = "none, linear, yarn, longrope and rope_freqs"
        raise ValueError(f"{fields.where}: rotary scaling is {shown(kind)}; known are {known}")
    betas = {name: f"{prefix}yarn_{name}" for name in ("beta_fast", "beta_slow") if f"{prefix}yarn_{name}" in said}
    read = {f"{prefix}{name}" for name in ("type", "factor", "original_context_length", "finetuned")} | set(
        betas.values()
    )
    further = {name.removeprefix(prefix): value for name, value in said.items() if name not in read and value != 1}
    if further:
        listed = ", ".join(f"{name} {shown(value)}" for name, value in further.items())
        raise ValueError(f"{fields.where}: rotary scaling yarn has {listed}, which camelid does not support")
    original = said.integer(f"{prefix}original_context_length", fields.integer(f"{architecture}.context_length"))
    betas = {ours: _shortest(said.number(name)) for ours, name in betas.items()}
    return RopeScaling(kind, factor, original_max_len=original, **betas)


def _llama3_scaling(config: LlamaConfig, factors: np.ndarray, fields: Header) -> RopeScaling:
    """The llama3 scaling whose formula gives a table of divisors of the rotary frequencies.

    Args:
      config: the network.
      factors: [head_dim / 2], the table.
      fields: the file's metadata.

    Raises:
      ValueError: the formula gives another table.
    """
    original = fields.integer(f"{fields['general.architecture']}.rope.scaling.original_context_length", 8192)
    plain, _ = frequencies(config.replace(rope_scaling=None))
    other = ValueError(f"{fields.where}: {ROPE_FACTORS} is not a table of Llama 3's rotary scaling")
    if factors.shape != plain.shape or not np.all(np.isfinite(factors)):
        raise other
    scaling = RopeScaling("llama3", max(float(f"{factors.max():.6g}"), 1.0), original_max_len=original)
    expected, _ = frequencies(config.replace(rope_scaling=scaling))
    if not np.allclose(plain / expected, factors, rtol=1e-3):
        raise other
    return scaling


def _longrope_scaling(config: LlamaConfig, short: np.ndarray, long: np.ndarray, fields: Header) -> RopeScaling:
    """The longrope scaling of two tables of divisors of the rotary frequencies.

    Args:
      config: the network.
      short: [head_dim / 2], for rows within the trained length.
      long: [head_dim / 2], for longer rows.
      fields: the file's metadata.
    """
    prefix = f"{fields['general.architecture']}.rope.scaling."
    original = fields.integer(f"{prefix}original_context_length", config.max_len)
    short_factors, long_factors = ([_shortest(factor) for factor in table.tolist()] for table in (short, long))
    try:
        factors = dict(short_factors=short_factors, long_factors=long_factors)
        scaling = RopeScaling("longrope", config.max_len / original, original_max_len=original, **factors)
        formula = frequencies(config.replace(rope_scaling=scaling), np.ones(1))[1]
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{fields.where}: {error}") from None
    said = fields.number(f"{prefix}attn_factor", 1.0)  # llama.cpp's default
    return scaling if math.isclose(said, formula, rel_tol=1e-6) else dataclasses.replace(scaling, attention_factor=said)


# Export ---------------------------------------------------------------------------------------------------------------


def naming_of(config: LlamaConfig) -> Naming:
    """The names and the layout of a network's tensors in a GGUF file.

    Raises:
      ValueError: llama.cpp has no architecture that computes the network.
    """
    return IN_GGUF[family_in(IN_GGUF, config, "llama.cpp")].naming


def write_file(
    path: epath.PathLike,
    config: LlamaConfig,
    tensors: Iterable[np.ndarray],
    *,
    encoding: str,
    fields: Mapping[str, Any],
    name: str,
) -> None:
    """Writes a GGUF file, tensor by tensor.

    Args:
      path: the file.
      config: the network.
      tensors: in the order of `places(config, naming_of(config))`, as `write_part` returns them.
      encoding: encoding of matrices, one of `ENCODINGS`; a matrix whose rows its blocks do not divide is F16.
      fields: further metadata, such as the tokenizer's.
      name: name of the model in the metadata.

    Raises:
      ValueError: the encoding is unknown, or the format cannot express the network or its rotary scaling.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"GGUF encoding {encoding!r}: give one of {', '.join(ENCODINGS)}")
    factors = _rope_factors(config)
    naming = naming_of(config)
    shapes = {factor: value.shape for factor, value in factors.items()} | shapes_there(config, naming)
    writer = gguf.GGUFWriter(path, family_in(IN_GGUF, config, "llama.cpp"))
    writer.add_name(name)
    _write_config(writer, config)
    for key, value in fields.items():
        _ADD[type(value)](writer, key, value)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if encoding == "F32" else f"MOSTLY_{encoding}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    kinds = {tensor: _kind_of(shape, encoding) for tensor, shape in shapes.items()}
    begins, end = {}, 0
    for tensor, shape in shapes.items():
        in_bytes = gguf.quant_shape_to_byte_shape(shape, kinds[tensor])
        writer.add_tensor_info(tensor, in_bytes, np.dtype(np.uint8), math.prod(in_bytes), raw_dtype=kinds[tensor])
        begins[tensor], end = end, end + writer.ggml_pad(math.prod(in_bytes), writer.data_alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    [out] = writer.fout
    start = writer.ggml_pad(out.tell(), writer.data_alignment)
    out.truncate(start + end)
    parts = ((place.name, place.first_row, value) for place, value in zip(places(config, naming), tensors, strict=True))
    for tensor, first_row, value in itertools.chain(((name, 0, value) for name, value in factors.items()), parts):
        encoded = gguf.quants.quantize(np.ascontiguousarray(value, np.float32), kinds[tensor]).view(np.uint8)
        out.seek(start + begins[tensor] + first_row * math.prod(encoded.shape[1:]))
        out.write(encoded)
    writer.close()


def _kind_of(shape: tuple[int, ...], encoding: str) -> gguf.GGMLQuantizationType:
    """The encoding of a tensor: F32 for a vector, F16 if the encoding's blocks do not divide a row."""
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
    if scaling is not None and scaling.kind in ("yarn", "llama3", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_len)
    if scaling is not None and scaling.kind == "longrope":
        writer.add_rope_scaling_attn_factors(frequencies(config, np.ones(1))[1])
    if config.window is not None:
        writer.add_sliding_window(config.window)
    if writer.arch == "granite":
        for (_, key), value in zip(MULTIPLIERS.values(), multipliers(config), strict=True):
            writer.add_float32(f"granite.{key}", value)


def _rope_factors(config: LlamaConfig) -> dict[str, np.ndarray]:
    """{name: table of divisors} of a llama3 or longrope scaling. ValueError if GGUF cannot express the scaling."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind in ("linear", "ntk"):
        return {}
    if scaling == RopeScaling("yarn", scaling.factor, scaling.original_max_len):
        return {}
    if scaling.kind == "longrope":
        tables = {LONG_FACTORS: scaling.long_factors, SHORT_FACTORS: scaling.short_factors}
        return {name: np.array(table, np.float32) for name, table in tables.items()}
    if scaling.kind != "llama3":
        raise ValueError(f"GGUF cannot express the rotary scaling {scaling}: export another format")
    plain, _ = frequencies(config.replace(rope_scaling=None))
    return {ROPE_FACTORS: plain / frequencies(config)[0]}
