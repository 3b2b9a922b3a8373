"""Writes a dataset: the folder in which every maker of rows leaves what it kept, what it rejected, and why.

    train/part-00000-of-00001.jsonl      rows, sorted by id (`forms.final_record`); data/ reads the folder as a source
    heldout/part-00000-of-00001.jsonl    rows whose column split is "heldout", if there are any
    rejected/part-00000-of-00001.jsonl   {"id", "source", "place", "step", "reason", "detail", "columns", "record"}
    report.md                            the tables of the run
    card.json                            what the dataset holds and where it comes from (`data/cards.py`)

The bytes depend on the rows and the settings alone. The card is written last: a folder with a card is complete.
"""

import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.cards import FILE, Card, CardSource, CardStep, Parent, hash_of
from ..data.checksums import writing
from ..data.licences import with_origins
from ..errors import UserError
from .applying import RejectedRow, check_columns, id_of_row
from .forms import final_record
from .measure import Measure
from .outputs import REJECTED, REPORT, WRITING, check_replaceable, check_same
from .rows import HELDOUT, TRAIN, Row
from .run_table import RunTable, split_of, to_markdown
from .shards import encode
from .values import problem_of


@dataclass(frozen=True)
class About:
    """What a card says about a dataset beside what stands in its rows."""

    name: str
    """Name of the dataset."""

    config: Any
    """The settings that made it, as JSON can hold them; the card keeps their hash."""

    sources: Mapping[str, CardSource]
    """The sources by name. Their `kept` is filled in from the rows."""

    steps: Mapping[str, CardStep] = field(default_factory=dict)
    """The steps by name, in their order. Their `rejected` is filled in; reasons without rows may stand there with 0."""

    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the packages that decide the content."""

    parents: Mapping[str, Parent] = field(default_factory=dict)
    """Datasets that this one was made from."""

    report: str = ""
    """Further Markdown for the end of report.md, such as what a teacher cost."""


@dataclass(frozen=True)
class Layout:
    """How the files of a dataset are written."""

    shards: int = 1
    """Number of files of each split. A row's file follows from the first digits of its id."""

    keep_rejected: bool = True
    """Whether the record and the columns of rejected rows are written, beside the id and the reason."""

    write_as: str = "camelid"
    """Format of the rows: camelid, alpaca, sharegpt or openai."""


def write_dataset(
    output: Path,
    rows: Iterable[Row],
    rejected: Iterable[RejectedRow],
    about: About,
    *,
    tokenizer: str | None = None,
    layout: Layout = Layout(),
) -> tuple[Card, RunTable]:
    """Writes rows that fit into memory, in any order, as a dataset.

    Args:
      output: the folder. A dataset with the same card that stands there is written again.
      rows: the rows that are kept. Their records are parsed, and their ids differ.
      rejected: the rows that are not. Their steps are names of `about.steps`.
      about: what the card says.
      tokenizer: path of a tokenizer that counts tokens; None: characters are counted.
      layout: how the files are written.

    Raises:
      UserError: the form cannot hold a row, or the folder holds another dataset or other files.
    """
    measure = Measure(tokenizer)
    sized = [measure.with_size(row) for row in sorted(rows, key=id_of_row)]
    others = [replace(each, row=measure.with_size(each.row)) for each in sorted(rejected, key=id_of_row)]
    return write_sorted(output, sized, others, about, RunTable(measure), layout)


