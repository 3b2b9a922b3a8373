"""What may stand where a matrix is expected: an array, or a dict of arrays that says by its keys how it is to be read.

    {"base": matrix, "a": [.., in, r], "b": [.., r, out], "gain": [..], ...}    a low-rank adapter on it (lora.py)
    {"int8": codes, "scales": ...} and the like                                a quantised matrix (quantization.py)

So parameters stay a plain nested dict, regex lists reach every part by its path (`layers/attention/q/a`), and what the
network does with a matrix follows from the tree that it is given. Inside the network such a dict is a `Weight`, which
flax.nnx takes for one value.
"""

import dataclasses
from typing import Any

import jax

MARKS = frozenset({"base", "int8", "int4", "nf4"})
"""Keys by which a dict of arrays is known for one matrix."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weight:
    """A matrix in parts; of a decoder's also {"left": matrix [.., out, in]}. by_blocks: see `quantization.product`."""

    parts: dict[str, Any]
    by_blocks: bool = dataclasses.field(default=False, metadata={"static": True})


def is_weight(node: Any) -> bool:
    """Whether a node of a parameter tree is one matrix in parts."""
    return isinstance(node, dict) and not MARKS.isdisjoint(node)


def wrap(tree: Any) -> Any:
    """The parameter tree as the network takes it: each dict that is one matrix as a `Weight`."""
    if not isinstance(tree, dict):
        return tree
    parts = {name: wrap(part) for name, part in tree.items()}
    return Weight(parts) if is_weight(tree) else parts


VECTORS = ("norm/scale", "_bias")
"""How the paths of a layer's parameters end that are no matrices."""


def input_axes(path: str) -> int:
    """How many axes of a layer's matrix are its inputs: heads and their width for attention's output, else one."""
    return 2 if path.endswith("attention/o") else 1


def is_stacked(path: str) -> bool:
    """Whether the leading axis of a parameter is the stack of layers."""
    return "layers/" in path


def split_axes(path: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A matrix's axes: of the stack of layers, of its inputs, of its outputs."""
    start = int(is_stacked(path))
    stop = start + input_axes(path)
    return shape[:start], shape[start:stop], shape[stop:]


ADAPTER_PARTS = ("a", "b", "a0", "b0", "gain", "magnitude")
SCALE_PARTS = ("scales", "mins", "scale_scales", "scale_means")
CODE_PARTS = ("int8", "int4", "nf4", *SCALE_PARTS)


def matrix_of(path: str) -> tuple[str, tuple[str, ...]]:
    """The path of the matrix that a parameter is a part of, and what part: `layers/attention/q`, ("base", "nf4")."""
    names = path.split("/")
    parts: list[str] = []
    while names[-1] in ("base", *ADAPTER_PARTS, *CODE_PARTS):
        parts.insert(0, names.pop())
    return "/".join(names), tuple(parts)


def part_spec(path: str, parts: tuple[str, ...], rank: int, spec: tuple) -> tuple:
    """How a part of a matrix is split over a mesh, given how the matrix is: along the axes that it shares with it."""
    stack, inputs = int(is_stacked(path)), input_axes(path)
    kind = parts[-1] if parts else "base"
    outputs = {"gain": 0, "magnitude": rank - stack, "b": rank - stack - 1, "b0": rank - stack - 1}.get(kind)
    spec = (*spec, *[None] * rank)
    if outputs is None:
        return (*spec[: stack + inputs], None) if kind in ("a", "a0") else spec[:rank]
    ends = spec[stack + inputs : stack + inputs + outputs]
    return (*spec[:stack], None, *ends) if kind in ("b", "b0") else (*spec[:stack], *ends)


def is_adapter(node: Any) -> bool:
    """Whether a node of a tree without its base is what was put on one matrix of that base."""
    return isinstance(node, dict) and "gain" in node


def join(own: Any, base: Any) -> Any:
    """Two parameter trees as one: adapters in `own` are put on matrices of `base`, else a leaf is in one of the two."""
    if is_adapter(own):
        return {"base": base} | own
    if not isinstance(own, dict) or not isinstance(base, dict):
        raise ValueError("both trees hold the same parameter")
    return own | base | {name: join(own[name], base[name]) for name in own.keys() & base.keys()}


def without(tree: Any, base: Any) -> Any:
    """What `join` put together with `base`: the part of a tree that `base` does not hold."""
    if is_adapter(tree):
        return {name: part for name, part in tree.items() if name != "base"}
    own = {}
    for name, part in tree.items():
        if name not in base:
            own[name] = part
        elif isinstance(part, dict) and (rest := without(part, base[name])):
            own[name] = rest
    return own
