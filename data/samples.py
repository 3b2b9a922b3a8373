"""Samples in memory: preference pairs, labelled answers and prompts. Each sample is a row of a batch.

A sample is a record and its arrays. A batch holds the arrays under the same names, padded on the right with zeros.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from ..errors import UserError
from . import sources
from .encoding import Encoder, LeftOut, encoded, nothing_left
from .mixture import Batch, Shapes
from .packing import permutation
from .sources import Source
from .tally import Tally

CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
REPEATED = "repeated"
"""The reason of samples whose tokens equal those of an earlier one. Encoders that do not list it keep such samples."""


class Sample(NamedTuple):
    """One record as a row of a batch."""

    record: dict  # fields of the record that are kept for logs and scores
    arrays: dict[str, np.ndarray]  # arrays of the row by name, without padding


class SampleEncoder(Encoder[Sample], Protocol):
    """An encoder that makes one row of a batch from each record."""

    shapes: Shapes  # shape and dtype of each array of a row, with padding


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a source in their order, a `RowSource` of a mixture or an evaluation."""

    samples: Sequence[Sample]
    row_shapes: Shapes  # shape and dtype of each array of a sample, with padding
    tally: Tally  # counts of the records of the source

    packing = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shapes(self) -> Shapes:
        """Shape and dtype of each array of a row: those of a sample, and "index", its index among the samples."""
        return self.row_shapes | {"index": ((), np.int32)}

    @property
    def records(self) -> list[dict]:
        """The kept fields of the record of every sample."""
        return [sample.record for sample in self.samples]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the records and arrays of all samples, in hexadecimal."""
        digest = hashlib.sha256()
        for record, arrays in self.samples:
            digest.update(json.dumps(record, sort_keys=True, ensure_ascii=False).encode())
            for name, array in arrays.items():
                digest.update(f"{name}{array.dtype}{array.shape}".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()

    def order(self, key: tuple[int, ...] | None) -> np.ndarray:
        """The indices of the samples in the order of an epoch, shuffled by `key`; ascending if `key` is None."""
        return np.arange(len(self)) if key is None else permutation(len(self), key)

    def write(self, order: np.ndarray, row: int, batch: Batch, place: int) -> None:
        """Writes sample `order[row]` into row `place` of a batch; that row must be all zeros.

        Args:
          order: int [rows], from `order`.
          row: the row of the epoch.
          batch: the batch to write into.
          place: the row of the batch.
        """
        index = int(order[row])
        for name, array in self.samples[index].arrays.items():
            batch[name][(place, *map(slice, array.shape))] = array
        batch["index"][place] = index

    def fill(self, batch: Batch, place: int) -> None:
        """Writes the last sample into row `place` of a batch, with weight 0 if the batch has weights."""
        self.write(self.order(None), -1, batch, place)
        if "weight" in batch:
            batch["weight"][place] = 0

    def summary(self) -> dict[str, float]:
        """Counts of records and samples, all tokens, the longest sequence, and the share of positions not padding."""
        lengths = np.stack([sample.arrays["lengths"] for sample in self.samples])
        positions = len(lengths) * int(np.prod(self.row_shapes["tokens"][0]))
        tokens = int(lengths.sum())
        return self.tally.counts() | {"tokens": tokens, "longest": int(lengths.max()), "fill": tokens / positions}

    def spread(self, n: int) -> "Samples":
        """`n` samples, evenly spaced over all of them; all samples if there are fewer than `n`."""
        places = np.linspace(0, len(self), min(n, len(self)), endpoint=False).astype(int)
        return replace(self, samples=[self.samples[i] for i in places])


def read_samples(source: Source, split: str | None, encoder: SampleEncoder, limit: int | None = None) -> Samples:
    """Reads the samples of one split of a source into memory.

    Args:
      source: the source.
      split: "train", "heldout", or None for the whole source.
      encoder: makes the sample of a record.
      limit: the number of samples after which reading stops; None reads all.

    Raises:
      UserError: a bad record, or no sample at all.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}: give 1 or more samples to read, or None for all")
    reading, tally = Tally.by(encoder.reasons), Tally.by(encoder.reasons)
    encode = _once(encoder.encode) if REPEATED in encoder.reasons else encoder.encode
    samples = list(islice(encoded(sources.read(source, split, reading), encode, tally, source.on_error), limit))
    tally = replace(reading, read=0) + tally
    if not samples:
        raise nothing_left(encoder, source, split, tally, reading)
    return Samples(samples, encoder.shapes, tally)


def _once(encode: Callable[[dict], Sample]) -> Callable[[dict], Sample]:
    """A version of `encode` that raises LeftOut for a record whose tokens equal those of an earlier one."""
    seen = set()

    def encode_once(record: dict) -> Sample:
        sample = encode(record)
        tokens = sample.arrays["tokens"].tobytes()
        if tokens in seen:
            raise LeftOut(REPEATED)
        seen.add(tokens)
        return sample

    return encode_once


def language_of(record: dict, messages: Sequence[dict]) -> str:
    """`meta.language` of a record; without it, "zh" if a message has a Chinese character, else "en"."""
    told = record.get("meta", {}).get("language")
    if isinstance(told, str) and told:
        return told
    return "zh" if any(CJK.search(m["content"] + m.get("input", "")) for m in messages) else "en"
