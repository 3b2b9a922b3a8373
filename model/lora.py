"""Low-rank adapters (LoRA, arXiv:2106.09685), with rsLoRA, DoRA and PiSSA as options.

An adapted matrix is {"base", "a", "b", "gain"} and computes x base + gain (x a) b. Its base is a plain, quantised or
already adapted matrix. Only `a` and `b` are differentiated, so that no gradient of the size of the matrix is formed.
Options: rank-stabilised scaling (rsLoRA, arXiv:2312.03732), a trained magnitude for each output (DoRA,
arXiv:2402.09353), principal components as the start (PiSSA, arXiv:2404.02948).
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from .sharding import match, path_name
from .storage import plain_matrix
from .weights import VECTORS, is_weight, split_axes

Params = dict[str, Any]
FIXED = ("gain", "a0", "b0")
"""The parts of an adapter that are not trained."""

NO_MATRIX = "lora targets name {}, which is no matrix between activations; name it in lora.whole instead"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which matrices get adapters, and of which kind."""

    targets: tuple[tuple[str, int], ...]
    """Pairs (regex over parameter paths, rank). The first match counts; rank 0 means no adapter."""
    alpha: float = 16.0
    """The product of a and b is scaled by alpha / rank."""
    rank_stabilized: bool = False
    """Whether the scale is alpha / sqrt(rank) instead (rsLoRA)."""
    dora: bool = False
    """Whether a magnitude for each output is trained apart from the direction (DoRA)."""
    init: str = "zero"
    """Initial values: "zero", a uniform as in LoRA's own code and b zero, or "pissa", principal components."""
    whole: tuple[str, ...] = ()
    """Regexes over paths of further parameters that are trained whole. Heads of scalar models always are."""

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple((pattern, rank) for pattern, rank in self.targets))
        object.__setattr__(self, "whole", tuple(self.whole))
        if self.init not in INITS:
            raise ValueError(f"lora init {self.init!r}: give one of {', '.join(INITS)}")

    def trains_whole(self, path: str) -> bool:
        """Whether the parameter at a path is trained whole, without an adapter."""
        return "score/" in path or any(re.fullmatch(pattern, path) for pattern in self.whole)

    def scale(self, rank: int) -> float:
        """The factor of the product of a and b at a rank: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
        return self.alpha / (rank**0.5 if self.rank_stabilized else rank)


def ranks(lora: Lora, abstract: Params) -> dict[str, int]:
    """The rank of each matrix that gets an adapter, by its path.

    A pattern that matches matrices may match norms and biases too, which get no adapter.

    Args:
      lora: the adapters.
      abstract: the network's tree of plain matrices, or of their shapes.

    Raises ValueError for a pattern that matches the embedding or nothing but norms and biases. A rank above the smaller
    side of a matrix, a matrix that is also trained whole, and a list without a match raise it too.
    """
    found, passed_over, matched = {}, {}, set()
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        path = path_name(key_path)
        rank = match((*lora.targets, (r".*", 0)), path)
        if not rank:
            continue
        pattern = next(pattern for pattern, _ in lora.targets if re.fullmatch(pattern, path))
        if path.endswith(VECTORS):
            passed_over.setdefault(pattern, path)
            continue
        if path.endswith("embedding") or "score/" in path:
            raise ValueError(NO_MATRIX.format(path))
        matched.add(pattern)
        _, inputs, outputs = split_axes(path, leaf.shape)
        if not 0 < rank <= min(math.prod(inputs), math.prod(outputs)):
            smaller = min(math.prod(inputs), math.prod(outputs))
            raise ValueError(
                f"lora rank {rank} of {path} {tuple(leaf.shape)}: give at most its smaller side, {smaller}"
            )
        found[path] = rank
    if alone := [path for pattern, path in passed_over.items() if pattern not in matched]:
        raise ValueError(NO_MATRIX.format(alone[0]))
    if both := sorted(path for path in found if lora.trains_whole(path)):
        raise ValueError(f"lora targets and whole both name {', '.join(both)}; name it in one of them")
    if not found:
        patterns = [pattern for pattern, _ in lora.targets]
        raise ValueError(f"lora targets {patterns} name no parameter; give regexes of paths like layers/attention/q")
    return found


def adapt(lora: Lora, params: Params, abstract: Params, key: Key[Array, ""]) -> Params:
    """Puts new adapters, in float32, on the matrices that `lora.targets` names. The network's function stays the same.

    Args:
      lora: the adapters.
      params: the parameters. A plain, quantised or adapted matrix becomes the base of its adapter.
      abstract: the network's tree of plain matrices, which `params` corresponds to.
      key: key of the initial values.
    """
    chosen = ranks(lora, abstract)

    def add(key_path, plain, matrix):
        path = path_name(key_path)
        if path not in chosen:
            return matrix
        own = jax.random.fold_in(key, sorted(chosen).index(path))
        return {"base": matrix} | _fresh(lora, chosen[path], matrix, path, plain.shape, own)

    return jax.tree_util.tree_map_with_path(add, abstract, params)


def base_of(lora: Lora, params: Params) -> Params:
    """The frozen part of a network's tree of plain matrices: all but what is trained whole. Raises as `ranks`."""
    ranks(lora, params)

    def keep(tree: Params, prefix: str) -> Params:
        kept = {}
        for name, part in tree.items():
            path = f"{prefix}{name}"
            if isinstance(part, dict) and not is_weight(part):
                kept |= {name: below} if (below := keep(part, f"{path}/")) else {}
            elif not lora.trains_whole(path):
                kept[name] = part
        return kept

    return keep(params, "")


