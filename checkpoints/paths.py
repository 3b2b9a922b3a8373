"""Paths of checkpoints, and what identifies a file."""

import hashlib
from typing import Any

from etils import epath


def absolute_path(path: epath.PathLike) -> epath.Path:
    """A path from the root, with the home directory in place of `~`; a URL stays as it is."""
    path = epath.Path(path).expanduser()
    return path if path.is_absolute() else path.resolve()  # resolve() would take gs:// for a folder's name


def file_record(file: epath.Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"name": file.name, "size": file.stat().length, "sha256": digest}
