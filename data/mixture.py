"""Batches as a function of (seed, step): `batches[step]` is the same in any order, in any run, on any number of hosts.

The rows of a source are packed text (`packed_rows.PackedRows`), samples (`samples.Samples`), or any other `RowSource`.
Row g of a run (g = step * B + row) comes from a source drawn by weight. It is the next row of this source that the run
has not used yet. A source is passed over epoch by epoch, each in an order of its own. Source and row depend on g alone.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import gcd, inf, lcm
from typing import Any, Protocol

import numpy as np

from ..errors import UserError
from .sources import Source
from .tally import Tally

VERSION = 1  # raised when the same seed gives other batches than before

Batch = dict[str, np.ndarray]
Shapes = dict[str, tuple[tuple[int, ...], type]]
"""Shape and dtype of each array of a row, or of a batch, by name."""


class RowSource(Protocol):
    """The rows of one source. `len(rows)` is the number of rows in an epoch."""

    shapes: Shapes  # shape and dtype of each array of one row; the last axis of "tokens" is the positions
    fingerprint: str  # a hash in hexadecimal of the content of all rows
    packing: str | None  # how samples are packed into rows; None if each row is one sample
    records: Sequence[dict]  # kept fields of the record of every sample; "index" in a batch is an index into it
    tally: Tally  # counts of the records of the source

    def __len__(self) -> int: ...

    def order(self, key: tuple[int, ...] | None) -> Any:
        """The order of the rows in an epoch, shuffled by `key`; the fixed order of an evaluation if `key` is None."""

    def write(self, order: Any, row: int, batch: Batch, place: int) -> None:
        """Writes one row into a batch.

        Args:
          order: from `order`.
          row: the row of the epoch.
          batch: the batch to write into.
          place: the row of the batch; it must be all zeros.
        """

    def fill(self, batch: Batch, place: int) -> None:
        """Writes a row without weight into row `place` of a batch: it fills the last batch of an evaluation."""

    def summary(self) -> dict[str, float]:
        """Counts of the rows, samples and tokens of an epoch, for logs."""


class Mixture:
    """The endless batches of a mixture: `batches[step]`, or `batches.rows(step, rows)` for some rows of a batch.

    Attributes:
      sources: the sources.
      parts: the rows of each source.
      batch_size: rows in a batch, over all hosts.
      length: positions in a row.
      records: kept fields of the record of every sample, source by source; "index" in a batch is an index into it.
      fingerprint: a hash of everything that decides the batches.
    """

    def __init__(self, sources: Sequence[Source], read: Callable[[Source], RowSource], batch_size: int, seed: int):
        """
        Args:
          sources: the sources; their names must differ.
          read: returns the rows of a source; all sources must have the same shapes.
          batch_size: rows in a batch, over all hosts.
          seed: seeds the order of rows.

        Raises:
          UserError: no source, two sources of one name, a weight that is not above 0, or an error of `read`.
        """
        _check(sources)
        self.sources = tuple(sources)
        self.parts = [read(source) for source in sources]
        self.batch_size = batch_size
        self.length = _length(self.parts[0])
        self.records = [record for part in self.parts for record in part.records]
        self._first = np.cumsum([0, *(len(part.records) for part in self.parts)])
        self._weights = integer_weights([source.weight for source in sources])
        self._orders = [_orders(part, seed) for part in self.parts]
        packing = self.parts[0].packing
        plan = {
            "version": VERSION,
            "seed": seed,
            "batch_size": batch_size,
            "length": self.length,
            **({} if packing is None else {"packing": packing}),
            "parts": [part.fingerprint for part in self.parts],
            "weights": self._weights,
        }
        self.fingerprint = hashlib.sha256(json.dumps(plan).encode()).hexdigest()

    def in_order_of(self, seed: int) -> "Mixture":
        """The same rows in the order of another seed. Nothing is read again."""
        parts = {source.name: part for source, part in zip(self.sources, self.parts, strict=True)}
        return Mixture(self.sources, lambda source: parts[source.name], self.batch_size, seed)

    def __getitem__(self, step: int) -> Batch:
        return self.rows(step, slice(None))

    def rows(self, step: int, rows: slice) -> Batch:
        """Arrays by name with the rows of batch `step` that a slice selects, so that a host reads only its own rows."""
        if step < 0:
            raise IndexError(f"step {step} is negative: the first step is 0")
        wanted = range(self.batch_size)[rows]
        batch = _zeros(len(wanted), self.parts[0].shapes)
        for place, row in enumerate(wanted):
            number, order, row_of_epoch = self.origin(step, row)
            self.parts[number].write(order, row_of_epoch, batch, place)
            if "index" in batch:
                batch["index"][place] += self._first[number]
        return batch

    def origin(self, step: int, row: int) -> tuple[int, Any, int]:
        """The number of the source of a row of a batch, the order of the source's epoch, and the row of that epoch."""
        number, given = draw(step * self.batch_size + row, self._weights)
        epoch, row_of_epoch = divmod(given, len(self.parts[number]))
        return number, self._orders[number](epoch), row_of_epoch

    def counts(self, step: int) -> dict[str, np.ndarray]:
        """The tokens, and the trained tokens, that `step` steps take from each sample of packed rows, int64
        [2, samples] by the name of the source."""
        found = {}
        for number, rows in enumerate(drawn(step * self.batch_size, self._weights)):
            part, order = self.parts[number], self._orders[number]
            epochs, rest = divmod(rows, len(part))
            whole = part.count(order(0), len(part))  # the same in every epoch
            found[self.sources[number].name] = epochs * whole + part.count(order(epochs), rest)
        return found

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a batch."""
        return _batch_shapes(self.batch_size, self.parts[0].shapes)

    @property
    def steps_per_epoch(self) -> float:
        """The number of steps after which as many rows were drawn as all sources have together."""
        return sum(map(len, self.parts)) / self.batch_size

    def epochs(self, step: int) -> dict[str, float]:
        """How many times each source has been passed over after `step` steps, by name."""
        given = drawn(step * self.batch_size, self._weights)
        return {
            source.name: rows / len(part) for source, part, rows in zip(self.sources, self.parts, given, strict=True)
        }

    def summary(self) -> dict[str, dict]:
        """The share of each source in the mixture and the counts of its epoch, by name, for logs."""
        total = sum(self._weights)
        return {
            source.name: {"share": weight / total, **part.summary()}
            for source, part, weight in zip(self.sources, self.parts, self._weights, strict=True)
        }

    def skipped(self) -> dict[str, list[str]]:
        """ "place: error" of the first records left out, by source name; only sources that left records out."""
        problems = {source.name: part.tally.problems for source, part in zip(self.sources, self.parts, strict=True)}
        return {name: found for name, found in problems.items() if found}


class EvalPass(Sequence):
    """One pass over the rows of a source in a fixed order. `RowSource.fill` fills the last batch.

    Attributes:
      part: the rows.
      batch_size: rows in a batch, over all hosts.
      length: positions in a row.
      records: kept fields of the record of every sample; "index" in a batch is an index into it.
    """

    def __init__(self, part: RowSource, batch_size: int):
        self.part = part
        self.batch_size = batch_size
        self.length = _length(part)
        self.records = part.records
        self._order = part.order(None)

    def __len__(self) -> int:
        return -(-len(self.part) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        return self.rows(step, slice(None))

    def rows(self, step: int, rows: slice) -> Batch:
        """Arrays by name with the rows of batch `step` that a slice selects, so that a host reads only its own rows."""
        step = range(len(self))[step]
        wanted = range(self.batch_size)[rows]
        batch = _zeros(len(wanted), self.part.shapes)
        for place, row in enumerate(wanted):
            if row < self.real(step):
                self.part.write(self._order, step * self.batch_size + row, batch, place)
            else:
                self.part.fill(batch, place)
        return batch

    def real(self, step: int) -> int:
        """The number of rows of batch `step` that are rows of the source, not filled in."""
        return min(self.batch_size, len(self.part) - range(len(self))[step] * self.batch_size)

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a batch."""
        return _batch_shapes(self.batch_size, self.part.shapes)

    def summary(self) -> dict[str, float]:
        """Counts of the rows, samples and tokens of the pass, for logs."""
        return self.part.summary()


