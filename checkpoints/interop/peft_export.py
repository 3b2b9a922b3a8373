"""Writes low-rank adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

PEFT adapts the tensors of transformers' network. A tensor may join several of camelid's matrices: Phi-3's `qkv_proj`
has the rows of q, k and v. Then the adapters of these matrices are joined into one adapter that computes the same.
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
"""Names for `modules_to_save` that PEFT matches by their ending; `norm` alone would match every layer's norms too."""

Joined = list[tuple[Place, Any]]
"""Camelid's matrices, or one layer of each, that are one tensor in transformers. Each has what was trained of all its
layers: an array, a dict of the parts of an adapter, or None."""


class Adapter(NamedTuple):
    """The adapter of one module."""

    a: np.ndarray
    """[in, r]."""
    b: np.ndarray
    """[r, out]."""
    gain: float
    """The factor of the product of a and b."""
    magnitude: np.ndarray | None
    """[out], DoRA's magnitudes; None without DoRA."""


def write_folder(
    path: epath.PathLike,
    lora: Lora,
    own: dict[str, Any],
    config: LlamaConfig,
    *,
    base: str,
    revision: str | None = None,
) -> None:
    """Writes adapters as a folder in PEFT's format.

    Adapters that began as principal components become ordinary ones of twice the rank, which hold their change since
    then (PiSSA, arXiv:2404.02948, appendix C). A trained embedding that is also the output head is written as both.

    Args:
      path: the folder.
      lora: which matrices have adapters.
      own: tree of the trained numpy arrays, without the base weights.
      config: the network.
      base: name or path of the base model.
      revision: commit of the base model on the Hugging Face Hub; None for a path.

    Raises:
      ValueError: PEFT cannot express the adapters.
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
    for module, value in biases.items():  # PEFT stores the bias of an adapted module inside its `base_layer`
        inside = f"{PREFIX}{module}.base_layer"
        tensors[f"{inside if f'{PREFIX}{module}.lora_A.weight' in tensors else PREFIX + module}.bias"] = value
    fields = _config(lora, ranks, gains) | {
        "base_model_name_or_path": base,
        "revision": revision,
        "bias": "all" if biases else "none",
        "modules_to_save": sorted(whole) or None,
    }
    path.mkdir(parents=True, exist_ok=True)
    # `save_file` is not used because it writes a file that only its owner may read.
    (path / WEIGHTS).write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    (path / CONFIG).write_text(json.dumps(fields, indent=2))


def _by_tensor(own: dict[str, Any], config: LlamaConfig, naming: Naming) -> dict[str, Joined]:
    """{tensor of transformers: camelid's matrices in it}, for the tensors of which something was trained.

    Args:
      own: tree of the trained arrays.
      config: the network.
      naming: transformers' names of its tensors.
    """
    found: dict[str, Joined] = {}
    for place in places(config, naming):
        trained = functools.reduce(lambda tree, name: (tree or {}).get(name), place.path.split("/"), own)
        found.setdefault(place.name, []).append((place, trained))
    learnt = {name: joined for name, joined in found.items() if any(trained is not None for _, trained in joined)}
    return {name: sorted(joined, key=lambda part: part[0].first_row) for name, joined in learnt.items()}


def _check(path: epath.Path, name: str, joined: Joined) -> None:
    """Raises ValueError if the matrices that make up the tensor `name` were trained in different ways."""
    ways = {_training_kind(trained) for _, trained in joined}
    if len(ways) > 1 and ways != {"none", "adapters"}:
        said = ", ".join(f"{place.path} has {_training_kind(trained)}" for place, trained in joined)
        raise ValueError(f"{path}: {name} is one module in PEFT, but {said}: merge the adapters instead")


def _training_kind(trained: Any) -> str:
    """How a matrix was trained, in words for a message."""
    if trained is None:
        return "none"
    if not isinstance(trained, Mapping):
        return "other weights"
    return "adapters with magnitudes" if "magnitude" in trained else "adapters"


def _layer(place: Place, value: np.ndarray) -> np.ndarray:
    return value if place.layer is None else value[place.layer]


def _join(joined: Joined) -> Adapter:
    """Joins the adapters of one layer's matrices, whose outputs follow one another, into one adapter.

    The `a` stand side by side, the `b` on the diagonal of a block matrix. If all matrices have the same `a` in every
    layer, as adapters read from PEFT have, one `a` suffices.
    """
    found = [(place, _plain_adapter(place, trained)) for place, trained in joined if trained is not None]
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


def _plain_adapter(place: Place, trained: Mapping[str, np.ndarray]) -> Adapter:
    """The adapter of one matrix, or of one layer of it; one that began as principal components gets twice the rank."""
    one = {name: _layer(place, value) for name, value in trained.items()}
    rank = one["a"].shape[-1]
    a, b = one["a"].reshape(-1, rank), one["b"].reshape(rank, -1)
    if "a0" in one:
        a = np.concatenate([a, one["a0"].reshape(-1, rank)], axis=1)
        b = np.concatenate([b, -one["b0"].reshape(rank, -1)])
    magnitude = one["magnitude"].reshape(-1) if "magnitude" in one else None
    return Adapter(a, b, float(one["gain"]), magnitude)


def _config(lora: Lora, ranks: Mapping[str, int], gains: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The fields of `adapter_config.json`, without the base and what is trained whole.

    Args:
      lora: which matrices have adapters.
      ranks: {kind of module, such as "q_proj": rank}.
      gains: {kind of module: {module: factor of the adapter's product}}.
    """
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
