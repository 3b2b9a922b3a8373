"""Writes a source as a TensorFlow Dataset in ArrayRecord files, without TensorFlow.

    folder = build_dataset(Source("raw/*.json"), "alpaca", "datasets")     # datasets/alpaca/chat/1.0.0

The folder can be read as the source "tfds:datasets/alpaca/chat/1.0.0:train", and with TFDS itself by
`tfds.builder_from_directory(folder).as_data_source("train")`. Each kind of record (text, chat, preference, prompt) is a
TFDS config. The splits are train and heldout, shuffled by TFDS. The features are the fields of a record; messages have
the columns role, content and input; other fields are a JSON object in `meta`. The metadata name the source.

Optional fields (OPTIONAL_FIELDS and OPTIONAL_MESSAGE_FIELDS) become a text column if any record of the source has them.
A string is stored as it is, another value as JSON, and a missing value as "".
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from ..errors import UserError
from . import sources
from .console import LOGGER
from .locks import locked
from .sources import Source
from .tally import Tally

VERSION = "1.0.0"
MESSAGE_LISTS = ("messages", "chosen", "rejected")  # fields of a record that hold lists of messages
MESSAGE_FIELDS = ("role", "content", "input")
OPTIONAL_MESSAGE_FIELDS = ("train", "tool_calls", "reasoning_content", "name", "tool_call_id")
OPTIONAL_FIELDS = ("label", "tools", "documents")
LABEL_FEATURES = {
    "margin": np.float32,
    "safer": tfds.features.Text(),
    "chosen_safe": np.bool_,
    "rejected_safe": np.bool_,
}


def build_dataset(source: Source, name: str, data_dir: str | epath.Path, tally: Tally | None = None) -> epath.Path:
    """Writes the records of a source as a TFDS dataset; a dataset that exists already is kept.

    Args:
      source: the source, with records of one kind; its held-out share becomes the split heldout.
      name: the name of the dataset, in snake_case.
      data_dir: parent folder, local or gs://; the dataset is written to `data_dir/name/kind/1.0.0`.
      tally: counts the records that were read and left out.

    Returns:
      The folder of the dataset.

    Raises:
      UserError: a bad record, records of several kinds, no record, or another dataset in the folder.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"dataset name {name!r}: use small letters, digits and underscores, beginning with a letter")
    splits = {split: functools.partial(sources.read, source, split) for split in sources.SPLITS}
    first = {split: record for split in splits if (record := next(splits[split](), None))}
    if not first:
        raise UserError(f"{source.location}: there are no records to write")
    inputs = {"fingerprint": sources.fingerprint(source), "format": source.format, "heldout": source.heldout}
    data_dir = epath.Path(data_dir).expanduser()
    first_record = next(iter(first.values()))
    folder = data_dir / name / first_record["kind"] / VERSION
    beside = data_dir / f".{name}.{first_record['kind']}"
    lock, downloads = beside.with_name(f"{beside.name}.lock"), beside.with_name(f"{beside.name}.downloads")
    with contextlib.nullcontext() if folder.exists() else _only_process_of(folder, lock):
        builder = _Builder(
            name=name,
            splits={split: splits[split] for split in first},  # TFDS cannot write a split without records
            first_record=first_record,
            optional=_optional_fields(sources.read(source, tally=tally)),
            metadata={"source": source.location, **inputs},
            data_dir=data_dir,
        )
        if not builder.is_prepared():
            _prepare(builder, downloads)
        elif any(builder.info.metadata.get(key) != value for key, value in inputs.items()):
            raise UserError(f"{folder} was made from other data or settings: delete it or give another name")
    return builder.data_path


@contextlib.contextmanager
def _only_process_of(folder: epath.Path, lock: epath.Path) -> Iterator[None]:
    """Holds the lock of a dataset's build, and removes files left by a killed build. On gs:// there is no lock."""
    if "://" in os.fspath(folder):
        yield
        return

    def wait(holder: str) -> None:
        LOGGER.info("waiting for %s, which is building %s", holder, folder)

    with locked(Path(lock), wait):
        for unfinished in folder.parent.glob(f"incomplete.*_{folder.name}"):
            unfinished.rmtree()
        yield


