"""Low-rank adapters in PEFT's format: a folder of `adapter_config.json` and `adapter_model.safetensors`."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from ..config import LlamaConfig
from ..lora import Lora
from ..weights import input_axes, is_stacked, split_axes
from .tensors import HUGGING_FACE, SHOWN, Place, is_matrix, places, write_part

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
UNSUPPORTED = {
    "bias": ("none",),
    "fan_in_fan_out": (False, None),
    "layer_replication": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
}
"""What an adapter's config may say that this network cannot do, and the values that ask for nothing."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""How adapters may begin so that they fit only a base from which something was taken."""


def _check_family(path: epath.Path, config: LlamaConfig) -> None:
    if config.family == "phi3":
        raise ValueError(
            f"{path}: PEFT adapts Phi-3's fused qkv_proj and gate_up_proj, which are separate matrices here"
        )


def is_folder(path: epath.Path) -> bool:
    return (path / CONFIG).exists()


def read_config(path: epath.Path) -> dict[str, Any]:
    """`adapter_config.json`, checked. Raises ValueError for another method than LoRA or what it cannot do here."""
    try:
        fields = json.loads((path / CONFIG).read_text())
    except ValueError as error:
        raise ValueError(f"{path / CONFIG} is not JSON: {error}") from None
    if fields.get("peft_type") != "LORA":
        raise ValueError(f"{path / CONFIG}: peft_type {fields.get('peft_type')!r}; only LORA can be read")
    for name, allowed in UNSUPPORTED.items():
        if fields.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{path / CONFIG}: {name} is {fields[name]!r}; only {allowed[0]!r} can be read")
    begin = fields.get("init_lora_weights")
    if str(begin).lower().startswith(CHANGES_BASE):
        raise ValueError(
            f"{path / CONFIG}: init_lora_weights is {begin!r}, so these adapters fit only what it left of the base; "
            "save them again with path_initial_model_for_weight_conversion"
        )
    return fields


def read_folder(path: epath.PathLike, config: LlamaConfig) -> tuple[Lora, dict[str, Any]]:
    """The adapters in a folder, and their tree as `weights.join` puts it on a network of `config`.

    Raises ValueError for tensors that have no place in the network, are of another shape, or cover some layers only.
    """
    path = epath.Path(path)
    _check_family(path, config)
    fields = read_config(path)
    try:
        tensors = safetensors.numpy.load_file(path / WEIGHTS)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path / WEIGHTS}: no whole safetensors file ({error})") from None
    layers: dict[str, list[dict[str, np.ndarray]]] = {}
    for place in places(config, HUGGING_FACE):
        layers.setdefault(place.path, []).append(_take(tensors, place, str(path / WEIGHTS)))
    if tensors:
        listed = [f"{name} {list(value.shape)}" for name, value in tensors.items()]
        raise ValueError(
            f"{path / WEIGHTS}: {len(listed)} tensor(s) with no place in the network: {'; '.join(listed[:SHOWN])}"
        )
    targets, whole, own = [], [], {}
    for ours, parts in layers.items():
        if not any(parts):
            continue
        shapes = {tuple((name, part.shape) for name, part in sorted(layer.items())) for layer in parts}
        if len(shapes) > 1:
            raise ValueError(f"{path / WEIGHTS}: {ours} is adapted in some layers only, or at different ranks")
        stacked = {name: _stack(ours, [layer[name] for layer in parts]) for name in parts[0]}
        if "whole" in stacked:
            whole.append(re.escape(ours))
            _put(own, ours, stacked["whole"])
            continue
        rank = stacked["a"].shape[-1]
        targets.append((re.escape(ours), rank))
        alphas = np.array([_alpha(fields, ours, layer) for layer in range(len(parts))], np.float32)
        gains = alphas / (rank**0.5 if fields.get("use_rslora") else rank)
        _put(own, ours, stacked | {"gain": gains.reshape(split_axes(ours, stacked["a"].shape)[0])})
    lora = Lora(
        targets=tuple(targets),
        alpha=fields["lora_alpha"],
        rank_stabilized=bool(fields.get("use_rslora")),
        dora=bool(fields.get("use_dora")),
        whole=tuple(whole),
    )
    return lora, own


