"""Checkpoints on disk: which of them are complete, the proof that they are whole, and how they come and go.

What completes a checkpoint is `checksums.json`, written when everything else is on disk. A folder whose manifest
promises that file and that lacks it was cut off: nobody reads it, and a run replaces it. Readers compare all files with
the checksums, once in a process. Checkpoints of versions without checksums are read without that proof.
"""

import hashlib
import json
import re
from typing import Any

from etils import epath

from ..data import checksums
from ..errors import UserError
from .console import tell

ORBAX_FILE = "_CHECKPOINT_METADATA"  # Orbax writes it into every checkpoint
PROOF = "checksums.json"
LEFTOVER = re.compile(r"\d+\.(orbax-checkpoint-tmp.*|deleted|unfinished.*)")  # of a process that was killed

_proven: dict[str, tuple] = {}  # stamps of the checkpoints that were whole when this process looked
_told: set[tuple[str, str]] = set()


def prove(path: epath.Path) -> None:
    """Completes a checkpoint: writes the checksums of its files and reads both back. Raises OSError if they differ."""
    sums = checksums.checksums_of(path, leave_out=PROOF)
    checksums.write_whole(path / PROOF, json.dumps(sums, indent=1))
    if problem := damage_of(path):
        raise OSError(f"read back after writing, {problem}")


def damage_of(path: epath.Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is as it was written, or where nothing says how that was.

    In a process it is looked at once, and again when a file's size or time has changed.
    """
    try:
        stamp = checksums.stamp(path)
    except FileNotFoundError as error:
        return f"{error.filename} has gone while it was looked at"
    if _proven.get(str(path)) == stamp:
        return None
    if (path / PROOF).exists():
        try:
            problem = checksums.damage(path, json.loads((path / PROOF).read_text()))
        except (OSError, ValueError, TypeError, KeyError, IndexError):
            problem = f"{PROOF} itself cannot be read"
        if problem is not None:
            return problem
    elif _promises_proof(path) is not False:
        return f"{PROOF} is missing"
    _proven[str(path)] = stamp
    return None


def digest(path: epath.Path) -> str | None:
    """What tells a checkpoint from every other; None for those of versions without checksums."""
    proof = path / PROOF
    return hashlib.sha256(proof.read_bytes()).hexdigest() if proof.exists() else None


def is_checkpoint(path: epath.Path) -> bool:
    """Whether a folder is, or was before some of its files were lost, a checkpoint."""
    return (path / ORBAX_FILE).exists() or (path / PROOF).exists()


def is_complete(path: epath.Path) -> bool:
    """Whether a folder holds a checkpoint that was written to its end, whatever has become of it since."""
    return (path / PROOF).exists() or _promises_proof(path) is False


def is_cut_off(path: epath.Path) -> bool:
    """Whether a folder holds a checkpoint that was not written to its end, or has lost its checksums."""
    return not (path / PROOF).exists() and bool(_promises_proof(path))


def complete_steps(directory: epath.Path) -> list[int]:
    """The steps of a run's complete checkpoints, in order. Folders that hold no checkpoint are passed over."""
    return [step for step in numbered(directory) if is_complete(directory / str(step))]


def numbered(directory: epath.Path) -> list[int]:
    """The numbers that are names of folders, in order."""
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def newest_whole(directory: epath.Path) -> int | None:
    """The step of a run's newest whole checkpoint, None where it has none yet. One that is not whole is told and passed
    over; UserError where all are damaged."""
    steps = [step for step in numbered(directory) if is_checkpoint(directory / str(step))]
    for step in reversed(steps):
        path = directory / str(step)
        problem = damage_of(path)
        if problem is None:
            return step
        if not path.exists():  # the run that it is of goes on, and has deleted it for a newer one
            return newest_whole(directory)
        if (str(path), problem) not in _told:
            _told.add((str(path), problem))
            tell(f"{path} is not whole ({problem}): it is passed over")
    if complete_steps(directory):
        raise UserError(f"{directory}: every checkpoint in it is damaged; move them away to start over")
    return None


def metadata_in(path: epath.Path) -> dict[str, Any] | None:
    """What Orbax's own file says of a checkpoint; None where it is missing or cannot be read."""
    try:
        found = json.loads((path / ORBAX_FILE).read_text())  # `ocp.metadata` would read that of all arrays
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def manifest_in(path: epath.Path) -> dict[str, Any]:
    """The manifest as it lies there; {} where there is none that can be read."""
    found = (metadata_in(path) or {}).get("custom_metadata")
    return found if isinstance(found, dict) else {}


def _promises_proof(path: epath.Path) -> bool | None:
    """Whether a checkpoint's manifest says that checksums belong to it; None where it cannot be read."""
    return None if metadata_in(path) is None else bool(manifest_in(path).get("checksums"))


def remove_leftovers(directory: epath.Path) -> None:
    """Removes what killed processes left half written or half deleted."""
    for path in list(directory.iterdir()):
        if LEFTOVER.fullmatch(path.name):
            path.rmtree()


def delete(path: epath.Path) -> None:
    """Deletes a checkpoint so that at no time a part of it looks like one."""
    if "://" not in str(path):  # object stores cannot rename a folder
        path = path.rename(path.with_name(f"{path.name}.deleted"))
    path.rmtree()


def set_aside(path: epath.Path) -> None:
    """Makes room under a step's name for a new checkpoint, and deletes nothing: it may be anything."""
    number = 1
    while (aside := path.with_name(f"{path.name}.aside{number}")).exists():
        number += 1
    path.rename(aside)
    tell(f"{path} was in the way of a new checkpoint and is now {aside}")
