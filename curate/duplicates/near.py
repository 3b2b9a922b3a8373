"""The step `near_duplicates`: of rows that are nearly equal, the one with the smallest id stays.

Rows are taken in the order of their ids. A row is rejected if its Jaccard index with a row that was kept before is at
least the threshold. So no two kept rows are that near, whatever the order in which rows were read. In a chain, where a
is near to b and b to c but a not to c, a and c stay.

Pairs are proposed by MinHash with banding (`minhash.py`) and confirmed by the exact index of their sets of
shingles. Sets and keys lie in files; in memory are a few numbers for each row, and those of one band at a time.
"""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, NamedTuple

import numpy as np

from ...errors import UserError
from ...settings.leaves import Count, OneOf, Range
from ..rows import Rejected, Row, Rows
from .minhash import RECALL, Banding, band_keys, banding
from .shingles import COMPARED, LONGEST_BATCH, compared, shingle_sets

_BATCH_CHARACTERS = 500_000
_HELD = 3  # times `most`: kept rows that are remembered for each key of a band


@dataclass(frozen=True)
class NearDuplicates:
    """Rejects each row that is nearly equal to a kept row with a smaller id."""

    reasons: ClassVar = ("near_duplicate",)

    threshold: Annotated[float, Range(above=0, most=1)] = 0.8
    """Jaccard index of sets of shingles from which on two rows are near duplicates."""

    compare: Annotated[str, OneOf(*COMPARED)] = "all"
    """What is compared: all texts of a record, the turns of the user, the answers, or the first turn of the user. A row
    without such a text is kept."""

    words: Count = 5
    """Length of a shingle in words. A character of a script without spaces, such as Chinese, counts as a word."""

    characters: Count = 3
    """Length of a shingle of a short text, in characters."""

    short: Count = 20
    """Two texts are compared by characters if one of them has fewer words than this, and by words otherwise."""

    permutations: Count = 120
    """Length of a MinHash signature. With the default threshold, 120 values make 20 bands of 6, which find 99.8% of
    pairs just at the threshold."""

    most: Count = 100
    """Kept rows that a row is compared with: those that share most bands with it, and of those the smallest ids. It
    bounds the time for rows that are alike by the thousand without being near duplicates."""

    def check(self, where: str) -> None:
        if self.short < self.words:
            raise UserError(f"{where}.short = {self.short}: give {where}.words = {self.words} or more")
        if banding(self.permutations, self.threshold) is None:
            found = f"{self.permutations} values find fewer than {RECALL:.0%} of pairs at {self.threshold:g}"
            raise UserError(f"{where}.permutations: {found}; give more of them or a higher threshold")

    @property
    def banding(self) -> Banding:
        """The bands of a signature."""
        return banding(self.permutations, self.threshold)

    def decide(self, rows: Rows) -> Iterator[tuple[str, Rejected]]:
        parts = list(rows.map(_Writer(self, rows.folder)))
        with _Sets(rows.folder, parts) as sets:
            for row, kept, jaccard in self._near(sets, *_shared_keys(rows.folder, parts, self.banding)):
                detail = f"Jaccard index {jaccard:.3f} with {sets.ids[kept].decode()}"
                yield sets.ids[row].decode(), Rejected("near_duplicate", detail)

    def _near(self, sets: "_Sets", owners: np.ndarray, buckets: np.ndarray) -> Iterator[tuple[int, int, float]]:
        """Each rejected row with the first kept row that it is near to, and their Jaccard index.

        Args:
          sets: the sets of all rows.
          owners: a row for each key that it shares with another row, ascending.
          buckets: the number of that key.
        """
        room = np.minimum(np.bincount(buckets), _HELD * self.most)
        first = np.cumsum(room) - room
        filled = np.zeros(len(room), np.int64)
        kept = np.empty(room.sum(), np.int32)  # the kept rows of each bucket
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        for start, end in itertools.pairwise([*starts.tolist(), len(owners)]):
            row, mine = int(owners[start]), buckets[start:end]
            begin, count = first[mine], filled[mine]
            runs = [kept[b : b + n] for b, n in zip(begin.tolist(), count.tolist(), strict=True) if n]
            found = self._first_near(sets, row, np.concatenate(runs)) if runs else None
            if found:
                yield row, *found
                continue
            open_ = count < room[mine]
            kept[(begin + count)[open_]] = row
            filled[mine[open_]] += 1

    def _first_near(self, sets: "_Sets", row: int, found: np.ndarray) -> tuple[int, float] | None:
        """The first kept row that a row is near to, and their Jaccard index.

        Args:
          sets: the sets of all rows.
          row: the row.
          found: kept rows, each as often as it shares a band with the row.
        """
        kept, bands = np.unique(found, return_counts=True)
        if len(kept) > self.most:
            kept = np.sort(kept[np.argsort(-bands, kind="stable")[: self.most]])
        jaccards = sets.jaccards(row, kept, self.threshold)
        near = np.flatnonzero(jaccards >= self.threshold)
        return (int(kept[near[0]]), float(jaccards[near[0]])) if near.size else None


class _Part(NamedTuple):
    """What is known of the rows of a partition. Its files in the folder begin with the first id."""

    ids: np.ndarray  # of bytes
    sizes: np.ndarray  # (rows, 2): shingles of words, of characters


