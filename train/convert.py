"""Checkpoints from one format into another, tensor after tensor: into camelid's, Hugging Face's or GGUF."""

import contextlib
import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ..data.errors import UserError
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..data.tokenizer_export import save_for_transformers, with_bos
from ..data.tokenizer_gguf import gguf_fields
from ..data.tokenizer_merging import split_of_new
from ..model import llama, storage, vocabulary
from ..model.config import LlamaConfig
from ..model.interop import gguf_files, huggingface, peft, tensors
from ..model.sharding import path_name
from ..model.storage import Rules
from ..model.weights import is_adapter
from . import checkpoints, origin, streaming


class Contents(NamedTuple):
    """What a checkpoint holds, whatever its format. values: of each tensor, in the order of `tensors.places` and the
    dtype of the network's parameters."""

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
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
) -> Contents:
    """A checkpoint, opened. dtype: of its parameters (None: as stored). weights: "params" or "ema". template: another
    than its own. tokenizer: its own with further ids, for which embedding and head get rows (`vocabulary.grow`).
    vocab_size: rows that embedding and head get in all, those that no token was made from others for being the mean."""
    manifest = origin.read_manifest(path)
    if "kind" in manifest:
        raise UserError(f"{path}: holds a {manifest['kind']}, and no language model")
    config = origin.load_config(path)
    if dtype is not None:
        config = config.replace(param_dtype=dtype)
    if origin.stored_adapter(path) is not None:
        values = _merged_values(path, weights)
    elif origin.is_foreign(path):
        if weights != "params":
            raise UserError(f"{path} has no {weights!r}, only params: it is no checkpoint of camelid's")
        values = _foreign_values(origin.open_foreign(path).source)
    else:
        values = _own_values(checkpoints.find(path), config, checkpoints.params_inside(path, weights))
    stored_as = jnp.dtype(config.param_dtype)
    values = (value.astype(stored_as, copy=False) for value in values)
    template, own = template or origin.load_template(path), origin.load_tokenizer(path)
    if tokenizer is not None:
        if own is None:
            raise UserError(f"{path} has no tokenizer that {tokenizer.fingerprint[:8]} could be compared with")
        origin.check_rows(own, config.vocab_size, path, "a first `camelid convert --vocab_size={}`")
        splits, start = split_of_new(own, tokenizer), own.vocab_size
        values = _new_rows(values, config, lambda table: vocabulary.grow_rows(table, splits, start))
        config = config.replace(vocab_size=max(config.vocab_size, start + len(splits)))
        own = tokenizer
    if vocab_size is not None:
        if vocab_size < config.vocab_size:
            raise UserError(f"--vocab_size={vocab_size}: {path} has {config.vocab_size:,} rows; none are taken away")
        values = _new_rows(values, config, lambda table: vocabulary.pad_rows(table, vocab_size))
        config = config.replace(vocab_size=vocab_size)
    origin.check_rows(own, config.vocab_size, path, "--vocab_size={}")
    return Contents(config, own, template, values, manifest)


def _new_rows(
    values: Iterator[np.ndarray], config: LlamaConfig, grow: Callable[[np.ndarray], jax.Array]
) -> Iterator[np.ndarray]:
    """`values` with embedding and head [V, D] as `grow` makes them."""
    for place, value in zip(tensors.places(config, tensors.HUGGING_FACE), values, strict=True):
        if place.path == "embed/embedding":
            value = grow(jnp.asarray(value))
        if place.path == "head/kernel":
            value = grow(jnp.asarray(value).T).T
        yield np.asarray(value)


def difference_contents(path: epath.PathLike) -> Contents:
    """The difference of two models that `differences.make` wrote: `values` are integers."""
    config = origin.load_config(path)
    bits = f"uint{8 * jnp.dtype(config.param_dtype).itemsize}"
    values = _own_values(checkpoints.find(path), config, ["params"], dtype=bits)
    return Contents(config, origin.load_tokenizer(path), origin.load_template(path), values, {})


def _foreign_values(source: tensors.Source) -> Iterator[np.ndarray]:
    for place in tensors.places(source.config, source.naming):
        yield tensors.read_part(source, place, tuple(slice(None) for _ in place.shape))


def _own_values(
    path: epath.Path, config: LlamaConfig, inside: list[str], dtype: str | None = None
) -> Iterator[np.ndarray]:
    """dtype: of integers, which are not cast to that of the parameters."""
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(llama.build(config).abstract_params):
        keys = [*inside, *path_name(key_path).split("/")]
        if path_name(key_path).startswith("layers/"):
            yield from streaming.read_layers(path, keys)
        else:
            yield np.asarray(checkpoints.load_part(path, jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), keys))


def _merged_values(path: epath.PathLike, weights: str) -> Iterator[np.ndarray]:
    """A base with its adapters merged into it, a layer at a time: of the base, in the numbers that training had."""
    stored, config = origin.stored_adapter(path), origin.load_config(path)
    full = stored.quantize is not None and origin.is_foreign(stored.path)
    base = contents(stored.path, dtype="float32" if full else config.param_dtype).values
    tree = origin.load_adapters(path, llama.build(config).abstract_params, name=weights)
    own = {path_name(key): part for key, part in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_adapter)}
    merge = jax.jit(functools.partial(_merge, stored.quantize or ((".*", None),)), static_argnums=0)
    for place, value in zip(tensors.places(config, tensors.HUGGING_FACE), base, strict=True):
        part = own.get(place.path)
        if place.layer is None:
            yield np.asarray(merge(place.path, value, part))
        else:  # a stack of one layer
            layer = jax.tree.map(lambda x, i=place.layer: x[i][None], part)
            yield np.asarray(merge(place.path, value[None], layer)[0])


