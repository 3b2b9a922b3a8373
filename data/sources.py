"""Where records come from. One string names a source:

    corpus/*.jsonl, corpus            files: .txt, .md, .json, .jsonl, .ndjson, each also .gz, and .parquet; local or gs://;
                                      of a folder, all that is in it
    tfds:name/config:split            a TensorFlow Dataset, also sliced: tfds:imdb_reviews:train[:10%]
    tfds:/path/to/name/1.0.0:split    the same, from the folder it was prepared in
    primer:documents, walks:chat      a task of `tasks/`, and a kind of its records

`read` yields the records of a `Source` one by one in a fixed order: files by name, records as they stand in them.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from etils import epath

from .. import tasks
from ..errors import DataError, UserError, bad_record, check_choice, did_you_mean
from .files import MAX_RECORD_BYTES, Row, TooLarge, file_rows, find_files, json_value, shorten
from .formats import FORMATS, parse, unfold
from .tally import SKIPPED, Tally

SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Source:
    """A source of records, and how they are read.

    Raises UserError for a format or an `on_error` that there is not, and for a number out of its range.
    """

    location: str  # where the records are: see the module
    name: str = ""  # in a mixture, where every source has a name of its own
    format: str = "auto"  # a name in `formats.FORMATS`; "auto" goes by the fields of each record
    weight: float = 1.0  # share of the rows of a mixture, relative to the other sources
    heldout: float = 0.01  # share of the records that is held out, see `held_out_below`; tasks have their own
    on_error: str = "raise"  # "raise" stops at the first bad record; "skip" leaves bad records out and counts them
    max_record_bytes: int = MAX_RECORD_BYTES  # a longer line, record of a .json list or row of Parquet is bad

    def __post_init__(self):
        check_choice("format", self.format, ("auto", *FORMATS))
        check_choice("on_error", self.on_error, ("raise", "skip"))
        if not 0 <= self.heldout <= 1:
            raise UserError(f"heldout is {self.heldout}: it is a share, from 0 to 1")
        if self.max_record_bytes < 1:
            raise UserError(f"max_record_bytes is {self.max_record_bytes}: give 1 or more")

    @property
    def scheme(self) -> str:
        """The word before the first colon: "tfds", a task's name, or none of these for files."""
        return self.location.partition(":")[0]

    @property
    def rest(self) -> str:
        """The location after the first colon: what a dataset or a task is asked for."""
        return self.location.partition(":")[2]

    def part(self, split: str | None) -> str:
        """The name of a split of the source in messages; None for all of the source."""
        return f"{self.location} ({split})" if split else self.location


class Record(dict):
    """A record, and where it was read: a file with a line or a number, as messages name it."""

    where: str

    def __init__(self, fields: dict, where: str):
        super().__init__(fields)
        self.where = where

    def __reduce__(self):
        return Record, (dict(self), self.where)


def read(source: Source, split: str | None = None, tally: Tally | None = None) -> Iterator[Record]:
    """The records of a source, as `formats` describes them.

    Args:
      source: what to read.
      split: "train" or "heldout" for that part of the source, None for all of it.
      tally: counts sound records, of both splits, and bad records.

    Raises:
      UserError: nothing can be read; while reading, a malformed record if `source.on_error` is "raise".
    """
    check_choice("split", split, (None, *SPLITS))
    tally = Tally() if tally is None else tally
    if source.scheme in tasks.NAMES:
        return _generated(source, _task(source), split, tally)
    rows = _dataset_rows(source) if source.scheme == "tfds" else _file_rows(source)
    records = _records(rows, source, tally)
    if split is None:
        return records
    below = held_out_below(source)
    return (record for record in records if split_of(record, below) == split)


def held_out_below(source: Source) -> float:
    """The share by which `split_of` divides a source: `heldout`, or, where no record's place is below it, just more
    than the lowest one, so that a small source has something held out as well. A source whose records all begin with
    the same prompt, and one where nothing is to be held out, keeps `heldout`."""
    if not 0 < source.heldout < 1 or source.scheme in tasks.NAMES:
        return source.heldout
    places = set()
    for record in read(source):
        place = place_of(record)
        if place < source.heldout:
            return source.heldout  # most sources: found after a few records
        places = {min(places | {place}), max(places | {place})}
    return math.nextafter(min(places), 1.0) if len(places) > 1 else source.heldout


def _records(rows: Iterable[Row], source: Source, tally: Tally) -> Iterator[Record]:
    for where, raw in rows:
        instances = unfold(raw)
        for number, instance in enumerate(instances, 1):
            place = f"{where}, instance {number}" if len(instances) > 1 else where
            try:
                if isinstance(instance, ValueError):
                    raise instance
                record = Record(parse(instance, source.format), place)
            except ValueError as problem:
                if source.on_error == "raise":
                    if isinstance(problem, TooLarge):
                        raise DataError(f"{place}: {problem}", "max_record_bytes=N", "allows more") from problem
                    raise bad_record(f"{place}: {problem}") from problem
                tally.leave_out(SKIPPED, f"{place}: {problem}")
            else:
                tally.read += 1
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


def fingerprint(source: Source) -> str:
    """A hash of what a source holds, 32 hex digits: of the names, sizes and contents of its files wherever they lie,
    of a TFDS split and its shards, or of a task's files. It reads all of the source once."""
    digest = hashlib.blake2b(digest_size=16)
    if source.scheme in tasks.NAMES:
        digest.update(source.rest.encode())
        for file in _task(source).files():
            digest.update(file.read_bytes())
        return digest.hexdigest()
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
    """The task of a source. UserError where it has no such kind of records."""
    task = tasks.find(source.scheme)
    if source.rest not in task.KINDS:
        kinds, near = (
            ", ".join(f"{source.scheme}:{known}" for known in task.KINDS),
            did_you_mean(source.rest, task.KINDS),
        )
        raise UserError(f"{source.location}: there is no such kind; choose one of {kinds}{near}")
    return task


def _generated(source: Source, task: tasks.Task, split: str | None, tally: Tally) -> Iterator[Record]:
    parts = (task.records(source.rest, part) for part in (SPLITS if split is None else (split,)))
    for number, record in enumerate(chain.from_iterable(parts), 1):
        tally.read += 1
        yield Record(record, f"{source.part(split)}, record {number}")


def _file_rows(source: Source) -> Iterator[Row]:
    return file_rows(find_files(source.location), source.max_record_bytes)


def _dataset_rows(source: Source) -> Iterator[Row]:
    """The rows of a TFDS split, read without TensorFlow."""
    builder, split = _dataset(source.rest)
    try:
        examples = builder.as_data_source(split=split)
        length = len(examples)
    except NotImplementedError as problem:
        raise UserError(f"{source.location} is stored as {builder.info.file_format.value}; {_REMEDY}") from problem
    except (RuntimeError, OSError, ValueError) as problem:  # as ArrayRecord's reader finds a damaged file
        raise _damaged(source.location, problem) from problem
    for number in range(length):
        try:
            example = examples[number]
        except (RuntimeError, OSError, ValueError, LookupError) as problem:
            raise _damaged(f"{source.location}, record {number + 1}", problem) from problem
        yield f"{source.location}, record {number + 1}", json_value(example)


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
