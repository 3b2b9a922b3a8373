"""Converts checkpoints to camelid's, Hugging Face's, GGUF or PEFT's format, one tensor at a time."""

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
from ..data import checksums, hub
from ..data.locks import locked
from ..data.templates import ChatTemplate
from ..data.tokenizer import Tokenizer
from ..data.tokenizer_merging import split_of_new
from ..errors import UserError
from ..model import llama, vocabulary
from ..model.config import LlamaConfig
from . import manifest, model_card, saving, streaming
from .adapters import AdapterCheckpoint
from .checkpoint import Checkpoint, check_rows, excess, user_errors
from .interop import generation_config, gguf_files, huggingface, peft_export, tensors
from .interop.generation_config import GenerationDefaults
from .interop.tokenizer_export import save_for_transformers, with_bos
from .interop.tokenizer_gguf import gguf_fields
from .paths import absolute_path


class Contents(NamedTuple):
    """The contents of a model that is about to be written in another format."""

    config: LlamaConfig
    """The configuration of the network."""
    tokenizer: Tokenizer | None
    """The tokenizer to write; None writes none."""
    template: ChatTemplate | None
    """The chat template to write; None writes none."""
    values: Iterator[np.ndarray]
    """Every parameter, a layer at a time, in the order of `tensors.places` and the dtype of `config.param_dtype`."""
    generation: GenerationDefaults = GenerationDefaults()
    """The recommended sampling settings to write."""
    origin: Checkpoint | None = None
    """The checkpoint whose card is written with an export; None writes none."""


def contents(
    found: Checkpoint,
    *,
    dtype: str | None = None,
    template: ChatTemplate | None = None,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
) -> Contents:
    """The contents of a checkpoint, with the changes that were asked for.

    Args:
      found: the checkpoint.
      dtype: dtype of the parameters; None keeps the stored one.
      template: chat template that replaces the checkpoint's.
      tokenizer: the checkpoint's tokenizer with further ids; `vocabulary.grow_rows` makes rows for them.
      vocab_size: number of rows that embedding and head get; added rows are the mean of the others.

    Raises:
      UserError: the checkpoint is no language model, or the vocabularies do not fit each other.
    """
    if found.kind is not None:
        raise UserError(f"{found.name} holds a {found.kind}, not a language model: only language models are converted")
    config = found.config if dtype is None else found.config.replace(param_dtype=dtype)
    values, own = found.tensors(dtype), found.tokenizer
    if tokenizer is not None:
        if own is None:
            raise UserError(f"{found.name} has no tokenizer, so --tokenizer cannot extend it: leave it out")
        check_rows(own, config.vocab_size, found.name, "a first `camelid convert --vocab_size={}`")
        splits, start = split_of_new(own, tokenizer), own.vocab_size
        values = _new_rows(values, config, lambda table: vocabulary.grow_rows(table, splits, start))
        config = config.replace(vocab_size=max(config.vocab_size, start + len(splits)))
        own = tokenizer
    if vocab_size is not None:
        if vocab_size < config.vocab_size:
            rows = f"{found.name} has {config.vocab_size:,} rows"
            raise UserError(f"--vocab_size={vocab_size}: {rows}, and rows are only added: give that number or more")
        values = _new_rows(values, config, lambda table: vocabulary.pad_rows(table, vocab_size))
        config = config.replace(vocab_size=vocab_size)
    check_rows(own, config.vocab_size, found.name, "--vocab_size={}")
    return Contents(config, own, template or found.template, values, found.generation, found)


def _new_rows(
    values: Iterator[np.ndarray], config: LlamaConfig, grow: Callable[[np.ndarray], jax.Array]
) -> Iterator[np.ndarray]:
    """Yields `values`, with `grow` applied to the embedding [V, D] and to the transposed head [V, D].

    Args:
      values: every parameter, a layer at a time, in the order of `tensors.places`.
      config: the network of `values`.
      grow: adds rows to a table [V, D].
    """
    for place, value in zip(tensors.places(config, tensors.HUGGING_FACE), values, strict=True):
        if place.path == "embed/embedding":
            value = grow(jnp.asarray(value))
        if place.path == "head/kernel":
            value = grow(jnp.asarray(value).T).T
        yield np.asarray(value)


