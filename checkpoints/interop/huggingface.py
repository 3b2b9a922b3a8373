"""Reads and writes folders in Hugging Face's format: `config.json` and one or more files of tensors.

A config field means what transformers' class of the same family makes of it (version 5.24; see `families.py`). Rotary
settings are read in the old spelling (`rope_theta`, `rope_scaling`) and in version 5's (`rope_parameters`); the old one
is written.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from ...model.config import LlamaConfig, RopeScaling
from ...model.rope import frequencies, ntk_theta
from .families import ARCHITECTURES, DEFAULTS, IN_HUGGING_FACE, MULTIPLIERS, family_in, multipliers
from .headers import MOST_LAYERS, Header, exists_or_broken_link, located, read_json, shown
from .tensors import HUGGING_FACE, SHOWN, Index, TensorSource, check_tensors, places, shapes_there
from .weight_files import INDEX, WEIGHTS, open_tensors, weight_files

CONFIG = "config.json"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
HEAD, TABLE = HUGGING_FACE.names["head/kernel"], HUGGING_FACE.names["embed/embedding"]

FIXED: dict[str, tuple] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1.0, None),
    "is_causal": (True, None),
}
"""Fields with a fixed meaning in camelid's network, and the values that are accepted."""

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
"""{rotary scaling: {field in `config.json`: field of `RopeScaling`}}; "" marks a field that changes another one."""


def is_folder(path: epath.Path) -> bool:
    """Whether a path is a folder in Hugging Face's format; a run of camelid has a file of the same name."""
    return exists_or_broken_link(path / CONFIG) and not _is_of_run(path / CONFIG)


def _is_of_run(path: epath.Path) -> bool:
    """Whether a `config.json` is the config of a run of camelid, which names its recipe, or its phases."""
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and "model_type" not in fields and ("recipe" in fields or "phases" in fields)


def open_folder(path: epath.PathLike) -> TensorSource:
    """Opens a folder in Hugging Face's format and checks its tensors by name, shape and dtype, without reading them.

    Prefixes that wrappers such as DDP add to names of tensors are ignored (`plain_names`).

    Raises:
      ValueError: the network does not support the config, or tensors are missing, surplus or misshapen.
    """
    path = epath.Path(path)
    fields = read_json(path / CONFIG)
    config = read_config(fields, str(path / CONFIG))
    files = weight_files(path)
    file_of = {name: opened for opened in map(open_tensors, files) for name in opened.headers}
    stored = {plain: name for name, plain in plain_names(file_of, str(path)).items()}
    headers = {plain: file_of[name].headers[name] for plain, name in stored.items()}
    shapes = {name: header.shape for name, header in headers.items()}
    dtypes = {name: header.dtype for name, header in headers.items()}

    if fields.get("quantization_config") and set(dtypes.values()) - DTYPES.keys():
        method = shown(fields.section("quantization_config").get("quant_method"))
        raise ValueError(
            f"{path / CONFIG}: the model is quantised by {method}: give the original model, or its GGUF file"
        )

    def read(name: str, index: Index) -> np.ndarray:
        return file_of[stored[name]].read(stored[name], index)

    if config.tied and HEAD in shapes:
        if shapes[HEAD] != shapes[TABLE] or not np.array_equal(read(HEAD, ()), read(TABLE, ())):
            raise ValueError(
                f"{path / CONFIG} has tie_word_embeddings true, but {HEAD} and {TABLE} differ: set it to false"
            )
        del shapes[HEAD]
    bare = TABLE in stored and not stored[TABLE].endswith(TABLE)
    if bare and not config.tied and HEAD not in shapes:
        raise ValueError(
            f"{path} has no output head ({HEAD}), as a bare model class saves it: save the whole model, or set "
            "tie_word_embeddings to true in config.json if the embedding is the head"
        )
    naming = IN_HUGGING_FACE[config.family].naming
    check_tensors(str(path), config, naming, shapes)
    if strange := sorted(f"{name} {dtypes[name]}" for name in shapes if dtypes[name] not in DTYPES):
        raise ValueError(f"{path} has tensors that are not {', '.join(DTYPES)}: {'; '.join(strange[:SHOWN])}")
    dtype = DTYPES[dtypes[TABLE]]
    return TensorSource(str(path), naming, config.replace(param_dtype=dtype), read, [path / CONFIG, *files])


