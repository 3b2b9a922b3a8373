"""Batches on the devices before they are asked for: read and sent by a background thread while a step computes."""

import functools
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
from jax.sharding import NamedSharding, PartitionSpec


class DeviceBatches(Iterator):
    """Yields (step, batch of global arrays). `waited` is the seconds that the consumer has waited for them.

    The thread ends when the last batch has been handed out, when reading fails (the error is raised here), and at
    `close()`, which `contextlib.closing` calls at the end of a block.
    """

    def __init__(self, loaded: Iterator[tuple[int, dict[str, jax.Array]]]):
        self._loaded = loaded
        self._closed = False
        self.waited = 0.0

    def __next__(self) -> tuple[int, dict[str, jax.Array]]:
        if self._closed:
            raise StopIteration
        begin = time.perf_counter()
        try:
            return next(self._loaded)
        except BaseException:  # the end, a failure, or an interrupt
            self.close()
            raise
        finally:
            self.waited += time.perf_counter() - begin

    def close(self) -> None:
        """Stops reading ahead; nothing more is handed out."""
        self._closed = True
        self._loaded.close()


def prefetch(batches: Any, start: int, stop: int, sharding: NamedSharding, size: int = 2) -> DeviceBatches:
    """Steps `start` to `stop - 1` of `batches` as global arrays, at most `size` batches ahead.

    Args:
      batches: anything with `rows(step, rows)` and `shapes`, as `data.mixture.Mixture`.
      start, stop: the steps.
      sharding: as of `device_batch`; each host reads only the rows that its devices hold.
      size: batches held on the devices beyond the one in use.
    """
    load = functools.partial(device_batch, batches, sharding=sharding)
    steps = grain.MapDataset.range(start, stop).map(lambda step: (step, load(step)))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=size)
    return DeviceBatches(iter(steps.to_iter_dataset(options)))


def device_batch(batches: Any, step: int, sharding: NamedSharding) -> dict[str, jax.Array]:
    """One batch as global arrays, of which this host reads the rows its devices hold, each of them once.

    The spec of `sharding` is that of the leading axes: the batch's, and for packed rows [B, T] the positions'. An array
    of fewer axes takes the beginning of it; axes beyond it are not split.
    """

    @functools.cache
    def rows(start: int, stop: int) -> dict:
        return batches.rows(step, slice(start, stop))

    def read(name: str, size: int, index: tuple[slice, ...]):
        start, stop, _ = index[0].indices(size)
        return rows(start, stop)[name][(slice(None), *index[1:])]

    def load(name: str, shape: tuple[int, ...]) -> jax.Array:
        spec = PartitionSpec(*sharding.spec[: len(shape)])
        where = sharding if spec == sharding.spec else NamedSharding(sharding.mesh, spec)
        return jax.make_array_from_callback(shape, where, functools.partial(read, name, shape[0]))

    return {name: load(name, shape) for name, (shape, _) in batches.shapes.items()}
