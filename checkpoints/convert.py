"""Checkpoints from one format into another, tensor after tensor: into camelid's, Hugging Face's or GGUF."""

import contextlib
import functools
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from ..data import checksums
from ..data.locks import locked
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..data.tokenizer_merging import split_of_new
from ..errors import UserError
from ..model import llama, storage, vocabulary
from ..model.config import LlamaConfig
from ..model.sharding import path_name
from ..model.storage import Rules
from ..model.weights import is_adapter
from . import manifest, origin, reading, saving, streaming
from .interop import generation_config, gguf_files, huggingface, peft_export, tensors
from .interop.generation_config import GenerationDefaults
from .interop.tokenizer_export import save_for_transformers, with_bos
from .interop.tokenizer_gguf import gguf_fields


class Contents(NamedTuple):
    """What a checkpoint holds, whatever its format. values: of each tensor, in the order of `tensors.places` and the
    dtype of the network's parameters."""

    config: LlamaConfig
    tokenizer: Tokenizer | None
    template: ChatTemplate | None
    values: Iterator[np.ndarray]
    manifest: dict[str, Any]
    generation: GenerationDefaults = GenerationDefaults()


def contents(
    path: epath.PathLike,
    *,
    dtype: str | None = None,
    weights: str | None = None,
    template: ChatTemplate | None = None,
    tokenizer: Tokenizer | None = None,
    base: epath.PathLike | None = None,
    vocab_size: int | None = None,
) -> Contents:
    """A checkpoint, opened.

    dtype: of its parameters (None: as stored). weights: "params" or "ema"; None for what the run's evaluations measured
    (`origin.choose_weights`). template: another than its own. tokenizer: its own with further ids, for which embedding
    and head get rows (`vocabulary.grow`). base: the model that adapters are put on, in place of the one that they name.
    vocab_size: rows that embedding and head get in all; those that no token was made from others for are the mean.
    """
    adapter = origin.stored_adapter(path, base)
    if base is not None and adapter is None:
        raise UserError(f"{path}: a whole model and no adapters, which alone are put on a base: leave --base out")
    described = path if base is None or not origin.is_peft(path) else base
    manifest = origin.read_manifest(described)
    if "kind" in manifest:
        raise UserError(f"{path}: holds a {manifest['kind']}, and no language model")
    stored = config = origin.load_config(described)
    if dtype is not None:
        config = config.replace(param_dtype=dtype)
    weights = origin.choose_weights(path, weights)
    if adapter is not None:
        values = _merged_values(path, weights, base)
    elif origin.is_foreign(path):
        values = _foreign_values(origin.open_foreign(path).source)
    else:
        values = _own_values(reading.find(path), stored, reading.params_inside(path, weights))
    values = _cast(values, config, str(path))
    said = origin.load_generation(described)
    template = template or origin.own_template(path) or origin.load_template(described)
    own = origin.own_tokenizer(path) or origin.load_tokenizer(described)
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
    return Contents(config, own, template, values, manifest, said)


def _cast(values: Iterator[np.ndarray], config: LlamaConfig, where: str) -> Iterator[np.ndarray]:
    """Values in the dtype of a network's parameters. Raises UserError for numbers that this has not."""
    dtype = jnp.dtype(config.param_dtype)
    for place, value in zip(tensors.places(config, tensors.HUGGING_FACE), values, strict=True):
        if value.dtype == dtype:
            yield value
            continue
        with np.errstate(over="ignore"):
            cast = value.astype(dtype)
        if not np.isfinite(cast.astype(np.float32)).all():
            raise UserError(
                f"{where}: {_unfit(place.name, value)}, which {dtype.name} cannot hold: {_OTHERS[dtype.name]}"
            )
        yield cast


_OTHERS = {
    "float16": "give --dtype=bfloat16 or float32",
    "bfloat16": "give --dtype=float32",
    "float32": "leave --dtype out",
}


def _unfit(name: str, value: np.ndarray) -> str:
    """What a tensor has that a narrower type has not."""
    value = value.astype(np.float32)
    if count := int((~np.isfinite(value)).sum()):
        return f"{name} already has {count:,} number(s) that are infinite or no number"
    return f"{name} reaches {np.abs(value).max():.6g}"


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
    values = _own_values(reading.find(path), config, ["params"], dtype=bits)
    own = origin.load_tokenizer(path), origin.load_template(path)
    return Contents(config, *own, values, {}, origin.load_generation(path))


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
            yield np.asarray(reading.load_part(path, jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), keys))


