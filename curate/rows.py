"""A row of the data engine: a record with its id, where it came from, and what steps found out about it.

A step takes a row and returns it changed, several rows in its place, or why it is rejected:

    @dataclass(frozen=True)
    class Shortest:
        \"\"\"Rejects texts of few characters.\"\"\"

        reasons: ClassVar = ("too_short",)

        characters: Count = 20
        \"\"\"Characters of the shortest text that is kept.\"\"\"

        def __call__(self, row: Row) -> Row | Rejected:
            return row if len(text_of(row.record)) >= self.characters else Rejected("too_short")

The fields of a step are its settings in a config (`settings/sections.py`). A step that needs to see all rows before it
decides about one has `decide` in place of `__call__` (`WholeStep`). The result of either depends on the rows and its
settings alone, not on their order or on the number of processes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

ID_DIGITS = 20
"""Hexadecimal digits of an id: 80 bits, so that among a billion rows two ids are equal with a chance of 1 in 2.4
million."""

LANGUAGE, TOKENS = "language", "tokens"
"""Names of the columns that the tables of a run are grouped by, and that they add up."""

SPLIT = "split"
"""Name of the column with the split of a row. A row without the column is in train."""

HELDOUT, TRAIN = "heldout", "train"
"""The splits: values of the column SPLIT."""

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """A record on its way through the steps. Steps do not change a row in place; they return another (`with_`)."""

    id: str
    """Identity of the row, from its source and its content (`id_of`). A step that makes several rows of one adds a
    number to it (`split`)."""

    record: Mapping[str, Any]
    """The raw record until a step parses it, and then one of the records of `data/formats.py`."""

    source: str
    """Name of its source in the config."""

    place: str
    """Where it was read, such as "chats.json, record 7"."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    """What steps found out about the record, by column: numbers, strings, lists of them, as JSON can hold them."""

    def with_(self, record: Mapping[str, Any] | None = None, **columns: Any) -> "Row":
        """The row with another record, if one is given, and with further columns."""
        return replace(self, record=self.record if record is None else record, columns={**self.columns, **columns})

    def split(self, records: Iterable[Mapping[str, Any]], **columns: Any) -> list["Row"]:
        """A row for each record, in order; their ids are that of this row with "-1", "-2", ... at the end."""
        return [
            replace(self.with_(record, **columns), id=f"{self.id}-{number}") for number, record in enumerate(records, 1)
        ]

    def to_json(self) -> dict[str, Any]:
        """The row as an object of JSON, from which `from_json` makes it again."""
        return {name: getattr(self, name) for name in ("id", "source", "place", "record", "columns")}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Row":
        """The row in an object that `to_json` made."""
        return cls(**found)


@dataclass(frozen=True)
class Rejected:
    """Why a step rejects a row."""

    reason: str
    """One of the step's `reasons`: a word for tables, such as "too_short"."""

    detail: str = ""
    """What was found in this row, for people who look at it, such as "7 characters"."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    """What the step found out about the row, which joins the row's columns."""


class Step(Protocol):
    """A step from row to row.

    Attributes:
      reasons: the words by which it rejects; () if it never does.
    """

    reasons: ClassVar[tuple[str, ...]]

    def __call__(self, row: Row) -> Row | list[Row] | Rejected:
        """The row as it goes on, the rows in its place (at least one), or why it is rejected."""
        ...


class Rows(Protocol):
    """All rows that reach a step, in the order of their ids. They are on disk: each pass reads them again.

    Attributes:
      folder: an empty folder for files of the step; it is removed at the end of the run.
      workers: number of processes that `map` uses.
    """

    folder: Path
    workers: int

    def __iter__(self) -> Iterator[Row]: ...

    def map(self, function: Callable[[Iterator[Row]], T]) -> Iterator[T]:
        """The results of `function` for the rows of each partition, in the order of partitions. Partitions follow each
        other in the order of ids. Worker processes compute them, so `function` and its results can be pickled."""
        ...


class WholeStep(Protocol):
    """A step that needs to see all rows before it decides about one, such as the removal of duplicates.

    Attributes:
      reasons: the words by which it rejects.
    """

    reasons: ClassVar[tuple[str, ...]]

    def decide(self, rows: Rows) -> Iterable[tuple[str, Rejected]]:
        """The id of each row that is rejected, with the reason, in any order."""
        ...


def id_of(source: str, raw: Mapping[str, Any]) -> str:
    """The id of a row: a hash of the name of its source and its raw record, in ID_DIGITS hexadecimal digits."""
    content = json.dumps([source, raw], ensure_ascii=True, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(content.encode(), digest_size=ID_DIGITS // 2).hexdigest()


def fraction_of(text: str, salt: str = "") -> float:
    """A hash of a text, scaled to [0, 1): the same on every machine. salt: tells apart what is drawn by it."""
    digest = hashlib.blake2b(f"{salt}\0{text}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def texts_of(record: Mapping[str, Any]) -> list[str]:
    """The texts of a parsed record: of a text itself, or of its messages in order, then of the compared answers."""
    if record.get("kind") == "text":
        return [record["text"]]
    found = []
    for message in [*record["messages"], *answers_of(record)]:
        found += [message[name] for name in ("content", "input") if message.get(name)]
    return found


def text_of(record: Mapping[str, Any]) -> str:
    """All texts of a parsed record, one below the other."""
    return "\n".join(texts_of(record))


def map_texts(record: Mapping[str, Any], function: Callable[[str], str]) -> dict[str, Any]:
    """The parsed record with `function` of each of its texts in place of the text. Other fields stay."""
    if record.get("kind") == "text":
        return {**record, "text": function(record["text"])}

    def mapped(message: Mapping[str, Any]) -> dict[str, Any]:
        return {**message} | {name: function(message[name]) for name in ("content", "input") if message.get(name)}

    changed = {"messages": [mapped(message) for message in record["messages"]]}
    for side in ("chosen", "rejected"):
        if side in record:
            answer = record[side]
            changed[side] = [mapped(m) for m in answer] if isinstance(answer, list) else mapped(answer)
    return {**record, **changed}


def side_of(record: Mapping[str, Any], side: str) -> list[Mapping[str, Any]]:
    """The messages of a preference's answer, "chosen" or "rejected"; none for other records."""
    answer = record.get(side, [])
    return answer if isinstance(answer, list) else [answer]


def answers_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The messages of the chosen answer of a preference, then those of the rejected one."""
    return [*side_of(record, "chosen"), *side_of(record, "rejected")]
