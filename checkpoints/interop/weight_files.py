"""Finds and opens the files of a Hugging Face folder that hold its tensors: safetensors or `torch.save`'s files."""

import os
import warnings

import safetensors
from etils import epath

from . import torch_files
from .headers import missing_message, read_json, unreadable_error

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"


def weight_files(path: epath.Path) -> list[epath.Path]:
    """The files in a folder that hold the tensors: a single file, or those that an index names.

    Safetensors are preferred to `torch.save`'s files.

    Raises:
      ValueError: there are no such files, the index names missing files or files outside of the folder, or a link is
        broken.
    """
    for single, index in ((WEIGHTS, INDEX), (TORCH_WEIGHTS, TORCH_INDEX)):
        if (path / index).exists():
            return _files_of(path / index, path / single)
        if (path / single).exists():
            return [path / single]
        if dangling := [name for name in (single, index) if os.path.islink(path / name)]:
            raise ValueError(missing_message(path / dangling[0]))
    raise ValueError(f"{path} has no {WEIGHTS}, {INDEX}, {TORCH_WEIGHTS} or {TORCH_INDEX}")


def _files_of(index: epath.Path, single: epath.Path) -> list[epath.Path]:
    """The files that an index names, or, as in transformers, the single file if it stands beside the index.

    In the second case one of the two is stale, which a warning says.

    Args:
      index: the index file.
      single: the path of the single file, which need not exist.

    Raises:
      ValueError: files are missing, or index and single file hold different tensors.
    """
    named = read_json(index).section("weight_map")
    files = [index.parent / file for file in sorted({named.file_name(tensor) for tensor in named})]
    if not files:
        raise ValueError(f"{index} has no weight_map")
    if missing := [file for file in files if not file.exists()]:
        raise ValueError(f"{index} names {len(missing)} missing file(s): {missing_message(missing[0])}")
    if not single.exists() or single in files:
        return files
    with open_tensors(single) as opened:
        held = set(opened.keys())
    both = f"both {single.name} and {index.name}"
    if held != set(named):
        raise ValueError(f"{index.parent}: {both}, with different tensors: move away the one that is out of date")
    warnings.warn(
        f"{index.parent}: {both}; the single file is read, as transformers does: move away the stale one", stacklevel=2
    )
    return [single]


def open_tensors(file: epath.Path):
    """Opens a file of tensors as a context manager: `keys()` lists the names, `get_slice(name)[index]` reads a part."""
    if file.suffix == ".bin":
        return torch_files.Opened(file)
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise unreadable_error(file, "safetensors file", error) from None
