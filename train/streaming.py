"""Checkpoints of parameters that are written tensor by tensor, so that they never have to be in memory together.

Orbax writes arrays that exist. Here it writes a checkpoint of the same tree with arrays of one number, and then each
array is given its true shape, and its numbers layer by layer, in the same place and format (Zarr in OCDBT, by
TensorStore). What comes out is a checkpoint like any other; reading it is Orbax's.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from orbax.checkpoint import v1 as ocp

from ..model.sharding import path_name

CHUNK_BYTES = 256_000_000
"""About the most that one chunk of an array without layers holds."""


def save_params(
    workdir: epath.Path, abstract: Any, parts: Iterable[tuple[str, int | None, np.ndarray]], manifest: dict
) -> None:
    """Writes `checkpoints/0` of a run directory: {"params": tree of `abstract`'s shapes and dtypes}.

    parts: (path, layer, value), every layer of every leaf under layers/ and, with None for the layer, every other leaf.
    The checkpoint appears under its name when it is whole. Raises FileExistsError where there is one.
    """
    final = workdir / "checkpoints" / "0"
    if final.exists():
        raise FileExistsError(str(final))
    unfinished = workdir / "checkpoints" / "0.unfinished"
    unfinished.rmtree(missing_ok=True)
    one_number = jax.tree.map(lambda x: jnp.zeros(1, x.dtype), abstract)
    ocp.save(unfinished, {"params": one_number}, custom_metadata={"step": 0, **manifest})
    base = next(iter(unfinished.glob("*/manifest.ocdbt"))).parent
    arrays = {
        path_name(path): _create(base, ["params", *path_name(path).split("/")], leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    for path, layer, value in parts:
        array = arrays[path]
        value = value.astype(array.dtype.numpy_dtype, copy=False)
        (array if layer is None else array[layer]).write(value).result()
    unfinished.rename(final)


def _create(base: epath.Path, keys: list[str], leaf: Any) -> ts.TensorStore:
    """The array of a leaf in its true shape, in place of the one that Orbax wrote; a layer is a chunk."""
    url = str(base) if "://" in str(base) else f"file://{base.resolve()}"
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "ocdbt", "base": f"{url}/", "path": f"{'.'.join(keys)}/"},
        "store_data_equal_to_fill_value": True,  # Orbax takes a layer of zeros that was left out for a lost one
    }
    layers = keys[1] == "layers"
    chunk = [1, *leaf.shape[1:]]
    if not layers:
        row = math.prod(leaf.shape[1:]) * jnp.dtype(leaf.dtype).itemsize
        chunk[0] = max(1, min(leaf.shape[0], CHUNK_BYTES // row))
    return ts.open(
        spec,
        create=True,
        delete_existing=True,
        dtype=ts.dtype(jnp.dtype(leaf.dtype).name),
        shape=leaf.shape,
        chunk_layout=ts.ChunkLayout(chunk_shape=chunk),
    ).result()
