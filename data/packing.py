"""Packing: which piece of which sample fills which row of an epoch, as index arrays computed once an epoch.

A language model trains on pairs (token, next token), so packing counts pairs: a sample of n tokens holds n - 1 of
them. A row of T positions takes T pairs, whose T + 1 tokens overlap by one where a long document is cut: no target is
lost at the border of a row and no position is spent on a token that predicts nothing.

`contiguous` (pretraining) joins the shuffled documents and cuts every T pairs: only the last row is padded.
`best_fit` (tuning) keeps samples whole. A plan depends on nothing but the lengths and its key, so any epoch can be
had without the epochs before it.
"""

import dataclasses
import functools
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

import numpy as np

from .errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The rows of one epoch: row r is the pieces `row_starts[r]:row_starts[r + 1]`, rows stand in shuffled order.

    Piece p is the pairs `first[p]:first[p] + count[p]` of sample `sample[p]`.
    """

    sample: np.ndarray  # int64 [pieces]
    first: np.ndarray  # int64 [pieces]
    count: np.ndarray  # int64 [pieces], at least 1
    row_starts: np.ndarray  # int64 [rows + 1]
    row_order: np.ndarray  # int64 [rows]

    def __len__(self) -> int:
        return len(self.row_order)

    def row(self, index: int) -> Iterator[tuple[int, int, int]]:
        """Sample, first pair and number of pairs of each piece in a row."""
        row = self.row_order[index]
        pieces = slice(self.row_starts[row], self.row_starts[row + 1])
        columns = (self.sample[pieces], self.first[pieces], self.count[pieces])
        return zip(*(column.tolist() for column in columns), strict=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Rows as slots for samples of given lengths: the same in every epoch, whoever comes to fill the slots."""

    kept: np.ndarray  # int64 [slots], the samples that find a place
    kept_counts: np.ndarray  # int64 [slots], pairs of each after cutting
    slot_counts: np.ndarray  # int64 [slots], pairs of each slot, row by row
    row_starts: np.ndarray  # int64 [rows + 1]


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """A packed source: what holds for every epoch, and `plan(key)` for the rows of one."""

    length: int  # pairs in a row
    rows: int
    pairs: int  # that find a place
    truncated: int  # samples cut at the end of a row
    left_out: int  # samples without a trained pair before the cut
    plan: Callable[[tuple[int, ...]], Plan]

    @property
    def fill(self) -> float:
        """Share of positions that are no padding."""
        return self.pairs / (self.rows * self.length)


def pack(pairs: np.ndarray, first_trained: np.ndarray, length: int, method: str) -> Packing:
    """Packs samples into rows of `length` pairs.

    Args:
      pairs: int64 [samples], pairs (token, next token) in each sample.
      first_trained: int [samples], index of each sample's first pair whose target is trained on.
      length: pairs in a row.
      method: "contiguous" or "best_fit".

    Raises:
      UserError: an unknown method, or no sample has a trained pair among its first `length`.
    """
    if method == "contiguous":
        plan = functools.partial(contiguous_plan, pairs, length)
        return Packing(length, contiguous_rows(pairs, length), int(pairs.sum()), 0, 0, plan)
    if method != "best_fit":
        raise UserError(f"packing is {method!r}: it must be contiguous or best_fit")
    layout = best_fit_layout(pairs, first_trained, length)
    if not len(layout.kept):
        raise UserError(f"no sample has a trained token within the first {length}: use a longer row")
    return Packing(
        length=length,
        rows=len(layout.row_starts) - 1,
        pairs=int(layout.slot_counts.sum()),
        truncated=int((pairs[layout.kept] > length).sum()),
        left_out=len(pairs) - len(layout.kept),
        plan=functools.partial(best_fit_plan, layout),
    )


def permutation(n: int, key: tuple[int, ...]) -> np.ndarray:
    """A random order of n things that is the same in every version of NumPy.

    `Generator.permutation` may change between versions; raw Philox streams and stable sorts may not.
    """
    return np.argsort(np.random.Philox(np.random.SeedSequence(key)).random_raw(n), kind="stable")


