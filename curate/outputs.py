"""What may stand where a dataset is written: nothing, what an interrupted command left, or the same dataset."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..data.cards import FILE, WRITING, Card, CardSource, read_card
from ..errors import UserError
from .rows import HELDOUT, TRAIN

REPORT = "report.md"
REJECTED = "rejected"
_OWN = (TRAIN, HELDOUT, REJECTED, REPORT, FILE)
_READ = (FILE, REPORT, f"{TRAIN}/part-00000-of-00001.jsonl")
"""Files of a dataset that a source's pattern may match."""

_CAUSES = {
    "name": "its name",
    "config": "its settings",
    "tokenizer": "its tokenizer",
    "versions": "versions of packages",
    "parents": "the datasets that it was made from",
}
"""What a difference between two cards is, by the field."""


def check_replaceable(output: Path, sources: Iterable[str] = ()) -> None:
    """Checks that a dataset can be written into a folder without harm to other files. Hidden files do not count.

    Args:
      output: the folder, which need not exist.
      sources: locations that the command reads.

    Raises:
      UserError: there is a file in the folder's place, the folder holds other files than a dataset's, or it lies where
        a source is read, so that the next command would read the dataset too.
    """
    if os.path.lexists(output) and not output.is_dir():
        raise UserError(f"--output={output}: there is a file of this name: give a folder that does not exist yet")
    names = sorted(path.name for path in output.iterdir() if path.name[0] != ".") if output.is_dir() else []
    if others := [name for name in names if name not in _OWN]:
        raise UserError(f"{output} holds {others[0]}, which is no file of a dataset: give another --output")
    if FILE in names and not _is_card(output):
        raise UserError(f"{output / FILE} is damaged, or no card of a dataset: remove it, or give another --output")
    if names and FILE not in names and not (output / WRITING).exists():
        raise UserError(f"{output} holds {names[0]}, but no {FILE}: it is no dataset; give another --output")
    for source in sources:
        if _is_read(source, output):
            raise UserError(f"--output={output} lies in the source {source}: give a folder outside of it")


def _is_card(folder: Path) -> bool:
    """Whether the card of a folder can be read."""
    try:
        return bool(read_card(folder))
    except UserError:
        return False


def check_same(output: Path, card: Card) -> None:
    """Raises UserError if a folder holds a complete dataset with another card than this one."""
    if (output / FILE).exists() and (was := read_card(output)).to_json() != card.to_json():
        raise UserError(
            f"{output} holds a complete dataset that differs in {', '.join(_differences(was, card))}: give another "
            "--output, or remove the folder"
        )


def _differences(was: Card, card: Card) -> list[str]:
    """What differs between two cards, the causes alone; if there are none, the rows."""
    found = [said for name, said in _CAUSES.items() if getattr(was, name) != getattr(card, name)]
    both = was.sources.keys() | card.sources.keys()
    found += [f"its source {name}" for name in sorted(both) if _told(was, name) != _told(card, name)]
    return found or ["its rows"]


def _told(card: Card, name: str) -> tuple | None:
    """What a card says of a source beside its numbers of rows."""
    source: CardSource | None = card.sources.get(name)
    return source and (source.location, source.fingerprint, source.licence, source.teacher, source.terms)


def _is_read(source: str, output: Path) -> bool:
    """Whether a path, a glob or a folder names files of a dataset in a folder."""
    if not source:
        return False
    pattern = os.path.realpath(os.path.expanduser(source))
    folder = Path(os.path.realpath(output))
    return any(path.match(pattern) for name in _READ for path in (folder / name, *(folder / name).parents))
