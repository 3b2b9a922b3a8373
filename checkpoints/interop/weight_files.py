"""Finds and opens the files of a Hugging Face folder that hold its tensors: safetensors or `torch.save`'s files."""

import os
import warnings
from typing import Any, NamedTuple

import numpy as np
import safetensors
from etils import epath

from .headers import missing_message, read_json, unreadable_error
from .torch_files import read_tensors

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
    held = set(open_tensors(single).headers)
    both = f"both {single.name} and {index.name}"
    if held != set(named):
        raise ValueError(f"{index.parent}: {both}, with different tensors: move away the one that is out of date")
    warnings.warn(
        f"{index.parent}: {both}; the single file is read, as transformers does: move away the stale one", stacklevel=2
    )
    return [single]


class Header(NamedTuple):
    """What a file says of a tensor."""

    shape: tuple[int, ...]

    dtype: str
    """safetensors' name of the dtype, such as "BF16"."""


class SafetensorsFile:
    """The tensors of a safetensors file.

    Attributes:
      headers: each tensor's header by its name, in the order of the numbers in the file.
    """

    def __init__(self, path: epath.Path):
        self._path = path
        with self._open() as opened:
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            self.headers = {name: Header(tuple(x.get_shape()), x.get_dtype()) for name, x in slices.items()}

    def read(self, name: str, index: Any = ()) -> np.ndarray:
        """Reads a tensor, or the part of it that a tuple of slices names."""
        with self._open() as opened:  # opened for each read: pages of a mapped file count as memory until closed
            return opened.get_slice(name)[index]

    def _open(self):
        try:
            return safetensors.safe_open(self._path, framework="numpy")
        except (safetensors.SafetensorError, OSError) as error:
            raise unreadable_error(self._path, "safetensors file", error) from None


class TorchFile:
    """The tensors of a file that `torch.save` wrote, in the form of `SafetensorsFile`."""

    def __init__(self, path: epath.Path):
        self._tensors = read_tensors(path)
        names = {x.dtype.name for x in self._tensors.values()}
        codes = {name: next((code for code, known in _DTYPES.items() if known == name), name) for name in names}
        self.headers = {name: Header(x.shape, codes[x.dtype.name]) for name, x in self._tensors.items()}

    def read(self, name: str, index: Any = ()) -> np.ndarray:
        """Reads a tensor, or the part of it that a tuple of slices names."""
        return np.array(self._tensors[name].read()[index])


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
"""{safetensors' name of a dtype: numpy's name}."""


def open_tensors(file: epath.Path) -> SafetensorsFile | TorchFile:
    """The tensors of a file, of which this reads the headers. Raises ValueError if the file cannot be read."""
    return TorchFile(file) if file.suffix == ".bin" else SafetensorsFile(file)
