"""Where parameters come from: a run or checkpoint of camelid's, or somebody else's files, read in place.

Everything that starts from a path asks here, so a Hugging Face folder, Meta's folder or a GGUF file may stand wherever
a run directory may. What is not camelid's is described as if it were: a manifest, a tokenizer, a template, parameters.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from ..data.templates import ChatTemplate
from ..data.tokenizer import HUGGINGFACE_FILE, SENTENCEPIECE_FILE, Tokenizer
from ..errors import UserError
from ..model import llama, lora, storage
from ..model.config import LlamaConfig
from ..model.lora import Lora
from ..model.sharding import part_sharding, path_name
from ..model.storage import Rules
from ..model.weights import join, matrix_of, without
from . import manifest, reading
from .console import tell
from .interop import generation_config, gguf_files, huggingface, meta, peft, tensors
from .interop.generation_config import GenerationDefaults
from .interop.grown import with_rows
from .interop.headers import absent, is_named
from .interop.tokenizer_gguf import tokenizer_files


class Foreign(NamedTuple):
    """A checkpoint that is not camelid's: its tensors, tokenizer and chat template (None where it has none)."""

    format: str
    source: tensors.Source
    tokenizer: Tokenizer | None
    template: ChatTemplate | None
    generation: GenerationDefaults = GenerationDefaults()


Stamp = tuple[tuple[str, int, int], ...]


def _stamp(path: str) -> Stamp:
    """Name, size and time of a file, or of each in a folder: what is kept of them in memory holds as long as these."""
    where = pathlib.Path(path)
    files = sorted(where.iterdir()) if where.is_dir() else [where] if where.is_file() else []
    found = [(file.name, file.stat() if file.exists() else file.lstat()) for file in files]  # links may lead nowhere
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def is_foreign(path: epath.PathLike) -> bool:
    """Whether `path` is a Hugging Face or Meta folder or a GGUF file."""
    path = _expand(path)
    return gguf_files.is_file(path) or huggingface.is_folder(path) or meta.is_folder(path)


def is_peft(path: epath.PathLike) -> bool:
    """Whether `path` is a folder with adapters in PEFT's format."""
    return peft.is_folder(_expand(path))


def open_foreign(path: epath.PathLike) -> Foreign:
    """Opens and checks somebody else's checkpoint; its tensors stay on disk. UserError says what does not fit."""
    where = str(_expand(path))
    return _open(where, _stamp(where))


@functools.lru_cache(maxsize=4)
def _open(path: str, stamp: Stamp) -> Foreign:
    del stamp
    with _mendable():
        where = epath.Path(path)
        if gguf_files.is_file(where):
            found = _gguf(where)
        elif huggingface.is_folder(where):
            found = _huggingface(where)
        else:
            found = _meta(where)
    return found


def check_rows(tokenizer: Tokenizer | None, rows: int, path: epath.PathLike, remedy: str) -> None:
    """Raises UserError where a tokenizer has ids for which an embedding of `rows` has no row. remedy: what gives rows
    to them, `{}` standing for how many."""
    ids = tokenizer.vocab_size if tokenizer is not None else 0
    if ids <= rows:
        return
    pieces = [tokenizer.piece(i) for i in range(rows, ids) if tokenizer.piece(i)]
    named = ", ".join(map(repr, pieces[:3])) + (", ..." if pieces[3:] else "")
    raise UserError(
        f"{path}: the tokenizer has {ids:,} ids, the embedding {rows:,} rows, none for {named}: {remedy.format(ids)} "
        "adds rows, each the mean of the others"
    )


def _gguf(path: epath.Path) -> Foreign:
    if not path.is_file():
        raise UserError(absent(path))
    source = gguf_files.open_file(path)
    fields = source.extra["fields"]
    without = fields.get("tokenizer.ggml.model", "none") in ("none", "no_vocab")  # llama.cpp's words for no tokenizer
    tokenizer = None if without else Tokenizer(tokenizer_files(fields, str(path)), str(path))
    defaults = generation_config.read_gguf(fields, str(path), source.config.vocab_size)
    return Foreign("gguf", source, tokenizer, _own_template(tokenizer, path.stem), defaults)


