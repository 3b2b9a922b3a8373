"""Low-rank adapters in PEFT's format: a folder of `adapter_config.json` and `adapter_model.safetensors` or `.bin`."""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from ...model.config import LlamaConfig
from ...model.lora import Lora
from ...model.weights import input_axes, is_stacked, split_axes
from . import peft_config
from .families import IN_HUGGING_FACE, family_in
from .headers import absent, is_named
from .huggingface import HEAD, TABLE, unwrapped
from .peft_config import CONFIG, AdapterConfig
from .tensors import SHOWN, Naming, Place, is_matrix, places, shapes_there
from .weight_files import open_tensors

WEIGHTS, TORCH_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
DTYPES = ("F64", "F32", "F16", "BF16")

Base = Callable[[str, int | None], np.ndarray]
"""base(path, layer) gives one of the base's matrices, or a layer of it, as it lies here."""

PARTS = {
    "a": ".lora_A.weight",
    "b": ".lora_B.weight",
    "magnitude": ".lora_magnitude_vector",
    "table_a": ".lora_embedding_A",
    "table_b": ".lora_embedding_B",
    "rows": ".token_adapter.trainable_tokens_delta",
    "copy": ".base_layer.weight",
}
"""What PEFT keeps of an adapted module. rows: of an embedding of which some were trained. copy: of what was not."""

OF_OUTPUTS = ("b", "magnitude", "whole", "copy")
"""The parts that have a row for each output of the module."""

Found = dict[str, np.ndarray]


def naming_of(config: LlamaConfig) -> Naming:
    """How transformers names the network of a base. Raises ValueError where it has no such network."""
    return IN_HUGGING_FACE[family_in(IN_HUGGING_FACE, config, "transformers")].naming


def is_folder(path: epath.Path) -> bool:
    return is_named(path / CONFIG)


def weight_file(path: epath.Path) -> epath.Path:
    """Where the adapters of a folder are. Raises ValueError where they are nowhere."""
    for name in (WEIGHTS, TORCH_WEIGHTS):
        if (path / name).exists():
            return path / name
        if os.path.islink(path / name):
            raise ValueError(absent(path / name))
    raise ValueError(f"{path}: neither {WEIGHTS} nor {TORCH_WEIGHTS}")


def base_name(path: epath.PathLike) -> str | None:
    """The base that a folder's config names: a path, or an id of a hub."""
    return peft_config.read(epath.Path(path)).fields.get("base_model_name_or_path")