def _fresh(lora: Lora, rank: int, matrix: Any, path: str, shape: tuple[int, ...], key: jax.Array) -> Params:
    """The parts of a new adapter for the base `matrix`, of any storage; `shape` is that of the plain matrix."""
    stack, inputs, outputs = split_axes(path, shape)
    scale = lora.scale(rank)
    parts = {"gain": jnp.full(stack, scale, jnp.float32)}
    if lora.init == "pissa":
        a, b = _principal(plain_matrix(matrix, path), stack, inputs, outputs, rank)
        a, b = a * scale**-0.5, b * scale**-0.5
        parts |= {"a": a, "b": b, "a0": a, "b0": b}
    else:
        bound = math.prod(inputs) ** -0.5
        parts["a"] = jax.random.uniform(key, (*stack, *inputs, rank), jnp.float32, -bound, bound)
        parts["b"] = jnp.zeros((*stack, rank, *outputs), jnp.float32)
    if lora.dora:
        parts["magnitude"] = _norms(plain_matrix(matrix, path), len(stack), len(inputs))
    return parts


INITS = ("zero", "pissa")


def _principal(matrix: jax.Array, stack, inputs, outputs, rank: int) -> tuple[jax.Array, jax.Array]:
    """Factors a and b of the part of a plain matrix in its `rank` largest singular directions.

    stack, inputs, outputs: sizes of its axes over layers, of its input axes, of its output axes.
    """
    flat = matrix.reshape(-1, math.prod(inputs), math.prod(outputs))

    def split(flat_IO):
        u, s, vt = jnp.linalg.svd(flat_IO, full_matrices=False)
        root = jnp.sqrt(s[:rank])
        return u[:, :rank] * root[None], vt[:rank] * root[:, None]

    a, b = jax.lax.map(split, flat)
    return a.reshape(*stack, *inputs, rank), b.reshape(*stack, rank, *outputs)


def _norms(matrix: jax.Array, stack: int, inputs: int) -> jax.Array:
    """The Euclidean norm of each output's column. stack, inputs: number of axes over layers, of axes of inputs."""
    return jnp.sqrt(jnp.sum(matrix**2, axis=tuple(range(stack, stack + inputs))))


def with_dropout(params: Params, key: Key[Array, ""], rate: float) -> Params:
    """The parameters with dropout in their adapters: each input is dropped with probability `rate`, drawn by `key`."""
    if not isinstance(params, dict):
        return params
    dropping = {
        name: with_dropout(part, jax.random.fold_in(key, i), rate)
        for i, (name, part) in enumerate(sorted(params.items()))
    }
    if not is_weight(params) or "gain" not in params:
        return dropping
    stack = params["gain"].shape
    keys = jax.random.split(key, stack) if stack else key
    return dropping | {"drop_key": keys, "drop_rate": jnp.full(stack, rate)}
