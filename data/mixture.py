"""Batches as a function of (seed, step): `batches[step]` is the same in any order, run and number of hosts.

The rows of a source are packed text (`packed.PackedRows`), or samples (`samples.Samples`), or anything else that is
`Rows`. Row g of a run (g = step * B + row) comes from a source drawn by weight, and is the next one that this source
has not given yet: epoch by epoch, each in an order of its own. Which source and which row follow from g alone.
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

VERSION = 1  # of the order of rows: raised when a seed gives other batches than before

Batch = dict[str, np.ndarray]
Shapes = dict[str, tuple[tuple[int, ...], type]]
"""The shape and dtype of each array of a row, or of a batch, by name."""


class Rows(Protocol):
    """One source as rows of arrays. `len(rows)` is the number of rows in an epoch."""

    shapes: Shapes  # of one row; "tokens" ends with the positions of a row
    fingerprint: str  # a hash in hexadecimal of all that the rows hold
    packing: str | None  # how samples are packed into rows; None where a row is a sample
    records: Sequence[dict]  # what is kept of the record of every sample; "index" in a batch points here
    tally: Tally  # of the records of the source

    def __len__(self) -> int: ...

    def order(self, key: tuple[int, ...] | None) -> Any:
        """The order of the rows in an epoch, which `key` shuffles. None: the fixed order of an evaluation."""

    def write(self, order: Any, row: int, batch: Batch, place: int) -> None:
        """Writes row `row` of an epoch in this order into row `place` of a batch, which is all zeros there."""

    def fill(self, batch: Batch, place: int) -> None:
        """Writes what stands in the last batch of an evaluation after the last row."""

    def summary(self) -> dict[str, float]:
        """What the source gives to an epoch: for the log and the eye."""


class Mixture:
    """The endless batches of a mixture: `batches[step]`, or `batches.rows(step, rows)` for some rows of it.

    Attributes:
      sources: the sources.
      parts: the rows of each source.
      batch_size: rows in a batch, over all hosts.
      length: positions in a row.
      records: what is kept of the record of every sample, source by source; "index" in a batch points here.
      fingerprint: a hash of all that the batches depend on.
    """

    def __init__(self, sources: Sequence[Source], read: Callable[[Source], Rows], batch_size: int, seed: int):
        """
        Args:
          sources: the sources, each with a name of its own.
          read: the rows of a source; all of the same shapes.
          batch_size: rows in a batch, over all hosts.
          seed: of the order of rows.

        Raises:
          UserError: no source, two of one name, a weight that is not above 0, or what `read` raises.
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

    def __getitem__(self, step: int) -> Batch:
        return self.rows(step, slice(None))

    def rows(self, step: int, rows: slice) -> Batch:
        """Only these rows of the batch of a step: all that a host reads of it."""
        if step < 0:
            raise IndexError(f"step {step} is before the first")
        wanted = range(self.batch_size)[rows]
        batch = _zeros(len(wanted), self.parts[0].shapes)
        for place, row in enumerate(wanted):
            number, given = draw(step * self.batch_size + row, self._weights)
            epoch, row_of_epoch = divmod(given, len(self.parts[number]))
            self.parts[number].write(self._orders[number](epoch), row_of_epoch, batch, place)
            if "index" in batch:
                batch["index"][place] += self._first[number]
        return batch

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a batch."""
        return _batch_shapes(self.batch_size, self.parts[0].shapes)

    @property
    def steps_per_epoch(self) -> float:
        """Steps that read as many rows as all sources have together."""
        return sum(map(len, self.parts)) / self.batch_size

    def epochs(self, step: int) -> dict[str, float]:
        """How many times each source has been passed over by `step` steps."""
        given = drawn(step * self.batch_size, self._weights)
        return {
            source.name: rows / len(part) for source, part, rows in zip(self.sources, self.parts, given, strict=True)
        }

    def summary(self) -> dict[str, dict]:
        """What each source gives to an epoch: for the log and the eye."""
        total = sum(self._weights)
        return {
            source.name: {"share": weight / total, **part.summary()}
            for source, part, weight in zip(self.sources, self.parts, self._weights, strict=True)
        }

    def skipped(self) -> dict[str, list[str]]:
        """Place and fault of the first records that each source was read without."""
        problems = {source.name: part.tally.problems for source, part in zip(self.sources, self.parts, strict=True)}
        return {name: found for name, found in problems.items() if found}


class EvalPass(Sequence):
    """One pass over the rows of a source, in a fixed order. What `Rows.fill` writes stands after the last row.

    Attributes:
      part: the rows.
      batch_size: rows in a batch, over all hosts.
      length: positions in a row.
      records: what is kept of the record of every sample; "index" in a batch points here.
    """

    def __init__(self, part: Rows, batch_size: int):
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
        """Only these rows of batch `step`."""
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
        """How many rows of batch `step` are rows of the source."""
        return min(self.batch_size, len(self.part) - range(len(self))[step] * self.batch_size)

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a batch."""
        return _batch_shapes(self.batch_size, self.part.shapes)

    def summary(self) -> dict[str, float]:
        """What the source gives to the pass."""
        return self.part.summary()


def integer_weights(weights: Sequence[float]) -> list[int]:
    """The same proportions in whole numbers, without rounding: 0.67 and 0.33 are 67 and 33."""
    exact = [Fraction(str(weight)) for weight in weights]
    denominator = lcm(*(weight.denominator for weight in exact))
    numerators = [int(weight * denominator) for weight in exact]
    return [numerator // gcd(*numerators) for numerator in numerators]


def drawn(n: int, weights: Sequence[int]) -> list[int]:
    """How many of the first n rows come from each source.

    The first source takes its share of n, rounded up, and the others share the rest in the same way. So a source
    never strays by more than one row for each source before it, and is exact whenever n is a multiple of all weights
    together, which no random draw is. (`grain.MapDataset.mix` spreads rows by the same rule, but rounds the weights
    and does not say how many rows a source has given.)
    """
    counts, rest, total = [], n, sum(weights)
    for weight in weights:
        left = rest * (total - weight) // total
        counts.append(rest - left)
        rest, total = left, total - weight
    return counts


def draw(row: int, weights: Sequence[int]) -> tuple[int, int]:
    """Which source a row of the run comes from, and how many rows that source has given before it."""
    before, after = drawn(row, weights), drawn(row + 1, weights)
    source = next(i for i, count in enumerate(after) if count > before[i])
    return source, before[source]


def _check(sources: Sequence[Source]) -> None:
    """Raises UserError unless there are sources, each with a name of its own and a weight above 0."""
    if not sources:
        raise UserError("a mixture needs at least one source")
    for name, count in Counter(source.name for source in sources).items():
        if count > 1:
            raise UserError(f"two sources of the mixture are named {name!r}: give each a name of its own")
    for source in sources:
        if not 0 < source.weight < inf:
            raise UserError(f"source {source.name!r} has weight {source.weight}: give it one above 0, or leave it out")


def _orders(part: Rows, seed: int) -> Callable[[int], Any]:
    """The order of the rows in each epoch. Rows are read in order: two epochs are kept, others are made again."""
    key = (seed, int(part.fingerprint, 16))
    return functools.lru_cache(maxsize=2)(lambda epoch: part.order((*key, epoch)))


def _length(part: Rows) -> int:
    return part.shapes["tokens"][0][-1]


def _batch_shapes(rows: int, shapes: Shapes) -> Shapes:
    return {name: ((rows, *shape), dtype) for name, (shape, dtype) in shapes.items()}


def _zeros(rows: int, shapes: Shapes) -> Batch:
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in _batch_shapes(rows, shapes).items()}
