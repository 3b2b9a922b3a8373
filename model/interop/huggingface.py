"""Hugging Face's folders: `config.json` and safetensors files, one or many with an index.

Config fields mean what transformers' LlamaForCausalLM makes of them, in its old spelling (`rope_theta`,
`rope_scaling`) and in the one of version 5 (`rope_parameters`).
"""

import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath

from ..config import LlamaConfig, RopeScaling
from ..rope import ntk_theta
from . import torch_files
from .tensors import HUGGING_FACE, SHOWN, Index, Source, check_tensors, places

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
MODEL_TYPES = ("llama", "mistral")
HEAD, TABLE = HUGGING_FACE.names["head/kernel"], HUGGING_FACE.names["embed/embedding"]

FIXED: dict[str, tuple] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "partial_rotary_factor": (None, 1.0),
}
"""What the network cannot do otherwise: the values that a config may give, its own first."""

ROPE_FIELDS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "mscale": "",
        "mscale_all_dim": "",
    },
    "longrope": {
        "factor": "factor",
        "attention_factor": "attention_factor",
        "short_factor": "short_factors",
        "long_factor": "long_factors",
    },
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
}
"""The arguments of each rotary scaling, by their names there and in `RopeScaling` ("": goes into another)."""


def is_folder(path: epath.Path) -> bool:
    return (path / CONFIG).exists()


def open_folder(path: epath.PathLike) -> Source:
    """The checkpoint in a folder of Hugging Face's, its tensors checked by name, shape and dtype, none of them read.

    Raises ValueError for an architecture, an activation, a bias or a rotary scaling that the network has not, and for
    tensors that are missing, surplus or of another shape.
    """
    path = epath.Path(path)
    config = read_config(_read_json(path / CONFIG), str(path / CONFIG))
    files = _weight_files(path)
    file_of, shapes, dtypes = {}, {}, {}
    for file in files:
        with _open(file) as opened:
            for name in opened.offset_keys():
                part = opened.get_slice(name)
                file_of[name], shapes[name], dtypes[name] = file, part.get_shape(), part.get_dtype()

    def read(name: str, index: Index) -> np.ndarray:
        with _open(file_of[name]) as opened:  # anew for each: pages of a mapped file count as memory while it is open
            return opened.get_slice(name)[index]

    if config.tied and HEAD in shapes:
        if shapes[HEAD] != shapes[TABLE] or not np.array_equal(read(HEAD, ()), read(TABLE, ())):
            raise ValueError(
                f"{path / CONFIG} says tie_word_embeddings, but {HEAD} and {TABLE} differ: say false there"
            )
        del shapes[HEAD]
    check_tensors(str(path), config, HUGGING_FACE, shapes)
    if strange := sorted(f"{name} {dtypes[name]}" for name in shapes if dtypes[name] not in DTYPES):
        raise ValueError(f"{path}: tensors that are not {', '.join(DTYPES)}: {'; '.join(strange[:SHOWN])}")
    dtype = DTYPES[dtypes[TABLE]]
    return Source(str(path), HUGGING_FACE, config.replace(param_dtype=dtype), read, [path / CONFIG, *files])


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object")
    return value


def _weight_files(path: epath.Path) -> list[epath.Path]:
    """The files that hold the tensors: one, or those of an index; safetensors, else what torch.save wrote."""
    for single, index in ((WEIGHTS, INDEX), (TORCH_WEIGHTS, TORCH_INDEX)):
        if (path / index).exists():
            return _files_of(path / index)
        if (path / single).exists():
            return [path / single]
        if dangling := [name for name in (single, index) if os.path.islink(path / name)]:
            raise ValueError(f"{path / dangling[0]} is a link to {os.readlink(path / dangling[0])}, which is not there")
    raise ValueError(f"{path}: no {WEIGHTS}, {INDEX}, {TORCH_WEIGHTS} or {TORCH_INDEX}")


