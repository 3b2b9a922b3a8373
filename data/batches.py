"""Batches as a function of (seed, step): `batches[step]` is the same in any order, run and number of hosts.

A batch is a dict of arrays over B rows and T positions:

    tokens       int32 [B, T]
    targets      int32 [B, T]     the next token of the same segment
    loss_mask    float32 [B, T]   1 where the target is trained on
    segment_ids  int32 [B, T]     1, 2, ... for each sample in a row, 0 for padding
    positions    int32 [B, T]     0, 1, ... within each segment

Row g of a run (g = step * B + row) comes from a source drawn by weight, and is the next one that this source has not
given yet: epoch by epoch, each packed and shuffled anew. Which source and which row follow from g alone.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, inf, lcm
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .cache import TokenCache
from .packing import Packing, pack

VERSION = 1  # of the order of rows: raised when a seed gives other batches than before

Batch = dict[str, np.ndarray]
Shapes = dict[str, tuple[tuple[int, ...], type]]
"""The shape and dtype of each array of a batch, by name."""
DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "loss_mask": np.float32,
    "segment_ids": np.int32,
    "positions": np.int32,
}


class Part(NamedTuple):
    """A source of a mixture. `weight` is its share of the rows, relative to the other parts."""

    name: str
    cache: TokenCache
    weight: float = 1.0


class PackedSource:
    """One source as an endless list of rows: epoch after epoch, each packed and shuffled anew."""

    def __init__(self, cache: TokenCache, length: int, method: str, seed: int):
        self.cache = cache
        self.packing = pack(cache.pairs, cache.first_trained, length, method)
        key = (seed, int(cache.fingerprint, 16))
        # Rows are asked for in order, so the plans of an epoch and the next will do; others are made again on demand.
        self._plan = functools.lru_cache(maxsize=2)(lambda epoch: self.packing.plan((*key, epoch)))

    def write(self, index: int, batch: Batch, place: int) -> None:
        """Writes row `index` into row `place` of a batch that is all padding there."""
        epoch, row = divmod(index, self.packing.rows)
        begin = 0
        for segment, (sample, first, count) in enumerate(self._plan(epoch).row(row), 1):
            start = int(self.cache.starts[sample]) + first
            tokens = self.cache.tokens[start : start + count + 1]
            here = slice(begin, begin + count)
            batch["tokens"][place, here] = tokens[:-1]
            batch["targets"][place, here] = tokens[1:]
            batch["loss_mask"][place, here] = self.cache.mask(start + 1, start + count + 1)
            batch["segment_ids"][place, here] = segment
            batch["positions"][place, here] = np.arange(count)
            begin += count


class Batches:
    """The endless batches of a mixture: `batches[step]`, or `batches.rows(step, rows)` for some rows of it."""

    def __init__(self, parts: Sequence[Part], *, batch_size: int, length: int, packing: str, seed: int):
        """
        Args:
          parts: the mixture.
          batch_size: rows in a batch, over all hosts.
          length: positions in a row.
          packing: "contiguous" (pretraining), "best_fit" (tuning) or "fewest_cuts".
          seed: of the order of samples and rows.

        Raises:
          UserError: no part, two of one name, a weight that is not above 0, or a part that cannot be packed.
        """
        self.parts = tuple(parts)
        self.batch_size = batch_size
        self.length = length
        check_parts(self.parts)
        self._weights = integer_weights([part.weight for part in self.parts])
        self._sources = [PackedSource(part.cache, length, packing, seed) for part in self.parts]
        plan = {
            "version": VERSION,
            "seed": seed,
            "batch_size": batch_size,
            "length": length,
            "packing": packing,
            "parts": [part.cache.fingerprint for part in self.parts],
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
        batch = _padding(len(wanted), self.length)
        for place, row in enumerate(wanted):
            part, index = draw(step * self.batch_size + row, self._weights)
            self._sources[part].write(index, batch, place)
        return batch

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a batch."""
        return _shapes(self.batch_size, self.length)

    @property
    def steps_per_epoch(self) -> float:
        """Steps that read as many rows as all sources have together."""
        return sum(source.packing.rows for source in self._sources) / self.batch_size

    def epochs(self, step: int) -> dict[str, float]:
        """How many times each source has been passed over by `step` steps."""
        rows = drawn(step * self.batch_size, self._weights)
        return {
            part.name: count / source.packing.rows
            for part, source, count in zip(self.parts, self._sources, rows, strict=True)
        }

    def summary(self) -> dict[str, dict]:
        """What each source gives to an epoch: for the log and the eye."""
        total = sum(self._weights)
        return {
            part.name: {"share": weight / total, **_summary(part.cache, source.packing)}
            for part, source, weight in zip(self.parts, self._sources, self._weights, strict=True)
        }

    def skipped(self) -> dict[str, list[str]]:
        """Place and fault of the first bad records that each source was read without."""
        return {part.name: part.cache.info["skipped"] for part in self.parts if part.cache.info["skipped"]}


class EvalBatches(Sequence):
    """One pass over a source, in a fixed order: each row once, and padding after the last.

    Samples stand whole in rows, and one that is longer than a row is cut into rows, however training packs.
    """

    def __init__(self, cache: TokenCache, *, batch_size: int, length: int):
        self.batch_size = batch_size
        self.length = length
        self._cache = cache
        self._source = PackedSource(cache, length, "fewest_cuts", seed=0)

    def __len__(self) -> int:
        return -(-self._source.packing.rows // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        return self.rows(step, slice(None))

    def rows(self, step: int, rows: slice) -> Batch:
        """Only these rows of batch `step`."""
        step = range(len(self))[step]
        wanted = range(self.batch_size)[rows]
        batch = _padding(len(wanted), self.length)
        for place, row in enumerate(wanted):
            index = step * self.batch_size + row
            if index < self._source.packing.rows:
                self._source.write(index, batch, place)
        return batch

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a batch."""
        return _shapes(self.batch_size, self.length)

    def summary(self) -> dict:
        """What the source gives to the pass."""
        return _summary(self._cache, self._source.packing)


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


def check_parts(parts: Sequence) -> None:
    """Raises UserError unless there are parts, each with a name of its own and a weight above 0."""
    if not parts:
        raise UserError("a mixture needs at least one source")
    for name, count in Counter(part.name for part in parts).items():
        if count > 1:
            raise UserError(f"two sources of the mixture are named {name!r}: give each a name of its own")
    for part in parts:
        if not 0 < part.weight < inf:
            raise UserError(f"source {part.name!r} has weight {part.weight}: give it one above 0, or leave it out")


def _shapes(rows: int, length: int) -> Shapes:
    return {name: ((rows, length), dtype) for name, dtype in DTYPES.items()}


def _padding(rows: int, length: int) -> Batch:
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in _shapes(rows, length).items()}


def _summary(cache: TokenCache, packing: Packing) -> dict:
    return cache.info["counts"] | {
        "rows": packing.rows,
        "fill": packing.fill,
        "truncated": packing.truncated,
        "left_out": packing.left_out,
        "longest": int(cache.pairs.max()) + 1,
    }