def _huggingface(path: epath.Path) -> Foreign:
    source = huggingface.open_folder(path)
    tokenizer = _tokenizer_in(path)
    defaults = generation_config.read_folder(path, source.config.vocab_size)
    return Foreign("huggingface", source, tokenizer, _own_template(tokenizer, path.name), defaults)


def _meta(path: epath.Path) -> Foreign:
    """LLaMA 1's tokenizer lies one folder above its sizes."""
    source = meta.open_folder(path)
    found = [folder / SENTENCEPIECE_FILE for folder in (path, path.parent) if is_named(folder / SENTENCEPIECE_FILE)]
    return Foreign("meta", source, Tokenizer.load(found[0]) if found else None, None)


def _tokenizer_in(folder: epath.Path) -> Tokenizer | None:
    files = (folder / HUGGINGFACE_FILE, folder / SENTENCEPIECE_FILE)
    return Tokenizer.load(folder) if any(map(is_named, files)) else None


def _own_template(tokenizer: Tokenizer | None, name: str) -> ChatTemplate | None:
    if tokenizer is None or tokenizer.chat_template is None:
        return None
    return ChatTemplate(name, tokenizer.chat_template)


# The same questions to either kind ------------------------------------------------------------------------------------


def read_manifest(path: epath.PathLike) -> dict:
    """The manifest of a run or checkpoint, or one that says as much of foreign files."""
    if is_peft(path):
        stored = stored_adapter(path)
        described = stored._asdict() | {"lora": dataclasses.asdict(stored.lora)}
        return read_manifest(stored.path) | {
            "tokenizer": manifest.describe_tokenizer(load_tokenizer(path)),
            "template": _describe_template(load_template(path)),
            "step": None,
            "adapter": described,
        }
    if not is_foreign(path):
        return reading.read_manifest(path)
    found = open_foreign(path)
    return {
        "model": found.source.config.to_dict(),
        "tokenizer": manifest.describe_tokenizer(found.tokenizer),
        "template": _describe_template(found.template),
        "generation": found.generation.to_dict(),
        "step": None,
    }


def _describe_template(template: ChatTemplate | None) -> dict[str, Any] | None:
    return template and {"name": template.name, "source": template.source}


def describe(path: epath.PathLike, base: epath.PathLike | None = None) -> dict[str, Any]:
    """What a model that is made from `path` says of it: path, format, and step, or name, size and SHA-256 of each file.

    All of foreign files is read for that; a manifest does without. base: of adapters that were put on another than
    they name, which is described too.
    """
    if base is not None:
        return describe(path) | {"base": describe(base)}
    if is_peft(path):
        files = [_expand(path) / peft.CONFIG, peft.weight_file(_expand(path))]
        return {"path": absolute(path), "format": "peft", "files": _file_records(files)}
    if not is_foreign(path):
        return {"path": absolute(path), "format": "camelid", "step": reading.read_manifest(path)["step"]}
    found = open_foreign(path)
    return {"path": absolute(path), "format": found.format, "files": _file_records(found.source.files)}


def _file_records(files: Iterable[epath.Path]) -> list[dict[str, Any]]:
    return [_file_record(str(file), _stamp(str(file))) for file in files]


@functools.lru_cache(maxsize=1024)  # more than the files of any model: they are asked for in turn
def _file_record(path: str, stamp: Stamp) -> dict[str, Any]:
    del stamp
    file = epath.Path(path)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"name": file.name, "size": file.stat().length, "sha256": digest}


def identity(path: epath.PathLike) -> list:
    """What tells whether `path` still holds the same: its step and the hash of its checksums (none for checkpoints of
    versions without them), or the hashes of foreign files."""
    described = describe(path)
    hashes = [file["sha256"] for file in described.get("files", ())]
    if described["format"] == "camelid":
        hashes = [digest] if (digest := reading.digest(path)) else []
    return [described["path"], described.get("step"), *hashes]