_WRAPPERS = r"(^|(?<=\.))(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."


def unwrapped(name: str) -> str:
    """A tensor's name without the prefixes of torch.compile, DDP and FSDP."""
    return re.sub(_WRAPPERS, "", name)


def plain_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Maps the names of stored tensors to those of a plain `LlamaForCausalLM`.

    The prefixes of torch.compile, DDP, FSDP and PEFT are removed, and the `model.` that a bare `LlamaModel` lacks is
    added.

    Args:
      names: the stored names.
      where: name of the folder, for the message.

    Raises:
      ValueError: two tensors get the same name.
    """
    plain = {name: unwrapped(name).removeprefix("base_model.model.") for name in names}
    plain = {name: short.replace(".base_layer.", ".") for name, short in plain.items()}
    if TABLE.removeprefix("model.") in plain.values():
        plain = {name: short if short == HEAD else f"model.{short}" for name, short in plain.items()}
    seen: dict[str, str] = {}
    for name, short in plain.items():
        if seen.setdefault(short, name) != name:
            raise ValueError(f"{where}: {seen[short]} and {name} are both {short}: keep one of them")
    return plain


# The config -----------------------------------------------------------------------------------------------------------


def read_config(fields: Mapping[str, Any], where: str) -> LlamaConfig:
    """The network of a `config.json`.

    Args:
      fields: the content of the file.
      where: its path, for messages.

    Raises:
      ValueError: camelid's network does not support a field, or a value is wrong.
    """
    family = _read_family(Header(fields, where))
    fields = Header(DEFAULTS.get(family, {}) | dict(fields), where)
    for name, allowed in FIXED.items():
        if fields.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{where}: {name} is {shown(fields[name])}; camelid supports only {allowed[0]!r}")
    dim, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    max_len = fields.integer("max_position_embeddings", 2048)
    with located(where):
        theta, scaling = _read_rope(fields, family, max_len)
        return LlamaConfig(
            vocab_size=fields.integer("vocab_size"),
            dim=dim,
            n_layers=fields.integer("num_hidden_layers", high=MOST_LAYERS),
            n_heads=heads,
            n_kv_heads=fields.integer("num_key_value_heads", heads),
            ffn_dim=fields.integer("intermediate_size"),
            head_dim=fields.integer("head_dim", dim // heads),
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            # With dynamic scaling max_position_embeddings is the trained length, which the factor extends.
            max_len=int(max_len * scaling.factor) if scaling is not None and scaling.kind == "dynamic" else max_len,
            tied=fields.flag("tie_word_embeddings", False),
            family=family,
            **_read_additions(fields, family),
        )


def _read_family(fields: Header) -> str:
    """The family named by `architectures` (the class with the head, or the bare model) and `model_type`."""
    known = {name: family for family, name in ARCHITECTURES.items()}
    known |= {name.replace("ForCausalLM", "Model"): family for name, family in known.items()}
    classes, kind = fields.texts("architectures"), fields.text("model_type", "") or None
    found = {known[name] for name in classes if name in known} if classes else {kind} & ARCHITECTURES.keys()
    if not found:
        said = shown(", ".join(classes)) if classes else f"model_type {shown(kind)}"
        raise ValueError(f"{fields.where}: architecture {said}; known are {', '.join(ARCHITECTURES.values())}")
    if kind is not None and found != {kind}:
        said = f"architectures {classes[0] if len(classes) == 1 else shown(classes)} but model_type {shown(kind)}"
        raise ValueError(f"{fields.where}: {said}: one of them is wrong")
    return found.pop()


def _read_additions(fields: Header, family: str) -> dict[str, Any]:
    """The fields of `LlamaConfig` for what a family adds to a LLaMA."""
    may = IN_HUGGING_FACE[family].may
    for name, theirs in (("attention_bias", "attention_bias"), ("mlp_bias", "mlp_bias"), ("window", "sliding_window")):
        if fields.get(theirs) and name not in may and (name, family) != ("attention_bias", "qwen2"):
            said = f"{theirs} is {shown(fields[theirs])}, which {ARCHITECTURES[family]} ignores"
            raise ValueError(f"{said}: remove it")
    biased = family != "qwen2" and fields.flag("attention_bias", False)
    granite = MULTIPLIERS if family == "granite" else {}
    return {
        "qkv_bias": biased or family == "qwen2",
        "o_bias": biased,
        "mlp_bias": fields.flag("mlp_bias", False),
        "qk_norm": family == "qwen3",
        "window": _read_window(fields, family),
        **{ours: fields.number(theirs, 1.0) for ours, (theirs, _) in granite.items()},
    }


def _read_window(fields: Header, family: str) -> int | None:
    """The sliding window of all layers, in tokens; None if no layer has one.

    Qwen has a switch, a first layer and a list of layers with a window; Mistral has only the list.
    """
    layers, is_qwen = fields.integer("num_hidden_layers", high=MOST_LAYERS), family in ("qwen2", "qwen3")
    has_one = "window" in IN_HUGGING_FACE[family].may and fields.get("sliding_window") is not None
    has_one = has_one and (not is_qwen or fields.flag("use_sliding_window", False))
    window = fields.integer("sliding_window") if has_one else None
    first = fields.integer("max_window_layers", 28, low=0) if is_qwen else 0
    sliding = [window is not None and i >= first for i in range(layers)]
    if (kinds := fields.texts("layer_types")) and (is_qwen or family == "mistral"):
        sliding = [kind == "sliding_attention" for kind in kinds]
        if len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
            said = f"layer_types has {len(kinds)} of {shown(sorted(set(kinds)))} for {layers} layers"
            raise ValueError(f"{said}: list sliding_attention or full_attention for each layer")
    if not any(sliding):
        return None
    if not all(sliding):
        raise ValueError(f"{sum(sliding)} of {layers} layers have a sliding window; camelid needs all layers alike")
    if window is None:
        raise ValueError("layer_types has sliding windows, but use_sliding_window or sliding_window switches them off")
    return window


def _read_rope(fields: Header, family: str, max_len: int) -> tuple[float, RopeScaling | None]:
    """The rotary base and scaling, from `rope_theta` and `rope_scaling` or transformers 5's `rope_parameters`.

    Args:
      fields: the content of `config.json`.
      family: the network's family.
      max_len: its `max_position_embeddings`.

    Raises:
      ValueError: two spellings disagree; versions of transformers differ in which they choose.
    """
    spelled = {name: fields.section(name) for name in ("rope_scaling", "rope_parameters") if fields.get(name)}
    for name, rope in spelled.items():
        if any(isinstance(value, Mapping) for value in rope.values()):
            raise ValueError(f"{name} has different rotary settings for some layers: {shown(dict(rope))}")
    bases = {
        f"{name}.rope_theta": rope.number("rope_theta") for name, rope in spelled.items() if rope.get("rope_theta")
    }
    bases |= {"rope_theta": fields.number("rope_theta")} if fields.get("rope_theta") else {}
    scalings = {name: _read_scaling(rope, fields, family, max_len) for name, rope in spelled.items()}
    words = {name: shown(dict(rope)) for name, rope in spelled.items()}
    for said, shown_as in ((bases, bases), (scalings, words)):
        if len(set(said.values())) > 1:
            listed = "; ".join(f"{name} says {shown_as[name]}" for name in said)
            raise ValueError(f"two spellings of one setting disagree: {listed}: keep the right one")
    return float(next(iter(bases.values()), 10_000.0)), next(iter(scalings.values()), None)


def _read_scaling(rope: Header, fields: Header, family: str, max_len: int) -> RopeScaling | None:
    """The rotary scaling of one table of settings; None for none. Unknown settings are ignored, as in transformers.

    Args:
      rope: the table.
      fields: the content of `config.json`.
      family: the network's family.
      max_len: its `max_position_embeddings`.
    """
    kinds = [rope.text(name) for name in ("rope_type", "type") if rope.get(name)] or ["default"]
    # The first files of Phi-3 call longrope "su" or "yarn"; transformers reads both as longrope.
    kinds = ["longrope" if kind == "su" or (family, kind) == ("phi3", "yarn") else kind for kind in kinds]
    if len(set(kinds)) > 1:
        said = f"rope_type is {shown(rope['rope_type'])} but type {shown(rope['type'])}"
        raise ValueError(f"{said}: keep the right one")
    kind = kinds[0]
    if (part := rope.number("partial_rotary_factor", 1.0)) != 1.0:
        raise ValueError(f"partial_rotary_factor is {part}; camelid rotates whole heads only")
    if kind == "default":
        return None
    if kind not in ROPE_FIELDS:
        raise ValueError(f"rotary scaling is {shown(kind)}; known are default, {', '.join(ROPE_FIELDS)}")
    trained = "original_max_position_embeddings"  # Phi-3 has it in the config itself, where longrope's is read first
    original = {"linear": None, "dynamic": max_len}.get(kind, fields.integer(trained, rope.integer(trained, max_len)))
    if kind in ("yarn", "llama3") and rope.integer(trained, original) != original:
        raise ValueError(
            f"{trained} is {original}, but {rope.integer(trained)} in the rotary settings: correct one of them"
        )
    # In yarn and longrope configs without a factor, it is the ratio of the context to the original one.
    factor = rope.number("factor", max_len / original if kind in ("yarn", "longrope") else None)
    reading = {"truncate": rope.flag, "short_factor": rope.numbers, "long_factor": rope.numbers}
    said = {theirs: ours for theirs, ours in ROPE_FIELDS[kind].items() if ours and rope.get(theirs) is not None}
    given = {ours: reading.get(theirs, rope.number)(theirs) for theirs, ours in said.items()}
    if kind == "yarn" and rope.get("mscale") and rope.get("mscale_all_dim"):
        ratio = _mscale(factor, rope.number("mscale")) / _mscale(factor, rope.number("mscale_all_dim"))
        given.setdefault("attention_factor", ratio)
    return RopeScaling(kind, **(given | {"factor": factor, "original_max_len": original}))


def _mscale(factor: float, weight: float) -> float:
    """The attention scale of DeepSeek's variant of YaRN."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def write_config(config: LlamaConfig, **more: Any) -> dict[str, Any]:
    """The content of a network's `config.json`, with the further fields `more`, such as token ids.

    Raises:
      ValueError: transformers has no class that computes the network.
    """
    family = family_in(IN_HUGGING_FACE, config, "transformers")
    theta, scaling = _write_rope(config)
    fields = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "hidden_act": FIXED["hidden_act"][0],
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_len,
        "tie_word_embeddings": config.tied,
        "torch_dtype": config.param_dtype,
        # Only the old spelling is written: every version of transformers reads it, and two spellings could disagree.
        "rope_theta": theta,
        "rope_scaling": scaling,
    }
    if scaling is not None and scaling["rope_type"] == "dynamic":
        fields["max_position_embeddings"] = config.rope_scaling.original_max_len
    if scaling is not None and scaling["rope_type"] == "longrope":
        # transformers 4 reads the trained length only from here, and computes the factor from the two lengths.
        trained = fields["original_max_position_embeddings"] = config.rope_scaling.original_max_len
        if config.rope_scaling.factor != config.max_len / trained:
            scaling["attention_factor"] = frequencies(config, np.ones(1))[1]
    return fields | _write_additions(config, family) | more


