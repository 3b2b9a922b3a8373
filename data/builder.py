"""Sources written as TensorFlow Datasets in ArrayRecord files, without TensorFlow.

    folder = build_dataset(Source("raw/*.json"), "alpaca", "datasets")     # datasets/alpaca/chat/1.0.0

The folder is the source "tfds:datasets/alpaca/chat/1.0.0:train", and any tool opens it by
`tfds.builder_from_directory(folder).as_data_source("train")`. A dataset has a config for each kind of record (text,
chat, preference, prompt) and the splits train and heldout, shuffled as TFDS does. Its features are the record's own
fields; messages are columns (role, content, input), and what else a record carries is a JSON object in `meta`. Its
metadata say what it was made from.

What few records have (`formats`: a message's `train`, `tool_calls`, ...; `label`, `tools`, `documents`) is a column of
text where any record of the source has it: a string as it is, else its JSON, and "" for none.
"""

import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from ..errors import UserError
from . import sources
from .locks import locked
from .sources import Source
from .tally import Tally

VERSION = "1.0.0"
SIDES = ("messages", "chosen", "rejected")  # the fields of a record that hold messages
MESSAGE = ("role", "content", "input")
MORE_OF_MESSAGES = ("train", "tool_calls", "reasoning_content", "name", "tool_call_id")
MORE = ("label", "tools", "documents")
LABELS = {"margin": np.float32, "safer": tfds.features.Text(), "chosen_safe": np.bool_, "rejected_safe": np.bool_}


def build_dataset(source: Source, name: str, data_dir: str | epath.Path, tally: Tally | None = None) -> epath.Path:
    """Writes the records of a source as a TFDS dataset, unless that has been done before.

    Args:
      source: the source, with records of one kind; its held-out share becomes the split heldout.
      name: the dataset's, in snake_case.
      data_dir: the dataset becomes `data_dir/name/kind/version`; local or gs://.
      tally: counts records that were read and left out.

    Returns:
      The dataset's folder.

    Raises:
      UserError: a bad record, records of several kinds, none at all, or another dataset in the folder.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"dataset name {name!r}: use small letters, digits and underscores, a letter first")
    splits = {split: functools.partial(sources.read, source, split) for split in sources.SPLITS}
    first = {split: record for split in splits if (record := next(splits[split](), None))}
    if not first:
        raise UserError(f"{source.location}: no records")
    inputs = {"fingerprint": sources.fingerprint(source), "format": source.format, "heldout": source.heldout}
    data_dir = epath.Path(data_dir).expanduser()
    like = next(iter(first.values()))
    folder = data_dir / name / like["kind"] / VERSION
    beside = data_dir / f".{name}.{like['kind']}"
    lock, downloads = beside.with_name(f"{beside.name}.lock"), beside.with_name(f"{beside.name}.downloads")
    with contextlib.nullcontext() if folder.exists() else _only_process_of(folder, lock):
        builder = _Builder(
            name=name,
            splits={split: splits[split] for split in first},  # TFDS cannot write a split without records
            like=like,
            more=_more(sources.read(source, tally=tally)),
            metadata={"source": source.location, **inputs},
            data_dir=data_dir,
        )
        if not builder.is_prepared():
            _prepare(builder, downloads)
        elif any(builder.info.metadata.get(key) != value for key, value in inputs.items()):
            raise UserError(f"{folder} was made from other data or settings: delete it or use another name")
    return builder.data_path


@contextlib.contextmanager
def _only_process_of(folder: epath.Path, lock: epath.Path) -> Iterator[None]:
    """Keeps two processes from building a dataset at once, and removes what one that was killed has left of it."""
    if "://" in os.fspath(folder):
        yield
        return

    def wait(holder: str) -> None:
        print(f"camelid: {folder} is being built by {holder}: waiting for it", file=sys.stderr)

    with locked(Path(lock), wait):
        for unfinished in folder.parent.glob(f"incomplete.*_{folder.name}"):
            unfinished.rmtree()
        yield


def _prepare(builder: tfds.core.DatasetBuilder, downloads: epath.Path) -> None:
    """Writes a dataset. downloads: a folder for what TFDS would download, which is nothing."""
    try:
        builder.download_and_prepare(download_dir=downloads)
    except RuntimeError as error:  # ArrayRecord's writer: a full disk, say
        raise OSError(f"{builder.data_path}: {error}") from error
    finally:
        downloads.rmtree(missing_ok=True)


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing: TFDS would ask its own servers for the dataset, and leave an empty folder in /tmp."""


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder over records that are all of the kind and the fields of the record `like`."""

    VERSION = tfds.core.Version(VERSION)
    url_infos = None  # nothing is downloaded, and TFDS 4.9 fails where it looks for checksums beside a package's code

    def __init__(
        self, *, name: str, splits: dict[str, Callable], like: dict, more: dict, metadata: dict, data_dir: epath.Path
    ):
        self.name = name
        self.BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=like["kind"], version=VERSION)]
        self._splits, self._like, self._more, self._metadata = splits, like, more, metadata
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description=f"{self._like['kind']} records of {self._metadata['source']}",
            features=_features(self._like, self._more),
            metadata=tfds.core.MetadataDict(self._metadata, records={}),
        )

    def _split_generators(self, download_manager) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        number = 0
        for number, record in enumerate(self._splits[split](), 1):
            try:
                yield number, _example(record, self._like, self._more)
            except ValueError as problem:
                raise UserError(f"{record.where}: {problem}") from problem
        self.info.metadata["records"][split] = number


def _more(records: Iterable[dict]) -> dict[str, list[str]]:
    """Which of MORE and MORE_OF_MESSAGES any of the records has, as "record" and "message"."""
    record_fields, message_fields = set(), set()
    for record in records:
        record_fields.update(record)
        message_fields.update(*(message for side in SIDES for message in record.get(side, ())))
    return {
        "record": [name for name in MORE if name in record_fields],
        "message": [name for name in MORE_OF_MESSAGES if name in message_fields],
    }


def _features(like: dict, more: dict) -> tfds.features.FeaturesDict:
    text = tfds.features.Text
    message = {name: text() for name in (*MESSAGE, *more["message"])}
    features = {side: tfds.features.Sequence(message) for side in SIDES if side in like}
    features |= {"text": text()} if "text" in like else {}
    features |= {name: feature for name, feature in LABELS.items() if name in like}
    features |= {name: text() for name in more["record"]}
    return tfds.features.FeaturesDict({"kind": text(), "meta": text(), **features})


def _example(record: dict, like: dict, more: dict) -> dict:
    """A record as TFDS takes it; ValueError for one that is of another kind or has other fields."""
    if record["kind"] != like["kind"]:
        raise ValueError(f"a {record['kind']} record among {like['kind']} records: build a dataset for each kind")
    for name in LABELS:
        if (name in record) != (name in like):
            raise ValueError(f"some records have the field {name} and some do not: give it to all of them, or to none")
    example = record | {"meta": json.dumps(record.get("meta", {}), ensure_ascii=False)}
    example |= {name: _as_text(record.get(name, "")) for name in more["record"]}
    for side in SIDES:
        if side in record:
            names = (*MESSAGE, *more["message"])
            example[side] = {name: [_as_text(message.get(name, "")) for message in record[side]] for name in names}
    return example


def _as_text(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
