"""Adds rows for new token ids to the embedding and the output head.

The row of a new token is the mean of the rows of the old tokens that spelled it (fast vocabulary transfer,
arXiv:2402.09977, section 3; also Colossal-LLaMA). Its logit is then the mean of their logits.
`data.tokenizer_merging.split_of_new` gives the old tokens.
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
    """Adds a row for each of `splits` to embedding and head; all other parameters are the same arrays.

    Args:
      params: parameters of a LLaMA, with `embed/embedding` [V, D], and `head/kernel` [D, V] if the head is not tied.
      splits: for each new id, in order, the old ids whose rows it is the mean of.
      start: the first new id. Default: V. A smaller one reuses rows of the embedding that the tokenizer had no ids for.

    Returns:
      Parameters for a vocabulary of max(V, start + len(splits)). Means are taken in float32, and stored in the dtype of
      the other rows.

    Raises:
      ValueError: an old id is not below `start`, a split is empty, `start` is above V, or a matrix is quantised or has
        an adapter.
    """
    table_VD = params["embed"]["embedding"]
    kernel_DV = params.get("head", {}).get("kernel")
    for name, matrix in (("embed/embedding", table_VD), ("head/kernel", kernel_DV)):
        if is_weight(matrix):
            raise ValueError(f"{name} has parts {', '.join(matrix)}: add rows before quantising or adapting it")
    start = table_VD.shape[0] if start is None else start
    grown = params | {"embed": params["embed"] | {"embedding": grow_rows(table_VD, splits, start)}}
    if kernel_DV is not None:
        grown["head"] = params["head"] | {"kernel": grow_rows(kernel_DV.T, splits, start).T}
    return grown


def _check(splits: Sequence[Sequence[int]], start: int, shape: tuple[int, ...]) -> None:
    if not 0 < start <= shape[0]:
        raise ValueError(
            f"new ids start at {start}, but embed/embedding {tuple(shape)} has rows 0 to {shape[0] - 1}: give a start "
            f"from 1 to {shape[0]}"
        )
    for i, split in enumerate(splits, start):
        if len(split) == 0:
            raise ValueError(f"new id {i} has no old ids to be the mean of: give at least one")
        if wrong := [old for old in split if not 0 <= old < start]:
            raise ValueError(
                f"new id {i} is to be the mean of {list(split)}: {wrong[0]} is no old id of embed/embedding "
                f"{tuple(shape)}, which are 0 to {start - 1}"
            )


def pad_rows(table_VD: Float[Array, "V D"], rows: int) -> Float[Array, "W D"]:
    """Extends a table to `rows` rows. The new rows are the mean of the old ones, taken in float32.

    It serves tokens of which nothing is known, such as a padding token. Raises ValueError if the table has more rows.
    """
    own = table_VD.shape[0]
    if rows < own:
        raise ValueError(
            f"a vocabulary of {rows} rows would cut off some of the {own} that there are; give {own} or more"
        )
    mean_D = table_VD.astype(jnp.float32).mean(0).astype(table_VD.dtype)
    return jnp.concatenate([table_VD, jnp.broadcast_to(mean_D, (rows - own, *mean_D.shape))])


def grow_rows(table_VD: Float[Array, "V D"], splits: Sequence[Sequence[int]], start: int) -> Float[Array, "W D"]:
    """Writes a row for each of `splits` into a table, from row `start` on. Arguments and errors are those of `grow`."""
    _check(splits, start, table_VD.shape)
    if not splits:
        return table_VD
    lengths = np.array([len(split) for split in splits])
    owners = np.repeat(np.arange(len(splits)), lengths)
    parts = table_VD[np.concatenate([np.asarray(split) for split in splits])].astype(jnp.float32)
    means = jax.ops.segment_sum(parts, owners, len(splits), indices_are_sorted=True) / lengths[:, None]
    means = means.astype(table_VD.dtype)
    return jnp.concatenate([table_VD[:start], means, table_VD[start + len(splits) :]])
