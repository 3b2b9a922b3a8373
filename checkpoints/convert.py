"""Checkpoints from one format into another, tensor after tensor: into camelid's, Hugging Face's or GGUF."""

import contextlib
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

from .. import checkpoints
from ..data import checksums
from ..data.locks import locked
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..data.tokenizer_merging import split_of_new
from ..errors import UserError
from ..model import llama, vocabulary
from ..model.config import LlamaConfig
from . import manifest, saving, streaming
from .adapters import AdapterCheckpoint
from .checkpoint import Checkpoint, check_rows, excess, user_errors
from .interop import generation_config, gguf_files, huggingface, peft_export, tensors
from .interop.generation_config import GenerationDefaults
from .interop.tokenizer_export import save_for_transformers, with_bos
from .interop.tokenizer_gguf import gguf_fields
from .paths import absolute_path


class Contents(NamedTuple):
    """A model on its way into another format."""

    config: LlamaConfig
    tokenizer: Tokenizer | None
    template: ChatTemplate | None
    values: Iterator[np.ndarray]
    """Every parameter, a layer at a time, in the order of `tensors.places` and the dtype of `config.param_dtype`."""
    generation: GenerationDefaults = GenerationDefaults()


def contents(
    found: Checkpoint,
    *,
    dtype: str | None = None,
    template: ChatTemplate | None = None,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
) -> Contents:
    """A checkpoint as something to write.

    Args:
      found: the checkpoint.
      dtype: of its parameters. Default: as stored.
      template: a chat template in place of its own.
      tokenizer: its own with further ids, for which embedding and head get rows (`vocabulary.grow_rows`).
      vocab_size: rows that embedding and head get in all; those that no token was made from others for are the mean.
    """
    if found.kind is not None:
        raise UserError(f"{found.name}: holds a {found.kind}, and no language model")
    config = found.config if dtype is None else found.config.replace(param_dtype=dtype)
    values, own = found.tensors(dtype), found.tokenizer
    if tokenizer is not None:
        if own is None:
            raise UserError(f"{found.name} has no tokenizer that {tokenizer.fingerprint[:8]} could be compared with")
        check_rows(own, config.vocab_size, found.name, "a first `camelid convert --vocab_size={}`")
        splits, start = split_of_new(own, tokenizer), own.vocab_size
        values = _new_rows(values, config, lambda table: vocabulary.grow_rows(table, splits, start))
        config = config.replace(vocab_size=max(config.vocab_size, start + len(splits)))
        own = tokenizer
    if vocab_size is not None:
        if vocab_size < config.vocab_size:
            rows = f"{found.name} has {config.vocab_size:,} rows"
            raise UserError(f"--vocab_size={vocab_size}: {rows}; none are taken away")
        values = _new_rows(values, config, lambda table: vocabulary.pad_rows(table, vocab_size))
        config = config.replace(vocab_size=vocab_size)
    check_rows(own, config.vocab_size, found.name, "--vocab_size={}")
    return Contents(config, own, template or found.template, values, found.generation)


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


def to_peft(
    source: epath.PathLike, output: epath.PathLike, *, weights: str | None = None, base_name: str | None = None
) -> None:
    """Writes the adapters of a run as a PEFT folder, with tokenizer and chat template.

    base_name: what the folder's config calls the base, a hub's id or a path. Default: the folder of Hugging Face's that
    the run was started from.
    """
    check_new(output)
    found = checkpoints.open(source, weights)
    if not isinstance(found, AdapterCheckpoint):
        raise UserError(f"{source}: its checkpoints hold no adapters; --to=huggingface writes whole models")
    if base_name is None and found.base.format != "huggingface":
        raise UserError(
            f"{source}: its base {found.base.path} is no folder that PEFT can load: give --base_name, a hub's id or a "
            "folder that --to=huggingface has written of it"
        )
    if found.config.rope_scaling != found.base.config.rope_scaling:
        raise UserError(f"{source}: its positions are stretched, which PEFT cannot say; merge it, --to=huggingface")
    own = jax.tree.map(np.asarray, found.load_adapters(llama.build(found.config).abstract_params))
    with whole(output) as unfinished:
        base = str(found.base.path) if base_name is None else base_name
        with user_errors():
            peft_export.write_folder(unfinished, found.lora, own, found.config, base=base)
        if found.tokenizer is not None:
            save_for_transformers(found.tokenizer, found.template, unfinished)


def to_camelid(source: epath.PathLike, output: epath.PathLike, **options: Any) -> None:
    """Writes a run directory with one checkpoint. options: those of `opened`."""
    with whole(output) as unfinished:
        found, described = opened(source, **options)
        write_camelid(unfinished, found, {"origin": described})


def opened(
    source: epath.PathLike, *, weights: str | None = None, base: epath.PathLike | None = None, **options: Any
) -> tuple[Contents, dict[str, Any]]:
    """The contents of the model at a path, and its description. options: those of `contents`."""
    found = checkpoints.open(source, weights, base=base)
    described = found.description
    if base is not None:
        described = described | {"base": found.base.description}
    return contents(found, **options), described


def write_camelid(
    output: epath.Path, found: Contents, more: dict[str, Any], *, dtype: str | np.dtype | None = None
) -> None:
    """Writes contents as a run directory. more: further entries of its manifest. dtype: of the arrays, where it is not
    that of the network's parameters."""
    described = {
        "config": {},
        "tokenizer": manifest.describe_tokenizer(found.tokenizer),
        "template": manifest.describe_template(found.template),
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
        write_huggingface(unfinished, opened(source, **options)[0], max_file_bytes)


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
    with user_errors():
        huggingface.write_folder(output, found.config, values, max_file_bytes=max_file_bytes, **more)
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
    found, _ = opened(source, **options)
    encoding = encoding or {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[found.config.param_dtype]
    fields = gguf_fields(found.tokenizer, found.config.vocab_size) if found.tokenizer is not None else {}
    if found.tokenizer is not None and found.template is not None:
        fields["tokenizer.chat_template"] = with_bos(found.template, found.tokenizer)
    if found.tokenizer is not None:
        fields |= generation_config.gguf_fields(found.generation, found.tokenizer.eos_id, _turn_ends(found))
    name = epath.Path(source).name
    with whole(output) as unfinished:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        with user_errors():
            naming = gguf_files.naming_of(found.config)
            places = tensors.places(found.config, naming)
            values = (
                _fitting(encoding, place, tensors.write_part(naming, place, value), str(source))
                for place, value in zip(places, found.values, strict=True)
            )
            gguf_files.write_file(unfinished, found.config, values, encoding=encoding, fields=fields, name=name)


def _fitting(encoding: str, place: tensors.Place, value: np.ndarray, where: str) -> np.ndarray:
    """A tensor that GGUF's encodings of matrices can hold: all but two have scales, or numbers, in float16."""
    if encoding not in ("F32", "BF16") and value.ndim > 1:
        largest = np.abs(value.astype(np.float32)).max(initial=0)
        if not largest <= np.finfo(np.float16).max:
            said = f"{place.name} {excess(value)}"
            raise UserError(f"{where}: {said}, which {encoding} cannot hold: give --encoding=BF16 or F32")
    return value


def check_new(path: epath.PathLike) -> epath.Path:
    """The whole path of an output. Raises UserError where there is something already."""
    path = absolute_path(path)
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
