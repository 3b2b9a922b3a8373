"""Configs as JSON: the config.json of a run gives its config back.

What a config names as `file.py:function` may lie beside the config that the run was started with. The run's run.json
says where that is, so that config.json can be given from any folder.
"""

import json
import os
import re
from collections.abc import Iterator
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
    except (ValueError, RecursionError) as error:  # of JSON, and of bytes that are no text
        raise UserError(f"{path}: is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no config: an object with sections and leaves is wanted")
    for folder in folders_of(path):
        files.make_importable(folder)
    try:
        return ConfigDict(config).lock()
    except (ValueError, RecursionError) as error:  # a name with a dot, or sections without end
        raise UserError(f"{path}: holds no config: {error}") from None


def folders_of(path: epath.PathLike) -> list[str]:
    """The folders in which what a config.json names may lie, its own first.

    Where it is that of a run, they are also the folders in which the run was started, and those of the configs that it
    was started with, which may be other runs'.
    """
    folders, configs = [], [str(path)]
    for config in configs:
        folders.append(os.path.dirname(os.path.abspath(config)))
        for given, folder in _starts_of(config) if config.endswith(".json") else ():
            folders.append(folder)
            configs += [given] if given not in configs else []
    return [folder for folder in dict.fromkeys(folders) if os.path.isdir(folder)]


def _starts_of(path: str) -> Iterator[tuple[str, str]]:
    """For each attempt at a run, the newest first: the config that it was started with, and the folder in which it was.
    They stand in the run.json beside the config.json, or in those of its phases."""
    for record in (Path(path).with_name("run.json"), *sorted(Path(path).parent.glob("*/run.json"))):
        try:
            attempts: list[dict[str, Any]] = json.loads(record.read_text(encoding="utf-8"))["attempts"]
            for attempt in reversed(attempts):
                given = re.search(r"^--config[=\n](.*)$", "\n".join(map(str, attempt["command"])), re.MULTILINE)
                if given:
                    yield os.path.join(attempt["folder"], split_name(given[1])[0]), attempt["folder"]
        except (OSError, ValueError, LookupError, TypeError):  # there is none, it is cut off, or of another version
            continue
