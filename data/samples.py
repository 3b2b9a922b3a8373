"""Records held in memory as samples, and endless batches of them: what prompts and preference pairs have in common.

A sample is a record and its arrays, named as in the batch, which holds them padded on the right with zeros. Row g of a
run (g = step * B + row) comes from a source drawn by weight, and is the next sample that this source has not given yet:
epoch by epoch, each in an order of its own. So batches are a function of (seed, step), as those of `data.batches`.
"""

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import UserError, bad_record
from . import sources
from .batches import Batch, Shapes, check_parts, draw, drawn, integer_weights
from .files import MAX_RECORD_BYTES
from .packing import permutation

CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
VERSION = 1  # of the order of rows: raised when a seed gives other batches than before
LISTED = 20  # records left out whose messages are kept


class SourcePart(NamedTuple):
    """A source of a mixture, as `sources.read` takes it. `weight` is its share of the rows, relative to the others."""

    name: str
    source: str
    format: str = "auto"
    weight: float = 1.0


class Sample(NamedTuple):
    """What is kept of a record, and its arrays: those of a row of the batch, without padding."""

    record: dict
    arrays: dict[str, np.ndarray]


class Samples(NamedTuple):
    """The samples of a source, in its order."""

    samples: list[Sample]
    counts: dict[str, int]  # records read, samples, and the records that are none, by reason
    skipped: list[str]  # place and fault of the first records that were left out
    fingerprint: str  # a hash of all samples, in hexadecimal


class LeftOut(Exception):
    """A sound record that is no sample, and under which heading it is counted; listed if there is a message."""

    def __init__(self, reason: str, message: str = ""):
        super().__init__(message)
        self.reason = reason


def language_of(record: dict, messages: Sequence[dict]) -> str:
    """What the record's meta.language says; else "zh" where any of the messages has a Chinese character, else "en"."""
    told = record.get("meta", {}).get("language")
    if isinstance(told, str) and told:
        return told
    return "zh" if any(CJK.search(m["content"] + m.get("input", "")) for m in messages) else "en"


def collect(
    source: str,
    make: Callable[[dict], Sample],
    *,
    what: str,
    reasons: Sequence[str],
    format: str = "auto",
    split: str | None = "train",
    heldout: float = 0.01,
    on_error: str = "raise",
    max_record_bytes: int = MAX_RECORD_BYTES,
    limit: int | None = None,
) -> Samples:
    """Reads the samples of one split of a source.

    Args:
      source, format, split, heldout, max_record_bytes: as `sources.read` takes them.
      make: the sample of a record; raises LeftOut for one of `reasons`, UserError for a record that cannot be one.
      what: samples are, for messages.
      on_error: "raise" stops at the first record that cannot be a sample, "skip" counts and lists them.
      limit: stop reading after so many samples.

    Raises:
      UserError: a bad record, or no sample at all.
    """
    where = f"{source} ({split})" if split else source
    report = sources.Report()
    records = sources.read(
        source,
        format=format,
        on_error=on_error,
        report=report,
        split=split,
        heldout=heldout,
        max_record_bytes=max_record_bytes,
    )
    counts = Counter(dict.fromkeys(("records", "samples", *reasons, "skipped"), 0))
    samples, listed = [], []
    for sample in _made(records, make, counts, listed, where, on_error):
        samples.append(sample)
        if len(samples) == limit:
            break
    counts["samples"] = len(samples)
    counts["skipped"] += report.skipped
    listed = (report.problems + listed)[:LISTED]
    if not samples:
        found = ", ".join(f"{counts[name]:,} {name}" for name in ("records", *reasons, "skipped"))
        first = "".join(f" ({message})" for message in listed[:1])
        raise sources.nothing_found(f"{where}: no {what}: {found}{first}", split, report, counts["records"])
    return Samples(samples, dict(counts), listed, _fingerprint(samples))


