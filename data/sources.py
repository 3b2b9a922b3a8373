"""Reads records from sources. A source is named by one string, its location:

    corpus/*.jsonl, corpus            a path, glob or folder, local or gs://, of .txt, .md, .json, .jsonl, .ndjson, .csv
                                      and .tsv, each also with .gz, and .parquet
    tfds:name/config:split            a TensorFlow Dataset, or a slice of it: tfds:imdb_reviews:train[:10%]
    tfds:/path/to/name/1.0.0:split    a TensorFlow Dataset in the folder that it was prepared in
    primer:documents, walks:chat      a task of `tasks/` and a kind of its records

`read` yields the records of a `Source` in a fixed order: files by name, the records of each file from first to last.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

from etils import epath

from .. import tasks
from ..errors import DataError, UserError, bad_record, check_choice, did_you_mean
from .columns import absent, check_columns, rename
from .conversation_fields import FIELDS, add_system
from .files import MAX_RECORD_BYTES, Row, TooLarge, file_rows, find_files, json_value, shorten
from .formats import FORMATS, parse, unfold
from .tally import SKIPPED, Tally

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Source:
    """A source of records, and the settings for reading it.

    Raises UserError for an unknown `format`, `on_error` or field in `columns`, and for a number out of its range.
    """

    location: str  # path, glob, "tfds:name:split" or "task:kind"; see the module docstring
    name: str = ""  # a name for logs, unique within a mixture
    format: str = "auto"  # a name in `formats.FORMATS`; "auto" detects the format from the fields of each record
    weight: float = 1.0  # weight of the source in a mixture, relative to the other sources
    heldout: float = 0.01  # share of the records that is held out, from 0 to 1; tasks ignore it
    on_error: str = "raise"  # "raise" stops at the first bad record; "skip" leaves bad records out and counts them
    max_record_bytes: int = MAX_RECORD_BYTES  # limit of a line, a record of a .json list or a row of Parquet
    columns: Mapping[str, str] = field(
        default_factory=dict, hash=False
    )  # the column of the records for fields of the format
    system: str = ""  # the system prompt of conversations that have none

    def __post_init__(self):
        check_choice("format", self.format, ("auto", *FORMATS))
        check_choice("on_error", self.on_error, ("raise", "skip"))
        if not 0 <= self.heldout <= 1:
            raise UserError(f"heldout is {self.heldout}: give a share from 0 to 1")
        if self.max_record_bytes < 1:
            raise UserError(f"max_record_bytes is {self.max_record_bytes}: give 1 or more")
        formats = FORMATS.values() if self.format == "auto" else (FORMATS[self.format],)
        check_columns(self.columns, FIELDS.union(*(each.fields for each in formats)))
        if self.columns and self.scheme in tasks.NAMES:
            raise UserError(f"columns are for the records of files, not for those of {self.location}: leave them out")

    @property
    def scheme(self) -> str:
        """The location up to its first colon. It is "tfds" or the name of a task, and anything else for files."""
        return self.location.partition(":")[0]

    @property
    def rest(self) -> str:
        """The location after its first colon: the name and split of a dataset, or the kind of a task's records."""
        return self.location.partition(":")[2]

    def split_name(self, split: str | None) -> str:
        """The location and the split, for messages, such as "corpus (train)"; None stands for the whole source."""
        return f"{self.location} ({split})" if split else self.location


class Record(dict):
    """A record as a dict of its fields, with the place that it was read from."""

    where: str  # for messages, such as "corpus.jsonl:7"

    def __init__(self, fields: dict, where: str):
        super().__init__(fields)
        self.where = where

    def __reduce__(self):
        return Record, (dict(self), self.where)


def read(source: Source, split: str | None = None, tally: Tally | None = None) -> Iterator[Record]:
    """The records of a source, in the form that `formats` describes.

    Args:
      source: the source.
      split: "train", "heldout", or None for the whole source.
      tally: counts well-formed records of both splits, and bad records.

    Raises:
      UserError: the source cannot be read; during iteration, a malformed record if `source.on_error` is "raise".
    """
    check_choice("split", split, (None, *SPLITS))
    tally = Tally() if tally is None else tally
    if source.scheme in tasks.NAMES:
        return _generated(source, _task(source), split, tally)
    rows = _dataset_rows(source) if source.scheme == "tfds" else _file_rows(source)
    records = _records(rows, source, tally)
    if split is None:
        return records
    below = heldout_share(source)
    return (record for record in records if split_of(record, below) == split)