def integer_weights(weights: Sequence[float]) -> list[int]:
    """The smallest integers in the proportions of `weights`, without rounding: 0.67 and 0.33 give 67 and 33."""
    exact = [Fraction(str(weight)) for weight in weights]
    denominator = lcm(*(weight.denominator for weight in exact))
    numerators = [int(weight * denominator) for weight in exact]
    return [numerator // gcd(*numerators) for numerator in numerators]


def drawn(n: int, weights: Sequence[int]) -> list[int]:
    """How many of the first n rows come from each source.

    The first source takes its share of n, rounded up, and the others divide the rest in the same way. So a source
    deviates from its share by at most one row for each source before it. It has exactly its share if n is a multiple of
    the sum of the weights. Random draws have no such bound. (`grain.MapDataset.mix` spreads rows by the same rule, but
    rounds the weights and does not say how many rows a source has given.)

    Args:
      n: the number of rows drawn from the mixture.
      weights: an integer weight for each source.
    """
    counts, rest, total = [], n, sum(weights)
    for weight in weights:
        left = rest * (total - weight) // total
        counts.append(rest - left)
        rest, total = left, total - weight
    return counts


def draw(row: int, weights: Sequence[int]) -> tuple[int, int]:
    """The source of row `row` of the run, and the number of rows drawn from this source before it."""
    before, after = drawn(row, weights), drawn(row + 1, weights)
    source = next(i for i, count in enumerate(after) if count > before[i])
    return source, before[source]


def _check(sources: Sequence[Source]) -> None:
    """Raises UserError unless there is a source, all names differ and all weights are above 0."""
    if not sources:
        raise UserError("the mixture has no source: give at least one")
    for name, count in Counter(source.name for source in sources).items():
        if count > 1:
            raise UserError(f"two sources of the mixture are named {name!r}: give each a name of its own")
    for source in sources:
        if not 0 < source.weight < inf:
            raise UserError(f"source {source.name!r} has weight {source.weight}: give one above 0, or remove it")


def _orders(part: RowSource, seed: int) -> Callable[[int], Any]:
    """A function from an epoch to the order of its rows. It caches two epochs, since rows are read epoch by epoch."""
    key = (seed, int(part.fingerprint, 16))
    return functools.lru_cache(maxsize=2)(lambda epoch: part.order((*key, epoch)))


def _length(part: RowSource) -> int:
    return part.shapes["tokens"][0][-1]


def _batch_shapes(rows: int, shapes: Shapes) -> Shapes:
    return {name: ((rows, *shape), dtype) for name, (shape, dtype) in shapes.items()}


def _zeros(rows: int, shapes: Shapes) -> Batch:
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in _batch_shapes(rows, shapes).items()}