def contiguous_rows(pairs: np.ndarray, length: int) -> int:
    """Rows of `length` pairs that an epoch of contiguous packing takes."""
    return -(-int(pairs.sum()) // length)


def contiguous_plan(pairs: np.ndarray, length: int, key: tuple[int, ...]) -> Plan:
    """Joins shuffled documents and cuts them every `length` pairs.

    Rows are shuffled as well, or one long book would be most of a batch.

    Args:
      pairs: int64 [samples], pairs in each document.
      length: pairs in a row.
      key: seeds the order of documents and rows; one per epoch.
    """
    order = permutation(len(pairs), (*key, 0))
    ends = np.cumsum(pairs[order])
    edges = np.union1d(np.arange(0, ends[-1], length), ends)  # where a row or a document begins, and the end
    begin, count = edges[:-1], np.diff(edges)
    place = np.searchsorted(ends, begin, side="right")
    rows = contiguous_rows(pairs, length)
    return Plan(
        sample=order[place],
        first=begin - (ends - pairs[order])[place],
        count=count,
        row_starts=np.searchsorted(begin, np.arange(rows + 1) * length),
        row_order=permutation(rows, (*key, 1)),
    )


def best_fit_layout(pairs: np.ndarray, first_trained: np.ndarray, length: int) -> Layout:
    """Fits whole samples into rows: the longest first, each into the fullest row that still takes it.

    A sample longer than a row keeps its head, if some trained pair is in there, else it is left out. Best-fit
    decreasing needs at most 11/9 of the fewest possible rows, plus 4 (Johnson et al. 1974, doi:10.1137/0203025).

    Args:
      pairs: int64 [samples], pairs in each sample.
      first_trained: int [samples], index of each sample's first pair whose target is trained on.
      length: pairs in a row.
    """
    kept = np.flatnonzero(first_trained < np.minimum(pairs, length))
    counts = np.minimum(pairs[kept], length)
    row_of = _best_fit_decreasing(counts, length)
    slots = np.argsort(row_of, kind="stable")
    return Layout(
        kept=kept,
        kept_counts=counts,
        slot_counts=counts[slots],
        row_starts=np.concatenate([[0], np.cumsum(np.bincount(row_of))]).astype(np.int64),
    )


def best_fit_plan(layout: Layout, key: tuple[int, ...]) -> Plan:
    """Deals the samples out anew among the slots of their length, then shuffles the rows.

    So each epoch has other neighbours in other rows, and yet the same number of rows, which is what makes row r of
    epoch e random access.
    """
    order = permutation(len(layout.kept), (*key, 0))
    by_length = order[np.argsort(layout.kept_counts[order], kind="stable")]
    sample = np.empty_like(layout.kept)
    sample[np.argsort(layout.slot_counts, kind="stable")] = layout.kept[by_length]
    return Plan(
        sample=sample,
        first=np.zeros_like(sample),
        count=layout.slot_counts,
        row_starts=layout.row_starts,
        row_order=permutation(len(layout.row_starts) - 1, (*key, 1)),
    )


def _best_fit_decreasing(counts: np.ndarray, length: int) -> np.ndarray:
    """The row of each sample. O(n log T): open rows are kept by the room they have left, of which T sizes exist."""
    row_of = np.empty(len(counts), np.int64)
    rows_with: dict[int, list[int]] = {}  # room left -> rows
    rooms: list[int] = []  # the keys above, ascending
    rows = 0
    for index in np.argsort(-counts, kind="stable").tolist():
        count = int(counts[index])
        place = bisect_left(rooms, count)
        if place == len(rooms):
            row, room = rows, length
            rows += 1
        else:
            room = rooms[place]
            row = rows_with[room].pop()
            if not rows_with[room]:
                del rows_with[room], rooms[place]
        row_of[index] = row
        if left := room - count:
            if left not in rows_with:
                rows_with[left] = []
                insort(rooms, left)
            rows_with[left].append(row)
    return row_of