def choose_weights(path: epath.PathLike, asked: str | None = None) -> str:
    """Which parameters of `path` a reader takes who asked for "params" or "ema", or for neither (None): then the moving
    average of a run that kept one, which is what its evaluations measured. The choice is told.
    """
    ours = not (is_foreign(path) or is_peft(path))
    kept = ours and reading.read_manifest(path)["config"].get("ema_decay") is not None
    if asked is not None and asked not in ("params", "ema"):
        raise UserError(f"weights {asked!r}: give params or ema")
    if asked == "ema" and not kept:
        raise UserError(f"{path} has no 'ema', only params: its run kept no moving average")
    if not kept:
        return "params"
    chosen, other = (asked, "ema" if asked == "params" else "params") if asked else ("ema", "params")
    names = {"ema": "the moving average of its parameters (ema)", "params": "the parameters of its last step (params)"}
    _tell_once(f"{path}: {names[chosen]}, not {names[other]}")
    return chosen


_tell_once = functools.lru_cache(maxsize=1024)(tell)


def load_tokenizer(path: epath.PathLike) -> Tokenizer | None:
    """The tokenizer that belongs to a model; None where it has none. Adapters may have their own or their base's."""
    if is_peft(path):
        return own_tokenizer(path) or load_tokenizer(stored_adapter(path).path)
    return open_foreign(path).tokenizer if is_foreign(path) else reading.load_tokenizer(path)


def tokenizer_at(path: epath.PathLike) -> Tokenizer:
    """A tokenizer's own file or folder, or that of a model. UserError where there is neither."""
    folder = _expand(path)
    is_run = (folder / "checkpoints").exists() or (folder / reading.ORBAX_FILE).exists()
    if not (is_run or is_foreign(path) or is_peft(path)):
        return Tokenizer.load(folder)
    tokenizer = load_tokenizer(path)
    if tokenizer is None:
        raise UserError(f"{path}: a model without a tokenizer")
    return tokenizer


def load_template(path: epath.PathLike) -> ChatTemplate | None:
    """The chat template that belongs to a model; None where it has none. Adapters may have one of their own."""
    if is_peft(path):
        return own_template(path) or load_template(stored_adapter(path).path)
    if is_foreign(path):
        return open_foreign(path).template
    stored = reading.read_manifest(path)["template"]
    return stored and ChatTemplate(**stored)


def own_tokenizer(path: epath.PathLike) -> Tokenizer | None:
    """The tokenizer that adapters bring along; None where they take their base's."""
    return _tokenizer_in(_expand(path)) if is_peft(path) else load_tokenizer(path)


def own_template(path: epath.PathLike) -> ChatTemplate | None:
    """The chat template that adapters bring along; None where they take their base's."""
    if not is_peft(path):
        return load_template(path)
    return _own_template(_tokenizer_in(_expand(path)), _expand(path).name)


def load_generation(path: epath.PathLike) -> GenerationDefaults:
    """What a model says of how its answers are drawn and what ends them. A run says what the model it began with
    said."""
    return GenerationDefaults.from_dict(read_manifest(path).get("generation", {}))


def load_config(path: epath.PathLike) -> LlamaConfig:
    """The network of a model."""
    if is_peft(path):
        return load_config(stored_adapter(path).path)
    if is_foreign(path):
        return open_foreign(path).source.config
    return LlamaConfig.from_dict(reading.read_manifest(path)["model"])


def load_params(
    path: epath.PathLike, abstract: Any, *, name: str = "params", some: bool = False, quantize: Rules | None = None
) -> Any:
    """Parameters in the shapes, dtypes and shardings of `abstract`; `name` and `some` as in `reading.load_params`.

    Of somebody else's files, rows of embedding and head that are asked for beyond theirs are the mean of theirs.

    quantize: as `interop.tensors.load_params` takes it. Of a run that trained adapters it is the base with the adapters
    merged into it, or, where it is quantised, on it.
    """
    adapter = stored_adapter(path)
    if adapter is not None:
        kept = quantize or adapter.quantize
        stays = lora.base_of(adapter.lora, abstract)
        base = load_params(adapter.path, stays, name=adapter.weights, some=True, quantize=kept)
        adapted = join(load_adapters(path, abstract, name=name), base)
        if quantize is not None:
            return adapted
        where = jax.tree.map(lambda x: x.sharding, abstract)
        return jax.jit(lambda tree: storage.plain(tree, abstract), out_shardings=where)(adapted)
    if is_foreign(path):
        if name != "params":
            raise UserError(f"{path} has no {name!r}, only params: it is no checkpoint of camelid's")
        with _mendable():
            return tensors.load_params(with_rows(open_foreign(path).source, _rows(abstract)), abstract, quantize)
    if quantize is None:
        return reading.load_params(path, abstract, name=name, some=some)
    return _load_quantized(reading.find(path), abstract, reading.params_inside(path, name), quantize)


