"""Files as torch.save writes them, without torch."""

import collections
import pickle
import sys
import types
import zipfile
from unittest import mock

import numpy as np

Storage = collections.namedtuple("Storage", "kind key count")
KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


class Tensor:
    """Pickled as torch.save pickles a tensor."""

    def __init__(self, storage, start, shape, strides, *marks):
        self.arguments = (storage, start, shape, strides, False, collections.OrderedDict(), *marks)

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


def _names() -> dict:
    """What pickle looks up when it writes torch's names."""

    def _rebuild_tensor_v2():
        raise AssertionError("nothing is rebuilt here")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    kinds = {name: type(name, (), {"__module__": "torch"}) for name in KINDS.values()}
    return {
        "torch": types.SimpleNamespace(**kinds),
        "torch._utils": types.SimpleNamespace(_rebuild_tensor_v2=_rebuild_tensor_v2),
    }


def save(file, value, *, kind="storage", compressed=(), storages=None):
    """A file of `value`, in which `Storage`s stand for entries of `storages`, arrays by their keys. compressed: names
    of entries."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, x):
            if isinstance(x, Storage):
                return (kind, getattr(sys.modules["torch"], x.kind), x.key, "cpu", x.count)

    def write(archive, name, content):
        how = zipfile.ZIP_DEFLATED if name in compressed else zipfile.ZIP_STORED
        archive.writestr(f"archive/{name}", content, how)

    with zipfile.ZipFile(file, "w") as archive, mock.patch.dict(sys.modules, _names()):
        stream = _Bytes()
        Pickler(stream, protocol=2).dump(value)
        write(archive, "data.pkl", bytes(stream))
        for key, numbers in ({} if storages is None else storages).items():
            write(archive, f"data/{key}", numbers.tobytes())
    return file


class _Bytes(bytearray):
    write = bytearray.extend


def save_tensors(file, tensors: dict[str, np.ndarray]):
    """A file of arrays, a storage for each, every second matrix lying column after column."""
    storages, described = {}, collections.OrderedDict()
    for number, (name, value) in enumerate(tensors.items()):
        turned = value.ndim == 2 and number % 2 == 1
        strides = (
            (1, value.shape[0])
            if turned
            else tuple(s // value.itemsize for s in np.empty(value.shape, value.dtype).strides)
        )
        storage = Storage(KINDS[value.dtype.name], str(number), value.size)
        storages[str(number)] = np.ascontiguousarray(value.T if turned else value)
        described[name] = Tensor(storage, 0, value.shape, strides)
    return save(file, described, storages=storages)
