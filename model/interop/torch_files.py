"""PyTorch's `.pth` and `.bin` files without PyTorch, and without running what a pickle asks for: tensors are all that
comes out.

Such a file is an uncompressed zip: `data.pkl`, a pickle of tensors' shapes, and one entry of raw numbers for each
storage. The unpickler knows a few names of tensors; any other is an error that says which. Nothing that the file says
of itself is believed: each tensor is checked against its storage, each storage against the file's length.
"""

import collections
import functools
import math
import pickle
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class LazyTensor(NamedTuple):
    """A tensor on disk: every `strides`-th number of `file` from byte `offset` on, strides in numbers."""

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """A view of the file; a part of it is read when it is used."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        numbers = np.memmap(self.file, self.dtype, "r", self.offset, _reach(self.shape, self.strides))
        return np.lib.stride_tricks.as_strided(
            numbers, self.shape, [stride * self.dtype.itemsize for stride in self.strides], writeable=False
        )


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """How many numbers of its storage a tensor reaches over, from its first one."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if 0 not in shape else 0


class _Refused(ValueError):
    """What a file holds that is not read, in words for the user."""


def read_tensors(path: epath.PathLike) -> dict[str, LazyTensor]:
    """The tensors of a file of tensors by name. Raises ValueError for anything else, before it is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if pickled is None:
                raise _Refused(f"{path}: no data.pkl in it, so it was not written by torch.save")
            prefix = pickled.removesuffix("data.pkl")
            if archive.getinfo(pickled).compress_type != zipfile.ZIP_STORED:
                raise _Refused(f"{path}: {pickled} is compressed, which torch.save never does")
            order = f"{prefix}byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise _Refused(f"{path}: numbers in another byte order than little")
            with archive.open(pickled) as stream:
                found = _Unpickler(stream, str(path), archive, prefix).load()
        if not isinstance(found, dict) or not all(isinstance(value, LazyTensor) for value in found.values()):
            raise _Refused(f"{path}: holds something else than a dict of tensors")
        if strange := [name for name in found if not isinstance(name, str)]:
            raise _Refused(f"{path}: a tensor's name is {strange[0]!r:.40}, which is no text")
    except _Refused:
        raise
    except Exception as error:  # whatever zipfile, pickle and numpy raise at files that were cut short or made up
        said = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        raise ValueError(
            f"{path}: no whole file of torch.save's zip format, PyTorch 1.6 and later ({said:.200})"
        ) from None
    return dict(found)


DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
"""Types of numbers by their names in safetensors."""


class Opened:
    """A file of tensors as `safetensors.safe_open` gives one: a context with `keys` and `get_slice`."""

    def __init__(self, path: epath.PathLike):
        found = epath.Path(path).stat()
        self._tensors = _known(str(path), found.length, found.mtime)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *exception) -> None:
        pass

    def keys(self) -> list[str]:
        return list(self._tensors)

    offset_keys = keys

    def get_slice(self, name: str) -> "TensorSlice":
        return TensorSlice(self._tensors[name])


class TensorSlice:
    """A tensor of which parts are read by their index."""

    def __init__(self, tensor: LazyTensor):
        self._tensor = tensor

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        name = self._tensor.dtype.name
        return next((code for code, known in DTYPES.items() if known == name), name)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.array(self._tensor.read()[index])


@functools.lru_cache(maxsize=256)  # the files of a model, which are asked for in turn
def _known(path: str, length: int, time: int) -> dict[str, LazyTensor]:
    del length, time
    return read_tensors(path)


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream, where: str, archive: zipfile.ZipFile, prefix: str):
        super().__init__(stream)
        self._where, self._archive, self._prefix = where, archive, prefix
        self._length = epath.Path(where).stat().length

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return name
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: self._tensor(*arguments),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise _Refused(f"{self._where}: its pickle asks for {module}.{name}, which is no tensor; not executed")
        return known[module, name]

    def persistent_load(self, pid: tuple) -> tuple[int, np.dtype, int]:
        """A storage: where its numbers begin, their type and how many they are."""
        kind, storage, key, _, count = pid
        if kind != "storage":
            raise _Refused(f"{self._where}: its pickle refers to a {kind!r:.40}, which is no storage of numbers")
        dtype, entry = STORAGES[storage], self._archive.getinfo(f"{self._prefix}data/{key}")
        if type(count) is not int or count < 0:
            raise _Refused(f"{self._where}: storage {key} has {count!r:.40} numbers")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < count * dtype.itemsize:
            raise _Refused(f"{self._where}: storage {key} is compressed or shorter than {count} numbers")
        with open(self._where, "rb") as file:  # the entry's own header, of which only the lengths are needed
            file.seek(entry.header_offset + 26)
            name_length, extra_length = np.frombuffer(file.read(4), "<u2")
        begin = entry.header_offset + 30 + int(name_length) + int(extra_length)
        if begin + count * dtype.itemsize > self._length:
            raise _Refused(f"{self._where}: storage {key} of {count} numbers reaches past the end of the file")
        return begin, dtype, count

    def _tensor(self, storage, start, shape, strides, *_) -> LazyTensor:
        begin, dtype, count = storage
        numbers = (start, *shape, *strides)
        if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
            raise _Refused(
                f"{self._where}: a tensor of shape {shape!r:.80}, strides {strides!r:.80}, start {start!r:.40}"
            )
        if max(numbers, default=0) > self._length:  # before they are multiplied
            raise _Refused(f"{self._where}: a tensor {list(shape)!r:.80} reaches past the end of its storage")
        strides = tuple(0 if n == 1 else s for n, s in zip(shape, strides, strict=True))  # says nothing there
        if start + _reach(shape, strides) > count or math.prod(shape) > count:
            raise _Refused(f"{self._where}: a tensor {list(shape)!r:.80} reaches past the end of its storage")
        return LazyTensor(self._where, begin + start * dtype.itemsize, tuple(shape), dtype, strides)