def _files_of(index: epath.Path) -> list[epath.Path]:
    """The files that an index names. Raises ValueError for names that lead out of its folder."""
    named = _read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise ValueError(f"{index} has no weight_map of files' names by tensors'")
    names = sorted(set(named.values()))
    if outside := [name for name in names if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name]:
        raise ValueError(f"{index} names {outside[0]!r:.200}, which is no file of its own folder")
    if absent := [name for name in names if not (index.parent / name).exists()]:
        raise ValueError(f"{index} names files that are not there: {', '.join(absent[:SHOWN])}")
    return [index.parent / name for name in names]


def _open(file: epath.Path):
    """A file of tensors, as a context whose `get_slice(name)` reads parts."""
    if file.suffix == ".bin":
        return torch_files.Opened(file)
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{file}: no whole safetensors file ({error})") from None


# The config -----------------------------------------------------------------------------------------------------------


def read_config(fields: Mapping[str, Any], where: str) -> LlamaConfig:
    """The network of a `config.json`. Raises ValueError for what it asks for and the network has not."""
    kinds = fields.get("architectures") or [f"model_type {fields.get('model_type')}"]
    if not set(kinds) & {*ARCHITECTURES, *(f"model_type {name}" for name in MODEL_TYPES)}:
        raise ValueError(f"{where}: architecture {', '.join(kinds)}; known are {', '.join(ARCHITECTURES)}")
    for name, allowed in FIXED.items():
        if fields.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{where}: {name} is {fields[name]!r}; the network has only {allowed[0]!r}")
    try:
        dim, heads = fields["hidden_size"], fields["num_attention_heads"]
        max_len = fields.get("max_position_embeddings", 2048)
        theta, scaling = _read_rope(fields, max_len)
        return LlamaConfig(
            vocab_size=fields["vocab_size"],
            dim=dim,
            n_layers=fields["num_hidden_layers"],
            n_heads=heads,
            n_kv_heads=fields.get("num_key_value_heads") or heads,
            ffn_dim=fields["intermediate_size"],
            head_dim=fields.get("head_dim") or dim // heads,
            norm_eps=fields.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            # Dynamic scaling is for what goes past the trained length, which is all that a config says of it.
            max_len=int(max_len * scaling.factor) if scaling is not None and scaling.kind == "dynamic" else max_len,
            tied=bool(fields.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise ValueError(f"{where} does not say {error.args[0]}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _read_rope(fields: Mapping[str, Any], max_len: int) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling. transformers before version 5 says them in `rope_theta` and `rope_scaling`."""
    rope = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    theta = float(rope.pop("rope_theta", fields.get("rope_theta", 10_000.0)))
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    part = rope.pop("partial_rotary_factor", None)
    if part not in FIXED["partial_rotary_factor"]:
        raise ValueError(f"partial_rotary_factor is {part!r}; the network turns whole heads")
    if kind == "default":
        return theta, None
    if kind not in ROPE_FIELDS:
        raise ValueError(f"rotary scaling {kind!r}; known are default, {', '.join(ROPE_FIELDS)}")
    said = "original_max_position_embeddings"  # Phi 3 says it beside the rotary settings, and there it counts first
    if unknown := set(rope) - set(ROPE_FIELDS[kind]) - {said}:
        raise ValueError(f"rotary scaling {kind} with unknown {', '.join(sorted(unknown))}")
    original = {"linear": None, "dynamic": max_len}.get(kind, fields.get(said) or rope.get(said) or max_len)
    # A yarn or longrope config without a factor means the stretch from the original context to this one.
    factor = rope.get("factor") or (max_len / original if kind in ("yarn", "longrope") else rope["factor"])
    given = {ours: rope[theirs] for theirs, ours in ROPE_FIELDS[kind].items() if ours and rope.get(theirs) is not None}
    if kind == "yarn" and rope.get("mscale") and rope.get("mscale_all_dim"):
        given.setdefault("attention_factor", _mscale(factor, rope["mscale"]) / _mscale(factor, rope["mscale_all_dim"]))
    return theta, RopeScaling(kind, **(given | {"factor": factor, "original_max_len": original}))


def _mscale(factor: float, weight: float) -> float:
    """How much DeepSeek's variant of YaRN stretches attention."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def write_config(config: LlamaConfig, **more: Any) -> dict[str, Any]:
    """The `config.json` of a network. more: further fields, such as token ids."""
    fields = {
        "architectures": [ARCHITECTURES[0]],
        "model_type": MODEL_TYPES[0],
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_len,
        "tie_word_embeddings": config.tied,
        "torch_dtype": config.param_dtype,
    }
    theta, scaling = _write_rope(config)
    if scaling is not None and scaling["rope_type"] == "dynamic":
        fields["max_position_embeddings"] = config.rope_scaling.original_max_len
    # The same twice: version 5 of transformers reads the second spelling, everything older the first.
    old = {"rope_theta": theta, "rope_scaling": scaling}
    new = {"rope_parameters": {"rope_theta": theta, **(scaling or {"rope_type": "default"})}}
    return fields | {name: allowed[0] for name, allowed in FIXED.items() if allowed[0] is not None} | old | new | more


def _write_rope(config: LlamaConfig) -> tuple[float, dict[str, Any] | None]:
    scaling = config.rope_scaling
    if scaling is None:
        return config.rope_theta, None
    if scaling.kind == "ntk":  # nothing but another base, which is how transformers can be told of it
        return ntk_theta(config), None
    given = {theirs: getattr(scaling, ours) for theirs, ours in ROPE_FIELDS[scaling.kind].items() if ours}
    rope = {name: value for name, value in given.items() if value is not None}
    if scaling.kind in ("yarn", "llama3", "longrope"):
        rope["original_max_position_embeddings"] = scaling.original_max_len
    return config.rope_theta, {"rope_type": scaling.kind, **rope}


# Export ---------------------------------------------------------------------------------------------------------------


def write_folder(
    path: epath.PathLike,
    config: LlamaConfig,
    tensors: Iterable[np.ndarray],
    *,
    max_file_bytes: int = 5_000_000_000,
    **more: Any,
) -> None:
    """Writes `config.json` and tensors, one after the other, into files of at most about `max_file_bytes`.

    tensors: in the order of `tensors.places`, as `write_part` gives them, of `config.param_dtype`. An index is written
    where there is more than one file; the config, with the fields `more`, comes last.
    """
    path = epath.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    shapes = {place.name: place.shape_there for place in places(config, HUGGING_FACE)}
    dtype, left, file_of = jnp.dtype(config.param_dtype), iter(tensors), {}
    parts = _split_files(shapes, max_file_bytes // dtype.itemsize)
    for number, names in enumerate(parts, 1):
        file = WEIGHTS if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        _write_file(path / file, {name: shapes[name] for name in names}, dtype, left)
        file_of |= dict.fromkeys(names, file)
    if len(parts) > 1:
        total = sum(map(math.prod, shapes.values())) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (path / INDEX).write_text(json.dumps(index, indent=2))
    (path / CONFIG).write_text(json.dumps(write_config(config, **more), indent=2))


def _split_files(shapes: Mapping[str, Sequence[int]], most: int) -> list[list[str]]:
    """Names in their order, cut where a file would hold more than `most` numbers."""
    files, held = [], 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        if not files or held + size > most:
            files.append([])
            held = 0
        files[-1].append(name)
        held += size
    return files


def _write_file(file: epath.Path, shapes: Mapping[str, Sequence[int]], dtype: np.dtype, tensors: Iterator) -> None:
    """The next of `tensors` as a safetensors file, whose library takes all of a file's at once: the length of a header
    in eight bytes, the header in JSON, then numbers (the format as its README has it)."""
    code = next(code for code, known in DTYPES.items() if known == dtype.name)
    ends = list(itertools.accumulate(math.prod(shape) * dtype.itemsize for shape in shapes.values()))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for (name, shape), offsets in zip(shapes.items(), itertools.pairwise([0, *ends]), strict=True):
        header[name] = {"dtype": code, "shape": shape, "data_offsets": offsets}
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)  # numbers begin where they may be mapped
    with file.open("wb") as opened:
        opened.write(len(described).to_bytes(8, "little") + described)
        for (name, shape), value in zip(shapes.items(), itertools.islice(tensors, len(shapes)), strict=True):
            if value.shape != tuple(shape) or value.dtype != dtype:
                raise ValueError(f"{name} {list(value.shape)} {value.dtype}, the config says {list(shape)} {dtype}")
            opened.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