def _rows(abstract: Any) -> int:
    """The ids that embedding or head have rows for, of those that are asked for."""
    table, head = abstract.get("embed", {}).get("embedding"), abstract.get("head", {}).get("kernel")
    return max(0 if table is None else table.shape[0], 0 if head is None else head.shape[-1])


def _load_quantized(path: epath.Path, abstract: Any, inside: list[str], quantize: Rules) -> Any:
    """Parameter after parameter, so that one at a time is in memory plain."""

    def leaf(key_path, asked):
        place = path_name(key_path)
        plain = reading.load_part(path, asked, [*inside, *place.split("/")])
        kind = storage.kind_at(quantize, place)
        if kind in (None, storage.STORED):
            return plain
        return jax.jit(storage.encode, static_argnums=(0, 1))(kind, place, plain)

    with _mendable():
        return jax.tree_util.tree_map_with_path(leaf, abstract)


def load_trunk(path: epath.PathLike, abstract: Any, weights: str) -> Any:
    """`load_params` for the network without its heads, which the checkpoint may or may not have."""
    return load_params(path, abstract, name=weights, some=True)


# Adapters -------------------------------------------------------------------------------------------------------------


class StoredAdapter(NamedTuple):
    """What a run that trained adapters says of them. path, identity: of the base they were put on. quantize: how that
    was stored. weights: which of its parameters were taken."""

    path: str
    identity: list
    lora: Lora
    quantize: Rules | None = None
    weights: str = "params"


def stored_adapter(path: epath.PathLike, base: epath.PathLike | None = None) -> StoredAdapter | None:
    """The adapters that a run's checkpoints hold instead of whole networks; None where they hold these. base: the model
    that adapters are put on, in place of the one that they name."""
    if is_peft(path):
        base, found, _ = _open_peft(path, base)
        return StoredAdapter(base, identity(base), found, weights=choose_weights(base))
    described = None if is_foreign(path) else reading.read_manifest(path).get("adapter")
    if described is None:
        return None
    stored = StoredAdapter(**described | {"lora": Lora(**described["lora"])})
    if base is None:
        return stored
    return stored._replace(path=absolute(base), identity=identity(base), weights=choose_weights(base))


def _open_peft(path: epath.PathLike, base: epath.PathLike | None = None) -> tuple[str, Lora, dict[str, Any]]:
    """What a PEFT folder holds: its base's path, where adapters are put, and their tree of numpy arrays."""
    with _mendable():
        folder = epath.Path(absolute(path))
        if base is not None and not _expand(base).exists():
            raise UserError(f"base {base}: no such path")
        named = peft.base_name(folder) if base is None else base
        if not isinstance(named, str | os.PathLike) or not named or not epath.Path(named).expanduser().exists():
            raise UserError(
                f"{folder / peft.CONFIG}: its base is {named!r:.200}, which is no path here: give --base=PATH to "
                "convert, chat, generate or eval, or put the path into base_model_name_or_path"
            )
        where = absolute(named)
        return where, *_read_peft(str(folder), _stamp(str(folder)), where, _stamp(where), load_config(where))


@functools.lru_cache(maxsize=4)
def _read_peft(
    path: str, stamp: Stamp, base: str, base_stamp: Stamp, config: LlamaConfig
) -> tuple[Lora, dict[str, Any]]:
    del stamp, base_stamp
    return peft.read_folder(epath.Path(path), config, lambda matrix, layer: _base_part(base, matrix, layer))


