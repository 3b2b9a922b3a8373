"""Rows of finished datasets: read back, found, and traced to the record that they come from."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.cards import Card, CardSource
from ...data.formats import KINDS, parse
from ...errors import UserError
from ..dataset import REJECTED
from ..forms import OWN
from ..measure import text_of_any
from ..rows import HELDOUT, TRAIN, Row


@dataclass(frozen=True)
class Line:
    """A line of a dataset's file."""

    place: str
    """File and line, such as "mixed/train/part-00000-of-00001.jsonl:7"."""

    found: dict[str, Any]
    """The object in the line: a final row (`forms.final_record`), or a rejected one."""


@dataclass(frozen=True)
class Origin:
    """A step on the way back from a row of a dataset to the record that it comes from."""

    dataset: str
    """Name of the dataset."""

    source: str
    """Name of the source in the dataset."""

    place: str
    """Where the source's record was read, such as "chats.json, record 7"."""

    details: CardSource
    """What the dataset's card says about the source."""

    columns: Mapping[str, Any]
    """What the steps found out about the row, and who made it."""


def lines_of(folder: Path, card: Card, kind: str, holding: str = "") -> Iterator[Line]:
    """The lines of a dataset's files of one kind: train, heldout or rejected.

    Args:
      folder: the dataset.
      card: its card.
      kind: the kind of files.
      holding: a text that the lines have to hold, as JSON writes it.

    Raises:
      UserError: a line is no JSON object.
    """
    wanted = holding.encode(errors="surrogatepass")
    for name in card.files_of(kind):
        path = folder / name
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if wanted in line:
                    yield Line(f"{path}:{number}", _object(line, f"{path}:{number}"))


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as problem:
        raise UserError(f"{place} holds no JSON ({problem}): the dataset is damaged; make it anew") from None
    if not isinstance(found, dict) or "id" not in found:
        raise UserError(f"{place} has no id: the dataset is damaged; make it anew")
    return found


def row_of(line: Line) -> Row:
    """The row that a dataset's line was written from (`forms.final_record`), in camelid's own format."""
    record = {name: value for name, value in line.found.items() if name not in ("id", "meta")}
    meta = line.found["meta"]
    record = record if record.get("kind") in KINDS else parse(record)  # camelid's own format needs no parsing
    record |= {"meta": meta["given"]} if "given" in meta else {}
    columns = {name: value for name, value in meta.items() if name not in OWN}
    return Row(line.found["id"], record, meta["source"], meta["place"], columns)


def rows_of(folder: Path, card: Card, split: str) -> Iterator[Row]:
    """The rows of one split of a dataset, in the order of their ids."""
    return map(row_of, lines_of(folder, card, split))


def find_id(folder: Path, card: Card, wanted: str) -> Iterator[tuple[str, Line]]:
    """Pairs (kind of files, line) of the rows with an id, kept or rejected.

    Rows that a step made of one row have its id with a number at the end; they are found by the id without it too.
    """
    for kind in (TRAIN, HELDOUT, REJECTED):
        for line in lines_of(folder, card, kind, wanted):
            if line.found["id"] == wanted or line.found["id"].startswith(f"{wanted}-"):
                yield kind, line


def find_text(folder: Path, card: Card, wanted: str) -> Iterator[tuple[str, Line]]:
    """Pairs (kind of files, line) of the rows, kept or rejected, with a text in which `wanted` stands. White space is
    compared as single blanks."""
    longest = max(wanted.split(), key=len, default="")
    as_json, wanted = json.dumps(longest, ensure_ascii=False)[1:-1], " ".join(wanted.split())
    for kind in (TRAIN, HELDOUT, REJECTED):
        for line in lines_of(folder, card, kind, as_json):
            record = line.found.get("record", {}) if kind == REJECTED else line.found
            if wanted in " ".join(text_of_any(record).split()):
                yield kind, line


def origins_of(name: str, card: Card, line: Line) -> list[Origin]:
    """The way of a row back to its record: first the dataset itself, then the datasets that it was made from.

    Args:
      name: name of the dataset.
      card: its card.
      line: a final or a rejected row of it.
    """
    found = line.found
    if "step" in found:  # a rejected row
        record = found.get("record", {})
        meta = {**found.get("columns", {}), "source": found["source"], "place": found["place"]}
        meta["given"] = _given(record)
    else:
        meta = found["meta"]
    columns = {column: value for column, value in meta.items() if column not in OWN}
    way = [Origin(name, meta["source"], meta["place"], _source_of(card, meta["source"], line.place), columns)]
    parent, given = card.parent_of(meta["source"]), meta.get("given", {})
    if parent is not None and "id" in given and "source" in given:
        further = {"id": given["id"], "meta": {key: value for key, value in given.items() if key != "id"}}
        way += origins_of(f"{name}/{meta['source']}", parent.card, Line(parent.location, further))
    return way


def _given(record: Mapping[str, Any]) -> dict[str, Any]:
    """The other fields of a raw record, those of its "meta" among them, as `data.formats.parse` keeps them; of a record
    that is parsed already, its "meta"."""
    meta = record.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    return {**({"id": record["id"]} if "id" in record else {}), **meta}


def _source_of(card: Card, source: str, place: str) -> CardSource:
    if source not in card.sources:
        raise UserError(f"{place}: the card names no source {source!r}: the dataset is damaged; make it anew")
    return card.sources[source]
