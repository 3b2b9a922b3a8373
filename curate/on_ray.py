"""The steps of a config on Ray Data (extra `ray`), for clusters that Ray runs already.

    rows = apply(read_sources(config), config)
    kept(rows).write_parquet("s3://...")

The kept ids and records, and the rejected ones with their reasons, are those of a run by `camelid curate run`. Rows are
sorted by id once; decisions about all rows are made by the process that calls `apply`, which reads blocks from the
object store and holds the ids that are rejected. Files of input have to be readable on every node.

A row of a dataset here has the columns of SCHEMA. A rejected row goes on to the end, and steps leave it alone.
"""

import functools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..data.sources import Source, parts_of
from ..errors import UserError
from .applying import LAST, RejectedRow, apply_steps, decisions
from .forms import final_record
from .measure import Measure
from .rows import Row
from .settings import READ, CurateConfig, is_whole, named_steps, source_of
from .stages import read_part

if TYPE_CHECKING:
    from pyarrow import Table
    from ray.data import Dataset

T = TypeVar("T")

SCHEMA = ("id", "order", "source", "place", "record", "columns", "step", "reason", "detail")
"""Columns: `order` is the place among all records that were read, as a string that sorts; `record` and `columns` are
JSON; `step` is "" for rows that are kept so far."""


def read_sources(config: CurateConfig) -> "Dataset":
    """The rows of all sources of a config: one task reads each file. Raises UserError for a source that is not there,
    and, when the dataset is computed, for a record that cannot be read, as `config.on_error` says."""
    import ray.data

    parts = [part for name in sorted(config.sources) for part in parts_of(source_of(config, name))]
    numbered = ray.data.from_items(list(enumerate(parts)), override_num_blocks=len(parts))
    return numbered.flat_map(lambda item: _read(config, *item["item"]))


def apply(dataset: "Dataset", config: CurateConfig) -> "Dataset":
    """The rows of `read_sources`, kept and rejected, after all steps of a config."""
    dataset = dataset.sort("id").map_batches(_without_repeated(config), **_WHOLE_BLOCKS)
    steps = list(named_steps(config))
    decided: tuple[str, Any] = ("", None)
    row_steps: list[str] = []
    for name, step in steps:
        if is_whole(step):
            dataset = _applied(dataset, config, decided, row_steps, last=False).materialize()
            decided, row_steps = (name, _decide(dataset, name, step)), []
        else:
            row_steps.append(name)
    return _applied(dataset, config, decided, row_steps, last=True)


def kept(dataset: "Dataset", write_as: str = "camelid") -> "Dataset":
    """The kept rows of `apply`: {"id", "split", "json"}, where json is the line of a dataset's file."""

    def final(row: dict[str, Any]) -> dict[str, Any]:
        found = _row(row)
        said = json.dumps(final_record(found, write_as), ensure_ascii=False, separators=(",", ":"))
        return {"id": found.id, "split": found.columns.get("split", "train"), "json": said}

    return dataset.filter(lambda row: not row["step"]).map(final)


def rejected(dataset: "Dataset") -> "Dataset":
    """The rejected rows of `apply`, with the columns of SCHEMA."""
    return dataset.filter(lambda row: bool(row["step"]))


_WHOLE_BLOCKS = {"batch_size": None, "batch_format": "pyarrow"}


def _read(config: CurateConfig, number: int, part: Source) -> Iterator[dict[str, Any]]:
    for place, found in enumerate(read_part(config, part)):
        yield _columns(found, f"{number:08d}-{place:012d}")


def _columns(found: Row | RejectedRow, order: str) -> dict[str, Any]:
    """A row as columns of SCHEMA."""
    why = ("", "", "") if isinstance(found, Row) else (found.step, found.reason, found.detail)
    row = found if isinstance(found, Row) else found.row
    content = (json.dumps(row.record), json.dumps(row.columns))
    return dict(zip(SCHEMA, (row.id, order, row.source, row.place, *content, *why), strict=True))


def _row(columns: Mapping[str, Any]) -> Row:
    content = (json.loads(columns["record"]), columns["source"], columns["place"], json.loads(columns["columns"]))
    return Row(columns["id"], *content)