def _prepare(builder: tfds.core.DatasetBuilder, downloads: epath.Path) -> None:
    """Writes the dataset of `builder`. TFDS demands a folder for downloads, `downloads`, although there are none."""
    try:
        builder.download_and_prepare(download_dir=downloads)
    except RuntimeError as error:  # from ArrayRecord's writer, for example on a full disk
        raise OSError(f"{builder.data_path}: {error}") from error
    finally:
        downloads.rmtree(missing_ok=True)


class _Info(tfds.core.DatasetInfo):
    """The metadata of a dataset that was built here, not downloaded."""

    def initialize_from_bucket(self) -> None:
        """Does nothing. The method of TFDS asks Google's servers for the dataset and leaves an empty folder in /tmp."""


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder for records of one kind with the same fields."""

    VERSION = tfds.core.Version(VERSION)
    url_infos = None  # there are no downloads; TFDS 4.9 fails when it looks for their checksums beside a package's code

    def __init__(
        self,
        *,
        name: str,
        splits: dict[str, Callable],
        first_record: dict,
        optional: dict,
        metadata: dict,
        data_dir: epath.Path,
    ):
        """
        Args:
          name: the name of the dataset.
          splits: for each split, a function that returns an iterator over its records.
          first_record: a record with the kind and the fields that all records must have.
          optional: the optional fields in use, from `_optional_fields`.
          metadata: the source and its fingerprint, format and held-out share.
          data_dir: parent folder of the dataset.
        """
        self.name = name
        self.BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=first_record["kind"], version=VERSION)]
        self._splits, self._first_record = splits, first_record
        self._optional_fields, self._metadata = optional, metadata
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description=f"{self._first_record['kind']} records of {self._metadata['source']}",
            features=_features(self._first_record, self._optional_fields),
            metadata=tfds.core.MetadataDict(self._metadata, records={}),
        )

    def _split_generators(self, download_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        number = 0
        for number, record in enumerate(self._splits[split](), 1):
            try:
                yield number, _example(record, self._first_record, self._optional_fields)
            except ValueError as problem:
                raise UserError(f"{record.where}: {problem}") from problem
        self.info.metadata["records"][split] = number


def _optional_fields(records: Iterable[dict]) -> dict[str, list[str]]:
    """The optional fields that any record has: {"record": some of OPTIONAL_FIELDS, "message": some of
    OPTIONAL_MESSAGE_FIELDS}.
    """
    record_fields, message_fields = set(), set()
    for record in records:
        record_fields.update(record)
        message_fields.update(*(message for side in MESSAGE_LISTS for message in record.get(side, ())))
    return {
        "record": [name for name in OPTIONAL_FIELDS if name in record_fields],
        "message": [name for name in OPTIONAL_MESSAGE_FIELDS if name in message_fields],
    }


def _features(first_record: dict, optional: dict) -> tfds.features.FeaturesDict:
    text = tfds.features.Text
    message = {name: text() for name in (*MESSAGE_FIELDS, *optional["message"])}
    features = {side: tfds.features.Sequence(message) for side in MESSAGE_LISTS if side in first_record}
    features |= {"text": text()} if "text" in first_record else {}
    features |= {name: feature for name, feature in LABEL_FEATURES.items() if name in first_record}
    features |= {name: text() for name in optional["record"]}
    return tfds.features.FeaturesDict({"kind": text(), "meta": text(), **features})


def _example(record: dict, first_record: dict, optional: dict) -> dict:
    """A record in the form of the dataset's features.

    Raises ValueError if the kind or the label fields differ from those of `first_record`.
    """
    if record["kind"] != first_record["kind"]:
        raise ValueError(
            f"a {record['kind']} record among {first_record['kind']} records: build a dataset for each kind"
        )
    for name in LABEL_FEATURES:
        if (name in record) != (name in first_record):
            raise ValueError(f"some records have the field {name} and some do not: give it to all records, or to none")
    example = record | {"meta": json.dumps(record.get("meta", {}), ensure_ascii=False)}
    example |= {name: _as_text(record.get(name, "")) for name in optional["record"]}
    for side in MESSAGE_LISTS:
        if side in record:
            names = (*MESSAGE_FIELDS, *optional["message"])
            example[side] = {name: [_as_text(message.get(name, "")) for message in record[side]] for name in names}
    return example


def _as_text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
