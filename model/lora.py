"""Low-rank adapters (LoRA, arXiv:2106.09685) on the matrices that a regex list names, and their relatives.

An adapted matrix is {"base", "a", "b", "gain"}: x base + gain (x a) b. Its base is a matrix of any kind, a quantised
one or one that is adapted already; as only `a` and `b` are differentiated, no gradient as large as a matrix is formed.
Options: rank-stabilised scaling (rsLoRA, arXiv:2312.03732), a trained magnitude for each output (DoRA,
arXiv:2402.09353), principal components to begin with (PiSSA, arXiv:2404.02948).
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
"""The parts of an adapter that do not learn."""

NO_MATRIX = "lora targets name {}, which is no matrix between activations; train it whole instead"


@dataclasses.dataclass(frozen=True)
class Lora:
    """targets: (regex over parameter paths, rank), first match wins, rank 0 for none. alpha: the product of a and b is
    scaled by alpha / rank, or with `rank_stabilized` by alpha / sqrt(rank). dora: a magnitude for each output learns
    beside the direction. init: "zero" (a uniform as in LoRA's own code, b zero) or "pissa". whole: regexes of further
    parameters, not targets, that are trained whole; heads for numbers always are."""

    targets: tuple[tuple[str, int], ...]
    alpha: float = 16.0
    rank_stabilized: bool = False
    dora: bool = False
    init: str = "zero"
    whole: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple((pattern, rank) for pattern, rank in self.targets))
        object.__setattr__(self, "whole", tuple(self.whole))
        if self.init not in INITS:
            raise ValueError(f"lora init {self.init!r}: give one of {', '.join(INITS)}")

    def trains_whole(self, path: str) -> bool:
        """Whether a parameter that has no adapter learns itself."""
        return "score/" in path or any(re.fullmatch(pattern, path) for pattern in self.whole)

    def scale(self, rank: int) -> float:
        return self.alpha / (rank**0.5 if self.rank_stabilized else rank)


def ranks(lora: Lora, abstract: Params) -> dict[str, int]:
    """The rank of each adapted matrix by its path. abstract: the tree of plain matrices, shapes suffice.

    A pattern may name norms and biases beside matrices, which it passes over. Raises ValueError where a pattern names
    these alone or the embedding, or where the list names no matrix at all.
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
            raise ValueError(f"lora rank {rank} of {path} {tuple(leaf.shape)}: give at most its smaller side")
        found[path] = rank
    if alone := [path for pattern, path in passed_over.items() if pattern not in matched]:
        raise ValueError(NO_MATRIX.format(alone[0]))
    if both := sorted(path for path in found if lora.trains_whole(path)):
        raise ValueError(f"lora targets and whole both name {', '.join(both)}")
    if not found:
        patterns = [pattern for pattern, _ in lora.targets]
        raise ValueError(f"lora targets {patterns} name no parameter: paths are such as layers/attention/q")
    return found


def adapt(lora: Lora, params: Params, abstract: Params, key: Key[Array, ""]) -> Params:
    """`params` with fresh adapters on the matrices that `lora.targets` names: the same function until they learn.

    abstract: the network's tree of plain matrices, to which `params` corresponds; where it is quantised or adapted
    already that becomes the base. Adapters are float32.
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
    """The part of a network's plain tree that stays as it is: all but what is trained whole. ValueError as `ranks`."""
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
    """The matrix's `rank` strongest singular directions as a product of two."""
    flat = matrix.reshape(-1, math.prod(inputs), math.prod(outputs))

    def split(flat_IO):
        u, s, vt = jnp.linalg.svd(flat_IO, full_matrices=False)
        root = jnp.sqrt(s[:rank])
        return u[:, :rank] * root[None], vt[:rank] * root[:, None]

    a, b = jax.lax.map(split, flat)
    return a.reshape(*stack, *inputs, rank), b.reshape(*stack, rank, *outputs)


def _norms(matrix: jax.Array, stack: int, inputs: int) -> jax.Array:
    """The length of each output's column."""
    return jnp.sqrt(jnp.sum(matrix**2, axis=tuple(range(stack, stack + inputs))))


def with_dropout(params: Params, key: Key[Array, ""], rate: float) -> Params:
    """`params` whose adapters drop each of their inputs with probability `rate`, anew for every key."""
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
