"""Reads low-rank adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors` or `.bin`."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from ...data import hub
from ...model.config import LlamaConfig
from ...model.lora import Lora
from ...model.weights import input_axes, is_stacked, split_axes
from . import peft_config
from .families import IN_HUGGING_FACE, family_in
from .headers import exists_or_broken_link, missing_message
from .huggingface import HEAD, TABLE, unwrapped
from .peft_config import CONFIG, AdapterConfig
from .tensors import SHOWN, Naming, Place, is_matrix, places, shapes_there
from .weight_files import open_tensors

WEIGHTS, TORCH_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
DTYPES = ("F64", "F32", "F16", "BF16")

Base = Callable[[str, int | None], np.ndarray]
"""base(path, layer) returns one of the base's matrices, or one layer of it, in camelid's layout."""

PARTS = {
    "a": ".lora_A.weight",
    "b": ".lora_B.weight",
    "magnitude": ".lora_magnitude_vector",
    "table_a": ".lora_embedding_A",
    "table_b": ".lora_embedding_B",
    "rows": ".token_adapter.trainable_tokens_delta",
    "copy": ".base_layer.weight",
}
"""Our names of the tensors that PEFT stores for a module, and the suffixes of theirs. "rows" are the trained rows of an
embedding, "copy" is the untrained matrix of the base."""

OF_OUTPUTS = ("b", "magnitude", "whole", "copy")
"""The tensors that have a row for each output of the module. "whole" is a matrix that was trained whole."""

Found = dict[str, np.ndarray]
"""The tensors that a file holds for one module, by the names of `PARTS` and "whole"."""


def naming_of(config: LlamaConfig) -> Naming:
    """transformers' names of a network's tensors. Raises ValueError if transformers has no such network."""
    return IN_HUGGING_FACE[family_in(IN_HUGGING_FACE, config, "transformers")].naming


def is_folder(path: epath.Path) -> bool:
    """Whether a path is a folder in PEFT's format."""
    return exists_or_broken_link(path / CONFIG)


def weight_file(path: epath.Path) -> epath.Path:
    """The file of the adapters in a folder. Raises ValueError if there is none."""
    for name in (WEIGHTS, TORCH_WEIGHTS):
        if (path / name).exists():
            return path / name
        if os.path.islink(path / name):
            raise ValueError(missing_message(path / name))
    raise ValueError(f"{path} has neither {WEIGHTS} nor {TORCH_WEIGHTS}")


def base_name(path: epath.PathLike) -> str | None:
    """The base model that a folder's config names: a path, or the name of a model on the Hugging Face Hub with the
    revision that the config names; None if it names none."""
    fields = peft_config.read(epath.Path(path)).fields
    named, revision = fields.get("base_model_name_or_path"), fields.get("revision")
    is_on_hub = isinstance(named, str) and isinstance(revision, str) and hub.name_of(named) is not None
    return f"{named}@{revision}" if is_on_hub and "@" not in named else named


def read_folder(path: epath.PathLike, config: LlamaConfig, base: Base | None = None) -> tuple[Lora, dict[str, Any]]:
    """Reads the adapters in a folder.

    Layers without adapters get adapters of zeros, which compute and learn nothing. The adapter of a matrix that joins
    several of camelid's (Phi-3's qkv_proj) becomes one adapter for each, with an `a` of its own. An embedding with
    adapters or with some trained rows becomes one that was trained whole.

    Args:
      path: the folder.
      config: the network of the base.
      base: returns the base's matrices. It is needed for an embedding that was not trained whole, and for the DoRA
        magnitudes of layers without adapters.

    Returns:
      Which matrices have adapters, and the tree of trained arrays as `weights.join` puts it on the base.

    Raises:
      ValueError: a tensor does not fit the network, tensors and config disagree about what was trained, or the file
        holds a copy of another base.
    """
    path = epath.Path(path)
    said, file = peft_config.read(path), weight_file(path)
    naming = naming_of(config)
    tensors = _Tensors(file, shapes_there(config, naming))
    layers: dict[str, list[tuple[Place, Found]]] = {}
    for place in places(config, naming):
        layers.setdefault(place.path, []).append((place, tensors.take(place)))
    own: dict[str, Any] = {}
    if config.tied:
        _read_tied(layers.pop("embed/embedding")[0], tensors, said, base, own)
    elif layers["embed/embedding"][0][1]:
        place, found = layers["embed/embedding"][0]
        layers["embed/embedding"] = [(place, {"whole": _table(place, found, tensors, said, base)})]
    tensors.check_nothing_left()
    targets, whole = [], ["embed/embedding"] if own else []
    for ours, parts in layers.items():
        for place, found in parts:
            _check_asked_for(place, found, said, str(file))
            _check_copy(place, found.pop("copy", None), base, str(file))
        if not any(found for _, found in parts):
            continue
        if any("whole" in found for _, found in parts):
            if not all("whole" in found for _, found in parts):
                raise ValueError(f"{file}: {ours} is trained whole in some layers only")
            whole.append(ours)
            _set_leaf(own, ours, _stack(ours, [found["whole"] for _, found in parts]))
            continue
        rank = max(found["a"].shape[-1] for _, found in parts if found)
        targets.append((re.escape(ours), rank))
        stacked = _stack_adapters(ours, rank, parts, said, base)
        gains = np.array([said.scale(module_of(place)) for place, _ in parts], np.float32)
        _set_leaf(own, ours, stacked | {"gain": gains.reshape(split_axes(ours, stacked["a"].shape)[0])})
    lora = Lora(
        targets=tuple(targets),
        alpha=said.alpha,
        rank_stabilized=said.rank_stabilized,
        dora=said.dora,
        whole=tuple(re.escape(ours) for ours in whole),
    )
    return lora, own


