"""The samples of a token cache, packed into rows.

A row is a dict of arrays over T positions:

    tokens       int32 [T]
    targets      int32 [T]     the next token of the same segment
    loss_mask    float32 [T]   1 where the target is trained on
    segment_ids  int32 [T]     1, 2, ... for each sample in the row, 0 for padding
    positions    int32 [T]     0, 1, ... within each segment
"""

import numpy as np

from .mixture import Batch, Shapes
from .packing import Plan, pack
from .tally import Tally
from .token_cache import TokenCache

DTYPES = {
    "tokens": np.int32,
    "targets": np.int32,
    "loss_mask": np.float32,
    "segment_ids": np.int32,
    "positions": np.int32,
}


class PackedRows:
    """The packed samples of a token cache, a `RowSource` of a mixture or an evaluation.

    For an evaluation use "fewest_cuts", which leaves no token out.
    """

    records = ()

    def __init__(self, cache: TokenCache, length: int, packing: str):
        """
        Args:
          cache: the samples.
          length: positions in a row.
          packing: "contiguous" (pretraining), "best_fit" (tuning) or "fewest_cuts" (evaluation).

        Raises:
          UserError: an unknown packing, or no sample has a trained token that fits into a row.
        """
        self.cache = cache
        self.packing = packing
        self.shapes: Shapes = {name: ((length,), dtype) for name, dtype in DTYPES.items()}
        self._packed = pack(cache.pairs, cache.first_trained, length, packing)

    def __len__(self) -> int:
        return self._packed.rows

    @property
    def fingerprint(self) -> str:
        """The hash that names the cache."""
        return self.cache.fingerprint

    @property
    def tally(self) -> Tally:
        """Counts of the records that the cache was built from."""
        return self.cache.tally

    def order(self, key: tuple[int, ...] | None) -> Plan:
        """The rows of an epoch as pieces of samples; `key` shuffles which samples share a row, and the rows."""
        return self._packed.plan((0, int(self.fingerprint, 16), 0) if key is None else key)

    def write(self, order: Plan, row: int, batch: Batch, place: int) -> None:
        """Writes one row of an epoch into a batch.

        Args:
          order: from `order`.
          row: the row of the epoch.
          batch: the batch to write into.
          place: the row of the batch; it must be all zeros.
        """
        begin = 0
        for segment, (sample, first, count) in enumerate(order.row(row), 1):
            start = int(self.cache.starts[sample]) + first
            tokens = self.cache.tokens[start : start + count + 1]
            here = slice(begin, begin + count)
            batch["tokens"][place, here] = tokens[:-1]
            batch["targets"][place, here] = tokens[1:]
            batch["loss_mask"][place, here] = self.cache.mask(start + 1, start + count + 1)
            batch["segment_ids"][place, here] = segment
            batch["positions"][place, here] = np.arange(count)
            begin += count

    def count(self, order: Plan, rows: int) -> np.ndarray:
        """The tokens, and the trained tokens, of each sample in the first `rows` rows of an epoch in the order `order`,
        int64 [2, samples]."""
        taken = np.zeros(len(order), bool)
        taken[order.row_order[:rows]] = True
        pieces = np.repeat(taken, np.diff(order.row_starts))
        count = order.count[pieces]
        begin = self.cache.starts[order.sample[pieces]] + order.first[pieces] + 1  # of the targets
        trained = self.cache.trained_before(begin + count) - self.cache.trained_before(begin)
        found = np.zeros((2, len(self.cache)), np.int64)
        np.add.at(found, (slice(None), order.sample[pieces]), (count, trained))
        return found

    def fill(self, batch: Batch, place: int) -> None:
        """Leaves row `place` of the batch all zeros: padding."""

    def summary(self) -> dict[str, float]:
        """Counts of records, samples and tokens, of rows and their fill, and of samples cut or left out by packing."""
        return self.cache.info["counts"] | {
            "rows": self._packed.rows,
            "fill": self._packed.fill,
            "truncated": self._packed.truncated,
            "left_out": self._packed.left_out,
            "longest": int(self.cache.pairs.max()) + 1,
        }
