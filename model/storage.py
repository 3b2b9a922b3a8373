"""Whole parameter trees from one storage into another: plain matrices, quantised ones, and back."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from . import quantization
from .linear import dense
from .sharding import match, path_name
from .weights import VECTORS, input_axes, is_stacked, is_weight, wrap

Params = dict[str, Any]
Rules = Sequence[tuple[str, str | None]]


def encode_layer(kind: str, path: str, matrix: jax.Array) -> Params:
    """One layer of the parameter at `path` in numbers of `kind`; the embedding by rows that can be looked up."""
    if path.endswith("embed/embedding"):
        return quantization.encode_table(kind, matrix)
    return quantization.encode(kind, matrix, input_axes(path))


def encode(kind: str, path: str, matrix: jax.Array) -> Params:
    """A parameter, all its layers, in numbers of `kind`."""
    one = functools.partial(encode_layer, kind, path)
    return jax.lax.map(one, matrix) if is_stacked(path) else one(matrix)


def plain_matrix(matrix: Any, path: str, dtype: Any = jnp.float32) -> jax.Array:
    """A parameter of any storage as one array, decoded and with its adapters merged into it."""
    if not is_weight(matrix):
        return matrix.astype(dtype)
    if path.endswith("embed/embedding"):
        return quantization.decode(quantization.as_head(matrix), 1, dtype).T
    one = functools.partial(dense, inputs=input_axes(path), dtype=dtype)
    return jax.lax.map(one, wrap(matrix)) if is_stacked(path) else one(wrap(matrix))


def plain(params: Params, abstract: Params) -> Params:
    """The tree of plain matrices that computes what an adapted or quantised one does, to rounding.

    abstract: the network's tree of plain matrices, whose dtypes the result has.
    """

    def one(key_path, asked, matrix):
        return plain_matrix(matrix, path_name(key_path), asked.dtype)

    return jax.tree_util.tree_map_with_path(one, abstract, params)


def quantize(params: Params, rules: Rules) -> Params:
    """`params` with each matrix in the numbers that the first matching rule names; None leaves it as it is.

    rules: (regex over paths, kind of `quantization.BLOCKS` or None), such as
    ((".*(norm/scale|_bias)", None), (".*", "int8")).
    Raises ValueError for an unknown kind, for a rule that names a norm or bias, and for a path that none names.
    """

    def one(key_path, matrix):
        kind = kind_at(rules, path_name(key_path))
        return matrix if kind is None else encode(kind, path_name(key_path), matrix)

    return jax.tree_util.tree_map_with_path(one, params)


def kind_at(rules: Rules, path: str) -> str | None:
    """What `rules` say of the parameter at `path`, checked."""
    kind = match(rules, path)
    if kind is None:
        return None
    known = (*quantization.BLOCKS, STORED)
    if kind not in known:
        raise ValueError(f"quantisation {kind!r} of {path}: give one of {', '.join(known)}, or None")
    if path.endswith(VECTORS) or "score/" in path:
        raise ValueError(f"quantisation {kind!r} of {path}: only matrices can be; put a rule with None before")
    return kind


STORED = "stored"
"""In place of a kind: the numbers that a GGUF file has, where it has some of ours."""

MATRICES: dict[str, Rules] = {
    kind: (
        (r".*(norm/scale|_bias)", None),
        # Every token's embedding is read by all, so it keeps eight bits.
        (r"(.*/)?(embed/embedding|head/kernel)", "int8"),
        (r".*", kind),
    )
    for kind in quantization.BLOCKS
} | {STORED: ((r".*(norm/scale|_bias)", None), (r".*", STORED))}
"""What "int8", "int4", "nf4" or "stored" for a whole network means."""


def rules_of(quantize: str | Rules | None) -> Rules | None:
    """Rules as they are given, or those of one word for the whole network. Raises ValueError for another word."""
    if not isinstance(quantize, str):
        return quantize
    if quantize not in MATRICES:
        raise ValueError(f"quantisation {quantize!r}: give one of {', '.join(MATRICES)}, or a list of (regex, kind)")
    return MATRICES[quantize]
