"""The representations of a matrix in a parameter tree: an array, or a dict of arrays whose keys say how it is read.

    {"base": matrix, "a": [.., in, r], "b": [.., r, out], "gain": [..], ...}    a matrix with an adapter (lora.py)
    {"int8": codes, "scales": ...} and the like                                a quantised matrix (quantization.py)

Parameters therefore stay a plain nested dict. A regex list reaches every part by its path (`layers/attention/q/a`), and
the network computes with a matrix as its representation says. Inside the network the dict is a `Weight`, which flax.nnx
treats as one value.
"""

import dataclasses
from typing import Any

import jax

MARKS = frozenset({"base", "int8", "int4", "nf4"})
"""Keys that mark a dict of arrays as one matrix."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weight:
    """A matrix in parts, as one node of a parameter tree."""

    parts: dict[str, Any]
    """Arrays by name, in a representation that this file's docstring lists. Decoders have one more: {"left": matrix}, a
    transposed dense matrix [.., out, in]."""
    by_blocks: bool = dataclasses.field(default=False, metadata={"static": True})
    """How a quantised matrix is multiplied (`quantization.product`)."""


def is_weight(node: Any) -> bool:
    """Whether a node of a parameter tree is one matrix in parts."""
    return isinstance(node, dict) and not MARKS.isdisjoint(node)


def wrap(tree: Any) -> Any:
    """The parameter tree in the form that the network takes: each dict that is one matrix becomes a `Weight`."""
    if not isinstance(tree, dict):
        return tree
    parts = {name: wrap(part) for name, part in tree.items()}
    return Weight(parts) if is_weight(tree) else parts


VECTORS = ("norm/scale", "_bias")
"""Endings of the paths of a layer's parameters that are vectors instead of matrices."""


def input_axes(path: str) -> int:
    """The number of input axes of a layer's matrix: 2 for attention's output (heads and their width), otherwise 1."""
    return 2 if path.endswith("attention/o") else 1


def is_stacked(path: str) -> bool:
    """Whether the first axis of the parameter at a path is the stack of layers."""
    return "layers/" in path


def split_axes(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Splits the shape of the matrix at a path into the axes of the stack of layers, of its inputs, of its outputs."""
    start = int(is_stacked(path))
    stop = start + input_axes(path)
    return shape[:start], shape[start:stop], shape[stop:]


ADAPTER_PARTS = ("a", "b", "a0", "b0", "gain", "magnitude")
SCALE_PARTS = ("scales", "mins", "scale_scales", "scale_means")
CODE_PARTS = ("int8", "int4", "nf4", *SCALE_PARTS)


def matrix_of(path: str) -> tuple[str, tuple[str, ...]]:
    """Splits the path of a parameter into that of its matrix and the names of the part within the matrix.

    `layers/attention/q/base/nf4` gives `layers/attention/q` and ("base", "nf4").
    """
    names = path.split("/")
    parts: list[str] = []
    while names[-1] in ("base", *ADAPTER_PARTS, *CODE_PARTS):
        parts.insert(0, names.pop())
    return "/".join(names), tuple(parts)


def part_spec(path: str, parts: tuple[str, ...], rank: int, spec: tuple) -> tuple:
    """The partition spec of a part of a matrix: it is split like the matrix along the axes that it shares with it.

    Args:
      path: path of the matrix.
      parts: names of the part (`matrix_of`).
      rank: number of axes of the part.
      spec: partition spec of the matrix, a mesh axis or None for each of its axes.
    """
    stack, inputs = int(is_stacked(path)), input_axes(path)
    kind = parts[-1] if parts else "base"
    outputs = {"gain": 0, "magnitude": rank - stack, "b": rank - stack - 1, "b0": rank - stack - 1}.get(kind)
    spec = (*spec, *[None] * rank)
    if outputs is None:
        return (*spec[: stack + inputs], None) if kind in ("a", "a0") else spec[:rank]
    ends = spec[stack + inputs : stack + inputs + outputs]
    return (*spec[:stack], None, *ends) if kind in ("b", "b0") else (*spec[:stack], *ends)


def is_adapter(node: Any) -> bool:
    """Whether a node of a parameter tree is the adapter of one matrix."""
    return isinstance(node, dict) and "gain" in node


def join(own: Any, base: Any) -> Any:
    """Joins two parameter trees. An adapter in `own` is put on its matrix in `base`.

    Any other parameter is in one of the trees only; ValueError otherwise.
    """
    if is_adapter(own):
        return {"base": base} | own
    if not isinstance(own, dict) or not isinstance(base, dict):
        raise ValueError("both trees hold the same parameter; only an adapter may stand on a parameter of the base")
    return own | base | {name: join(own[name], base[name]) for name in own.keys() & base.keys()}


def without(tree: Any, base: Any) -> Any:
    """The part of a tree that `base` does not hold; the inverse of `join`."""
    if is_adapter(tree):
        return {name: part for name, part in tree.items() if name != "base"}
    own = {}
    for name, part in tree.items():
        if name not in base:
            own[name] = part
        elif isinstance(part, dict) and (rest := without(part, base[name])):
            own[name] = rest
    return own