def _made(
    records: Iterable[dict],
    make: Callable[[dict], Sample],
    counts: Counter,
    listed: list[str],
    where: str,
    on_error: str,
) -> Iterator[Sample]:
    """The samples of `records`; what becomes of the other records is written into `counts` and `listed`."""
    for number, record in enumerate(records, 1):
        counts["records"] += 1
        place = getattr(record, "where", f"{where}, record {number}")  # a generated record has no place of its own
        try:
            yield make(record)
        except LeftOut as left_out:
            counts[left_out.reason] += 1
            if str(left_out) and len(listed) < LISTED:
                listed.append(f"{place}: {left_out}")
        except UserError as error:
            if on_error == "raise":
                raise bad_record(f"{place}: {error}") from error
            counts["skipped"] += 1
            if len(listed) < LISTED:
                listed.append(f"{place}: {error}")


def _fingerprint(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for record, arrays in samples:
        digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode())
        for name, array in arrays.items():
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def stack(samples: Sequence[Sample], row_shapes: Shapes) -> Batch:
    """The arrays of `samples`, each padded on the right with zeros to its shape in a row, under a new leading axis."""
    batch = {name: np.zeros((len(samples), *shape), dtype) for name, (shape, dtype) in row_shapes.items()}
    for row, sample in enumerate(samples):
        for name, array in sample.arrays.items():
            batch[name][(row, *map(slice, array.shape))] = array
    return batch


def describe(source: Samples, row_shapes: Shapes) -> dict[str, float]:
    """The counts of a source, its real tokens, the most in one sequence, and the share of positions they fill."""
    lengths = np.stack([sample.arrays["lengths"] for sample in source.samples])
    positions = len(lengths) * int(np.prod(row_shapes["tokens"][0]))
    tokens = int(lengths.sum())
    return source.counts | {"tokens": tokens, "longest": int(lengths.max()), "fill": tokens / positions}


