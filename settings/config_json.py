"""Configs as JSON: the config.json of a run gives its config back.

What a config names as `file.py:function` may lie beside the config that the run was started with. The run's run.json
says where that is, so that config.json can be given from any folder.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from ..errors import UserError
from . import files
from .config_names import split_name


def read_json(path: epath.Path) -> ConfigDict:
    """The config of a .json file, locked. The folders in which what it names may lie become importable.

    Raises UserError for a file that holds no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, and of bytes that are no text
        raise UserError(f"{path}: is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no config: an object with sections and leaves is wanted")
    for folder in folders_of(path):
        files.make_importable(folder)
    return ConfigDict(config).lock()


def folders_of(path: epath.PathLike) -> list[str]:
    """The folders in which what a config.json names may lie, its own first.

    Where it is that of a run, they are also the folder in which the run was started, and that of the config that it was
    started with, which may be another run's.
    """
    folders: list[str] = []
    while path is not None and (own := os.path.dirname(os.path.abspath(path))) not in folders:
        folders.append(own)
        path, folder = _start_of(path) if str(path).endswith(".json") else (None, None)
        folders += [] if folder is None else [folder]
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


def _start_of(path: epath.PathLike) -> tuple[str | None, str | None]:
    """The config that a run was last started with, and the folder in which it was. They are None where no run.json, in
    the folder of the config.json or of a phase, says so."""
    for pattern in ("run.json", "*/run.json"):
        for record in sorted(Path(path).parent.glob(pattern)):
            try:
                attempt: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))["attempts"][-1]
                folder, command = str(attempt["folder"]), "\n".join(map(str, attempt["command"]))
            except (OSError, ValueError, LookupError, TypeError):  # of another version, or cut off
                continue
            if given := re.search(r"^--config[=\n](.*)$", command, re.MULTILINE):
                return os.path.join(folder, split_name(given[1])[0]), folder
    return None, None
