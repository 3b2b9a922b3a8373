"""The step `exact_duplicates`: of rows with equal text, the one with the smallest id stays."""

import functools
import hashlib
import json
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from ...settings.leaves import OneOf
from ..rows import Rejected, Row, Rows
from .shingles import COMPARED, compared


@functools.cache
def _without_punctuation() -> dict[int, None]:
    """The table for `str.translate` that removes punctuation."""
    return {point: None for point in range(sys.maxunicode + 1) if unicodedata.category(chr(point)).startswith("P")}


@dataclass(frozen=True)
class ExactDuplicates:
    """Rejects each row whose text equals that of a row with a smaller id.

    Rows are equal only if their kind, the roles of their messages and their label are equal too. Memory: a hash of 16
    bytes and the id for each row.
    """

    reasons: ClassVar = ("exact_duplicate",)

    compare: Annotated[str, OneOf(*COMPARED)] = "all"
    """What is compared: all texts of a record, the turns of the user, the answers, or the first turn of the user. A row
    without such a text is kept."""

    ignore_case: bool = True
    """Whether letters are compared without case."""

    ignore_whitespace: bool = True
    """Whether a run of white space equals one blank, and none at the beginning and the end of a text."""

    ignore_width: bool = True
    """Whether characters are compared in Unicode's form NFKC, such as full-width letters with ordinary ones."""

    ignore_punctuation: bool = False
    """Whether punctuation is left out. It stays in a text that has nothing else."""

    def decide(self, rows: Rows) -> Iterator[tuple[str, Rejected]]:
        parts = list(rows.map(self._hashes))
        ids, hashes = (np.concatenate([part[k] for part in parts]) for k in (0, 1)) if parts else ([], np.zeros((0, 2)))
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # a stable sort: equal ones stay in the order of ids
        repeats = np.zeros(len(order), bool)
        repeats[1:] = (hashes[order[1:]] == hashes[order[:-1]]).all(1)
        first = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))
        for place in np.flatnonzero(repeats).tolist():
            kept = ids[order[first[place]]].decode()
            yield ids[order[place]].decode(), Rejected("exact_duplicate", f"equals {kept}")

    def _hashes(self, rows: Iterator[Row]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of the rows that have something to compare, and a hash of 128 bits of each, shape (rows, 2)."""
        ids, hashes = [], []
        for row in rows:
            if texts := compared(row.record, self.compare):
                label = row.record.get("label") if self.compare in ("all", "answers") else None
                key = [row.record["kind"], label, [(role, self._normal(text)) for role, text in texts]]
                content = json.dumps(key, ensure_ascii=False).encode(errors="surrogatepass")
                hashes.append(hashlib.blake2b(content, digest_size=16).digest())
                ids.append(row.id.encode())
        return np.array(ids, "S"), np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, 2)

    def _normal(self, text: str) -> str:
        """The text as it is compared."""
        if self.ignore_width:
            text = unicodedata.normalize("NFKC", text)
        if self.ignore_case:
            text = text.casefold()
        if self.ignore_punctuation:
            bare = text.translate(_without_punctuation())
            text = bare if bare.strip() else text
        return " ".join(text.split()) if self.ignore_whitespace else text