def _write_additions(config: LlamaConfig, family: str) -> dict[str, Any]:
    """The fields of `config.json` for what a network adds to a LLaMA; the inverse of `_read_additions`."""
    may, fields = IN_HUGGING_FACE[family].may, {}
    if "attention_bias" in may:
        fields["attention_bias"] = config.qkv_bias
    if "mlp_bias" in may:
        fields["mlp_bias"] = config.mlp_bias
    if "window" in may:
        fields["sliding_window"] = config.window
    if family in ("qwen2", "qwen3"):
        first = config.n_layers if config.window is None else 0
        fields |= {"use_sliding_window": config.window is not None, "max_window_layers": first}
    if family == "phi3":
        fields["pad_token_id"] = None  # the default is 32,000, which Phi-3's class refuses in a smaller vocabulary
    if family == "phi3" and config.rope_scaling is not None:
        scaling = config.rope_scaling
        if scaling.attention_factor is None and scaling.factor == config.max_len / scaling.original_max_len:
            # transformers 4 accepts only these three fields; the factor follows from the two lengths.
            tables = {"short_factor": scaling.short_factors, "long_factor": scaling.long_factors}
            fields["rope_scaling"] = {"type": "longrope"} | tables
    if family == "granite":
        fields |= dict(zip((theirs for theirs, _ in MULTIPLIERS.values()), multipliers(config), strict=True))
    return fields


