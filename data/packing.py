"""Packing: which piece of which sample fills which row of an epoch, as index arrays that are computed once per epoch.

A language model trains on pairs (token, next token), so packing counts pairs: a sample of n tokens has n - 1 pairs. A
row of T positions holds T pairs. Where a long document is cut, their T + 1 tokens overlap by one. So no target is lost
at the border of a row, and no position is spent on a token that predicts nothing.

`contiguous` (pretraining) joins the shuffled documents and cuts every T pairs; only the last row is padded. `best_fit`
(tuning) keeps samples whole, and cuts those longer than a row to their first T pairs. `fewest_cuts` (evaluation) cuts
long samples into rows and leaves nothing out. A plan depends only on the lengths and its key, so the rows of any epoch
can be computed without the epochs before it.
"""

import dataclasses
import functools
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The rows of one epoch. Row r holds the pieces `row_starts[row_order[r]]:row_starts[row_order[r] + 1]`.

    Piece p is the pairs `first[p]:first[p] + count[p]` of sample `sample[p]`.
    """

    sample: np.ndarray  # int64 [pieces]
    first: np.ndarray  # int64 [pieces]
    count: np.ndarray  # int64 [pieces], at least 1
    row_starts: np.ndarray  # int64 [rows + 1], index of the first piece of each row before shuffling
    row_order: np.ndarray  # int64 [rows], the shuffled order of the rows

    def __len__(self) -> int:
        return len(self.row_order)

    def row(self, index: int) -> Iterator[tuple[int, int, int]]:
        """(sample, first pair, number of pairs) of each piece in row `index`."""
        row = self.row_order[index]
        pieces = slice(self.row_starts[row], self.row_starts[row + 1])
        columns = (self.sample[pieces], self.first[pieces], self.count[pieces])
        return zip(*(column.tolist() for column in columns), strict=True)


class Pieces(NamedTuple):
    """Parts of samples that packing keeps whole. Piece p is the pairs `first[p]:first[p] + count[p]` of `sample[p]`."""

    sample: np.ndarray  # int64 [pieces]
    first: np.ndarray  # int64 [pieces]
    count: np.ndarray  # int64 [pieces], at least 1


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Rows as slots of fixed lengths, the same in every epoch. An epoch assigns a piece of its length to each slot."""

    pieces: Pieces  # as many as there are slots
    slot_counts: np.ndarray  # int64 [pieces], number of pairs in each slot, row by row
    row_starts: np.ndarray  # int64 [rows + 1], index of the first slot of each row


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """A packed source: counts that are the same in every epoch, and a function that computes the rows of an epoch."""

    length: int  # pairs in a row
    rows: int  # rows in an epoch
    pairs: int  # pairs in an epoch, without padding
    truncated: int  # samples that lose pairs because they are longer than a row
    left_out: int  # samples without a trained pair among their first `length`
    plan: Callable[[tuple[int, ...]], Plan]  # plan(key): the rows of an epoch, shuffled by `key`

    @property
    def fill(self) -> float:
        """Share of positions that are not padding."""
        return self.pairs / (self.rows * self.length)


def pack(pairs: np.ndarray, first_trained: np.ndarray, length: int, method: str) -> Packing:
    """Packs samples into rows of `length` pairs.

    Args:
      pairs: int64 [samples], number of pairs (token, next token) in each sample.
      first_trained: int [samples], index of each sample's first pair whose target is trained on.
      length: pairs in a row.
      method: "contiguous", "best_fit" or "fewest_cuts".

    Raises:
      UserError: an unknown method, or no sample has a trained pair among its first `length`.
    """
    if method == "contiguous":
        plan = functools.partial(contiguous_plan, pairs, length)
        return Packing(length, contiguous_rows(pairs, length), int(pairs.sum()), 0, 0, plan)
    if method not in ("best_fit", "fewest_cuts"):
        raise UserError(f"packing is {method!r}: give contiguous, best_fit or fewest_cuts")
    whole = method == "fewest_cuts"
    pieces = cut(pairs, length) if whole else heads(pairs, first_trained, length)
    if not len(pieces.sample):
        raise UserError(f"no sample has a trained token among its first {length}: make rows longer (data.seq_len)")
    layout = best_fit_layout(pieces, length)
    return Packing(
        length=length,
        rows=len(layout.row_starts) - 1,
        pairs=int(layout.slot_counts.sum()),
        truncated=0 if whole else int((pairs[pieces.sample] > length).sum()),
        left_out=0 if whole else len(pairs) - len(pieces.sample),
        plan=functools.partial(best_fit_plan, layout),
    )