class SampleBatches:
    """The endless batches of a mixture of samples: `batches[step]`, or `batches.rows(step, rows)` for some rows of it.

    Attributes:
      records: what is kept of the record of every sample, source by source; "index" in a batch points here.
      batch_size, length: samples in a batch over all hosts, and positions in a row.
      fingerprint: a hash of all that the batches depend on.
    """

    def __init__(
        self,
        parts: Sequence[SourcePart],
        read: Callable[[SourcePart], Samples],
        *,
        row_shapes: Shapes,
        batch_size: int,
        length: int,
        seed: int,
    ):
        """
        Args:
          parts: the mixture.
          read: the samples of a part, with arrays as in `row_shapes`.
          row_shapes: shape and dtype of each array in a row of a batch.
          batch_size, length: samples in a batch, positions in a row.
          seed: of the order of samples.

        Raises:
          UserError: no part, two of one name, a weight that is not above 0, or what `read` raises.
        """
        self.parts = tuple(parts)
        check_parts(self.parts)
        self.batch_size = batch_size
        self.length = length
        self._row_shapes = row_shapes
        self._weights = integer_weights([part.weight for part in self.parts])
        self._sources = [read(part) for part in self.parts]
        self._sizes = [len(source.samples) for source in self._sources]
        self._first = np.cumsum([0, *self._sizes]).tolist()
        self._orders = [_orders(source, seed) for source in self._sources]
        self.records = [sample.record for source in self._sources for sample in source.samples]
        plan = {
            "version": VERSION,
            "seed": seed,
            "batch_size": batch_size,
            "length": length,
            "parts": [source.fingerprint for source in self._sources],
            "weights": self._weights,
        }
        self.fingerprint = hashlib.sha256(json.dumps(plan).encode()).hexdigest()

    def __getitem__(self, step: int) -> Batch:
        return self.rows(step, slice(None))

    def rows(self, step: int, rows: slice) -> Batch:
        """Only these rows of the batch of a step: all that a host reads of it."""
        if step < 0:
            raise IndexError(f"step {step} is before the first")
        places = [self._place(step * self.batch_size + row) for row in range(self.batch_size)[rows]]
        batch = stack([self._sources[part].samples[sample] for part, sample in places], self._row_shapes)
        index = np.array([self._first[part] + sample for part, sample in places], np.int32)
        return batch | {"index": index}

    def _place(self, row: int) -> tuple[int, int]:
        """Which sample of which source a row of the run is."""
        part, given = draw(row, self._weights)
        epoch, place = divmod(given, self._sizes[part])
        return part, int(self._orders[part](epoch)[place])

    def tells(self, name: str, first: int = 0) -> bool:
        """Whether any sample's array of that name has a number other than 0, from the entry `first` on."""
        arrays = (sample.arrays[name] for source in self._sources for sample in source.samples)
        return any(np.any(np.atleast_1d(array)[first:]) for array in arrays)

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a batch."""
        return batch_shapes(self.batch_size, self._row_shapes)

    @property
    def steps_per_epoch(self) -> float:
        """Steps that read as many samples as all sources have together."""
        return sum(self._sizes) / self.batch_size

    def epochs(self, step: int) -> dict[str, float]:
        """How many times each source has been passed over by `step` steps."""
        given = drawn(step * self.batch_size, self._weights)
        return {part.name: n / size for part, size, n in zip(self.parts, self._sizes, given, strict=True)}

    def summary(self) -> dict[str, dict[str, float]]:
        """What each source gives to an epoch: for the log and the eye."""
        total = sum(self._weights)
        return {
            part.name: {"share": weight / total, **describe(source, self._row_shapes)}
            for part, source, weight in zip(self.parts, self._sources, self._weights, strict=True)
        }

    def skipped(self) -> dict[str, list[str]]:
        """Place and fault of the first records that each source was read without."""
        return {
            part.name: source.skipped for part, source in zip(self.parts, self._sources, strict=True) if source.skipped
        }


def batch_shapes(batch_size: int, row_shapes: Shapes) -> Shapes:
    """Shape and dtype of each array of a batch of rows like these, "index" included."""
    rows = {name: ((batch_size, *shape), dtype) for name, (shape, dtype) in row_shapes.items()}
    return rows | {"index": ((batch_size,), np.int32)}


def _orders(source: Samples, seed: int) -> Callable[[int], np.ndarray]:
    """The order of the samples in each epoch. Rows are asked for in order: two epochs are kept, others made again."""
    key = (seed, int(source.fingerprint, 16))
    return functools.lru_cache(maxsize=2)(lambda epoch: permutation(len(source.samples), (*key, epoch)))


class SamplePass(Sequence):
    """One pass over samples, in their order. The last batch is filled up with the last sample."""

    def __init__(self, samples: Sequence[Sample], *, row_shapes: Shapes, batch_size: int):
        self.samples = samples
        self.records = [sample.record for sample in samples]
        self.batch_size = batch_size
        self._row_shapes = row_shapes

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        return self.rows(step, slice(None))

    def rows(self, step: int, rows: slice) -> Batch:
        """Only these rows of batch `step`."""
        places = range(len(self))[step] * self.batch_size + np.arange(self.batch_size)[rows]
        index = np.minimum(places, len(self.samples) - 1).astype(np.int32)
        return stack([self.samples[i] for i in index], self._row_shapes) | {"index": index}

    def real(self, step: int) -> int:
        """How many rows of batch `step` are samples, and not filling."""
        return min(self.batch_size, len(self.samples) - range(len(self))[step] * self.batch_size)

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a batch."""
        return batch_shapes(self.batch_size, self._row_shapes)


class SourcePass(SamplePass):
    """One pass over what was read of a source, in its order. The last batch is filled up with the last sample, and has
    "weight" 0 there."""

    def __init__(self, source: Samples, *, row_shapes: Shapes, batch_size: int):
        super().__init__(source.samples, row_shapes=row_shapes, batch_size=batch_size)
        self._source = source

    def rows(self, step: int, rows: slice) -> Batch:
        """Only these rows of batch `step`."""
        is_sample = np.arange(self.batch_size)[rows] < self.real(step)
        return super().rows(step, rows) | {"weight": is_sample.astype(np.float32)}

    @property
    def fingerprint(self) -> str:
        """A hash of all samples."""
        return self._source.fingerprint

    def summary(self) -> dict[str, float]:
        """What the source gives to the pass."""
        return describe(self._source, self._row_shapes)

    def skipped(self) -> list[str]:
        """Place and fault of the first records that the source was read without."""
        return self._source.skipped
