"""Cards of datasets: what a curated dataset holds, where its rows come from, and under which terms.

A card is the file card.json in the dataset's folder, beside `train/`, `heldout/` and `rejected/`. Its bytes depend on
the dataset alone: it holds no dates and no names of machines. The card of a dataset that was made from other datasets
holds their cards, so that the origin of a row stays known when they are gone.
"""

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from etils import epath

from ..errors import UserError
from .checksums import damage, write_whole

FILE = "card.json"
WRITING = ".writing"
"""Folder inside a dataset for files that are being written."""

VERSION = 1
"""Version of the card's fields. A card of another version cannot be read."""

_MARK = "camelid_card"
"""The field of card.json that holds the version, and tells such a file from other files of the same name."""


@dataclass(frozen=True)
class Count:
    """Rows, and the tokens in them."""

    rows: int = 0
    """Number of rows."""

    tokens: int = 0
    """Number of tokens, or of characters where the card's `unit` says so."""


@dataclass(frozen=True)
class CardSource:
    """One source of a dataset."""

    location: str
    """Path, glob or name of the source, as its config gave it."""

    fingerprint: str
    """Hash of the source's content (`data.sources.fingerprint`)."""

    read: int
    """Number of records that were read."""

    kept: Count
    """Rows of the dataset that come from the source, in all splits."""

    licence: str | None = None
    """Name of the source's licence (`data/licences.toml`). None: nobody recorded one."""

    teacher: str | None = None
    """Name of the model that wrote the source's answers. None: no model is recorded."""

    terms: str | None = None
    """Name of the teacher's terms for its output (`data/licences.toml`). None: no teacher, or its terms are unknown."""


@dataclass(frozen=True)
class CardStep:
    """One step of the run that made a dataset."""

    step: str
    """Name of the step, or its class as "package.module:Name"."""

    settings: dict[str, Any] = field(default_factory=dict)
    """All settings of the step."""

    changed: int = 0
    """Number of rows that the step changed."""

    rejected: dict[str, int] = field(default_factory=dict)
    """Number of rows that the step rejected, by reason."""


@dataclass(frozen=True)
class Parent:
    """A dataset that another one was made from."""

    location: str
    """Folder of the parent, as its child's config or command gave it."""

    card: "Card"
    """The card of the parent when the child was made."""


@dataclass(frozen=True)
class Card:
    """What a dataset holds and where it comes from."""

    name: str
    """Name of the dataset."""

    unit: str
    """What `Count.tokens` counts: "tokens" of the tokenizer below, or "characters"."""

    tokenizer: str | None
    """Fingerprint of the tokenizer that counted tokens; None where characters were counted."""

    splits: dict[str, Count]
    """Rows by split: train, and heldout if there is one."""

    languages: dict[str, Count]
    """Rows by language, in all splits."""

    sources: dict[str, CardSource]
    """The sources by name."""

    steps: dict[str, CardStep]
    """The steps by their names in the config, in their order."""

    files: dict[str, list]
    """The dataset's files by path inside the folder: [bytes, CRC-32 in hexadecimal] (`data/checksums.py`)."""

    config: str
    """SHA-256 of the settings that made the dataset (`hash_of`)."""

    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the packages that decide the content."""

    parents: dict[str, Parent] = field(default_factory=dict)
    """Datasets that this one was made from, by name (`parent_of`)."""

    @property
    def hash(self) -> str:
        """SHA-256 of the card's bytes, in hexadecimal: the identity of the dataset with all that it came from."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The content of card.json."""
        return _utf8({_MARK: VERSION, **dataclasses.asdict(self)}, indent=1).decode() + "\n"

    def write(self, folder: epath.PathLike) -> None:
        """Writes card.json into the dataset's folder."""
        write_whole(epath.Path(folder) / FILE, self.to_json())

    def files_of(self, split: str) -> list[str]:
        """Paths inside the folder of the files of one split, such as "train"."""
        return sorted(name for name in self.files if name.startswith(f"{split}/"))

    def parent_of(self, source: str) -> Parent | None:
        """The dataset that a source is; None if it was no dataset with a card.

        In a mixture the source "chats/web" is the source "web" of the parent "chats".
        """
        if source in self.parents:
            return self.parents[source]
        first, _, rest = source.partition("/")
        return self.parents[first].card.parent_of(rest) if rest and first in self.parents else None

    def origins(self, within: str = "") -> Iterator[tuple[str, CardSource]]:
        """The sources that were not datasets with cards themselves, with names such as "faq/pages".

        within: name of the dataset with a slash, which stands before the names of its sources.
        """
        for name, source in self.sources.items():
            if parent := self.parent_of(name):
                yield from parent.card.origins(f"{within}{name}/")
            else:
                yield f"{within}{name}", source

    def check_sizes(self, folder: epath.PathLike) -> None:
        """Raises UserError if a file of the dataset is missing or has another size; no file is read."""
        for name, (size, _) in self.files.items():
            path = epath.Path(folder) / name
            there = path.stat().length if path.exists() else None
            if there != size:
                found = "is missing" if there is None else f"has {there:,} bytes instead of {size:,}"
                raise UserError(f"{path} {found} ({FILE} in {folder}): copy the dataset again, or make it anew")

    def damage(self, folder: epath.PathLike) -> str | None:
        """Describes the first file that differs from its checksum; None if none does. All files are read."""
        return damage(folder, self.files)


