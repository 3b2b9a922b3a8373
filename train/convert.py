"""Checkpoints from one format into another, tensor after tensor: into camelid's, Hugging Face's or GGUF."""

import importlib.metadata
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from ..data.errors import UserError
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..data.tokenizer_export import save_for_transformers
from ..data.tokenizer_gguf import gguf_fields
from ..model import llama
from ..model.config import LlamaConfig
from ..model.interop import gguf_files, huggingface, peft, tensors
from ..model.sharding import path_name
from . import checkpoints, origin, streaming


class Contents(NamedTuple):
    """What a checkpoint holds, whatever its format. values: of each tensor, in the order of `tensors.places`."""

    config: LlamaConfig
    tokenizer: Tokenizer | None
    template: ChatTemplate | None
    values: Iterator[np.ndarray]
    manifest: dict[str, Any]


def contents(
    path: epath.PathLike,
    *,
    dtype: str | None = None,
    weights: str = "params",
    template: ChatTemplate | None = None,
) -> Contents:
    """A checkpoint, opened. dtype: of its parameters (None: as stored). weights: "params" or "ema". template: another
    than its own."""
    manifest = origin.read_manifest(path)
    if manifest.get("kind") == "scalar":
        raise UserError(f"{path}: a reward or cost model; only language models are converted")
    config = origin.load_config(path)
    if dtype is not None:
        config = config.replace(param_dtype=dtype)
    if origin.stored_adapter(path) is not None:
        values = _merged_values(path, config, weights)
    elif origin.is_foreign(path):
        values = _foreign_values(origin.open_foreign(path).source)
    else:
        values = _own_values(checkpoints.find(path), config, checkpoints.params_inside(path, weights))
    return Contents(config, origin.load_tokenizer(path), template or origin.load_template(path), values, manifest)


def _foreign_values(source: tensors.Source) -> Iterator[np.ndarray]:
    for place in tensors.places(source.config, source.naming):
        yield tensors.read_part(source, place, tuple(slice(None) for _ in place.shape))


def _own_values(path: epath.Path, config: LlamaConfig, inside: list[str]) -> Iterator[np.ndarray]:
    """One leaf, all its layers, is in memory at a time."""
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(llama.build(config).abstract_params):
        name = path_name(key_path)
        value = np.asarray(checkpoints.load_part(path, leaf, [*inside, *name.split("/")]))
        yield from value if name.startswith("layers/") else [value]


def _merged_values(path: epath.PathLike, config: LlamaConfig, weights: str) -> Iterator[np.ndarray]:
    """A base with its adapters merged into it: in memory whole."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), llama.build(config).abstract_params
    )
    merged = origin.load_params(path, abstract, name=weights)
    for key_path, value in jax.tree_util.tree_leaves_with_path(merged):
        yield from np.asarray(value) if path_name(key_path).startswith("layers/") else [np.asarray(value)]


def to_peft(source: epath.PathLike, output: epath.PathLike, *, weights: str = "params") -> None:
    """The adapters of a run as a PEFT folder; its base is named by the path that the run was started from."""
    output = _new(output)
    stored = origin.stored_adapter(source)
    if stored is None:
        raise UserError(f"{source}: its checkpoints hold no adapters; --to=huggingface writes whole models")
    config = origin.load_config(source)
    own = jax.tree.map(np.asarray, origin.load_adapters(source, llama.build(config).abstract_params, name=weights))
    peft.write_folder(output, stored.lora, own, config, base=stored.path)


def to_camelid(source: epath.PathLike, output: epath.PathLike, **options: Any) -> None:
    """A run directory with one checkpoint. options: those of `contents`."""
    output = _new(output)
    found = contents(source, **options)
    described = {
        "config": {},
        "tokenizer": found.tokenizer and {"fingerprint": found.tokenizer.fingerprint},
        "template": found.template and {"name": found.template.name, "source": found.template.source},
        "model": found.config.to_dict(),
        "versions": {name: importlib.metadata.version(name) for name in ("camelid", "jax", "flax")},
        "origin": found.manifest.get("origin") or {"path": str(source), "step": found.manifest["step"]},
    }
    if found.tokenizer is not None:
        checkpoints.keep_tokenizer(output, found.tokenizer)
    places = tensors.places(found.config, tensors.HUGGING_FACE)
    parts = ((place.path, place.layer, value) for place, value in zip(places, found.values, strict=True))
    streaming.save_params(output, llama.build(found.config).abstract_params, parts, described)


def to_huggingface(
    source: epath.PathLike, output: epath.PathLike, *, max_file_bytes: int = 5_000_000_000, **options: Any
) -> None:
    """A folder as transformers' `save_pretrained` writes it, tokenizer and chat template with it."""
    output = _new(output)
    found = contents(source, **options)
    more = {}
    if found.tokenizer is not None:
        ids = {"bos_token_id": found.tokenizer.bos_id, "eos_token_id": _stops(found), "pad_token_id": None}
        more = {name: value for name, value in ids.items() if name == "eos_token_id" or value is not None}
    places = tensors.places(found.config, tensors.HUGGING_FACE)
    named = (
        (
            place.name,
            tensors.write_part(tensors.HUGGING_FACE, place, value).astype(found.config.param_dtype, copy=False),
        )
        for place, value in zip(places, found.values, strict=True)
    )
    huggingface.write_folder(output, found.config, named, max_file_bytes=max_file_bytes, **more)
    if found.tokenizer is not None:
        save_for_transformers(found.tokenizer, found.template, output)


def _stops(found: Contents) -> int | list[int]:
    """The tokens that end an answer: one, or where the chat template ends turns in another way, all."""
    stops = [found.tokenizer.eos_id]
    if found.template is not None:
        stops = sorted({*stops, *found.template.stop_ids(found.tokenizer)})
    return stops[0] if len(stops) == 1 else stops


def to_gguf(source: epath.PathLike, output: epath.PathLike, *, encoding: str | None = None, **options: Any) -> None:
    """A GGUF file with tokenizer and chat template. encoding: of matrices (None: as the parameters are stored)."""
    output = _new(output)
    found = contents(source, **options)
    default = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[found.config.param_dtype]
    fields = gguf_fields(found.tokenizer) if found.tokenizer is not None else {}
    if found.template is not None:
        fields["tokenizer.chat_template"] = found.template.source
    places = list(tensors.places(found.config, tensors.GGUF))
    values = (tensors.write_part(tensors.GGUF, place, value) for place, value in zip(places, found.values, strict=True))
    shapes = {place.name: place.shape_there for place in places}
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"{output.name}.unfinished")
    try:
        gguf_files.write_file(
            unfinished,
            found.config,
            shapes,
            values,
            encoding=encoding or default,
            fields=fields,
            name=epath.Path(source).name,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    unfinished.rename(output)


def _new(path: epath.PathLike) -> epath.Path:
    path = epath.Path(path).expanduser()
    if path.exists():
        raise UserError(f"{path} is there already: give another output, or move it away")
    return path
