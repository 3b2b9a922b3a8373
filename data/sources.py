"""Where records come from. One string names a source:

    corpus/*.jsonl, corpus            files: .txt, .md, .json, .jsonl, .ndjson, each also .gz, and .parquet; local or gs://;
                                      of a folder, all that is in it
    tfds:name/config:split            a TensorFlow Dataset, also sliced: tfds:imdb_reviews:train[:10%]
    tfds:/path/to/name/1.0.0:split    the same, from the folder it was prepared in
    primer:documents, walks:chat      a task of `tasks/`, and a kind of its records

`read` yields their records one by one in a fixed order: files by name, records as they stand in them.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from etils import epath

from .. import tasks
from ..errors import DataError, UserError, bad_record, check_choice, did_you_mean
from .files import MAX_RECORD_BYTES, Row, TooLarge, file_rows, find_files, json_value, shorten
from .formats import FORMATS, parse, unfold

SPLITS = ("train", "heldout")
LISTED_PROBLEMS = 20


@dataclass
class Report:
    """How reading went: records read (of both splits), records left out, and where the first of those stand."""

    read: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    def skip(self, where: str, problem: ValueError) -> None:
        """Counts a record that is left out, and remembers it if it is among the first."""
        self.skipped += 1
        if len(self.problems) < LISTED_PROBLEMS:
            self.problems.append(f"{where}: {problem}")

    def add(self, counts: Mapping[str, int], problems: Iterable[str]) -> None:
        """Takes over what a cache or samples have counted as "records" and "skipped", and the first problems."""
        self.read += counts["records"]
        self.skipped += counts["skipped"]
        self.problems += problems

    def summary(self) -> str:
        """One line: how many records were read and left out, and where the first three of the latter stand."""
        line = f"{self.read:,} records read, {self.skipped:,} left out"
        return f"{line} ({'; '.join(self.problems[:3])}{'; ...' if self.skipped > 3 else ''})" if self.skipped else line


def read(
    source: str,
    *,
    format: str = "auto",
    on_error: str = "raise",
    report: Report | None = None,
    split: str | None = None,
    heldout: float = 0.01,
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> Iterator[dict]:
    """The records of `source` (see the module), as `formats` describes them.

    Args:
      format: a name in `formats.FORMATS`, or "auto" to go by the fields of each record.
      on_error: "raise" a UserError naming file, line and fault of a malformed record, or "skip" it.
      report: counts what was read and skipped.
      split: "train" or "heldout" for that part of the source, None for all of it.
      heldout: the fraction of records that is held out, see `held_out_below`; tasks know their own.
      max_record_bytes: a longer line, record of a .json list or row of Parquet is a malformed record.
    """
    check_choice("format", format, ("auto", *FORMATS))
    check_choice("on_error", on_error, ("raise", "skip"))
    check_choice("split", split, (None, *SPLITS))
    if split is not None and not 0 <= heldout <= 1:
        raise UserError(f"heldout is {heldout}: it is a share, from 0 to 1")
    if max_record_bytes < 1:
        raise UserError(f"max_record_bytes is {max_record_bytes}: give 1 or more")
    report = Report() if report is None else report
    scheme, _, name = source.partition(":")
    if scheme in tasks.NAMES:
        return _made(_task(scheme, name), name, SPLITS if split is None else (split,), report)
    rows = _dataset_rows(name) if scheme == "tfds" else file_rows(find_files(source), max_record_bytes)
    records = _records(rows, format, on_error, report)
    if split is None:
        return records
    below = held_out_below(source, heldout, format=format, on_error=on_error, max_record_bytes=max_record_bytes)
    return (record for record in records if split_of(record, below) == split)


def held_out_below(
    source: str,
    heldout: float,
    *,
    format: str = "auto",
    on_error: str = "raise",
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> float:
    """The share by which `split_of` divides a source: `heldout`, or, where no record's place is below it, just more
    than the lowest one, so that a small source has something held out as well. A source whose records all begin with
    the same prompt, and one where nothing is to be held out, keeps `heldout`."""
    if not 0 < heldout < 1 or source.partition(":")[0] in tasks.NAMES:
        return heldout
    places = set()
    for record in read(source, format=format, on_error=on_error, max_record_bytes=max_record_bytes):
        place = place_of(record)
        if place < heldout:
            return heldout  # most sources: found after a few records
        places = {min(places | {place}), max(places | {place})}
    return math.nextafter(min(places), 1.0) if len(places) > 1 else heldout


def nothing_found(problem: str, split: str | None, report: Report, records: int) -> UserError:
    """The error of a part of a source of which nothing is left, `problem`; it says where the share held out is why.
    report: of the whole source; records: of the part."""
    if report.read and split == "heldout":
        return DataError(problem, "heldout=SHARE", "holds out a larger share; with 0 nothing is measured")
    if report.read and split == "train" and not records:
        return DataError(problem, "heldout=SHARE", "holds out a smaller share, 0 nothing")
    return UserError(problem)


class Record(dict):
    """A record, and where it was read: a file with a line or a number, as messages name it."""

    where: str

    def __init__(self, fields: dict, where: str):
        super().__init__(fields)
        self.where = where

    def __reduce__(self):
        return Record, (dict(self), self.where)


def _records(rows: Iterable[Row], format: str, on_error: str, report: Report) -> Iterator[dict]:
    for where, raw in rows:
        instances = unfold(raw)
        for number, instance in enumerate(instances, 1):
            place = f"{where}, instance {number}" if len(instances) > 1 else where
            try:
                if isinstance(instance, ValueError):
                    raise instance
                record = Record(parse(instance, format), place)
            except ValueError as problem:
                if on_error == "raise":
                    if isinstance(problem, TooLarge):
                        raise DataError(f"{place}: {problem}", "max_record_bytes=N", "allows more") from problem
                    raise bad_record(f"{place}: {problem}") from problem
                report.skip(place, problem)
            else:
                report.read += 1
                yield record


def split_of(record: dict, heldout: float) -> str:
    """The part that a record is in, train or heldout, by a hash of the record alone, not of its place or the run.

    All conversations that begin with the same prompt stand in the same part. About a fraction `heldout` of all texts
    and prompts is held out.
    """
    return "heldout" if place_of(record) < heldout else "train"


def place_of(record: dict) -> float:
    """A number from 0 to 1 that stands for a record: a hash of its text, or of a conversation's first user turn."""
    if record["kind"] == "text":
        key = {"kind": "text", "text": record["text"]}
    else:
        key = next(message for message in record["messages"] if message["role"] == "user")
    return int.from_bytes(hashlib.blake2b(_canonical_json(key), digest_size=8).digest(), "big") / 2**64


