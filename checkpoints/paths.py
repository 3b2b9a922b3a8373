"""Absolute paths of checkpoints, and the hash that identifies a file."""

import hashlib
from typing import Any

from etils import epath

from ..data import hub


def absolute_path(path: epath.PathLike) -> epath.Path:
    """The absolute form of a path, with `~` expanded; a URL such as gs://... is returned unchanged."""
    hub.refuse_address(path)
    path = epath.Path(path).expanduser()
    return path if path.is_absolute() else path.resolve()  # resolve() would take gs:// for a folder's name


def file_record(file: epath.Path) -> dict[str, Any]:
    """{"name", "size", "sha256"} of a file: its name, its size in bytes and the hash of its content."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"name": file.name, "size": file.stat().length, "sha256": digest}
