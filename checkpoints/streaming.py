"""Writes and reads a checkpoint of parameters layer by layer, so that they are never in memory together.

Orbax can only write arrays that are in memory. So it first writes a checkpoint of the tree with one number in each
array. TensorStore then replaces each array by one of the true shape, in the same place and format (Zarr in OCDBT), and
writes its numbers layer by layer. Orbax reads the result like any other checkpoint; `read_layers` reads it by layers.
"""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from etils import epath
from orbax.checkpoint import v1 as ocp

from ..model.sharding import path_name
from . import proof
from .reading import read_errors

NOT_WRITTEN = re.compile(r"(?s)[A-Z_]+: .*(Error writing|Failed|os_error)")
"""Matches TensorStore's messages about the disk; its other messages are about wrong calls."""

CHUNK_BYTES = 256_000_000
"""Upper bound, in bytes, of one chunk of an array without layers."""


def save_params(
    workdir: epath.Path, abstract: Any, parts: Iterable[tuple[str, int | None, np.ndarray]], manifest: dict
) -> None:
    """Writes the checkpoint `checkpoints/0` of a run directory, with the state {"params": parameters}.

    The checkpoint gets its name only when it is whole.

    Args:
      workdir: the run directory.
      abstract: tree of the shapes and dtypes of the parameters.
      parts: (path, layer, value) for every layer of every leaf under layers/; layer is None for every other leaf.
      manifest: the metadata of the checkpoint.

    Raises:
      FileExistsError: the checkpoint exists.
      OSError: the disk is full or cannot be written.
    """
    final = workdir / "checkpoints" / "0"
    if final.exists():
        raise FileExistsError(str(final))
    unfinished = workdir / "checkpoints" / "0.unfinished"
    unfinished.rmtree(missing_ok=True)
    with _writable(final):
        _save(unfinished, abstract, parts, manifest)
    proof.prove(unfinished)
    unfinished.rename(final)


@contextlib.contextmanager
def _writable(path: epath.Path) -> Iterator[None]:
    """Turns TensorStore's errors about the disk, which are ValueErrors, into an OSError of one line."""
    try:
        yield
    except ValueError as error:
        if not NOT_WRITTEN.match(str(error)):
            raise
        raise OSError(f"{path} was not written: {' '.join(str(error).split())}") from error


def _save(
    unfinished: epath.Path, abstract: Any, parts: Iterable[tuple[str, int | None, np.ndarray]], manifest: dict
) -> None:
    """Writes the checkpoint at a temporary path; the other arguments are those of `save_params`."""
    one_number = jax.tree.map(lambda x: jnp.zeros(1, x.dtype), abstract)
    ocp.save(unfinished, {"params": one_number}, custom_metadata={"step": 0, "checksums": "crc32", **manifest})
    arrays = {
        path_name(path): _create(unfinished, ["params", *path_name(path).split("/")], leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    for path, layer, value in parts:
        array = arrays[path]
        value = value.astype(array.dtype.numpy_dtype, copy=False)
        (array if layer is None else array[layer]).write(value).result()


def read_layers(checkpoint: epath.Path, keys: list[str]) -> Iterator[np.ndarray]:
    """Yields the layers of a stacked leaf one by one; the layers of one chunk are in memory together.

    Args:
      checkpoint: the folder of the checkpoint.
      keys: the keys of the state that lead to the leaf.
    """
    with read_errors(checkpoint):
        array = ts.open({"driver": "auto", "kvstore": _place(checkpoint, keys)}, open=True, read=True).result()
    together = array.chunk_layout.read_chunk.shape[0]
    for start in range(0, array.shape[0], together):
        with read_errors(checkpoint):
            layers = array[start : min(start + together, array.shape[0])].read().result()
        yield from layers


def _place(checkpoint: epath.Path, keys: list[str]) -> dict[str, Any]:
    """TensorStore's spec of the place where Orbax stores the leaf at `keys` of a checkpoint."""
    [manifest] = checkpoint.glob("*/manifest.ocdbt")
    base = manifest.parent
    url = str(base) if "://" in str(base) else f"file://{base.resolve()}"
    return {"driver": "ocdbt", "base": f"{url}/", "path": f"{'.'.join(keys)}/"}


def _create(checkpoint: epath.Path, keys: list[str], leaf: Any) -> ts.TensorStore:
    """Creates the array of a leaf in its true shape, in place of Orbax's array of one number; a layer is a chunk."""
    spec = {
        "driver": "zarr3",
        "kvstore": _place(checkpoint, keys),
        "store_data_equal_to_fill_value": True,  # else a layer of zeros is left out, and Orbax reports it as lost
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
