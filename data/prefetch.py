"""Batches on the devices before they are asked for: read and sent by a background thread while a step computes."""

import functools
import time
from collections.abc import Iterator

import grain
import jax

from .batches import DTYPES, Batches, EvalBatches


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


def prefetch(
    batches: Batches | EvalBatches, start: int, stop: int, sharding: jax.sharding.Sharding, size: int = 2
) -> DeviceBatches:
    """Steps `start` to `stop - 1` of `batches` as global arrays, at most `size` batches ahead.

    Args:
      batches: anything with `rows(step, rows)`, `batch_size` and `length`.
      start, stop: the steps.
      sharding: of every array [B, T]; each host reads only the rows that its devices hold.
      size: batches held on the devices beyond the one in use.
    """
    load = functools.partial(device_batch, batches, sharding=sharding)
    steps = grain.MapDataset.range(start, stop).map(lambda step: (step, load(step)))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=size)
    return DeviceBatches(iter(steps.to_iter_dataset(options)))


def device_batch(batches: Batches | EvalBatches, step: int, sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """One batch as global arrays [B, T], of which this host reads the rows its devices hold, each of them once."""
    shape = (batches.batch_size, batches.length)

    @functools.cache
    def rows(start: int, stop: int) -> dict:
        return batches.rows(step, slice(start, stop))

    def read(name: str, index: tuple[slice, slice]):
        start, stop, _ = index[0].indices(shape[0])
        return rows(start, stop)[name][:, index[1]]

    return {name: jax.make_array_from_callback(shape, sharding, functools.partial(read, name)) for name in DTYPES}