def write_sorted(
    output: Path,
    rows: Iterable[Row],
    rejected: Iterable[RejectedRow],
    about: About,
    table: RunTable,
    layout: Layout = Layout(),
) -> tuple[Card, RunTable]:
    """Writes rows that come in the order of their ids, and rejected rows in the order of theirs; one is in memory at a
    time. `table` counts them: its measure has given them their size, and it may know the counts of each step already.
    Errors are those of `write_dataset`."""
    check_replaceable(output)
    folder = output / WRITING  # it stands there until the card does, so that a killed writing is known by it
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    parts = _Parts(folder, layout)
    last = ""
    for row in rows:
        if row.id <= last:
            raise ValueError(f"row {row.id} ({row.place}) comes after {last}: ids have to differ and to ascend")
        last = row.id
        table.keep(row)
        check_columns({}, row.columns, f"row {row.id} ({row.place})")
        parts.write(split_of(row), row.id, _line(final_record(row, layout.write_as), row))
    for each in rejected:
        if each.step not in about.steps:
            raise ValueError(f"row {each.row.id} was rejected by {each.step}, which is none of the steps on the card")
        table.drop(each)
        said = each.to_json()
        if not layout.keep_rejected:
            del said["record"], said["columns"]
        parts.write(REJECTED, each.row.id, _line(said, each.row))
    card = with_origins(_card(about, table, parts.close([TRAIN])))
    try:
        check_same(output, card)
    except UserError:
        shutil.rmtree(folder)
        raise
    (output / FILE).unlink(missing_ok=True)
    for kind in (TRAIN, HELDOUT, REJECTED):
        shutil.rmtree(output / kind, ignore_errors=True)
        if (folder / kind).exists():
            (folder / kind).rename(output / kind)
    (folder / REPORT).write_text(report_of(card, table, about.report), encoding="utf-8", errors="backslashreplace")
    card.write(folder)
    for name in (REPORT, FILE):
        (folder / name).replace(output / name)
    shutil.rmtree(folder)
    return card, table


def _line(said: dict[str, Any], row: Row) -> bytes:
    """A line of a file. Raises UserError if JSON cannot hold it."""
    try:
        return encode(said)
    except (TypeError, ValueError, RecursionError) as error:
        problem = problem_of(said, "the field") or str(error)
        raise UserError(f"row {row.id} ({row.place}): {problem}, which JSON cannot hold") from None


def report_of(card: Card, table: RunTable, further: str = "") -> str:
    """The content of report.md."""
    said = f"# {card.name}\n\nThe size of rows is counted in {card.unit}.\n"
    parts = [said, to_markdown(table.tables(card.steps)), *([further.strip() + "\n"] if further.strip() else [])]
    return "\n".join(parts)


class _Parts:
    """The files of a dataset that is being written."""

    def __init__(self, folder: Path, layout: Layout):
        self._folder, self._shards = folder, layout.shards
        self._files, self._sums = {}, {}

    def write(self, kind: str, id: str, line: bytes) -> None:
        name = self._name(kind, int(id[:8], 16) * self._shards >> 32)
        if name not in self._files:
            self._open(name)
        size, crc = self._sums[name]
        self._sums[name] = [size + len(line), zlib.crc32(line, crc)]
        with writing(self._folder / name):
            self._files[name].write(line)

    def close(self, wanted: Iterable[str]) -> dict[str, list]:
        """Checksums of all files; a kind that has rows, or is wanted, has all of its files."""
        kinds = {name.partition("/")[0] for name in self._files} | set(wanted)
        for name in sorted(self._name(kind, shard) for kind in kinds for shard in range(self._shards)):
            if name not in self._files:
                self._open(name)
        for name, file in self._files.items():
            with writing(self._folder / name), file:
                file.flush()
                os.fsync(file.fileno())
        return {name: [size, f"{crc:08x}"] for name, (size, crc) in sorted(self._sums.items())}

    def _name(self, kind: str, shard: int) -> str:
        return f"{kind}/part-{shard:05d}-of-{self._shards:05d}.jsonl"

    def _open(self, name: str) -> None:
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        self._files[name], self._sums[name] = path.open("wb"), [0, 0]


def _card(about: About, table: RunTable, files: dict[str, list]) -> Card:
    kept = table.kept_by(1)
    steps = {
        name: replace(
            step,
            changed=table.changed[name] or step.changed,
            rejected={**step.rejected, **table.rejected_of(name)},
        )
        for name, step in about.steps.items()
    }
    return Card(
        name=about.name,
        unit=table.measure.unit,
        tokenizer=table.measure.tokenizer and table.measure.tokenizer.fingerprint,
        splits=table.kept_by(0),
        languages=table.kept_by(2),
        sources={name: replace(s, kept=kept.get(name, s.kept)) for name, s in about.sources.items()},
        steps=steps,
        files=files,
        config=hash_of(about.config),
        versions=dict(about.versions),
        parents=dict(about.parents),
    )