def raw_rows(source: Source) -> Iterator[Row]:
    """Pairs (place, raw record) of a source, without parsing; a ValueError stands in for a record that cannot be read.

    Objects that hold several records, such as LMFlow's, are unfolded. Records of a task are in camelid's own format.

    Raises:
      UserError: the source cannot be read.
    """
    if source.scheme in tasks.NAMES:
        yield from ((record.where, dict(record)) for record in read(source))
    else:
        yield from _unfolded(_dataset_rows(source) if source.scheme == "tfds" else _file_rows(source))


def parts_of(source: Source) -> list[Source]:
    """A source for each file of a source, in the order in which `raw_rows` reads them; a task or a TensorFlow Dataset
    is one part. Raises UserError if there is no such file."""
    if source.scheme == "tfds" or source.scheme in tasks.NAMES:
        return [source]
    return [replace(source, location=str(file)) for file in find_files(source.location)]


def heldout_share(source: Source) -> float:
    """The threshold for `split_of` on a source: `source.heldout`, or more if that would hold out no record.

    In a small source the hash of no record may lie below `heldout`. The threshold then lies just above the lowest hash,
    so that one record is held out. `heldout` of 0 or 1 is kept, and that of a source whose records all have one prompt.
    """
    if not 0 < source.heldout < 1 or source.scheme in tasks.NAMES:
        return source.heldout
    places = set()
    for record in read(source):
        place = hash_fraction(record)
        if place < source.heldout:
            return source.heldout  # most sources return here after a few records
        places = {min(places | {place}), max(places | {place})}
    return math.nextafter(min(places), 1.0) if len(places) > 1 else source.heldout


def _records(rows: Iterable[Row], source: Source, tally: Tally) -> Iterator[Record]:
    """The records of raw rows; bad ones are raised or counted, as `source.on_error` says."""
    unseen, first = set(source.columns.values()), {}  # columns that no record had so far, and the first record
    for place, raw in _unfolded(rows):
        if source.columns and isinstance(raw, dict):
            first, unseen = first or raw, unseen - raw.keys()
        try:
            if isinstance(raw, ValueError):
                raise raw
            record = Record(_parsed(raw, source), place)
        except ValueError as problem:
            if source.on_error == "raise":
                if isinstance(problem, TooLarge):
                    raise DataError(f"{place}: {problem}", "max_record_bytes=N", "raises the limit") from problem
                raise bad_record(f"{place}: {problem}") from problem
            tally.leave_out(SKIPPED, f"{place}: {problem}")
        else:
            tally.read += 1
            yield record
    if unseen and first:
        raise UserError(f"{source.location}: columns: {absent({'': min(unseen)}, first)}")


def _parsed(raw: object, source: Source) -> dict:
    """The record in a raw one, with the source's columns and system prompt. Raises ValueError as `parse` does."""
    named = rename(raw, source.columns) if source.columns and isinstance(raw, dict) else raw
    try:
        return with_system(parse(named, source.format), source.system)
    except ValueError as problem:
        if named is not raw and (clause := absent(source.columns, raw)):
            raise ValueError(f"{problem}: {clause}") from problem
        raise


def with_system(record: dict, system: str) -> dict:
    """The record with a system prompt in front of its messages. Text, and a record that has one, is unchanged."""
    if not system or record["kind"] == "text" or record["messages"][0]["role"] == "system":
        return record
    return record | {"messages": add_system(system, record["messages"])}