def read_folder(path: epath.PathLike, config: LlamaConfig, base: Base | None = None) -> tuple[Lora, dict[str, Any]]:
    """The adapters in a folder, and their tree as `weights.join` puts it on a network of `config`.

    Layers without adapters get some of zeros, which compute and learn nothing. Adapters of a matrix that joins several
    of ours (Phi-3's qkv_proj) become adapters of each, with an `a` of its own. An embedding that has adapters, or of
    which some rows were trained, is trained whole here; for that, and for magnitudes of layers without adapters, `base`
    is asked. Raises ValueError for tensors that have no place in the network or are of another shape, for modules whose
    tensors the config does not ask for or the file does not hold, and for copies of another base.
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
            _put(own, ours, _stack(ours, [found["whole"] for _, found in parts]))
            continue
        rank = max(found["a"].shape[-1] for _, found in parts if found)
        targets.append((re.escape(ours), rank))
        stacked = _stack_adapters(ours, rank, parts, said, base)
        gains = np.array([said.scale(module_of(place)) for place, _ in parts], np.float32)
        _put(own, ours, stacked | {"gain": gains.reshape(split_axes(ours, stacked["a"].shape)[0])})
    lora = Lora(
        targets=tuple(targets),
        alpha=said.alpha,
        rank_stabilized=said.rank_stabilized,
        dora=said.dora,
        whole=tuple(re.escape(ours) for ours in whole),
    )
    return lora, own


def module_of(place: Place) -> str:
    """The name of the module there that a parameter belongs to."""
    return place.name.rpartition(".")[0]


class _Tensors:
    """The tensors of a file by PEFT's names for them, and which of them nobody has taken. shapes: of the base's."""

    def __init__(self, file: epath.Path, shapes: Mapping[str, tuple[int, ...]]):
        self.file, self._stored, self._base_shapes = file, {}, shapes
        with open_tensors(file) as opened:
            for name in opened.keys():  # noqa: SIM118 (safetensors' handle is no mapping)
                short = re.sub(r"\.(modules_to_save|default)(?=\.|$)", "", unwrapped(name))
                short = re.sub(r"\.original_module\.weight$", ".base_layer.weight", short)
                short = re.sub(r"\.base_layer\.bias$", ".bias", short)
                short = re.sub(r"\.lora_magnitude_vector\.weight$", ".lora_magnitude_vector", short)
                if short in self._stored:
                    raise ValueError(f"{file}: {self._stored[short]} and {name} are both {short}")
                self._stored[short] = name
                if (kind := opened.get_slice(name).get_dtype()) not in DTYPES:
                    raise ValueError(f"{file}: {name} holds {kind}, not {', '.join(DTYPES)}")
        self._left = set(self._stored)

    def take(self, place: Place) -> Found:
        """What is held for one of our parameters, turned to lie as ours does."""
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
        return _turned(place, {part: self._read(name, cuts.get(part, ())) for part, name in names.items()})

    def _shape(self, name: str) -> tuple[int, ...]:
        with open_tensors(self.file) as opened:
            return tuple(opened.get_slice(self._stored[name]).get_shape())

    def _read(self, name: str, cut: tuple[slice, ...]) -> np.ndarray:
        with open_tensors(self.file) as opened:
            part = opened.get_slice(self._stored[name])
            whole = tuple(slice(None) for _ in part.get_shape())
            return np.asarray(part[(*cut, *whole[len(cut) :])]).astype(np.float32)

    def check_nothing_left(self) -> None:
        if not self._left:
            return
        listed = [f"{name} {list(self._shape(name))}" for name in sorted(self._left)]
        raise ValueError(
            f"{self.file}: {len(listed)} tensor(s) with no place in the network: {'; '.join(listed[:SHOWN])}"
        )


def _shapes(path: str, base: tuple[int, ...], found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes that the parts of a module have there, whatever their rank. base: the shape of the base's tensor."""
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


def _turned(place: Place, found: Found) -> Found:
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
    """The one table of a network whose embedding is its output head, put into `own`. PEFT trains the two apart from one
    another; what it saved fits only where they have stayed the same."""
    place, found = embedding
    as_head = Place("head/kernel", None, place.shape[::-1], HEAD, place.shape_there)
    head = tensors.take(as_head)
    changed = {HEAD: head.keys() - {"copy"}, TABLE: found.keys() - {"copy"}}
    _check_asked_for(place, found, said, str(tensors.file))
    if not said.fields.get("ensure_weight_tying"):  # which puts on the head what was asked for the embedding
        _check_asked_for(as_head, head, said, str(tensors.file))
    if not any(changed.values()):
        _check_copy(place, found.get("copy", head["copy"].T if "copy" in head else None), base, str(tensors.file))
        return
    if missing := [name for name, parts in changed.items() if not parts and "rows" not in found]:
        raise ValueError(
            f"{tensors.file}: embedding and output head of the base are one, and {missing[0]} was not trained with the "
            "other: they would come apart; train both (ensure_weight_tying), or untie the base"
        )
    table = _table(place, found, tensors, said, base)
    if head:
        original = found.get("copy") if "copy" in found else None if base is None else base(place.path, None)
        if "a" in head and original is None:
            raise ValueError(f"{tensors.file}: adapters of {HEAD}, whose base is not at hand")
        theirs = head["whole"].T if "whole" in head else original + _product(head, said.scale(module_of(as_head))).T
        if not np.allclose(table, theirs, rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"{tensors.file}: embedding and output head of the base are one, and were trained apart from one "
                "another: untie the base (tie_word_embeddings false, and its own lm_head.weight)"
            )
    _put(own, place.path, table)


def _product(found: Found, scale: float) -> np.ndarray:
    return scale * (found["a"] @ found["b"])


