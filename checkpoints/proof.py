"""Tells which checkpoints on disk are complete and undamaged, and creates and deletes them safely.

The file `checksums.json` completes a checkpoint; it is written when everything else is on disk. A folder whose manifest
promises `checksums.json` but that lacks it was cut off: no reader opens it, and the run replaces it. Every reader
compares all files with the checksums when it opens a checkpoint. Versions before wrote no checksums; their checkpoints
are read without this check.
"""

import hashlib
import json
import re
from typing import Any

from etils import epath

from ..data import checksums
from ..data.console import warn
from ..errors import UserError

ORBAX_FILE = "_CHECKPOINT_METADATA"  # Orbax writes this file into every checkpoint
PROOF = "checksums.json"
LEFTOVER = re.compile(r"\d+\.(orbax-checkpoint-tmp.*|deleted|unfinished.*)")  # folders that a killed process left

_told: set[tuple[str, str]] = set()


def prove(path: epath.Path) -> None:
    """Completes a checkpoint: writes the checksums of its files, then reads all files back and compares.

    Raises:
      OSError: a file read back differs from its checksum.
    """
    sums = checksums.checksums_of(path, leave_out=PROOF)
    checksums.write_whole(path / PROOF, json.dumps(sums, indent=1))
    if problem := damage_of(path):
        raise OSError(f"read back after writing, {problem}")


def damage_of(path: epath.Path) -> str | None:
    """Describes the first damage in a checkpoint's folder; None if all files match their checksums.

    Reads every file. A checkpoint of a version without checksums counts as undamaged.
    """
    if (path / PROOF).exists():
        try:
            return checksums.damage(path, json.loads((path / PROOF).read_text()))
        except (OSError, ValueError, TypeError, KeyError, IndexError):
            return f"{PROOF} itself cannot be read"
    return None if _promises_proof(path) is False else f"{PROOF} is missing"


def digest(path: epath.Path) -> str | None:
    """The SHA-256 of a checkpoint's checksums, which identifies its content; None if it has no checksums."""
    proof = path / PROOF
    return hashlib.sha256(proof.read_bytes()).hexdigest() if proof.exists() else None


def is_checkpoint(path: epath.Path) -> bool:
    """Whether a folder is a checkpoint, complete or not, damaged or not."""
    return (path / ORBAX_FILE).exists() or (path / PROOF).exists()


def is_complete(path: epath.Path) -> bool:
    """Whether a folder holds a checkpoint that was written to its end; it may have been damaged since."""
    return (path / PROOF).exists() or _promises_proof(path) is False


def is_cut_off(path: epath.Path) -> bool:
    """Whether a folder holds a checkpoint that was not written to its end, or has lost its checksums."""
    return not (path / PROOF).exists() and bool(_promises_proof(path))


def complete_steps(directory: epath.Path) -> list[int]:
    """The steps of the complete checkpoints in a run's folder "checkpoints", in ascending order."""
    return [step for step in numbered(directory) if is_complete(directory / str(step))]


def numbered(directory: epath.Path) -> list[int]:
    """The numbers among the names in a directory, in ascending order; a missing directory has none."""
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def newest_whole(directory: epath.Path) -> int | None:
    """The step of the newest undamaged checkpoint in a run's folder "checkpoints"; None if there is no checkpoint.

    Reads every file of it. A damaged newer checkpoint is reported on standard error and skipped.

    Raises:
      UserError: all checkpoints are damaged.
    """
    steps = [step for step in numbered(directory) if is_checkpoint(directory / str(step))]
    for step in reversed(steps):
        path = directory / str(step)
        problem = damage_of(path)
        if problem is None:
            return step
        if not path.exists():  # the run is still training and has deleted it for a newer one
            return newest_whole(directory)
        if (str(path), problem) not in _told:
            _told.add((str(path), problem))
            warn(f"{path} is damaged ({problem}): it is skipped")
    if complete_steps(directory):
        raise UserError(f"{directory}: every checkpoint in it is damaged: move them away to start the run over")
    return None


def metadata_in(path: epath.Path) -> dict[str, Any] | None:
    """The content of Orbax's metadata file in a checkpoint; None if it is missing or cannot be read."""
    try:
        found = json.loads((path / ORBAX_FILE).read_text())  # `ocp.metadata` would read every array's metadata too
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def manifest_in(path: epath.Path) -> dict[str, Any]:
    """The manifest in a checkpoint's folder, unchecked; {} if it is missing or cannot be read."""
    found = (metadata_in(path) or {}).get("custom_metadata")
    return found if isinstance(found, dict) else {}


def _promises_proof(path: epath.Path) -> bool | None:
    """Whether a checkpoint's manifest says that `checksums.json` belongs to it; None if it cannot be read."""
    return None if metadata_in(path) is None else bool(manifest_in(path).get("checksums"))


def remove_leftovers(directory: epath.Path) -> None:
    """Removes the half-written and half-deleted checkpoints that killed processes left in a directory."""
    for path in list(directory.iterdir()):
        if LEFTOVER.fullmatch(path.name):
            path.rmtree()


def delete(path: epath.Path) -> None:
    """Deletes a checkpoint. It is renamed first, so that a half-deleted one is never taken for a checkpoint."""
    if "://" not in str(path):  # object stores cannot rename a folder
        path = path.rename(path.with_name(f"{path.name}.deleted"))
    path.rmtree()


def set_aside(path: epath.Path) -> None:
    """Renames what stands at a new checkpoint's path to `<name>.aside<number>`; the user may want to keep it."""
    number = 1
    while (aside := path.with_name(f"{path.name}.aside{number}")).exists():
        number += 1
    path.rename(aside)
    warn(f"{path} stood in the way of a new checkpoint: it was renamed to {aside}")