def _write_rope(config: LlamaConfig) -> tuple[float, dict[str, Any] | None]:
    """The rotary base and the field `rope_scaling` of a network."""
    scaling = config.rope_scaling
    if scaling is None:
        return config.rope_theta, None
    if scaling.kind == "ntk":  # the same as another base, which is the only form that transformers knows
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
    """Writes a folder in Hugging Face's format, tensor by tensor; `config.json` is written last.

    Args:
      path: the folder.
      config: the network.
      tensors: in the order of `tensors.places`, as `write_part` returns them, of `config.param_dtype`.
      max_file_bytes: upper bound of one file, in bytes; more than one file get an index.
      **more: further fields of `config.json`.
    """
    path = epath.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    described = write_config(config, **more)
    naming = IN_HUGGING_FACE[described["model_type"]].naming
    shapes, dtype = shapes_there(config, naming), jnp.dtype(config.param_dtype)
    begins, file_of = {}, {}
    parts = _split_files(shapes, max_file_bytes // dtype.itemsize)
    for number, names in enumerate(parts, 1):
        file = WEIGHTS if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        begins |= _write_header(path / file, {name: shapes[name] for name in names}, dtype)
        file_of |= dict.fromkeys(names, file)
    for place, value in zip(places(config, naming), tensors, strict=True):
        if value.shape != place.shape_there or value.dtype != dtype:
            raise ValueError(
                f"{place.name} {list(value.shape)} {value.dtype}, the config says {list(place.shape_there)} {dtype}"
            )
        before = place.first_row * math.prod(place.shape_there[1:]) * dtype.itemsize
        with open(path / file_of[place.name], "r+b") as opened:
            opened.seek(begins[place.name] + before)
            opened.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    if len(parts) > 1:
        total = sum(map(math.prod, shapes.values())) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (path / INDEX).write_text(json.dumps(index, indent=2))
    (path / CONFIG).write_text(json.dumps(described, indent=2))


def _split_files(shapes: Mapping[str, Sequence[int]], most: int) -> list[list[str]]:
    """Divides tensors over files of at most `most` numbers each; returns the names in each file, in order."""
    files, held = [], 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        if not files or held + size > most:
            files.append([])
            held = 0
        files[-1].append(name)
        held += size
    return files


def _write_header(file: epath.Path, shapes: Mapping[str, Sequence[int]], dtype: np.dtype) -> dict[str, int]:
    """Begins a safetensors file with its header: eight bytes for its length, then JSON, as the format's README says.

    safetensors' own writer needs all tensors of a file in memory.

    Args:
      file: the file.
      shapes: {name: shape} of its tensors, in order.
      dtype: of all tensors.

    Returns:
      {name: byte at which the tensor begins}.
    """
    code = next(code for code, known in DTYPES.items() if known == dtype.name)
    ends = list(itertools.accumulate(math.prod(shape) * dtype.itemsize for shape in shapes.values()))
    offsets = dict(zip(shapes, itertools.pairwise([0, *ends]), strict=True))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        header[name] = {"dtype": code, "shape": shape, "data_offsets": offsets[name]}
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % 8)  # aligns the numbers so that they can be mapped into memory
    file.write_bytes(len(described).to_bytes(8, "little") + described)
    return {name: 8 + len(described) + begin for name, (begin, _) in offsets.items()}