def _table(place: Place, found: Found, tensors: _Tensors, said: AdapterConfig, base: Base | None) -> np.ndarray:
    """The embedding [V, D] with what was trained of it."""
    if "whole" in found:
        return found["whole"]
    if "magnitude" in found:
        raise ValueError(f"{tensors.file}: DoRA of the embedding, which the network has not")
    if "copy" not in found and base is None:
        raise ValueError(f"{tensors.file}: adapters of the embedding need the base that they were trained on")
    # A copy that stands there is what PEFT puts in place of the base's.
    table = np.array(found["copy"] if "copy" in found else base(place.path, None), np.float32)
    if "rows" in found:
        ids = said.new_tokens()
        if len(ids) != len(found["rows"]) or max(ids, default=-1) >= len(table):
            raise ValueError(
                f"{tensors.file}: {len(found['rows'])} trained rows of the embedding, whose trainable_token_indices "
                f"are {len(ids)} ids to {max(ids, default=-1)} of {len(table)}"
            )
        table[ids] = found["rows"]
    if "table_a" in found:
        table += said.scale(module_of(place)) * (found["table_b"] @ found["table_a"]).T
    return table


def _check_asked_for(place: Place, found: Found, said: AdapterConfig, where: str) -> None:
    """What the file holds for a module against what its config says was trained."""
    module = module_of(place)
    kinds = found.keys() - {"copy"}
    if "rows" in kinds and not said.new_tokens():
        raise ValueError(f"{where}: trained rows of {module}, of which {CONFIG} says no trainable_token_indices")
    adapters = kinds & {"a", "table_a"}
    matrix = place.name.endswith(".weight") and (is_matrix(place.path) or place.path == "embed/embedding")
    asked = matrix and said.targets(module)
    if adapters and not asked:
        raise ValueError(f"{where}: adapters of {module}, which target_modules in {CONFIG} does not ask for")
    if asked and not adapters and "whole" not in kinds:
        raise ValueError(f"{where}: no adapters of {module}, which target_modules in {CONFIG} names")
    if said.is_saved(module) and not kinds & {"whole", "a"}:
        raise ValueError(f"{where}: {place.name} is not there, and modules_to_save in {CONFIG} names it")
    if not adapters:
        return
    rank = found["a"].shape[-1] if "a" in found else len(found["table_a"])
    if rank != said.rank(module):
        raise ValueError(f"{where}: adapters of {module} are of rank {rank}, {CONFIG} says {said.rank(module)}")
    if "a" in found and ("magnitude" in found) != said.dora:
        raise ValueError(f"{where}: use_dora is {said.dora} in {CONFIG}, unlike the tensors of {module}")


def _check_copy(place: Place, copy: np.ndarray | None, base: Base | None, where: str) -> None:
    """PEFT puts a copy of a base's matrix that stands in the file in place of the base's: here it has to be the same,
    to the rounding of the base in 16 bits or in codes."""
    if copy is None or base is None:
        return
    found = np.asarray(base(place.path, place.layer), np.float32)
    off = np.linalg.norm(found - copy) / max(np.linalg.norm(copy), 1e-30)
    if not off < 0.15:
        raise ValueError(f"{where}: its copy of {place.name} is not that of the base: adapters of another model")


def _stack(path: str, layers: list[np.ndarray]) -> np.ndarray:
    return np.stack(layers) if is_stacked(path) else layers[0]


def _stack_adapters(
    path: str, rank: int, parts: list[tuple[Place, Found]], said: AdapterConfig, base: Base | None
) -> dict[str, np.ndarray]:
    """The adapters of all layers of a matrix as arrays: filled up with zeros to the largest rank."""
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
                raise ValueError(f"{said.file}: DoRA of some layers of {path} only needs the base's others")
            layer["magnitude"] = (
                found["magnitude"]
                if found
                else np.linalg.norm(
                    np.asarray(base(path, place.layer), np.float32).reshape(-1, int(np.prod(outputs))), axis=0
                ).reshape(outputs)
            )
        layers.append(layer)
    return {name: _stack(path, [layer[name] for layer in layers]) for name in layers[0]}


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value