def _merged_values(path: epath.PathLike, weights: str, base: epath.PathLike | None = None) -> Iterator[np.ndarray]:
    """A base with its adapters merged into it, a layer at a time: of the base, in the numbers that training had."""
    stored = origin.stored_adapter(path, base)
    config = origin.load_config(stored.path if origin.is_peft(path) else path)
    full = stored.quantize is not None and origin.is_foreign(stored.path)
    tree = origin.load_adapters(path, llama.build(config).abstract_params, name=weights, base=base)
    base = contents(stored.path, dtype="float32" if full else config.param_dtype, weights=stored.weights).values
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


def to_peft(
    source: epath.PathLike, output: epath.PathLike, *, weights: str | None = None, base_name: str | None = None
) -> None:
    """The adapters of a run as a PEFT folder, with tokenizer and chat template. base_name: what its config calls its
    base, a hub's id or a path; None for the folder of Hugging Face's that the run was started from."""
    check_new(output)
    stored = origin.stored_adapter(source)
    if stored is None:
        raise UserError(f"{source}: its checkpoints hold no adapters; --to=huggingface writes whole models")
    if base_name is None and not huggingface.is_folder(epath.Path(stored.path)):
        raise UserError(
            f"{source}: its base {stored.path} is no folder that PEFT can load: give --base_name, a hub's id or a "
            "folder that --to=huggingface has written of it"
        )
    config = origin.load_config(source)
    if config.rope_scaling != origin.load_config(stored.path).rope_scaling:
        raise UserError(f"{source}: its positions are stretched, which PEFT cannot say; merge it, --to=huggingface")
    weights = origin.choose_weights(source, weights)
    own = jax.tree.map(np.asarray, origin.load_adapters(source, llama.build(config).abstract_params, name=weights))
    with whole(output) as unfinished:
        try:
            peft_export.write_folder(
                unfinished, stored.lora, own, config, base=stored.path if base_name is None else base_name
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        if (tokenizer := origin.load_tokenizer(source)) is not None:
            save_for_transformers(tokenizer, origin.load_template(source), unfinished)


def to_camelid(source: epath.PathLike, output: epath.PathLike, **options: Any) -> None:
    """A run directory with one checkpoint. options: those of `contents`."""
    with whole(output) as unfinished:
        write_camelid(unfinished, contents(source, **options), {"origin": origin.describe(source, options.get("base"))})


def write_camelid(
    output: epath.Path, found: Contents, more: dict[str, Any], *, dtype: str | np.dtype | None = None
) -> None:
    """Writes contents as a run directory. more: further entries of its manifest. dtype: of the arrays, where it is not
    that of the network's parameters."""
    described = {
        "config": {},
        "tokenizer": manifest.describe_tokenizer(found.tokenizer),
        "template": found.template and {"name": found.template.name, "source": found.template.source},
        "model": found.config.to_dict(),
        "generation": found.generation.to_dict(),
        "versions": {name: importlib.metadata.version(name) for name in ("camelid", "jax", "flax")},
    }
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype), llama.build(found.config).abstract_params
    )
    places = tensors.places(found.config, tensors.HUGGING_FACE)
    parts = ((place.path, place.layer, value) for place, value in zip(places, found.values, strict=True))
    if found.tokenizer is not None:
        saving.keep_tokenizer(output, found.tokenizer)
    streaming.save_params(output, abstract, parts, described | more)


def to_huggingface(
    source: epath.PathLike, output: epath.PathLike, *, max_file_bytes: int = 5_000_000_000, **options: Any
) -> None:
    """A folder as transformers' `save_pretrained` writes it, tokenizer and chat template with it."""
    with whole(output) as unfinished:
        write_huggingface(unfinished, contents(source, **options), max_file_bytes)


