"""Checkpoints of parameters that are written and read tensor by tensor, so that they are never in memory together.

Orbax writes arrays that exist. Here it writes a checkpoint of the same tree with arrays of one number, and then each
array is given its true shape, and its numbers layer by layer, in the same place and format (Zarr in OCDBT, by
TensorStore). What comes out is a checkpoint like any other, which Orbax reads; layer by layer it can be read here.
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
from .reading import readable

NOT_WRITTEN = re.compile(r"(?s)[A-Z_]+: .*(Error writing|Failed|os_error)")
"""How errors of TensorStore begin that are of the disk; there are others, of what it was asked to do."""

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
    with _writable(final):
        _save(unfinished, abstract, parts, manifest)
    proof.prove(unfinished)
    unfinished.rename(final)


@contextlib.contextmanager
def _writable(path: epath.Path) -> Iterator[None]:
    """Says as an OSError of one line what TensorStore, which has its own errors, could not write."""
    try:
        yield
    except ValueError as error:
        if not NOT_WRITTEN.match(str(error)):
            raise
        raise OSError(f"{path} was not written: {' '.join(str(error).split())}") from error


def _save(
    unfinished: epath.Path, abstract: Any, parts: Iterable[tuple[str, int | None, np.ndarray]], manifest: dict
) -> None:
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
    """The layers of the leaf at `keys` of a checkpoint, one by one; as many as a chunk holds are in memory together."""
    with readable(checkpoint):
        array = ts.open({"driver": "auto", "kvstore": _place(checkpoint, keys)}, open=True, read=True).result()
    together = array.chunk_layout.read_chunk.shape[0]
    for start in range(0, array.shape[0], together):
        with readable(checkpoint):
            layers = array[start : min(start + together, array.shape[0])].read().result()
        yield from layers


def _place(checkpoint: epath.Path, keys: list[str]) -> dict[str, Any]:
    """Where Orbax keeps a leaf."""
    [manifest] = checkpoint.glob("*/manifest.ocdbt")
    base = manifest.parent
    url = str(base) if "://" in str(base) else f"file://{base.resolve()}"
    return {"driver": "ocdbt", "base": f"{url}/", "path": f"{'.'.join(keys)}/"}


def _create(checkpoint: epath.Path, keys: list[str], leaf: Any) -> ts.TensorStore:
    """The array of a leaf in its true shape, in place of the one that Orbax wrote; a layer is a chunk."""
    spec = {
        "driver": "zarr3",
        "kvstore": _place(checkpoint, keys),
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
