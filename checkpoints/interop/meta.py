"""Reads folders in Meta's format: `params.json` and `consolidated.*.pth`, one file per model-parallel part.

Mistral published its first models in this format too. Matrices that are split by outputs are split by rows, those that
are split by inputs by columns; norms are the same in every part. LLaMA 1 and 2 split the embedding by columns, Llama 3
by rows, its vocabulary.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from ...model.config import LlamaConfig, RopeScaling
from .headers import MOST_LAYERS, Header, exists_or_broken_link, located, read_json
from .tensors import META, SHOWN, Index, TensorSource, check_tensors
from .torch_files import LazyTensor, read_tensors

PARAMS = "params.json"
BY_COLUMNS = r"layers\.\d+\.(attention\.wo|feed_forward\.w2)\.weight"
WHOLE = r".*norm\.weight|rope\.freqs"
DTYPES = ("float32", "float16", "bfloat16")
EMBEDDING = META.names["embed/embedding"]


def is_folder(path: epath.Path) -> bool:
    """Whether a path is a folder in Meta's format."""
    return exists_or_broken_link(path / PARAMS)


def open_folder(path: epath.PathLike) -> TensorSource:
    """Opens a folder in Meta's format and checks its tensors by name and shape, without reading them.

    Raises:
      ValueError: a tensor does not fit the network, or parts are missing or do not fit each other.
    """
    path = epath.Path(path)
    fields = read_json(path / PARAMS)
    files = sorted(path.glob("consolidated.*.pth"))
    if not files or [file.name for file in files] != [f"consolidated.{i:02d}.pth" for i in range(len(files))]:
        found = ", ".join(file.name for file in files[:SHOWN]) or "none of them"
        raise ValueError(f"{path} needs consolidated.00.pth and so on up to the last part; found {found}")
    parts = [read_tensors(file) for file in files]
    if different := [file.name for file, part in zip(files, parts, strict=True) if part.keys() != parts[0].keys()]:
        raise ValueError(f"{path}: {', '.join(different)} holds other tensors than {files[0].name}")
    kinds = {(name, tensor.dtype.name) for part in parts for name, tensor in part.items()}
    if strange := sorted(f"{name} {kind}" for name, kind in kinds if kind not in DTYPES):
        raise ValueError(f"{path} has tensors that are not {', '.join(DTYPES)}: {'; '.join(strange[:SHOWN])}")
    split = {name: _split_axis(name, [part[name] for part in parts], fields) for name in parts[0]}
    shapes = {name: _whole_shape(parts, name, split[name]) for name in parts[0]}
    with located(str(path)):
        config = read_config(fields, shapes, str(path))
    check_tensors(str(path), config, META, shapes)

    def read(name: str, index: Index) -> np.ndarray:
        return _read([part[name] for part in parts], split[name], shapes[name], index)

    dtype = jnp.dtype(parts[0][EMBEDDING].dtype).name
    return TensorSource(str(path), META, config.replace(param_dtype=dtype), read, [path / PARAMS, *files])


def _split_axis(name: str, tensors: Sequence[LazyTensor], fields: Header) -> int | None:
    """The axis along which a tensor is split into its parts; None if each part holds the whole tensor.

    Args:
      name: of the tensor.
      tensors: its parts.
      fields: the content of `params.json`.
    """
    if len(tensors) == 1 or re.fullmatch(WHOLE, name):
        return None
    if name == EMBEDDING:
        return 0 if tensors[0].shape[1:] == (fields.integer("dim"),) else 1
    return 1 if re.fullmatch(BY_COLUMNS, name) else 0


def _whole_shape(parts: Sequence[Mapping[str, LazyTensor]], name: str, axis: int | None) -> tuple[int, ...]:
    """The shape of the whole tensor `name`, whose parts follow one another along `axis` (None: each part is whole)."""
    shapes = [part[name].shape for part in parts]
    if axis is None:
        return shapes[0]
    rest = {shape[:axis] + shape[axis + 1 :] for shape in shapes}
    if len(rest) > 1 or min(map(len, shapes)) <= axis:
        raise ValueError(f"{parts[0][name].file}: parts of {name} do not fit each other: {shapes}")
    whole = list(shapes[0])
    whole[axis] = sum(shape[axis] for shape in shapes)
    return tuple(whole)


def _read(tensors: Sequence[LazyTensor], axis: int | None, shape: tuple[int, ...], index: Index) -> np.ndarray:
    """Reads the slices `index` of a whole tensor from its model-parallel parts.

    Args:
      tensors: the parts.
      axis: the axis along which they are split; None if each part holds the whole tensor.
      shape: the shape of the whole tensor.
      index: the slices.
    """
    if axis is None:
        return np.array(tensors[0].read()[index])
    index = (*index, *[slice(None)] * (len(shape) - len(index)))
    start, stop, _ = index[axis].indices(shape[axis])
    pieces, begin = [], 0
    for tensor in tensors:
        size = tensor.shape[axis]
        low, high = max(start - begin, 0), min(stop - begin, size)
        if low < high:
            pieces.append(tensor.read()[(*index[:axis], slice(low, high), *index[axis + 1 :])])
        begin += size
    return np.concatenate(pieces, axis=axis)


def read_config(fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> LlamaConfig:
    """The network of a `params.json`.

    The file lacks the width of the feed-forward layers and, mostly, the vocabulary, which follow from the tensors, and
    the context, which `_context` deduces.

    Args:
      fields: the content of the file.
      shapes: the shapes of the tensors by name.
      where: name of the folder, for messages.
    """
    fields = Header(fields, where)
    dim, heads = fields.integer("dim"), fields.integer("n_heads")
    gate, window = META.names["layers/mlp/gate"].format(0), fields.integer("sliding_window", 0, low=0) or None
    for name in (EMBEDDING, gate):
        if len(shapes.get(name, ())) != 2:
            raise ValueError(f"{where} has no matrix {name}")
    return LlamaConfig(
        vocab_size=shapes[EMBEDDING][0],
        dim=dim,
        n_layers=fields.integer("n_layers", high=MOST_LAYERS),
        n_heads=heads,
        n_kv_heads=fields.integer("n_kv_heads", heads),
        ffn_dim=shapes[gate][0],
        head_dim=fields.integer("head_dim", dim // heads),
        norm_eps=fields.number("norm_eps", 1e-5),
        rope_theta=fields.number("rope_theta", 10_000.0),
        rope_scaling=_rope_scaling(fields),
        max_len=_context(fields),
        tied=META.names["head/kernel"] not in shapes,
        window=window,
        family="llama" if window is None else "mistral",
    )


def _rope_scaling(fields: Header) -> RopeScaling | None:
    """The rotary scaling: Llama 3.1 stretches 8 times, Llama 3.2's two text models 32 times (their model cards)."""
    if not fields.flag("use_scaled_rope", False):
        return None
    factor = fields.number("rope_scaling_factor", 32.0 if fields.integer("dim") < 4096 else 8.0)
    return RopeScaling("llama3", factor, original_max_len=8192)


def _context(fields: Header) -> int:
    """The trained context in tokens, deduced from other fields.

    Mistral 7B is recognised by its window, LLaMA 1 by its epsilon of 1e-6 and, at 65B, by its ungrouped heads.
    """
    if fields.flag("use_scaled_rope", False):
        return 131_072
    if fields.get("sliding_window"):
        return 32_768
    if fields.number("rope_theta", 10_000.0) > 10_000.0:
        return 8192
    first = fields.get("norm_eps") == 1e-6 or (fields["dim"] == 8192 and fields.get("n_kv_heads") is None)
    return 2048 if first else 4096