def to_peft(
    source: epath.PathLike, output: epath.PathLike, *, weights: str | None = None, base_name: str | None = None
) -> None:
    """Writes the adapters of a run as a folder in PEFT's format, with tokenizer, chat template and model card.

    Args:
      source: path of the run.
      output: a new folder.
      weights: "params" or "ema"; None takes the moving average if the run kept one.
      base_name: name of the base in the folder's config, a model on the Hub or a path; None takes the Hugging Face
        folder, or the model on the Hub with its commit, that the run was started from.

    Raises:
      UserError: the run has no adapters, or PEFT cannot express them or their base.
    """
    check_new(output)
    found = checkpoints.open(source, weights)
    if not isinstance(found, AdapterCheckpoint):
        raise UserError(f"{source} holds no adapters: give --to=huggingface, which writes whole models")
    if base_name is None and found.base.format != "huggingface":
        raise UserError(
            f"{source}: PEFT cannot load its base {found.base.path}: give --base_name, a hub's id or a folder of the "
            "base that --to=huggingface wrote"
        )
    if found.config.rope_scaling != found.base.config.rope_scaling:
        raise UserError(f"{source}: PEFT cannot express its rotary scaling: merge the adapters with --to=huggingface")
    own = jax.tree.map(np.asarray, found.load_adapters(llama.build(found.config).abstract_params))
    with new_output(output) as unfinished:
        on_hub = hub.Snapshot.of(found.base.path) if base_name is None else None
        base = found.base.name if on_hub else base_name or str(found.base.path)
        revision = on_hub and on_hub.commit
        with user_errors():
            peft_export.write_folder(unfinished, found.lora, own, found.config, base=base, revision=revision)
        if found.tokenizer is not None:
            save_for_transformers(found.tokenizer, found.template, unfinished)
            _write_generation_config(unfinished, found)
        _write_card(unfinished, found, epath.Path(output).name, adapters=True, base_name=base)


def to_camelid(source: epath.PathLike, output: epath.PathLike, **options: Any) -> None:
    """Writes the model at `source` as a run directory with one checkpoint. `options` are those of `open_contents`."""
    with new_output(output) as unfinished:
        found, described = open_contents(source, **options)
        write_camelid(unfinished, found, {"origin": described})


def open_contents(
    source: epath.PathLike, *, weights: str | None = None, base: epath.PathLike | None = None, **options: Any
) -> tuple[Contents, dict[str, Any]]:
    """Opens the model at a path in order to write it in another format.

    Args:
      source: the path.
      weights: "params" or "ema"; None takes the moving average if the run kept one.
      base: path of the base model for adapters; None takes the base that they name.
      **options: those of `contents`.

    Returns:
      The contents, and the checkpoint's description for the manifest.
    """
    found = checkpoints.open(source, weights, base=base)
    described = found.description
    if base is not None:
        described = described | {"base": found.base.description}
    return contents(found, **options), described


def write_camelid(
    output: epath.Path, found: Contents, more: dict[str, Any], *, dtype: str | np.dtype | None = None
) -> None:
    """Writes contents as a run directory with one checkpoint.

    Args:
      output: the directory.
      found: what is written.
      more: further entries of the manifest.
      dtype: dtype of the arrays; None takes the dtype of the network's parameters.
    """
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
    """Writes a model as a folder of transformers' `save_pretrained`, with tokenizer, chat template and model card.

    Args:
      source: path of the model.
      output: a new folder.
      max_file_bytes: upper bound of one safetensors file, in bytes.
      **options: those of `open_contents`.
    """
    with new_output(output) as unfinished:
        found, _ = open_contents(source, **options)
        write_huggingface(unfinished, found, max_file_bytes)
        _write_card(unfinished, found.origin, epath.Path(output).name, dtype=found.config.param_dtype)