def _canonical_json(value) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")


def fingerprint(source: str) -> str:
    """A hash of what `source` holds, 32 hex digits: of the names, sizes and contents of its files wherever they lie,
    of a TFDS split and its shards, or of a task's files. It reads all of the source once."""
    scheme, _, name = source.partition(":")
    digest = hashlib.blake2b(digest_size=16)
    if scheme in tasks.NAMES:
        digest.update(name.encode())
        for file in _task(scheme, name).files():
            digest.update(file.read_bytes())
        return digest.hexdigest()
    if scheme == "tfds":
        builder, split = _dataset(name)
        files = [builder.data_path / "features.json", *builder.info.splits[split].filepaths]
        digest.update(split.encode())
    else:
        files = find_files(source)
    try:
        contents = sorted([file.name, file.stat().length, _content_hash(file)] for file in files)
    except OSError as problem:
        raise UserError(f"{shorten(source)}: {problem}") from problem
    digest.update(_canonical_json(contents))
    return digest.hexdigest()


def _content_hash(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _task(name: str, kind: str) -> tasks.Task:
    """The task of a name. Raises UserError where it has no such kind of records."""
    task = tasks.find(name)
    if kind not in task.KINDS:
        kinds, near = ", ".join(f"{name}:{known}" for known in task.KINDS), did_you_mean(kind, task.KINDS)
        raise UserError(f"{name}:{kind}: there is no such kind; choose one of {kinds}{near}")
    return task


def _made(task: tasks.Task, kind: str, splits: Iterable[str], report: Report) -> Iterator[dict]:
    for split in splits:
        for record in task.records(kind, split):
            report.read += 1
            yield record


def _dataset_rows(name: str) -> Iterator[Row]:
    """The rows of a TFDS split, read without TensorFlow."""
    builder, split = _dataset(name)
    try:
        examples = builder.as_data_source(split=split)
        length = len(examples)
    except NotImplementedError as problem:
        raise UserError(f"tfds:{name} is stored as {builder.info.file_format.value}; {_REMEDY}") from problem
    except (RuntimeError, OSError, ValueError) as problem:  # as ArrayRecord's reader finds a damaged file
        raise _damaged(f"tfds:{name}", problem) from problem
    for number in range(length):
        try:
            example = examples[number]
        except (RuntimeError, OSError, ValueError, LookupError) as problem:
            raise _damaged(f"tfds:{name}, record {number + 1}", problem) from problem
        yield f"tfds:{name}, record {number + 1}", json_value(example)


def _damaged(where: str, problem: Exception) -> UserError:
    words = " ".join(str(problem).split()) or type(problem).__name__
    return UserError(f"{where}: its files are damaged or missing ({words[:200]}): prepare the dataset anew")


def _dataset(name: str):
    """The builder and split that `name:split` stands for; a dataset that is not prepared yet is prepared."""
    import tensorflow_datasets as tfds

    match = re.fullmatch(r"((?:\w+://)?[^:]+):(.+)", name)
    if not match:
        raise UserError(f"tfds:{name} names no split, as in tfds:{name}:train")
    dataset, split = match.groups()
    folder = epath.Path(dataset).expanduser()
    try:
        if (folder / "dataset_info.json").exists():
            builder = tfds.builder_from_directory(folder)
        else:
            builder = tfds.builder(dataset, file_format="array_record")
            if not builder.is_prepared():
                builder.download_and_prepare()
    # Preparing runs the dataset's own code, which can fail in any way: no network, no TensorFlow, a moved file.
    except Exception as problem:
        cause = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise UserError(f"tfds:{name}: {cause} ({_REMEDY})") from problem
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as problem:
        raise UserError(f"tfds:{name}: {str(problem).splitlines()[0]}") from problem
    return builder, split


_REMEDY = (
    "if this machine cannot prepare the dataset, run tfds build --file_format=array_record where there are TensorFlow "
    "and a network, and set TFDS_DATA_DIR or name the folder, tfds:DIR/NAME/VERSION:SPLIT"
)