def _take(tensors: dict[str, np.ndarray], place: Place, where: str) -> dict[str, np.ndarray]:
    """What the folder holds for one of our matrices, taken out of `tensors` and turned to lie as ours do."""
    module = PREFIX + place.name.removesuffix(".weight")
    names = {"a": ".lora_A.weight", "b": ".lora_B.weight", "magnitude": ".lora_magnitude_vector", "whole": ".weight"}
    found = {part: tensors.pop(f"{module}{suffix}") for part, suffix in names.items() if f"{module}{suffix}" in tensors}
    if not found:
        return {}
    axes = input_axes(place.path)
    inputs, outputs = place.shape[:axes], place.shape[axes:]
    rank = len(found["a"]) if "a" in found else 0
    there = {"whole": place.shape_there}
    if is_matrix(place.path):
        rows, columns = place.shape_there
        there |= {"a": (rank, columns), "b": (rows, rank), "magnitude": (rows,)}
    for part, value in found.items():
        if value.shape != there.get(part):
            raise ValueError(
                f"{where}: {module}{names[part]} {list(value.shape)} has no place on {list(place.shape_there)}"
            )
    if "whole" not in found and not {"a", "b"} <= found.keys():
        raise ValueError(f"{where}: {module} has {', '.join(found)} but not both lora_A and lora_B")
    ours = {"a": (*inputs, rank), "b": (rank, *outputs), "magnitude": outputs, "whole": place.shape}
    turned = {part: value.T if is_matrix(place.path) else value for part, value in found.items()}
    return {part: value.astype(np.float32).reshape(ours[part]) for part, value in turned.items()}


def _stack(path: str, layers: list[np.ndarray]) -> np.ndarray:
    return np.stack(layers) if is_stacked(path) else layers[0]


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value


def _alpha(fields: Mapping[str, Any], path: str, layer: int) -> float:
    """PEFT may give single modules an alpha of their own, by the end of their name."""
    module = HUGGING_FACE.names[path].removesuffix(".weight").format(layer)
    for pattern, alpha in (fields.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return alpha
    return fields["lora_alpha"]


def write_folder(path: epath.PathLike, lora: Lora, own: dict[str, Any], config: LlamaConfig, *, base: str) -> None:
    """Writes adapters of a network of `config`, numpy arrays as `weights.without` leaves them.

    base: name or path of the model that they are put on. Adapters that began as principal components become ordinary
    ones of twice the rank, which say by how much they have changed (PiSSA, arXiv:2404.02948, appendix C).
    """
    path = epath.Path(path)
    _check_family(path, config)
    tensors, ranks, gains, whole = {}, {}, {}, []
    for place in places(config, HUGGING_FACE):
        parts = functools.reduce(lambda tree, name: (tree or {}).get(name), place.path.split("/"), own)
        if parts is None:
            continue
        module = place.name.removesuffix(".weight")
        if place.path.endswith("_bias"):
            raise ValueError(f"{path}: {place.path} was trained whole, which PEFT's format has no place for; merge it")
        if not isinstance(parts, dict):
            whole.append(module.split(".")[-1])
            value = parts if place.layer is None else parts[place.layer]
            tensors[f"{PREFIX}{place.name}"] = write_part(HUGGING_FACE, place, value)
            continue
        a, b, gain, magnitude = _ordinary(parts, place)
        kind = module.split(".")[-1]
        ranks[kind] = a.shape[1]
        gains.setdefault(kind, {})[module] = gain
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a.T)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b.T)
        if magnitude is not None:
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = magnitude.reshape(-1)
    rank = max(ranks.values())
    power = 0.5 if lora.rank_stabilized else 1.0
    alphas = {}
    for kind, found in gains.items():
        named = found if len(set(found.values())) > 1 else {kind: next(iter(found.values()))}
        alphas |= {name: gain * ranks[kind] ** power for name, gain in named.items()}
    alpha = next(iter(alphas.values()))
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(ranks),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "modules_to_save": sorted(set(whole)) or None,
        "use_rslora": lora.rank_stabilized,
        "use_dora": lora.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    path.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    (path / CONFIG).write_text(json.dumps(fields, indent=2))


def _ordinary(parts: Mapping[str, np.ndarray], place: Place) -> tuple[np.ndarray, np.ndarray, float, np.ndarray | None]:
    """a [in, r], b [r, out], gain and magnitude of one layer."""
    one = {name: value if place.layer is None else value[place.layer] for name, value in parts.items()}
    rank = one["a"].shape[-1]
    a, b = one["a"].reshape(-1, rank), one["b"].reshape(rank, -1)
    if "a0" in one:
        a = np.concatenate([a, one["a0"].reshape(-1, rank)], axis=1)
        b = np.concatenate([b, -one["b0"].reshape(rank, -1)])
    return a, b, float(one["gain"]), one.get("magnitude")