def module_of(place: Place) -> str:
    """The name of the module of transformers that a parameter belongs to."""
    return place.name.rpartition(".")[0]


class _Tensors:
    """The tensors of a file by PEFT's names, without what wrappers add to them; keeps track of unread tensors."""

    def __init__(self, file: epath.Path, shapes: Mapping[str, tuple[int, ...]]):
        """Reads the names in `file`. `shapes` are those of the base's tensors, by transformers' names."""
        self.file, self._opened, self._stored, self._base_shapes = file, open_tensors(file), {}, shapes
        for name, header in self._opened.headers.items():
            short = re.sub(r"\.(modules_to_save|default)(?=\.|$)", "", unwrapped(name))
            short = re.sub(r"\.original_module\.weight$", ".base_layer.weight", short)
            short = re.sub(r"\.base_layer\.bias$", ".bias", short)
            short = re.sub(r"\.lora_magnitude_vector\.weight$", ".lora_magnitude_vector", short)
            if short in self._stored:
                raise ValueError(f"{file}: {self._stored[short]} and {name} are both {short}")
            self._stored[short] = name
            if header.dtype not in DTYPES:
                raise ValueError(f"{file}: {name} has the dtype {header.dtype}: save it in one of {', '.join(DTYPES)}")
        self._left = set(self._stored)

    def take(self, place: Place) -> Found:
        """Reads the tensors for one of camelid's parameters, in camelid's layout."""
        module = f"{PREFIX}{module_of(place)}"
        names = {"whole": f"{PREFIX}{place.name}"}
        if place.name.endswith(".weight"):
            names |= {part: f"{module}{suffix}" for part, suffix in PARTS.items()}
        names = {part: name for part, name in names.items() if name in self._stored}
        shapes = {part: self._shape(name) for part, name in names.items()}
        base = self._base_shapes.get(place.name, place.shape_there)
        allowed = _shapes(place.path, base, shapes)
        for part, shape in shapes.items():
            if shape != allowed.get(part):
                said = f"{self.file}: {names[part]} {list(shape)} has no place on {list(base)}"
                if (part, place.name) in (("whole", TABLE), ("whole", HEAD)) and shape[0] > base[0]:
                    said += f": `camelid convert --vocab_size={shape[0]}` of the base adds the rows of new tokens"
                raise ValueError(said)
        held = names.keys() - {"copy", "whole"}
        if held and not ({"a", "b"} <= held or {"table_a", "table_b"} <= held or held == {"rows"}):
            raise ValueError(f"{self.file}: {module} has {', '.join(sorted(held))} but not both lora_A and lora_B")
        if held and "whole" in names:
            raise ValueError(f"{self.file}: {module} has adapters and is trained whole: one of the two is meant")
        self._left -= {*names.values()}
        rows = slice(place.first_row, place.first_row + place.shape_there[0])
        cuts = dict.fromkeys(OF_OUTPUTS, (rows,))
        return _in_camelid_layout(place, {part: self._read(name, cuts.get(part, ())) for part, name in names.items()})

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._opened.headers[self._stored[name]].shape

    def _read(self, name: str, cut: tuple[slice, ...]) -> np.ndarray:
        whole = (slice(None),) * len(self._shape(name))
        return self._opened.read(self._stored[name], (*cut, *whole[len(cut) :])).astype(np.float32)

    def check_nothing_left(self) -> None:
        """Raises ValueError if the file has tensors that were not read."""
        if not self._left:
            return
        listed = [f"{name} {list(self._shape(name))}" for name in sorted(self._left)]
        raise ValueError(
            f"{self.file}: {len(listed)} tensor(s) with no place in the network: {'; '.join(listed[:SHOWN])}: "
            "give the base that the adapters were trained on, or remove the tensors from the file"
        )


