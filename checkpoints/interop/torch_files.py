"""PyTorch's `.pth` and `.bin` files without PyTorch, and without running what a pickle asks for: tensors are all that
comes out.

Such a file is an uncompressed zip: `data.pkl`, a pickle of tensors' shapes, and one entry of raw numbers for each
storage. Of the pickle's machine only what tensors need is here (`_Machine`): Python's own calls what it is told to, and
can be made to fill memory or to hash without end. Nothing that the file says of itself is believed: each tensor is
checked against its storage, each storage against the file's length.
"""

import functools
import math
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from .headers import unreadable

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
            if order in archive.namelist():
                with archive.open(order) as opened:
                    if opened.read(16) != b"little":
                        raise _Refused(f"{path}: numbers in another byte order than little")
            found = _Machine(str(path), archive, prefix).run(archive.read(pickled))
        if not isinstance(found, dict):
            raise _Refused(f"{path}: holds something else than a dict of tensors")
        for name, value in found.items():
            if not isinstance(value, LazyTensor):
                kind = type(value).__name__
                raise _Refused(f"{path}: {name!r:.60} in it is of type {kind}: save a dict of tensors and nothing else")
    except _Refused:
        raise
    except Exception as error:  # whatever zipfile, pickle and numpy raise at files that were cut short or made up
        raise unreadable(path, "file of torch.save's zip format, PyTorch 1.6 and later", error) from None
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
"""Instructions that put a value on the stack: their argument, or what the function gives."""

_TUPLES = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _said(value: Any) -> str:
    """A value for a message: in full where it is short, else by its type."""
    parts = value if isinstance(value, tuple | list) else [value]
    plain = all(type(part) in (int, float, str, bool, type(None)) for part in parts)
    short = plain and len(parts) < 10 and all(not isinstance(part, int) or abs(part) < 10**20 for part in parts)
    return f"{value!r:.80}" if short else f"{type(value).__name__} of no use"


def _empty_dict() -> dict:
    return {}


class _Call(NamedTuple):
    """A name that may be called: all that a pickle of tensors calls."""

    function: Callable[..., Any]


class _Machine:
    """Runs a pickle of tensors: a stack of texts, numbers, tuples, lists, dicts by texts, storages and tensors."""

    def __init__(self, where: str, archive: zipfile.ZipFile, prefix: str):
        self._where, self._archive, self._prefix = where, archive, prefix
        self._length = epath.Path(where).stat().length
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
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
            case "BUILD":  # the attributes of a dict of tensors, PyTorch's `_metadata`
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
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise _Refused(f"{self._where}: a tensor's name is {_said(key)}, which is no text")
            if not isinstance(target, dict):
                raise TypeError("an item of what is no dict")
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
        """A storage: where its numbers begin, their type and how many they are."""
        if type(kind) is not str or kind != "storage":
            raise _Refused(f"{self._where}: its pickle refers to a {_said(kind)}, which is no storage of numbers")
        if type(key) is not str or type(storage) is not str:
            raise _Refused(f"{self._where}: a storage without a name or a kind")
        dtype, entry = STORAGES[storage], self._archive.getinfo(f"{self._prefix}data/{key}")
        if type(count) is not int or count < 0:
            raise _Refused(f"{self._where}: storage {key} has {_said(count)} numbers")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < count * dtype.itemsize:
            raise _Refused(f"{self._where}: storage {key} is compressed or shorter than {count} numbers")
        with open(self._where, "rb") as file:  # the entry's own header, of which only the lengths are needed
            file.seek(entry.header_offset + 26)
            name_length, extra_length = np.frombuffer(file.read(4), "<u2")
        begin = entry.header_offset + 30 + int(name_length) + int(extra_length)
        if begin + count * dtype.itemsize > self._length:
            raise _Refused(f"{self._where}: storage {key} of {count} numbers reaches past the end of the file")
        return begin, dtype, count

    def _tensor(self, storage, start, shape, strides, _=None, hooks=None, marks=None) -> LazyTensor:
        begin, dtype, count = storage
        if marks:
            raise _Refused(f"{self._where}: a tensor that is negated or conjugated as it is read: save it resolved")
        numbers = (start, *shape, *strides)
        if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
            raise _Refused(
                f"{self._where}: a tensor of shape {_said(shape)}, strides {_said(strides)}, start {_said(start)}"
            )
        if max(numbers, default=0) > self._length:  # before they are multiplied
            raise _Refused(f"{self._where}: a tensor {_said(list(shape))} reaches past the end of its storage")
        strides = tuple(0 if n == 1 else s for n, s in zip(shape, strides, strict=True))  # says nothing there
        if start + _reach(shape, strides) > count or math.prod(shape) > count:
            raise _Refused(f"{self._where}: a tensor {_said(list(shape))} reaches past the end of its storage")
        return LazyTensor(self._where, begin + start * dtype.itemsize, tuple(shape), dtype, strides)