def hash_of(settings: Any) -> str:
    """SHA-256 of settings as JSON, in hexadecimal, for `Card.config`."""
    return hashlib.sha256(_utf8(settings, sort_keys=True)).hexdigest()


def _utf8(value: Any, **how: Any) -> bytes:
    """JSON in UTF-8. A lone surrogate, as in a file name that is not UTF-8, stands there as the escape of JSON."""
    return json.dumps(value, ensure_ascii=False, **how).encode(errors="backslashreplace")


def has_card(folder: epath.PathLike) -> bool:
    """Whether a folder holds a dataset with a card, which may be damaged. A card.json of another program is none."""
    path = epath.Path(folder) / FILE
    try:
        content = path.read_bytes() if path.exists() else b"{}"
    except OSError:
        return False
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return _MARK.encode() in content or (path.parent / "train").is_dir()
    return isinstance(found, dict) and _MARK in found


def check_complete(folder: epath.PathLike) -> None:
    """Raises UserError for the folder of a dataset that has no card, since its writing or copying was cut short."""
    path = epath.Path(folder)
    if has_card(path) or not (path / "train").is_dir():
        return
    is_cut = (path / WRITING).is_dir() or any((path / kind).is_dir() for kind in ("heldout", "rejected"))
    if is_cut and any(path.glob("train/part-*-of-*.jsonl")):
        raise UserError(
            f"{folder} is a dataset without its {FILE}: give the command that makes it again, copy it with its {FILE}, "
            f"or give {path / 'train'} for its training rows"
        )


def read_card(folder: epath.PathLike) -> Card:
    """The card of the dataset in a folder.

    Raises:
      UserError: there is no card, or card.json is damaged or of another version.
    """
    path = epath.Path(folder) / FILE
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError:
        raise UserError(f"{folder} has no {FILE}: give the folder of a dataset that `camelid curate` made") from None
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path} is damaged ({problem}): remove the folder, and make the dataset anew") from None
    if not isinstance(found, dict) or _MARK not in found:
        raise UserError(f"{path} is no card of a dataset: give the folder of a dataset that `camelid curate` made")
    if (version := found.pop(_MARK)) != VERSION:
        raise UserError(f"{path} has version {version}, not {VERSION}: make the dataset anew")
    return _made(found, Card, str(path))


def card_of(location: str) -> tuple[epath.Path, Card] | None:
    """Folder and card of the dataset that a source's location names; None if it names none.

    The location may be the dataset's folder, a folder in it, or files or a glob in one of these.
    """
    try:
        path = epath.Path(location).expanduser()
        path.exists()
    except (KeyError, ImportError, RuntimeError, ValueError, OSError):  # another kind of address, which reading refuses
        return None
    for folder in [path, *path.parents][:3]:
        if "*" not in str(folder) and has_card(folder):
            card, inside = read_card(folder), path.relative_to(folder).as_posix()
            names = [name for name in card.files if inside == "." or _names(inside, name)]
            return (folder, card) if names else None
    return None


def _names(pattern: str, name: str) -> bool:
    """Whether a path or a glob inside a dataset names one of its files, or a folder of it."""
    return name.startswith(f"{pattern}/") or PurePath(name).match(pattern)


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _made(found: Any, kind: Any, where: str) -> Any:
    """A value of a card from its JSON. Raises UserError, which begins with `where`, if it has another type."""
    if dataclasses.is_dataclass(kind):
        fields = _fields(kind)
        _check(isinstance(found, Mapping) and set(found) == set(fields), f"needs the fields {', '.join(fields)}", where)
        return kind(**{name: _made(found[name], fields[name], f"{where}: {name}") for name in fields})
    if typing.get_origin(kind) is dict:
        _check(isinstance(found, Mapping), "is no object", where)
        return {name: _made(value, typing.get_args(kind)[1], f"{where}.{name}") for name, value in found.items()}
    if kind is not Any:
        _check(isinstance(found, kind) and not isinstance(found, bool), "has another type than a card's", where)
    return found


def _check(holds: bool, problem: str, where: str) -> None:
    if not holds:
        raise UserError(f"{where} {problem}: make the dataset anew")
