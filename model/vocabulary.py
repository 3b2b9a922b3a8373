"""More rows for the embedding and the output head: a network learns to read and write new token ids.

A new token starts as the mean of the tokens that it was written with before (fast vocabulary transfer,
arXiv:2402.09977, section 3; so does Colossal-LLaMA): its input is what the network knows of its parts, and its logit is
the mean of theirs. Which parts those are is said by `data.tokenizer_merging.split_of_new`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .weights import is_weight

Params = dict[str, Any]


def grow(params: Params, splits: Sequence[Sequence[int]], *, start: int | None = None) -> Params:
    """The parameters of a LLaMA with a row for each of `splits`; all others are the same arrays.

    Args:
        params: `embed/embedding` [V, D], and `head/kernel` [D, V] where the head is not tied, among others.
        splits: for each new id, in order, the old ids whose rows it is the mean of.
        start: the first new id. Default V; less where the embedding has more rows than its tokenizer had ids, and
            these unused rows are taken first.

    Returns:
        Parameters for a vocabulary of max(V, start + len(splits)). Means are taken in float32 and stored in the dtype
        of the rest.

    Raises:
        ValueError: an id is not below `start`, a split is empty, `start` lies beyond V, or a matrix is quantised or has
            an adapter.
    """
    table_VD = params["embed"]["embedding"]
    kernel_DV = params.get("head", {}).get("kernel")
    for name, matrix in (("embed/embedding", table_VD), ("head/kernel", kernel_DV)):
        if is_weight(matrix):
            raise ValueError(f"{name} is in parts ({', '.join(matrix)}): grow before quantising or adding an adapter")
    start = table_VD.shape[0] if start is None else start
    grown = params | {"embed": params["embed"] | {"embedding": grow_rows(table_VD, splits, start)}}
    if kernel_DV is not None:
        grown["head"] = params["head"] | {"kernel": grow_rows(kernel_DV.T, splits, start).T}
    return grown


def _check(splits: Sequence[Sequence[int]], start: int, shape: tuple[int, ...]) -> None:
    if not 0 < start <= shape[0]:
        raise ValueError(f"new ids start at {start}, embed/embedding {tuple(shape)} has rows 0 to {shape[0] - 1}")
    for i, split in enumerate(splits, start):
        if len(split) == 0:
            raise ValueError(f"new id {i} has no old ids to be the mean of")
        if wrong := [old for old in split if not 0 <= old < start]:
            raise ValueError(
                f"new id {i} is to be the mean of {list(split)}: {wrong[0]} is no old id of embed/embedding "
                f"{tuple(shape)}, which are 0 to {start - 1}"
            )


def pad_rows(table_VD: Float[Array, "V D"], rows: int) -> Float[Array, "W D"]:
    """`table_VD` with `rows` rows: those beyond its own are the mean of all, taken in float32.

    For tokens of which nothing is known, such as a padding token. Raises ValueError where there are more rows already.
    """
    own = table_VD.shape[0]
    if rows < own:
        raise ValueError(f"a vocabulary of {rows} rows would cut off some of the {own} that there are")
    mean_D = table_VD.astype(jnp.float32).mean(0).astype(table_VD.dtype)
    return jnp.concatenate([table_VD, jnp.broadcast_to(mean_D, (rows - own, *mean_D.shape))])


def grow_rows(table_VD: Float[Array, "V D"], splits: Sequence[Sequence[int]], start: int) -> Float[Array, "W D"]:
    """One table of `grow`, rows being tokens."""
    _check(splits, start, table_VD.shape)
    if not splits:
        return table_VD
    lengths = np.array([len(split) for split in splits])
    owners = np.repeat(np.arange(len(splits)), lengths)
    parts = table_VD[np.concatenate([np.asarray(split) for split in splits])].astype(jnp.float32)
    means = jax.ops.segment_sum(parts, owners, len(splits), indices_are_sorted=True) / lengths[:, None]
    means = means.astype(table_VD.dtype)
    return jnp.concatenate([table_VD[:start], means, table_VD[start + len(splits) :]])