@dataclass(frozen=True)
class _Writer:
    """Writes the sets of shingles of a partition, and the keys of their bands, to files."""

    step: NearDuplicates
    folder: Path

    def __call__(self, rows: Iterator[Row]) -> _Part:
        ids, sizes, files = [], [np.zeros((0, 2), np.int64)], []
        kinds = ("sets", "owners", *range(self.step.banding.bands))
        with contextlib.ExitStack() as stack:
            for batch in _batches(rows, self.step.compare):
                if not files:
                    first = batch[0][0]
                    files = [stack.enter_context((self.folder / f"{first}.{kind}").open("wb")) for kind in kinds]
                sizes.append(self._write([text for _, text in batch], len(ids), *files))
                ids += [id for id, _ in batch]
        return _Part(np.array([id.encode() for id in ids], "S"), np.concatenate(sizes))

    def _write(self, texts: list[str], before: int, sets: BinaryIO, owners: BinaryIO, *bands: BinaryIO) -> np.ndarray:
        """Writes what `texts` are made of, and returns the sizes of their sets. before: rows written earlier."""
        both = shingle_sets(texts, self.step.words, self.step.characters, self.step.short)
        for salt, found in enumerate(both):
            (before + np.flatnonzero(found.sizes)).tofile(owners)
            for file, keys in zip(bands, band_keys(found, self.step.banding, salt), strict=True):
                keys.tofile(file)
        sizes = np.stack([found.sizes for found in both], 1)
        # The two sets of a text lie next to each other.
        order = np.argsort(np.concatenate([np.repeat(np.arange(len(texts)), f.sizes) for f in both]), kind="stable")
        np.concatenate([found.hashes for found in both])[order].tofile(sets)
        return sizes


def _batches(rows: Iterable[Row], part: str) -> Iterator[list[tuple[str, str]]]:
    """The id and compared text of each row, in lists of about _BATCH_CHARACTERS characters."""
    batch, characters = [], 0
    for row in rows:
        text = "\n".join(text for _, text in compared(row.record, part))
        batch.append((row.id, text))
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or len(batch) == LONGEST_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _shared_keys(folder: Path, parts: list[_Part], banding: Banding) -> tuple[np.ndarray, np.ndarray]:
    """The rows that share a key with another row, ascending, once for each such key, and the number of the key."""
    before = np.cumsum([0, *(len(part.ids) for part in parts)]).tolist()
    named = [(part.ids[0].decode(), start) for part, start in zip(parts, before, strict=False) if len(part.ids)]
    if not named:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    owners = np.concatenate([_read(folder, name, "owners", np.int64) + start for name, start in named])
    rows, buckets, count = [], [], 0
    for band in range(banding.bands):
        keys = np.concatenate([_read(folder, name, band, np.uint64) for name, _ in named])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        new = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, bool)
        number = np.cumsum(new) - 1
        shared = np.bincount(number)[number] > 1
        rows.append(owners[order[shared]].astype(np.int32))
        buckets.append((count + np.cumsum(new[shared]) - 1).astype(np.int32))
        count += int(new[shared].sum())
    rows, buckets = np.concatenate(rows), np.concatenate(buckets)
    order = np.argsort(rows, kind="stable")
    return rows[order], buckets[order]


def _read(folder: Path, name: str, kind: str | int, dtype: type) -> np.ndarray:
    """The numbers of a file, which is removed."""
    path = folder / f"{name}.{kind}"
    found = np.fromfile(path, dtype)
    path.unlink()
    return found


class _Sets:
    """The sets of shingles of all rows, in one file."""

    def __init__(self, folder: Path, parts: list[_Part]):
        self.ids = np.concatenate([part.ids for part in parts]) if parts else np.zeros(0, "S1")
        self.sizes = np.concatenate([part.sizes for part in parts]) if parts else np.zeros((0, 2), np.int64)
        self.starts = np.cumsum(self.sizes.sum(1)) - self.sizes.sum(1)
        self.path = folder / "sets"
        with self.path.open("wb") as whole:
            for part in parts:
                if len(part.ids):
                    path = folder / f"{part.ids[0].decode()}.sets"
                    with path.open("rb") as file:
                        shutil.copyfileobj(file, whole, 2**20)
                    path.unlink()

    def __enter__(self) -> "_Sets":
        self.file = os.open(self.path, os.O_RDONLY)
        return self

    def __exit__(self, *_) -> None:
        os.close(self.file)
        self.path.unlink()

    def jaccards(self, row: int, others: np.ndarray, least: float) -> np.ndarray:
        """The Jaccard index of a row with each of others; 0 where the sizes of the sets show that it is below `least`.

        Two rows are compared by words if both have sets of words, and by characters otherwise.
        """
        found = np.zeros(len(others))
        for kind, comparable in enumerate(self._comparable(row, others)):
            size, sizes = self.sizes[row, kind], self.sizes[others, kind]
            chosen = np.flatnonzero(comparable & (np.minimum(sizes, size) / np.maximum(sizes, size).clip(1) >= least))
            if not chosen.size:
                continue
            mine, sizes = self._read(row, kind), sizes[chosen]
            theirs = np.concatenate([self._read(other, kind) for other in others[chosen].tolist()])
            is_shared = mine[np.minimum(np.searchsorted(mine, theirs), size - 1)] == theirs
            shared = np.add.reduceat(is_shared, np.cumsum(sizes) - sizes, dtype=np.int64)
            found[chosen] = shared / (size + sizes - shared)
        return found

    def _comparable(self, row: int, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether each of others is compared with a row by words, and whether by characters."""
        has, have = self.sizes[row] > 0, self.sizes[others] > 0
        by_words = have[:, 0] & has[0]
        return by_words, have[:, 1] & has[1] & ~by_words

    def _read(self, row: int, kind: int) -> np.ndarray:
        words, characters = self.sizes[row].tolist()
        start, size = int(self.starts[row]), words
        if kind == 1:
            start, size = start + words, characters
        return np.frombuffer(os.pread(self.file, 8 * size, 8 * start), np.uint64)