def _base_part(path: str, matrix: str, layer: int | None) -> np.ndarray:
    """A matrix of the model at a path, or one of its layers."""
    if is_foreign(path):
        source = open_foreign(path).source
        places = {(place.path, place.layer): place for place in tensors.places(source.config, source.naming)}
        place = places[matrix, layer]
        return tensors.read_part(source, place, tuple(slice(None) for _ in place.shape))
    names = matrix.split("/")
    whole = llama.build(load_config(path)).abstract_params
    asked = functools.reduce(lambda tree, name: {name: tree}, names[::-1], _leaf(whole, names))
    found = load_params(path, whole if stored_adapter(path) else asked, some=True)
    return np.asarray(_leaf(found, names) if layer is None else _leaf(found, names)[layer])


def _leaf(tree: Any, names: Sequence[str]) -> Any:
    return functools.reduce(lambda node, name: node[name], names, tree)


def put_on(path: epath.PathLike, abstract: Any, config: LlamaConfig, base: peft.Base) -> tuple[Lora, Any]:
    """The adapters at `path` for a network of `config` that is in memory, whatever base they name: where they are put,
    and their tree, laid out as `abstract`. base: as `peft.read_folder` takes it. UserError where they do not fit."""
    with _mendable():
        if is_peft(path):
            found, own = peft.read_folder(epath.Path(absolute(path)), config, base)
            return found, _laid_out(own, _asked(found, abstract), abstract)
    stored = stored_adapter(path)
    if stored is None:
        raise UserError(f"{path} holds whole networks and no adapters: camelid.load reads it")
    theirs = llama.build(LlamaConfig.from_dict(reading.read_manifest(path)["model"])).abstract_params
    if jax.tree.map(jnp.shape, theirs) != jax.tree.map(jnp.shape, abstract):
        raise UserError(f"{path} has adapters for {stored.path}, whose matrices have other shapes than these")
    return stored.lora, load_adapters(path, abstract, name=choose_weights(path))


def _asked(found: Lora, abstract: Any) -> Any:
    """Shapes of what a run with such adapters trains."""
    everything = jax.eval_shape(lambda tree: lora.adapt(found, tree, abstract, jax.random.key(0)), abstract)
    return without(everything, lora.base_of(found, abstract))


def _laid_out(own: Any, asked: Any, abstract: Any) -> Any:
    """Numpy arrays in the dtypes of `asked`, laid out as the matrices of `abstract` are."""
    placed = _placed_like(asked, abstract)
    return jax.tree.map(lambda x, to: jax.device_put(x.astype(to.dtype), to.sharding), own, placed)


def load_adapters(
    path: epath.PathLike,
    abstract: Any,
    *,
    name: str = "params",
    score: Any = None,
    base: epath.PathLike | None = None,
) -> Any:
    """What a run with adapters trained, without the base. abstract: the network's plain tree, for shapes and places.
    base: as `stored_adapter` takes it.

    score: the head for numbers that is given where `abstract` asks for one and the run trained a language model.
    """
    stored = stored_adapter(path, base)
    asked = _asked(stored.lora, abstract)
    if is_peft(path):
        return _laid_out(_open_peft(path, base)[2], asked, abstract)
    ours = {} if reading.read_manifest(path).get("kind") == "scalar" or "score" not in asked else {"score": score}
    asked = _placed_like({key: part for key, part in asked.items() if key not in ours}, abstract)
    return reading.load_part(path, asked, reading.params_inside(path, name), some=True) | ours


def _placed_like(parts: Any, abstract: Any) -> Any:
    """Shapes of parts of matrices, laid out as the matrices are."""
    plain = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}

    def one(key_path, leaf):
        matrix, names = matrix_of(path_name(key_path))
        where = plain[matrix].sharding
        if names and isinstance(where, NamedSharding):
            where = part_sharding(where, matrix, names, leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree_util.tree_map_with_path(one, parts)


def absolute(path: epath.PathLike) -> str:
    """A path that means the same wherever a later run is started from."""
    path = _expand(path)
    return str(path if path.is_absolute() else path.resolve())


def _expand(path: epath.PathLike) -> epath.Path:
    return epath.Path(path).expanduser()


@contextlib.contextmanager
def _mendable() -> Iterator[None]:
    """What `model/` refuses is the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None