def _shapes(path: str, base: tuple[int, ...], found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes that the tensors of a module must have in the file.

    Args:
      path: camelid's path of the parameter.
      base: the shape of the base's tensor.
      found: the shapes in the file, from which the rank is taken.
    """
    there: dict[str, tuple[int, ...]] = {"whole": base, "copy": base}
    if is_matrix(path) and len(base) == 2:
        (rows, columns), rank = base, (found.get("a") or (0,))[0]
        there |= {"a": (rank, columns), "b": (rows, rank), "magnitude": (rows,)}
    if path == "embed/embedding":
        (rows, columns), rank = base, (found.get("table_a") or (0,))[0]
        there |= {
            "table_a": (rank, rows),
            "table_b": (columns, rank),
            "rows": ((found.get("rows") or (0,))[0], columns),
        }
    return there


def _in_camelid_layout(place: Place, found: Found) -> Found:
    """Brings the tensors of a module from PEFT's layout into camelid's: [in, out], with heads on their own axes."""
    axes = input_axes(place.path)
    inputs, outputs = place.shape[:axes], place.shape[axes:]
    ours: dict[str, tuple[int, ...]] = {"whole": place.shape, "copy": place.shape, "magnitude": outputs}
    if "a" in found:
        rank = len(found["a"])
        ours |= {"a": (*inputs, rank), "b": (rank, *outputs)}
    return {
        part: (value.T if is_matrix(place.path) and value.ndim == 2 else value).reshape(ours.get(part, value.shape))
        for part, value in found.items()
    }


def _read_tied(
    embedding: tuple[Place, Found], tensors: _Tensors, said: AdapterConfig, base: Base | None, own: dict[str, Any]
) -> None:
    """Reads the embedding of a network whose output head is the embedding, and puts it into `own`.

    PEFT trains the two separately, so its tensors fit only if both have stayed equal.

    Args:
      embedding: the place of the embedding and what the file holds for it.
      tensors: the file.
      said: the adapter config.
      base: returns the base's matrices, or None.
      own: the tree of trained arrays.

    Raises:
      ValueError: embedding and head differ, or only one of them was trained.
    """
    place, found = embedding
    as_head = Place("head/kernel", None, place.shape[::-1], HEAD, place.shape_there)
    head = tensors.take(as_head)
    changed = {HEAD: head.keys() - {"copy"}, TABLE: found.keys() - {"copy"}}
    _check_asked_for(place, found, said, str(tensors.file))
    if not said.fields.get("ensure_weight_tying"):  # this field gives the head the adapters of the embedding
        _check_asked_for(as_head, head, said, str(tensors.file))
    if not any(changed.values()):
        _check_copy(place, found.get("copy", head["copy"].T if "copy" in head else None), base, str(tensors.file))
        return
    if missing := [name for name, parts in changed.items() if not parts and "rows" not in found]:
        raise ValueError(
            f"{tensors.file}: embedding and output head of the base are one, but {missing[0]} was not trained with the "
            "other: train both (ensure_weight_tying), or untie the base"
        )
    table = _table(place, found, tensors, said, base)
    if head:
        original = found.get("copy") if "copy" in found else None if base is None else base(place.path, None)
        if "a" in head and original is None:
            raise ValueError(f"{tensors.file}: adapters of {HEAD} need the base that they were trained on")
        theirs = head["whole"].T if "whole" in head else original + _product(head, said.scale(module_of(as_head))).T
        if not np.allclose(table, theirs, rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"{tensors.file}: the base has one matrix as embedding and output head, but the adapters give the two "
                "different values: untie the base (tie_word_embeddings false, and its own lm_head.weight)"
            )
    _set_leaf(own, place.path, table)


def _product(found: Found, scale: float) -> np.ndarray:
    """What an adapter adds to its matrix."""
    return scale * (found["a"] @ found["b"])


def _table(place: Place, found: Found, tensors: _Tensors, said: AdapterConfig, base: Base | None) -> np.ndarray:
    """The trained embedding [V, D], from a whole matrix, trained rows or adapters.

    Args:
      place: the place of the embedding.
      found: what the file holds for it.
      tensors: the file, for messages.
      said: the adapter config.
      base: returns the base's matrices, or None.
    """
    if "whole" in found:
        return found["whole"]
    if "magnitude" in found:
        raise ValueError(f"{tensors.file} has DoRA magnitudes of the embedding, which camelid does not support")
    if "copy" not in found and base is None:
        raise ValueError(f"{tensors.file}: adapters of the embedding need the base that they were trained on")
    # If the file has a copy of the base's embedding, PEFT uses it in place of the base's.
    table = np.array(found["copy"] if "copy" in found else base(place.path, None), np.float32)
    if "rows" in found:
        ids = said.new_tokens()
        if len(ids) != len(found["rows"]) or max(ids, default=-1) >= len(table):
            raise ValueError(
                f"{tensors.file} has {len(found['rows'])} trained rows of the embedding, but trainable_token_indices "
                f"are {len(ids)} ids up to {max(ids, default=-1)} of {len(table)}"
            )
        table[ids] = found["rows"]
    if "table_a" in found:
        table += said.scale(module_of(place)) * (found["table_b"] @ found["table_a"]).T
    return table


def _check_asked_for(place: Place, found: Found, said: AdapterConfig, where: str) -> None:
    """Raises ValueError if the file's tensors for a module disagree with the adapter config.

    Args:
      place: the place of the module's matrix or bias.
      found: what the file holds for it.
      said: the adapter config.
      where: name of the file.
    """
    module = module_of(place)
    kinds = found.keys() - {"copy"}
    if "rows" in kinds and not said.new_tokens():
        raise ValueError(f"{where} has trained rows of {module}, but {CONFIG} has no trainable_token_indices")
    adapters = kinds & {"a", "table_a"}
    matrix = place.name.endswith(".weight") and (is_matrix(place.path) or place.path == "embed/embedding")
    asked = matrix and said.targets(module)
    if adapters and not asked:
        raise ValueError(f"{where} has adapters of {module}, which target_modules in {CONFIG} does not name")
    if asked and not adapters and "whole" not in kinds:
        raise ValueError(f"{where} has no adapters of {module}, which target_modules in {CONFIG} names")
    if said.is_saved(module) and not kinds & {"whole", "a"}:
        raise ValueError(f"{where} has no {place.name}, which modules_to_save in {CONFIG} names")
    if not adapters:
        return
    rank = found["a"].shape[-1] if "a" in found else len(found["table_a"])
    if rank != said.rank(module):
        raise ValueError(
            f"{where}: adapters of {module} have rank {rank}, but {CONFIG} says {said.rank(module)}: "
            f"correct r or rank_pattern in {CONFIG}"
        )
    if "a" in found and ("magnitude" in found) != said.dora:
        raise ValueError(f"{where}: the tensors of {module} do not fit use_dora {said.dora} in {CONFIG}")


def _check_copy(place: Place, copy: np.ndarray | None, base: Base | None, where: str) -> None:
    """Raises ValueError if a copy of a base's matrix in the file is not that of the base.

    PEFT uses the copy in place of the base's matrix. The tolerance allows a base rounded to 16 bits or quantised.

    Args:
      place: the place of the matrix.
      copy: the copy, or None.
      base: returns the base's matrices, or None; without it nothing is checked.
      where: name of the file.
    """
    if copy is None or base is None:
        return
    found = np.asarray(base(place.path, place.layer), np.float32)
    off = np.linalg.norm(found - copy) / max(np.linalg.norm(copy), 1e-30)
    if not off < 0.15:
        raise ValueError(f"{where}: its copy of {place.name} is not that of the base: give the base of these adapters")


def _stack(path: str, layers: list[np.ndarray]) -> np.ndarray:
    """Stacks the layers of a parameter; a parameter outside of the layers has one array."""
    return np.stack(layers) if is_stacked(path) else layers[0]


def _stack_adapters(
    path: str, rank: int, parts: list[tuple[Place, Found]], said: AdapterConfig, base: Base | None
) -> dict[str, np.ndarray]:
    """Stacks the adapters of a matrix's layers, padded with zeros to the largest rank.

    Args:
      path: camelid's path of the matrix.
      rank: the largest rank.
      parts: place and tensors of each layer; a layer without adapters has none.
      said: the adapter config.
      base: returns the base's matrices, or None; needed for DoRA in some layers only.
    """
    axes = input_axes(path)
    layers = []
    for place, found in parts:
        inputs, outputs = place.shape[:axes], place.shape[axes:]
        a, b = np.zeros((*inputs, rank), np.float32), np.zeros((rank, *outputs), np.float32)
        if found:
            r = found["a"].shape[-1]
            a[..., :r], b[:r] = found["a"], found["b"]
        layer = {"a": a, "b": b}
        if said.dora:
            if not found and base is None:
                raise ValueError(f"{said.file}: DoRA of only some layers of {path} needs the base")
            layer["magnitude"] = (
                found["magnitude"]
                if found
                else np.linalg.norm(
                    np.asarray(base(path, place.layer), np.float32).reshape(-1, int(np.prod(outputs))), axis=0
                ).reshape(outputs)
            )
        layers.append(layer)
    return {name: _stack(path, [layer[name] for layer in layers]) for name in layers[0]}


def _set_leaf(tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets the leaf of a nested dict at a path."""
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value
