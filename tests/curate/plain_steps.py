"""Steps for tests of the engine, whose effects are easy to foresee, and rows for them."""

import random
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from camelid.curate.rows import Rejected, Row, Rows, map_texts, text_of
from camelid.settings.leaves import Count

STEPS = "camelid.tests.curate.plain_steps"


@dataclass(frozen=True)
class Shout:
    """Writes every text that has the word red in capitals, and its language by its script into a column."""

    reasons: ClassVar = ()

    def __call__(self, row: Row) -> Row:
        row = row.with_(language="zh" if "狐" in text_of(row.record) else "en")
        return row.with_(map_texts(row.record, str.upper)) if "red" in text_of(row.record) else row


@dataclass(frozen=True)
class LeastWords:
    """Rejects texts of few words."""

    reasons: ClassVar = ("too_short",)

    words: Count = 4
    """Fewest words that are kept."""

    def __call__(self, row: Row) -> Row | Rejected:
        words = len(text_of(row.record).split())
        return row.with_(words=words) if words >= self.words else Rejected("too_short", f"{words} words")


@dataclass(frozen=True)
class Halve:
    """Divides texts of more than a number of words into parts of at most as many."""

    reasons: ClassVar = ()

    words: Count = 6
    """Most words of a part."""

    def __call__(self, row: Row) -> Row | list[Row]:
        words = row.record["text"].split()
        if len(words) <= self.words:
            return row
        cuts = range(0, len(words), self.words)
        return row.split({**row.record, "text": " ".join(words[cut : cut + self.words])} for cut in cuts)


@dataclass(frozen=True)
class SameBeginning:
    """Rejects rows whose first two words are those of a row with a smaller id."""

    reasons: ClassVar = ("same_beginning",)

    def decide(self, rows: Rows) -> Iterable[tuple[str, Rejected]]:
        (rows.folder / "notes").write_text("a file of the step")
        first: dict[str, str] = {}
        for found in rows.map(_beginnings):
            for id, beginning in found:
                if beginning in first:
                    yield id, Rejected("same_beginning", f"as {first[beginning]}", {"beginning": beginning})
                else:
                    first[beginning] = id


def _beginnings(rows: Iterator[Row]) -> list[tuple[str, str]]:
    return [(row.id, " ".join(text_of(row.record).split()[:2])) for row in rows]


@dataclass(frozen=True)
class Stumble:
    """Raises an exception at texts with the word owl."""

    reasons: ClassVar = ("owl",)

    def __call__(self, row: Row) -> Row:
        if "owl" in text_of(row.record).split():
            raise LookupError("an owl")
        return row


@dataclass(frozen=True)
class Sleeper:
    """Sleeps at every row."""

    reasons: ClassVar = ()

    def __call__(self, row: Row) -> Row:
        time.sleep(60)
        return row


@dataclass(frozen=True)
class Listed:
    """Rejects texts that are lines of a file."""

    reasons: ClassVar = ("listed",)

    file: str = ""
    """Path of the file."""

    def __call__(self, row: Row) -> Row | Rejected:
        return Rejected("listed") if text_of(row.record) in Path(self.file).read_text().splitlines() else row


@dataclass(frozen=True)
class Emptied:
    """Leaves nothing of texts with the word owl."""

    reasons: ClassVar = ()

    def __call__(self, row: Row) -> Row:
        return row.with_({**row.record, "text": ""}) if "owl" in text_of(row.record).split() else row


def heavy_modules(number: int) -> list[str]:
    """Modules of this process that no worker of the engine should import."""
    return [name for name in ("jax", "flax", "tensorflow_datasets", "orbax") if name in sys.modules]


def nothing() -> None:
    """Begins a worker process."""


def texts(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Made-up records of one to twenty words, some of them equal."""
    rng = random.Random(seed)
    words = ["red", "blue", "fox", "whale", "sees", "the", "a", "狐狸", "of", "horse", "green", "小"]
    made = [{"text": " ".join(rng.choices(words, k=rng.randrange(1, 20)))} for _ in range(count - count // 10)]
    return made + rng.choices(made, k=count // 10)