def write_huggingface(output: epath.Path, found: Contents, max_file_bytes: int = 5_000_000_000) -> None:
    """Writes contents into a folder in Hugging Face's format, in files of at most about `max_file_bytes` bytes."""
    more = {}
    if found.tokenizer is not None:  # transformers assumes LLaMA's ids where the config leaves them out
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
        _write_generation_config(output, found)


def _write_card(folder: epath.Path, found: Checkpoint, name: str, **options: Any) -> None:
    """Writes the model card of an export. `name` is that of the export, `options` are those of `model_card`."""
    (folder / model_card.FILE).write_text(model_card.model_card(found, name, **options))


def _write_generation_config(folder: epath.Path, found: Contents | Checkpoint) -> None:
    """Writes the ids that end an answer and the recommended sampling settings, as transformers reads them."""
    said = generation_config.write_config(found.generation, found.tokenizer.bos_id, _stops(found))
    (folder / generation_config.FILE).write_text(json.dumps(said, indent=2))


def _stops(found: Contents | Checkpoint) -> list[int]:
    """The ids that end an answer: end of text, the chat template's end of a turn, and the model's own stop ids."""
    return sorted({found.tokenizer.eos_id, *_turn_ends(found), *found.generation.stop_ids})


def _turn_ends(found: Contents | Checkpoint) -> tuple[int, ...]:
    return found.template.stop_ids(found.tokenizer) if found.template is not None else ()


def to_gguf(source: epath.PathLike, output: epath.PathLike, *, encoding: str | None = None, **options: Any) -> None:
    """Writes a model as a GGUF file with tokenizer and chat template.

    Args:
      source: path of the model.
      output: a new file.
      encoding: encoding of matrices, one of `gguf_files.ENCODINGS`; None takes that of the parameters' dtype.
      **options: those of `open_contents`.
    """
    check_new(output)
    found, _ = open_contents(source, **options)
    encoding = encoding or {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[found.config.param_dtype]
    fields = gguf_fields(found.tokenizer, found.config.vocab_size) if found.tokenizer is not None else {}
    if found.tokenizer is not None and found.template is not None:
        fields["tokenizer.chat_template"] = with_bos(found.template, found.tokenizer)
    if found.tokenizer is not None:
        fields |= generation_config.gguf_fields(found.generation, found.tokenizer.eos_id, _turn_ends(found))
    fields |= model_card.gguf_fields(found.origin)
    name = epath.Path(source).name
    with new_output(output) as unfinished:
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
    """Returns `value` if the encoding can hold its numbers; all encodings but F32 and BF16 have float16 in them.

    Args:
      encoding: of matrices in the GGUF file.
      place: the tensor's place in the network, for its name.
      value: the tensor.
      where: name of the model, for the message.

    Raises:
      UserError: a number is too large for float16.
    """
    if encoding not in ("F32", "BF16") and value.ndim > 1:
        largest = np.abs(value.astype(np.float32)).max(initial=0)
        if not largest <= np.finfo(np.float16).max:
            said = f"{place.name} {excess(value)}"
            raise UserError(f"{where}: {said}, which {encoding} cannot hold: give --encoding=BF16 or F32")
    return value


def check_new(path: epath.PathLike) -> epath.Path:
    """The absolute path of a new output. Raises UserError if it exists."""
    path = absolute_path(path)
    if path.exists() or os.path.islink(path):
        raise UserError(f"{path} exists already: give another output, or move it away")
    return path


@contextlib.contextmanager
def new_output(output: epath.PathLike) -> Iterator[epath.Path]:
    """Gives a temporary path at which to write a new output.

    At the end it is renamed to `output`; after an error it is removed, so a part of an output never has its name.

    Raises:
      UserError: `output` exists, or another process is writing it.
    """
    output = check_new(output)
    unfinished = output.with_name(f"{output.name}.unfinished")
    with _only_writer_of(output):
        _remove(unfinished)  # left by a process that was killed
        try:
            with checksums.writing(output):
                yield unfinished
            check_new(output)
            unfinished.rename(output)
        except BaseException:
            _remove(unfinished)
            raise


def _only_writer_of(output: epath.Path) -> contextlib.AbstractContextManager:
    """A lock file beside a new output. Raises UserError, with the process that holds it, if another one is writing."""

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