def _unfolded(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, with a row for each record of an object that holds several."""
    for where, raw in rows:
        instances = unfold(raw)
        for number, instance in enumerate(instances, 1):
            yield (f"{where}, instance {number}" if len(instances) > 1 else where), instance


def split_of(record: dict, heldout: float) -> str:
    """The split of a record, "train" or "heldout". It depends on a hash of the record alone.

    Conversations that begin with the same user turn share a split. About a share `heldout` of all texts and first user
    turns is held out.
    """
    return "heldout" if hash_fraction(record) < heldout else "train"


def hash_fraction(record: dict) -> float:
    """A hash of the text of a record, or of the first user turn of a conversation, scaled to [0, 1)."""
    if record["kind"] == "text":
        key = {"kind": "text", "text": record["text"]}
    else:
        key = next(message for message in record["messages"] if message["role"] == "user")
    return int.from_bytes(hashlib.blake2b(_canonical_json(key), digest_size=8).digest(), "big") / 2**64


def _canonical_json(value) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")


def fingerprint(source: Source) -> str:
    """A hash of the content of a source, in 32 hexadecimal digits. It reads all files of the source.

    It covers the names, sizes and contents of the files, but not their folder. For a TFDS dataset the files are the
    shards of the split; for a task it is the version of the kind, with the contents of the task's `files()` if it has
    any.
    """
    digest = hashlib.blake2b(digest_size=16)
    if source.scheme in tasks.NAMES:
        task = _task(source)
        version, files = task.KINDS[source.rest], task.files()
        digest.update(version.encode())
        for file in files:
            digest.update(file.read_bytes())
        return digest.hexdigest() if files else version
    if source.scheme == "tfds":
        builder, split = _dataset(source.rest)
        files = [builder.data_path / "features.json", *builder.info.splits[split].filepaths]
        digest.update(split.encode())
    else:
        files = find_files(source.location)
    try:
        contents = sorted([file.name, file.stat().length, _content_hash(file)] for file in files)
    except OSError as problem:
        raise UserError(f"{shorten(source.location)}: {problem}") from problem
    digest.update(_canonical_json(contents))
    return digest.hexdigest()


def _content_hash(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _task(source: Source) -> tasks.Task:
    """The task that a source names. Raises UserError if the task has no such kind of records."""
    task = tasks.find(source.scheme)
    if source.rest not in task.KINDS:
        kinds, near = (
            ", ".join(f"{source.scheme}:{known}" for known in task.KINDS),
            did_you_mean(source.rest, task.KINDS),
        )
        raise UserError(f"{source.location}: {source.scheme} has no such kind of records; choose one of {kinds}{near}")
    return task


def _generated(source: Source, task: tasks.Task, split: str | None, tally: Tally) -> Iterator[Record]:
    """The records of a task, counted in `tally`."""
    parts = (task.records(source.rest, part) for part in (SPLITS if split is None else (split,)))
    for number, record in enumerate(chain.from_iterable(parts), 1):
        tally.read += 1
        yield Record(with_system(record, source.system), f"{source.split_name(split)}, record {number}")


def _file_rows(source: Source) -> Iterator[Row]:
    return file_rows(find_files(source.location), source.max_record_bytes)


def _dataset_rows(source: Source) -> Iterator[Row]:
    """Pairs (place, row) of a TFDS split, read without TensorFlow."""
    builder, split = _dataset(source.rest)
    try:
        examples = builder.as_data_source(split=split)
        length = len(examples)
    except NotImplementedError as problem:
        raise UserError(f"{source.location} is stored as {builder.info.file_format.value}; {_REMEDY}") from problem
    except (RuntimeError, OSError, ValueError) as problem:  # the errors of ArrayRecord's reader on damaged files
        raise _damaged(source.location, problem) from problem
    for number in range(length):
        try:
            example = examples[number]
        except (RuntimeError, OSError, ValueError, LookupError) as problem:
            raise _damaged(f"{source.location}, record {number + 1}", problem) from problem
        yield f"{source.location}, record {number + 1}", json_value(example)


def _damaged(where: str, problem: Exception) -> UserError:
    """The error for a dataset whose files cannot be read."""
    words = " ".join(str(problem).split()) or type(problem).__name__
    return UserError(f"{where}: the dataset's files are damaged or missing ({words[:200]}): prepare it again")


def _dataset(name: str):
    """The TFDS builder and the split that `name`, "dataset:split", stands for; prepares the dataset if necessary."""
    import tensorflow_datasets as tfds

    match = re.fullmatch(r"((?:\w+://)?[^:]+):(.+)", name)
    if not match:
        raise UserError(f"tfds:{name} names no split: give one, such as tfds:{name}:train")
    dataset, split = match.groups()
    folder = epath.Path(dataset).expanduser()
    try:
        if (folder / "dataset_info.json").exists():
            builder = tfds.builder_from_directory(folder)
        else:
            builder = tfds.builder(dataset, file_format="array_record")
            if not builder.is_prepared():
                builder.download_and_prepare()
    # Preparing runs the dataset's own code, which may raise anything: no network, no TensorFlow, a moved file.
    except Exception as problem:
        cause = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise UserError(f"tfds:{name}: {cause} ({_REMEDY})") from problem
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as problem:
        raise UserError(f"tfds:{name}: {str(problem).splitlines()[0]}") from problem
    return builder, split


_REMEDY = (
    "if this machine cannot prepare the dataset, run tfds build --file_format=array_record on one with TensorFlow and "
    "a network, then set TFDS_DATA_DIR or give the folder as tfds:DIR/NAME/VERSION:SPLIT"
)
