"""Reads PyTorch's `.pth` and `.bin` files without PyTorch and without unpickling: only tensors come out.

A file is an uncompressed zip of `data.pkl`, a pickle of the tensors' shapes, and one entry of raw numbers for each
storage. Python's unpickler would call any function that a file names, and a file can make it fill memory or hash
without end. `_Machine` knows only the pickle instructions that tensors need. Each tensor is checked against its
storage, each storage against the length of the file.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from .headers import unreadable_error

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
    """A tensor on disk."""

    file: str
    offset: int
    """The byte of the file at which its first number begins."""
    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...]
    """The distance between neighbours along each axis, in numbers."""

    def read(self) -> np.ndarray:
        """A memory-mapped view of the tensor; only the parts that are used are read."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        numbers = np.memmap(self.file, self.dtype, "r", self.offset, _reach(self.shape, self.strides))
        return np.lib.stride_tricks.as_strided(
            numbers, self.shape, [stride * self.dtype.itemsize for stride in self.strides], writeable=False
        )


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The distance from a tensor's first number to behind its last one, in numbers; 0 if it is empty."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if 0 not in shape else 0


class _Refused(ValueError):
    """A file holds something that is not read; the message is for the user."""


def read_tensors(path: epath.PathLike) -> dict[str, LazyTensor]:
    """The tensors in a file that `torch.save` wrote, by name.

    Raises:
      ValueError: the file holds anything else than a dict of tensors; nothing in it is executed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if pickled is None:
                raise _Refused(f"{path} has no data.pkl, so torch.save did not write it: save it with torch.save")
            prefix = pickled.removesuffix("data.pkl")
            if archive.getinfo(pickled).compress_type != zipfile.ZIP_STORED:
                raise _Refused(f"{path}: {pickled} is compressed, which torch.save never does")
            order = f"{prefix}byteorder"
            if order in archive.namelist():
                with archive.open(order) as opened:
                    if opened.read(16) != b"little":
                        raise _Refused(f"{path}: its byte order is not little-endian: save it on another machine")
            found = _Machine(str(path), archive, prefix).run(archive.read(pickled))
        if not isinstance(found, dict):
            raise _Refused(f"{path} holds something else than a dict of tensors: save the state_dict")
        for name, value in found.items():
            if not isinstance(value, LazyTensor):
                kind = type(value).__name__
                raise _Refused(f"{path}: {name!r:.60} in it is of type {kind}: save a dict of tensors and nothing else")
    except _Refused:
        raise
    except Exception as error:  # zipfile, pickletools and numpy raise many kinds for damaged or invented files
        raise unreadable_error(path, "file of torch.save's zip format, PyTorch 1.6 and later", error) from None
    return dict(found)


_PUSHED: dict[str, Callable[[], Any] | None] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT")),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING")),
    "SHORT_BINSTRING": None,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
"""Pickle instructions that push a value: their argument (None here), or the result of the function."""

_TUPLES = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _described(value: Any) -> str:
    """A value for a message: in full if it is short and plain, else its type."""
    parts = value if isinstance(value, tuple | list) else [value]
    plain = all(type(part) in (int, float, str, bool, type(None)) for part in parts)
    short = plain and len(parts) < 10 and all(not isinstance(part, int) or abs(part) < 10**20 for part in parts)
    return f"{value!r:.80}" if short else f"{type(value).__name__} of no use"


def _empty_dict() -> dict:
    return {}


class _Call(NamedTuple):
    """A function that the pickle may call."""

    function: Callable[..., Any]


class _Machine:
    """Interprets the pickle of tensors in a file.

    Its stack holds only strings, numbers, tuples, lists, dicts with string keys, storages and tensors.
    """

    def __init__(self, where: str, archive: zipfile.ZipFile, prefix: str):
        """Prepares the interpreter for one file.

        Args:
          where: path of the file.
          archive: the opened file.
          prefix: the folder in the archive that holds "data.pkl".
        """
        self._where, self._archive, self._prefix = where, archive, prefix
        self._length = epath.Path(where).stat().length
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        """The object that a pickle describes. Raises ValueError for an instruction that tensors do not need."""
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _PUSHED:
                self._stack.append(argument if _PUSHED[opcode.name] is None else _PUSHED[opcode.name]())
            elif opcode.name in _TUPLES:
                self._push_tuple(_TUPLES[opcode.name])
            elif opcode.name == "STOP":
                return self._stack.pop()
            elif opcode.name not in ("PROTO", "FRAME"):
                self._step(opcode.name, argument)
        raise _Refused(f"{self._where}: its pickle does not end")

    def _step(self, name: str, argument: Any) -> None:
        """Executes the instruction `name`."""
        stack, memo = self._stack, self._memo
        match name:
            case "MARK":
                self._marks.append(len(stack))
            case "GLOBAL":
                stack.append(self._named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(self._named(*self._pop(2)))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[int(argument)])
            case "BINPERSID":
                stack.append(self._storage(*stack.pop()))
            case "REDUCE":
                called, arguments = self._pop(2)
                stack.append(called.function(*arguments))
            case "BUILD":  # sets attributes of a dict of tensors, PyTorch's `_metadata`, which are not needed
                target, _ = self._pop(2)
                stack.append(target)
            case "SETITEM" | "SETITEMS":
                items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
                self._set(stack[-1], items)
            case "APPEND" | "APPENDS":
                items = self._pop(1) if name == "APPEND" else self._pop_to_mark()
                stack[-1].extend(items)
            case _:
                raise _Refused(f"{self._where}: its pickle has {name}, which tensors do not need; not executed")

    def _set(self, target: Any, items: list[Any]) -> None:
        """Adds items, alternating keys and values, to a dict."""
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise _Refused(f"{self._where}: a tensor's name is {_described(key)}, which is no string")
            if not isinstance(target, dict):
                raise TypeError("an item is set in something that is no dict")
            target[key] = value

    def _pop(self, count: int) -> list[Any]:
        popped = self._stack[-count:]
        del self._stack[-count:]
        return popped

    def _pop_to_mark(self) -> list[Any]:
        return self._pop(len(self._stack) - start) if (start := self._marks.pop()) < len(self._stack) else []

    def _push_tuple(self, count: int | None) -> None:
        self._stack.append(tuple(self._pop_to_mark() if count is None else self._pop(count)))

    def _named(self, module: str, name: str) -> Any:
        """The storage type or function that a pickle names. Raises ValueError for any name that tensors do not need."""
        if module == "torch" and name in STORAGES:
            return name
        known = {
            ("collections", "OrderedDict"): _empty_dict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in known:
            raise _Refused(f"{self._where}: its pickle asks for {module}.{name}, which is no tensor; not executed")
        return _Call(known[module, name])

    def _storage(self, kind: str, storage: str, key: str, _: str, count: int) -> tuple[int, np.dtype, int]:
        """The first byte in the file, the dtype and the length in numbers of a storage."""
        if type(kind) is not str or kind != "storage":
            raise _Refused(f"{self._where}: its pickle refers to a {_described(kind)}, which is no storage of numbers")
        if type(key) is not str or type(storage) is not str:
            raise _Refused(f"{self._where}: a storage without a name or a kind")
        dtype, entry = STORAGES[storage], self._archive.getinfo(f"{self._prefix}data/{key}")
        if type(count) is not int or count < 0:
            raise _Refused(f"{self._where}: storage {key} has {_described(count)} numbers")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < count * dtype.itemsize:
            raise _Refused(f"{self._where}: storage {key} is compressed or shorter than {count} numbers")
        with open(self._where, "rb") as file:  # the local header of the entry, for the lengths of name and extra field
            file.seek(entry.header_offset + 26)
            name_length, extra_length = np.frombuffer(file.read(4), "<u2")
        begin = entry.header_offset + 30 + int(name_length) + int(extra_length)
        if begin + count * dtype.itemsize > self._length:
            raise _Refused(f"{self._where}: storage {key} of {count} numbers reaches past the end of the file")
        return begin, dtype, count

    def _tensor(self, storage, start, shape, strides, _=None, hooks=None, marks=None) -> LazyTensor:
        """The tensor of a call of `torch._utils._rebuild_tensor_v2`, checked against its storage.

        Args:
          storage: what `_storage` returned.
          start: the index of the first number in the storage.
          shape: of the tensor.
          strides: of the tensor, in numbers.
          hooks: ignored.
          marks: set for a lazily negated or conjugated tensor, which is refused.
        """
        begin, dtype, count = storage
        if marks:
            raise _Refused(f"{self._where} has a lazily negated or conjugated tensor: save its resolved values")
        numbers = (start, *shape, *strides)
        if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
            raise _Refused(
                f"{self._where}: a tensor of shape {_described(shape)}, strides {_described(strides)}, "
                f"start {_described(start)}"
            )
        if max(numbers, default=0) > self._length:  # before they are multiplied
            raise _Refused(f"{self._where}: a tensor {_described(list(shape))} reaches past the end of its storage")
        strides = tuple(0 if n == 1 else s for n, s in zip(shape, strides, strict=True))  # an axis of 1 is not stepped
        if start + _reach(shape, strides) > count or math.prod(shape) > count:
            raise _Refused(f"{self._where}: a tensor {_described(list(shape))} reaches past the end of its storage")
        return LazyTensor(self._where, begin + start * dtype.itemsize, tuple(shape), dtype, strides)
