"""Run directories below a path or a glob, wherever they are in it."""

import glob
import os
from collections.abc import Iterable, Iterator

from etils import epath

from ..checkpoints import absolute_path
from ..data.console import warn
from ..errors import UserError
from .outputs import check_address

INSIDE = {"checkpoints", "tokenizer", "tensorboard", "profile", "wandb", "launch"}
"""Folders of a run directory that hold no runs."""


def find_runs(pattern: epath.PathLike) -> list[epath.Path]:
    """The run directories that a path or a glob names, sorted by their paths.

    A folder below them, or one that a glob finds, is left out with a warning if it cannot be read.

    Raises:
      UserError: there is none.
      OSError: the folder that the path names cannot be read.
    """
    text = os.path.expanduser(os.fspath(pattern))
    check_address(text, text)
    places = [text] if epath.Path(text).exists() or "://" in text else sorted(glob.glob(text))
    if not places:
        raise UserError(f"{pattern}: no such run directory, and no path matches it")
    below = _runs_below if places == [text] else _readable_runs_below
    found = [run for place in places for run in below(absolute_path(place))]
    if not found:
        raise UserError(f"{pattern}: neither a run directory nor a folder with run directories")
    return found


def is_run(folder: epath.Path) -> bool:
    """Whether a folder is a run directory, also of a run that has just begun."""
    return any((folder / name).exists() for name in ("run.json", "heartbeat.json", "metrics.jsonl", "checkpoints"))


def is_local(paths: Iterable[epath.Path]) -> bool:
    """Whether paths are of this machine, and no addresses of an object store."""
    return not any("://" in os.fspath(path) for path in paths)


def _runs_below(folder: epath.Path, above: tuple[str, ...] = ()) -> Iterator[epath.Path]:
    """The runs in a folder. above: the real paths of the folders around it, to which a link may lead back."""
    if is_run(folder):
        yield folder
    above += (_real(folder),)
    for inner in sorted(folder.iterdir()) if folder.is_dir() else ():
        if inner.name not in INSIDE and not inner.name.startswith("."):
            yield from _readable_runs_below(inner, above)


def _readable_runs_below(folder: epath.Path, above: tuple[str, ...] = ()) -> list[epath.Path]:
    """The runs in a folder that was found by itself; none, and a warning, where the folder cannot be read."""
    try:
        return list(_runs_below(folder, above)) if folder.is_dir() and _real(folder) not in above else []
    except OSError as error:
        warn(f"{folder} cannot be read ({error.strerror}): its runs are left out")
        return []


def each_once(paths: Iterable[epath.Path]) -> list[epath.Path]:
    """Paths without those that lead to the folder of another one, of which the one through fewest links stays."""
    found: dict[str, list[epath.Path]] = {}
    for path in paths:
        found.setdefault(_real(path), []).append(path)
    links = lambda path: sum(map(os.path.islink, [path, *path.parents]))  # noqa: E731
    return [min(same, key=links) for same in found.values()]


def _real(path: epath.Path) -> str:
    return os.path.realpath(path) if is_local([path]) else os.fspath(path)
