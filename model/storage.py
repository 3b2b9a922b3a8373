"""Converts parameters between storages: plain, quantised, and adapted matrices."""

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
    """Quantises one layer of the parameter at `path` to `kind`. The embedding is quantised by rows, to be looked up."""
    if path.endswith("embed/embedding"):
        return quantization.encode_table(kind, matrix)
    return quantization.encode(kind, matrix, input_axes(path))


def encode(kind: str, path: str, matrix: jax.Array) -> Params:
    """Quantises all layers of the parameter at `path` to `kind` (a key of `quantization.BLOCKS`)."""
    one = functools.partial(encode_layer, kind, path)
    return jax.lax.map(one, matrix) if is_stacked(path) else one(matrix)


def plain_matrix(matrix: Any, path: str, dtype: Any = jnp.float32) -> jax.Array:
    """The parameter at `path`, of any storage, as one array of `dtype`: decoded, with its adapters merged into it."""
    if not is_weight(matrix):
        return matrix.astype(dtype)
    if path.endswith("embed/embedding"):
        return quantization.decode(quantization.as_head(matrix), 1, dtype).T
    one = functools.partial(dense, inputs=input_axes(path), dtype=dtype)
    return jax.lax.map(one, wrap(matrix)) if is_stacked(path) else one(wrap(matrix))


def plain(params: Params, abstract: Params) -> Params:
    """The tree of plain matrices that computes the same, up to rounding, as an adapted or quantised tree.

    abstract: the network's tree of plain matrices or their shapes; the result has its dtypes.
    """

    def one(key_path, asked, matrix):
        return plain_matrix(matrix, path_name(key_path), asked.dtype)

    return jax.tree_util.tree_map_with_path(one, abstract, params)


def quantize(params: Params, rules: Rules) -> Params:
    """Quantises each parameter to the kind that the first matching rule names; None leaves it unchanged.

    rules: pairs of a regex over paths and a kind of `quantization.BLOCKS` or None, such as
    ((".*(norm/scale|_bias)", None), (".*", "int8")).

    Raises ValueError for an unknown kind, for a kind on a norm, bias or scalar head, and for a path without a rule.
    """

    def one(key_path, matrix):
        kind = kind_at(rules, path_name(key_path))
        return matrix if kind is None else encode(kind, path_name(key_path), matrix)

    return jax.tree_util.tree_map_with_path(one, params)


def kind_at(rules: Rules, path: str) -> str | None:
    """The kind that `rules` name for the parameter at `path`; None if it stays unchanged. Raises as `quantize`."""
    kind = match(rules, path)
    if kind is None:
        return None
    known = (*quantization.BLOCKS, STORED)
    if kind not in known:
        raise ValueError(f"quantisation {kind!r} of {path}: give one of {', '.join(known)}, or None")
    if path.endswith(VECTORS) or "score/" in path:
        raise ValueError(
            f"quantisation {kind!r} of {path}: only matrices can be quantised; put a rule with None before it"
        )
    return kind


STORED = "stored"
"""In place of a kind: the numbers of the GGUF file itself, where their type has an equivalent here."""

MATRICES: dict[str, Rules] = {
    kind: (
        (r".*(norm/scale|_bias)", None),
        # Embedding and head are read for every token, so they keep eight bits.
        (r"(.*/)?(embed/embedding|head/kernel)", "int8"),
        (r".*", kind),
    )
    for kind in quantization.BLOCKS
} | {STORED: ((r".*(norm/scale|_bias)", None), (r".*", STORED))}
"""The rules that "int8", "int4", "nf4" or "stored" stands for, for a whole network."""


def rules_of(quantize: str | Rules | None) -> Rules | None:
    """The rules that a word of `MATRICES` stands for, or the given rules. Raises ValueError for another word."""
    if not isinstance(quantize, str):
        return quantize
    if quantize not in MATRICES:
        raise ValueError(f"quantisation {quantize!r}: give one of {', '.join(MATRICES)}, or a list of (regex, kind)")
    return MATRICES[quantize]
