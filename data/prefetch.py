"""Loads batches onto the devices ahead of time: a background thread reads and sends them while a step computes."""

import functools
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
from jax.sharding import NamedSharding, PartitionSpec


class DeviceBatches(Iterator):
    """Iterates over (step, batch of global arrays).

    The thread ends after the last batch, when reading fails, and at `close()`, which `contextlib.closing` calls at the
    end of a block. The iterator raises the error of a failed reading.

    Attributes:
      waited: seconds that the consumer has waited for batches so far.
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
        except BaseException:  # StopIteration, an error of reading, or an interrupt
            self.close()
            raise
        finally:
            self.waited += time.perf_counter() - begin

    def close(self) -> None:
        """Ends the thread and the iteration."""
        self._closed = True
        self._loaded.close()


def prefetch(batches: Any, start: int, stop: int, sharding: NamedSharding, size: int = 2) -> DeviceBatches:
    """The batches of steps `start` to `stop - 1` as global arrays, loaded at most `size` batches ahead.

    Args:
      batches: an object with `rows(step, rows)` and `shapes`, such as `data.mixture.Mixture`.
      start: the first step.
      stop: one past the last step.
      sharding: the sharding of the leading axes, as in `device_batch`.
      size: number of batches on the devices besides the one in use.
    """
    load = functools.partial(device_batch, batches, sharding=sharding)
    steps = grain.MapDataset.range(start, stop).map(lambda step: (step, load(step)))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=size)
    return DeviceBatches(iter(steps.to_iter_dataset(options)))


def device_batch(batches: Any, step: int, sharding: NamedSharding) -> dict[str, jax.Array]:
    """One batch as global arrays. Each host reads only the rows that its devices hold, and each of them once.

    Args:
      batches: an object with `rows(step, rows)` and `shapes`, such as `data.mixture.Mixture`.
      step: the step.
      sharding: its spec is that of the leading axes: the batch axis, and for packed rows [B, T] the position axis. An
        array with fewer axes takes the beginning of the spec; further axes are not split.
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
