"""Writing low-rank adapters as PEFT's folder of `adapter_config.json` and `adapter_model.safetensors`.

PEFT adapts the tensors of transformers' network. Where one of these joins several of our matrices (Phi-3's `qkv_proj`
has the rows of q, k and v) their adapters are joined: the products of a and b that our matrices have stand in one
product, without a change of what is computed.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from etils import epath

from ...model.config import LlamaConfig
from ...model.lora import Lora
from .huggingface import HEAD
from .peft import PREFIX, WEIGHTS, module_of, naming_of
from .peft_config import CONFIG
from .tensors import Naming, Place, places, write_part

SAVED_NAMES = {"norm": "model.norm"}
"""PEFT takes every module whose name ends so for one to save: `norm` would be every layer's norms too."""

Joined = list[tuple[Place, Any]]
"""Our matrices, or a layer of them, that are one tensor there, each with what was trained of all its layers: an array,
the parts of adapters, or None."""


class Adapter(NamedTuple):
    """Adapters of one module: a [in, r], b [r, out], the factor of their product, and DoRA's magnitudes [out]."""

    a: np.ndarray
    b: np.ndarray
    gain: float
    magnitude: np.ndarray | None


def write_folder(path: epath.PathLike, lora: Lora, own: dict[str, Any], config: LlamaConfig, *, base: str) -> None:
    """Writes adapters of a network of `config`, numpy arrays as `weights.without` leaves them.

    base: name or path of the model that they are put on. Adapters that began as principal components become ordinary
    ones of twice the rank, which say by how much they have changed (PiSSA, arXiv:2404.02948, appendix C). Where the
    embedding is the output head and was trained, PEFT is given both. Raises ValueError for what PEFT has no place for.
    """
    path = epath.Path(path)
    naming = naming_of(config)
    tensors, ranks, gains, whole, biases = {}, {}, {}, set(), {}
    for name, joined in _by_tensor(own, config, naming).items():
        _check(path, name, joined)
        module = module_of(joined[0][0])
        kind = module.split(".")[-1]
        if name.endswith(".bias"):
            biases[module] = np.concatenate(
                [_layer(place, value).reshape(place.shape_there) for place, value in joined]
            )
            continue
        if not isinstance(joined[0][1], dict | None):
            values = np.concatenate([write_part(naming, place, _layer(place, value)) for place, value in joined])
            tensors[f"{PREFIX}{name}"] = values
            whole.add(SAVED_NAMES.get(kind, kind))
            if config.tied and joined[0][0].path == "embed/embedding":
                tensors[f"{PREFIX}{HEAD}"] = values.copy()
                whole.add(HEAD.removesuffix(".weight"))
            continue
        adapter = _join(joined)
        ranks[kind] = adapter.a.shape[1]
        gains.setdefault(kind, {})[module] = adapter.gain
        tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(adapter.a.T)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(adapter.b.T)
        if adapter.magnitude is not None:
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = adapter.magnitude
    for module, value in biases.items():  # PEFT keeps the bias of a module that it adapts inside of it
        inside = f"{PREFIX}{module}.base_layer"
        tensors[f"{inside if f'{PREFIX}{module}.lora_A.weight' in tensors else PREFIX + module}.bias"] = value
    fields = _config(lora, ranks, gains) | {
        "base_model_name_or_path": base,
        "bias": "all" if biases else "none",
        "modules_to_save": sorted(whole) or None,
    }
    path.mkdir(parents=True, exist_ok=True)
    # Not by `save_file`, which leaves a file that its owner alone may read.
    (path / WEIGHTS).write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    (path / CONFIG).write_text(json.dumps(fields, indent=2))


def _by_tensor(own: dict[str, Any], config: LlamaConfig, naming: Naming) -> dict[str, Joined]:
    """The tensors there of which something was trained."""
    found: dict[str, Joined] = {}
    for place in places(config, naming):
        trained = functools.reduce(lambda tree, name: (tree or {}).get(name), place.path.split("/"), own)
        found.setdefault(place.name, []).append((place, trained))
    learnt = {name: joined for name, joined in found.items() if any(trained is not None for _, trained in joined)}
    return {name: sorted(joined, key=lambda part: part[0].first_row) for name, joined in learnt.items()}


def _check(path: epath.Path, name: str, joined: Joined) -> None:
    ways = {_way(trained) for _, trained in joined}
    if len(ways) > 1 and ways != {"none", "adapters"}:
        said = ", ".join(f"{place.path} has {_way(trained)}" for place, trained in joined)
        raise ValueError(f"{path}: {name} is one module of PEFT's, but {said}; merge the adapters instead")


def _way(trained: Any) -> str:
    if trained is None:
        return "none"
    if not isinstance(trained, Mapping):
        return "other weights"
    return "adapters with magnitudes" if "magnitude" in trained else "adapters"


def _layer(place: Place, value: np.ndarray) -> np.ndarray:
    return value if place.layer is None else value[place.layer]


def _join(joined: Joined) -> Adapter:
    """One adapter of a layer's matrices whose outputs follow one another: their `a` side by side and their `b` on the
    diagonal of a matrix of blocks, or one `a` where all have the same in every layer, as PEFT's own had."""
    found = [(place, _ordinary(place, trained)) for place, trained in joined if trained is not None]
    gain = found[0][1].gain
    first = joined[0][1]
    shared = len(found) == len(joined) and all(
        "a0" not in trained and np.array_equal(trained["a"], first["a"]) for _, trained in joined
    )
    rank = found[0][1].a.shape[1] if shared else sum(part.a.shape[1] for _, part in found)
    b = np.zeros((rank, sum(place.shape_there[0] for place, _ in joined)), np.float32)
    row = 0
    for place, part in found:
        columns = slice(place.first_row, place.first_row + place.shape_there[0])
        b[row : row + len(part.b), columns] = part.b if part.gain == gain else part.b * (part.gain / gain)
        row += 0 if shared else len(part.b)
    a = found[0][1].a if shared else np.concatenate([part.a for _, part in found], axis=1)
    magnitudes = [part.magnitude for _, part in found if part.magnitude is not None]
    return Adapter(a, b, gain, np.concatenate(magnitudes) if magnitudes else None)


def _ordinary(place: Place, trained: Mapping[str, np.ndarray]) -> Adapter:
    """The adapter of one matrix, or of one layer of it."""
    one = {name: _layer(place, value) for name, value in trained.items()}
    rank = one["a"].shape[-1]
    a, b = one["a"].reshape(-1, rank), one["b"].reshape(rank, -1)
    if "a0" in one:
        a = np.concatenate([a, one["a0"].reshape(-1, rank)], axis=1)
        b = np.concatenate([b, -one["b0"].reshape(rank, -1)])
    magnitude = one["magnitude"].reshape(-1) if "magnitude" in one else None
    return Adapter(a, b, float(one["gain"]), magnitude)


def _config(lora: Lora, ranks: Mapping[str, int], gains: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The fields of `adapter_config.json` that say how adapters are scaled. gains: by kinds of modules and modules."""
    rank = max(ranks.values())
    power = 0.5 if lora.rank_stabilized else 1.0
    alphas = {}
    for kind, found in gains.items():
        named = found if len(set(found.values())) > 1 else {kind: next(iter(found.values()))}
        alphas |= {name: gain * ranks[kind] ** power for name, gain in named.items()}
    alpha = next(iter(alphas.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(ranks),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "use_rslora": lora.rank_stabilized,
        "use_dora": lora.dora,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