def _merge(quantize: Rules, path: str, value: jax.Array, own: Any) -> jax.Array:
    """A parameter of a base, and what was put on it or trained in its place (None: nothing), as one array."""
    if own is not None and not is_adapter(own):
        return own
    kind = storage.kind_at(quantize, path)
    base = value if kind in (None, storage.STORED) else storage.encode(kind, path, value)
    return storage.plain_matrix(base if own is None else {"base": base} | own, path)


def to_peft(source: epath.PathLike, output: epath.PathLike, *, weights: str = "params") -> None:
    """The adapters of a run as a PEFT folder, with tokenizer and chat template; its base is named by the path that the
    run was started from."""
    output = check_new(output)
    stored = origin.stored_adapter(source)
    if stored is None:
        raise UserError(f"{source}: its checkpoints hold no adapters; --to=huggingface writes whole models")
    config = origin.load_config(source)
    if config.rope_scaling != origin.load_config(stored.path).rope_scaling:
        raise UserError(f"{source}: its positions are stretched, which PEFT cannot say; merge it, --to=huggingface")
    own = jax.tree.map(np.asarray, origin.load_adapters(source, llama.build(config).abstract_params, name=weights))
    with _whole(output):
        peft.write_folder(output, stored.lora, own, config, base=stored.path)
        if (tokenizer := origin.load_tokenizer(source)) is not None:
            save_for_transformers(tokenizer, origin.load_template(source), output)


def to_camelid(source: epath.PathLike, output: epath.PathLike, **options: Any) -> None:
    """A run directory with one checkpoint. options: those of `contents`."""
    check_new(output)
    found = contents(source, **options)
    write_camelid(output, found, {"origin": origin.describe(source)})


def write_camelid(
    output: epath.PathLike, found: Contents, more: dict[str, Any], *, dtype: str | np.dtype | None = None
) -> None:
    """Writes contents as a run directory. more: further entries of its manifest. dtype: of the arrays, where it is not
    that of the network's parameters."""
    output = check_new(output)
    described = {
        "config": {},
        "tokenizer": checkpoints.describe_tokenizer(found.tokenizer),
        "template": found.template and {"name": found.template.name, "source": found.template.source},
        "model": found.config.to_dict(),
        "versions": {name: importlib.metadata.version(name) for name in ("camelid", "jax", "flax")},
    }
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype), llama.build(found.config).abstract_params
    )
    places = tensors.places(found.config, tensors.HUGGING_FACE)
    parts = ((place.path, place.layer, value) for place, value in zip(places, found.values, strict=True))
    with _whole(output):
        if found.tokenizer is not None:
            checkpoints.keep_tokenizer(output, found.tokenizer)
        streaming.save_params(output, abstract, parts, described | more)


def to_huggingface(
    source: epath.PathLike, output: epath.PathLike, *, max_file_bytes: int = 5_000_000_000, **options: Any
) -> None:
    """A folder as transformers' `save_pretrained` writes it, tokenizer and chat template with it."""
    output = check_new(output)
    found = contents(source, **options)
    more = {}
    if found.tokenizer is not None:  # transformers takes ids that are not said for LLaMA's own
        stops = _stops(found)
        more = {"bos_token_id": found.tokenizer.bos_id, "eos_token_id": stops if stops[1:] else stops[0]}
    places = tensors.places(found.config, tensors.HUGGING_FACE)
    values = (
        tensors.write_part(tensors.HUGGING_FACE, place, value)
        for place, value in zip(places, found.values, strict=True)
    )
    with _whole(output):
        huggingface.write_folder(output, found.config, values, max_file_bytes=max_file_bytes, **more)
        if found.tokenizer is not None:
            save_for_transformers(found.tokenizer, found.template, output)


def _stops(found: Contents) -> list[int]:
    """The tokens that end an answer: the end of text and, where the chat template ends turns in another way, that."""
    more = found.template.stop_ids(found.tokenizer) if found.template is not None else ()
    return sorted({found.tokenizer.eos_id, *more})


def to_gguf(source: epath.PathLike, output: epath.PathLike, *, encoding: str | None = None, **options: Any) -> None:
    """A GGUF file with tokenizer and chat template. encoding: of matrices (None: as the parameters are stored)."""
    output = check_new(output)
    found = contents(source, **options)
    default = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[found.config.param_dtype]
    fields = gguf_fields(found.tokenizer, found.config.vocab_size) if found.tokenizer is not None else {}
    if found.tokenizer is not None and found.template is not None:
        fields["tokenizer.chat_template"] = with_bos(found.template, found.tokenizer)
    if found.tokenizer is not None and (ends := [i for i in _stops(found) if i != found.tokenizer.eos_id]):
        fields["tokenizer.ggml.eot_token_id"] = ends[0]
    places = list(tensors.places(found.config, tensors.GGUF))
    values = (tensors.write_part(tensors.GGUF, place, value) for place, value in zip(places, found.values, strict=True))
    shapes = {place.name: place.shape_there for place in places}
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"{output.name}.unfinished")
    with _whole(unfinished):
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


def check_new(path: epath.PathLike) -> epath.Path:
    """The whole path of an output. Raises UserError where there is something already."""
    path = epath.Path(origin.absolute(path))
    if path.exists():
        raise UserError(f"{path} is there already: give another output, or move it away")
    return path


@contextlib.contextmanager
def _whole(path: epath.Path) -> Iterator[None]:
    """Takes a new output away again where it did not become whole: half of one is of no use and would be in the way."""
    try:
        yield
    except BaseException:
        if path.is_dir():
            path.rmtree()
        else:
            path.unlink(missing_ok=True)
        raise
