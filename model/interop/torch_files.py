"""PyTorch's `.pth` files without PyTorch, and without running what a pickle asks for: tensors are all that comes out.

Such a file is an uncompressed zip: `data.pkl`, a pickle of tensors' shapes, and one entry of raw numbers for each
storage. The unpickler knows five names; any other is an error that says which.
"""

import collections
import math
import pickle
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

STORAGES = {"FloatStorage": np.float32, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16}


# What zipfile and pickle raise at files that are cut short or were never a dict of tensors.
_NOT_WHOLE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    UnicodeDecodeError,
)


class LazyTensor(NamedTuple):
    """A tensor on disk: numbers `start` to `start + prod(shape)` of `file` at byte `offset`, in rows one by one."""

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self) -> np.ndarray:
        """A view of the file; a part of it is read when it is used."""
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


def read_tensors(path: epath.PathLike) -> dict[str, LazyTensor]:
    """The tensors of a `.pth` file of tensors by name. Raises ValueError for anything else, before it is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if pickled is None:
                raise ValueError(f"{path}: no data.pkl in it, so it was not written by torch.save")
            with archive.open(pickled) as stream:
                found = _Unpickler(stream, str(path), archive, pickled.removesuffix("data.pkl")).load()
    except _NOT_WHOLE as error:
        raise ValueError(f"{path}: no whole file of torch.save's zip format, PyTorch 1.6 and later ({error})") from None
    if not isinstance(found, dict) or not all(isinstance(value, LazyTensor) for value in found.values()):
        raise ValueError(f"{path}: holds something else than a dict of tensors")
    return dict(found)


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream, where: str, archive: zipfile.ZipFile, prefix: str):
        super().__init__(stream)
        self._where, self._archive, self._prefix = where, archive, prefix

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise ValueError(f"{self._where}: its pickle asks for {module}.{name}, which is no tensor; not executed")
        return known[module, name]

    def persistent_load(self, pid: tuple) -> tuple[int, np.dtype, int]:
        """A storage: where its numbers begin, their type and how many they are."""
        kind, dtype, key, _, count = pid
        if kind != "storage":
            raise ValueError(f"{self._where}: its pickle refers to a {kind!r}, which is no storage of numbers")
        entry = self._archive.getinfo(f"{self._prefix}data/{key}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < count * dtype.itemsize:
            raise ValueError(f"{self._where}: storage {key} is compressed or shorter than {count} numbers")
        with open(self._where, "rb") as file:  # the entry's own header, of which only the lengths are needed
            file.seek(entry.header_offset + 26)
            name_length, extra_length = np.frombuffer(file.read(4), "<u2")
        return entry.header_offset + 30 + int(name_length) + int(extra_length), dtype, count

    def _tensor(self, storage, start: int, shape: tuple, strides: tuple, *_) -> LazyTensor:
        begin, dtype, count = storage
        in_rows = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        # The stride of an axis of length 1 says nothing.
        if any(s != r for s, r, n in zip(strides, in_rows, shape, strict=True) if n != 1):
            raise ValueError(f"{self._where}: a tensor {list(shape)} with strides {list(strides)}, not row after row")
        if start + math.prod(shape) > count:
            raise ValueError(f"{self._where}: a tensor {list(shape)} reaches past the end of its storage")
        return LazyTensor(self._where, begin + start * dtype.itemsize, tuple(shape), dtype)