def permutation(n: int, key: tuple[int, ...]) -> np.ndarray:
    """A random permutation of range(n), int64 [n], which is the same in every version of NumPy.

    `Generator.permutation` may change between versions; raw Philox streams and stable sorts may not.
    """
    return np.argsort(np.random.Philox(np.random.SeedSequence(key)).random_raw(n), kind="stable")


def contiguous_rows(pairs: np.ndarray, length: int) -> int:
    """The number of rows in an epoch of contiguous packing."""
    return -(-int(pairs.sum()) // length)


def contiguous_plan(pairs: np.ndarray, length: int, key: tuple[int, ...]) -> Plan:
    """Joins the shuffled documents, cuts them every `length` pairs, and shuffles the rows.

    Without shuffled rows, one long book would fill most of a batch.

    Args:
      pairs: int64 [samples], number of pairs in each document.
      length: pairs in a row.
      key: seeds the order of documents and rows; one key per epoch.
    """
    order = permutation(len(pairs), (*key, 0))
    ends = np.cumsum(pairs[order])
    edges = np.union1d(np.arange(0, ends[-1], length), ends)  # every beginning of a row or a document, and the end
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


def heads(pairs: np.ndarray, first_trained: np.ndarray, length: int) -> Pieces:
    """The first `length` pairs of each sample, or all of a shorter one; only samples with a trained pair among them.

    Args:
      pairs: int64 [samples], number of pairs in each sample.
      first_trained: int [samples], index of each sample's first pair whose target is trained on.
      length: pairs in a row.
    """
    kept = np.flatnonzero(first_trained < np.minimum(pairs, length))
    return Pieces(kept, np.zeros_like(kept), np.minimum(pairs[kept], length))


def cut(pairs: np.ndarray, length: int) -> Pieces:
    """Each sample whole, or in as few pieces of at most `length` pairs as possible. `pairs`: int64 [samples]."""
    parts = -(-pairs // length)
    sample = np.repeat(np.arange(len(pairs)), parts)
    first = (np.arange(len(sample)) - np.repeat(np.cumsum(parts) - parts, parts)) * length
    return Pieces(sample, first, np.minimum(pairs[sample] - first, length))


def best_fit_layout(pieces: Pieces, length: int) -> Layout:
    """Fits pieces of at most `length` pairs into rows: the longest first, each into the fullest row that has room.

    Best-fit decreasing needs at most 11/9 of the fewest possible rows, plus 4 (Johnson et al. 1974,
    doi:10.1137/0203025). With `cut` it is the packing of arXiv:2404.10830, section 3.
    """
    row_of = best_fit_decreasing(pieces.count, length)
    return Layout(
        pieces=pieces,
        slot_counts=pieces.count[np.argsort(row_of, kind="stable")],
        row_starts=np.concatenate([[0], np.cumsum(np.bincount(row_of))]).astype(np.int64),
    )


def best_fit_plan(layout: Layout, key: tuple[int, ...]) -> Plan:
    """Assigns the pieces at random to slots of their length, then shuffles the rows.

    So neighbours change from epoch to epoch while the number of rows stays the same. Row r of epoch e can be found
    without the epochs before it.
    """
    order = permutation(len(layout.slot_counts), (*key, 0))
    by_length = order[np.argsort(layout.pieces.count[order], kind="stable")]
    piece = np.empty_like(by_length)
    piece[np.argsort(layout.slot_counts, kind="stable")] = by_length
    return Plan(
        sample=layout.pieces.sample[piece],
        first=layout.pieces.first[piece],
        count=layout.slot_counts,
        row_starts=layout.row_starts,
        row_order=permutation(len(layout.row_starts) - 1, (*key, 1)),
    )


def best_fit_decreasing(counts: np.ndarray, length: int) -> np.ndarray:
    """The row of each piece, int64 [pieces]. It takes O(n log T): open rows are grouped by their room, of T sizes."""
    row_of = np.empty(len(counts), np.int64)
    rows_with: dict[int, list[int]] = {}  # rows with each amount of room left
    rooms: list[int] = []  # the keys of rows_with, ascending
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