def write_huggingface(output: epath.Path, found: Contents, max_file_bytes: int = 5_000_000_000) -> None:
    """Writes contents as a folder of Hugging Face's."""
    more = {}
    if found.tokenizer is not None:  # transformers takes ids that are not said for LLaMA's own
        more = {"bos_token_id": found.tokenizer.bos_id, "eos_token_id": generation_config.one_or_many(_stops(found))}
    places = tensors.places(found.config, tensors.HUGGING_FACE)
    values = (
        tensors.write_part(tensors.HUGGING_FACE, place, value)
        for place, value in zip(places, found.values, strict=True)
    )
    try:
        huggingface.write_folder(output, found.config, values, max_file_bytes=max_file_bytes, **more)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None
    if found.tokenizer is not None:
        save_for_transformers(found.tokenizer, found.template, output)
        said = generation_config.write_config(found.generation, found.tokenizer.bos_id, _stops(found))
        (output / generation_config.FILE).write_text(json.dumps(said, indent=2))


def _stops(found: Contents) -> list[int]:
    """The tokens that end an answer: the end of text, what the chat template ends turns with, what the model says."""
    return sorted({found.tokenizer.eos_id, *_turn_ends(found), *found.generation.stop_ids})


def _turn_ends(found: Contents) -> tuple[int, ...]:
    return found.template.stop_ids(found.tokenizer) if found.template is not None else ()


def to_gguf(source: epath.PathLike, output: epath.PathLike, *, encoding: str | None = None, **options: Any) -> None:
    """A GGUF file with tokenizer and chat template. encoding: of matrices (None: as the parameters are stored)."""
    check_new(output)
    found = contents(source, **options)
    encoding = encoding or {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[found.config.param_dtype]
    fields = gguf_fields(found.tokenizer, found.config.vocab_size) if found.tokenizer is not None else {}
    if found.tokenizer is not None and found.template is not None:
        fields["tokenizer.chat_template"] = with_bos(found.template, found.tokenizer)
    if found.tokenizer is not None:
        fields |= generation_config.gguf_fields(found.generation, found.tokenizer.eos_id, _turn_ends(found))
    name = epath.Path(source).name
    with whole(output) as unfinished:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        try:
            naming = gguf_files.naming_of(found.config)
            places = tensors.places(found.config, naming)
            values = (
                _fitting(encoding, place, tensors.write_part(naming, place, value), str(source))
                for place, value in zip(places, found.values, strict=True)
            )
            gguf_files.write_file(unfinished, found.config, values, encoding=encoding, fields=fields, name=name)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(str(error)) from None


def _fitting(encoding: str, place: tensors.Place, value: np.ndarray, where: str) -> np.ndarray:
    """A tensor that GGUF's encodings of matrices can hold: all but two have scales, or numbers, in float16."""
    if encoding not in ("F32", "BF16") and value.ndim > 1:
        largest = np.abs(value.astype(np.float32)).max(initial=0)
        if not largest <= np.finfo(np.float16).max:
            unfit = _unfit(place.name, value)
            raise UserError(f"{where}: {unfit}, which {encoding} cannot hold: give --encoding=BF16 or F32")
    return value


def check_new(path: epath.PathLike) -> epath.Path:
    """The whole path of an output. Raises UserError where there is something already."""
    path = epath.Path(origin.absolute(path))
    if path.exists() or os.path.islink(path):
        raise UserError(f"{path} is there already: give another output, or move it away")
    return path


@contextlib.contextmanager
def whole(output: epath.PathLike) -> Iterator[epath.Path]:
    """A path beside a new output to write it at: it gets the output's name when it is whole, and is taken away again
    where it did not become that. Raises UserError where there is something already."""
    output = check_new(output)
    unfinished = output.with_name(f"{output.name}.unfinished")
    with _only_writer_of(output):
        _remove(unfinished)  # of a process that was killed
        try:
            with checksums.writing(output):
                yield unfinished
            check_new(output)
            unfinished.rename(output)
        except BaseException:
            _remove(unfinished)
            raise


def _only_writer_of(output: epath.Path) -> contextlib.AbstractContextManager:
    """A lock beside a new output; UserError says who else is writing the same."""

    def refuse(holder: str) -> None:
        raise UserError(f"{output} is being written by {holder}: wait for it, or give another output")

    if "://" in os.fspath(output):
        return contextlib.nullcontext()
    return locked(Path(output.with_name(f".{output.name}.lock")), refuse)


def _remove(path: epath.Path) -> None:
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink(missing_ok=True)