def _table(rows: Iterable[Mapping[str, Any]]) -> "Table":
    import pyarrow

    rows = list(rows)
    return pyarrow.table({name: pyarrow.array([row[name] for row in rows], pyarrow.string()) for name in SCHEMA})


def _without_repeated(config: CurateConfig) -> Callable[["Table"], "Table"]:
    """Rejects rows whose id the row before has; equal ids are in one block after sorting by id."""

    def change(block: "Table") -> "Table":
        measure, rows, first = Measure(config.tokenizer), [], {}
        for columns in sorted(block.to_pylist(), key=lambda row: (row["id"], row["order"])):
            if not columns["step"] and first.get("id") == columns["id"]:
                repeated = measure.with_size(_row(columns))
                columns = _columns(
                    RejectedRow(repeated, READ, "repeated", f"equals {first['place']}"), columns["order"]
                )
            elif not columns["step"]:
                first = columns
            rows.append(columns)
        return _table(rows)

    return change


def _applied(
    dataset: "Dataset", config: CurateConfig, decided: tuple[str, Any], names: list[str], *, last: bool
) -> "Dataset":
    """The dataset after a decision about all rows and the row steps that follow it. decided: name of the step that
    decided, and a reference to its decisions by id."""
    import ray

    def change(block: "Table") -> "Table":
        measure, steps, out = Measure(config.tokenizer), _steps_of(config), []
        passed = [*((name, steps[name]) for name in names), *([LAST] if last else [])]
        found = ray.get(decided[1]) if decided[1] is not None else {}
        for columns in block.to_pylist():
            if columns["step"]:
                out.append(columns)
                continue
            row = _row(columns)
            if row.id in found:
                reason, detail, more = found[row.id]
                rows, dropped = [], [RejectedRow(row.with_(**more), decided[0], reason, detail)]
            else:
                rows, dropped = apply_steps(row, passed)
            rows = [measure.with_size(each) for each in rows] if last else rows
            out += [_columns(each, columns["order"]) for each in rows]
            for each in dropped:
                sized = RejectedRow(measure.with_size(each.row), each.step, each.reason, each.detail)
                out.append(_columns(sized, columns["order"]))
        return _table(out)

    return dataset.map_batches(change, **_WHOLE_BLOCKS)


@functools.lru_cache(maxsize=1)
def _cached_steps(key: str) -> dict[str, Any]:
    import pickle

    return dict(named_steps(pickle.loads(bytes.fromhex(key))))


def _steps_of(config: CurateConfig) -> dict[str, Any]:
    """The steps of a config, which a worker process keeps with what they load."""
    import pickle

    return _cached_steps(pickle.dumps(config).hex())


@dataclass
class _AllRows:
    """The rows that a step decides about (`rows.Rows`), in blocks of the object store in the order of their ids."""

    blocks: list[Any]
    folder: Path
    workers: int

    def __iter__(self) -> Iterator[Row]:
        import ray

        for block in self.blocks:
            yield from _kept_in(ray.get(block))

    def map(self, function: Callable[[Iterator[Row]], T]) -> Iterator[T]:
        import ray

        call = ray.remote(lambda block: function(_kept_in(block)))
        return (ray.get(result) for result in [call.remote(block) for block in self.blocks])


def _kept_in(block: "Table") -> Iterator[Row]:
    return (_row(columns) for columns in block.to_pylist() if not columns["step"])


def _decide(dataset: "Dataset", name: str, step: Any) -> Any:
    """A reference to {id: (reason, detail, columns)} of the rows that a step rejects. dataset: materialised."""
    import ray

    first_id = ray.remote(lambda block: block["id"][0].as_py() if block.num_rows else "")
    blocks = dataset.to_arrow_refs()
    starts = ray.get([first_id.remote(block) for block in blocks])
    ordered = [block for _, block in sorted(zip(starts, blocks, strict=True), key=lambda pair: pair[0])]
    found: dict[str, tuple[str, str, Mapping[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
        for id, why in decisions(name, step, _AllRows(ordered, Path(folder), workers)):
            if id in found:
                raise UserError(f"step {name} rejects the id {id} twice")
            found[id] = why.reason, why.detail, why.columns
    return ray.put(found)
