"""Maps a network's parameters to the tensors of other formats, and reads them shard by shard.

Other formats store a matrix as [out, in] and each layer as its own tensor. In camelid matrices are [in, out] with heads
on axes of their own, and layers are stacked. A `Naming` describes a format, a `TensorSource` an opened checkpoint.
"""

import collections
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ...model import llama, storage
from ...model.config import LlamaConfig
from ...model.rope import from_interleaved, to_interleaved
from ...model.sharding import part_sharding, path_name
from ...model.storage import Rules
from ...model.weights import VECTORS, input_axes, is_stacked

Index = tuple[slice, ...]
SHOWN = 10  # at most so many tensors of each kind are listed in an error message


class Naming(NamedTuple):
    """The names and the layout of tensors in a format."""

    names: Mapping[str, str]
    """{camelid's path: name in the format}, with `{}` for the number of the layer. Parameters of the same name are rows
    of one tensor, in the order of this mapping."""
    interleaved: bool
    """Whether rotary embeddings turn neighbouring pairs, as in Meta's code, and not halves of a head (`rope.py`)."""
    ignored: str
    """Regular expression of tensors that are not read, because they follow from others."""


def _and_additions(names: dict[str, str], head_norm: str) -> dict[str, str]:
    """Adds the names of biases and of norms of heads to the names of a LLaMA's parameters.

    Args:
      names: {path: name} of a LLaMA's parameters.
      head_norm: name of the norm of a head, with X for q or k.
    """
    matrices = [path for path in names if re.fullmatch("layers/(attention|mlp)/[a-z]+", path)]
    biases = {f"{path}_bias": names[path].replace(".weight", ".bias") for path in matrices}
    return names | biases | {f"layers/attention/{x}_norm/scale": head_norm.replace("X", x) for x in "qk"}


HUGGING_FACE = Naming(
    _and_additions(
        {
            "embed/embedding": "model.embed_tokens.weight",
            "layers/attention_norm/scale": "model.layers.{}.input_layernorm.weight",
            "layers/attention/q": "model.layers.{}.self_attn.q_proj.weight",
            "layers/attention/k": "model.layers.{}.self_attn.k_proj.weight",
            "layers/attention/v": "model.layers.{}.self_attn.v_proj.weight",
            "layers/attention/o": "model.layers.{}.self_attn.o_proj.weight",
            "layers/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
            "layers/mlp/gate": "model.layers.{}.mlp.gate_proj.weight",
            "layers/mlp/up": "model.layers.{}.mlp.up_proj.weight",
            "layers/mlp/down": "model.layers.{}.mlp.down_proj.weight",
            "norm/scale": "model.norm.weight",
            "head/kernel": "lm_head.weight",
        },
        "model.layers.{}.self_attn.X_norm.weight",
    ),
    interleaved=False,
    ignored=r".*\.rotary_emb\.\w+|v_head\..*",  # the value head that TRL saves beside a language model
)
_FUSED_HEADS = ("layers/attention/q", "layers/attention/k", "layers/attention/v")
_FUSED_BRANCHES = ("layers/mlp/gate", "layers/mlp/up")
PHI3 = HUGGING_FACE._replace(
    names=HUGGING_FACE.names
    | dict.fromkeys(_FUSED_HEADS, "model.layers.{}.self_attn.qkv_proj.weight")
    | dict.fromkeys(_FUSED_BRANCHES, "model.layers.{}.mlp.gate_up_proj.weight")
)
META = Naming(
    {
        "embed/embedding": "tok_embeddings.weight",
        "layers/attention_norm/scale": "layers.{}.attention_norm.weight",
        "layers/attention/q": "layers.{}.attention.wq.weight",
        "layers/attention/k": "layers.{}.attention.wk.weight",
        "layers/attention/v": "layers.{}.attention.wv.weight",
        "layers/attention/o": "layers.{}.attention.wo.weight",
        "layers/mlp_norm/scale": "layers.{}.ffn_norm.weight",
        "layers/mlp/gate": "layers.{}.feed_forward.w1.weight",
        "layers/mlp/up": "layers.{}.feed_forward.w3.weight",
        "layers/mlp/down": "layers.{}.feed_forward.w2.weight",
        "norm/scale": "norm.weight",
        "head/kernel": "output.weight",
    },
    interleaved=True,
    ignored=r"rope\.freqs",
)
GGUF = Naming(
    _and_additions(
        {
            "embed/embedding": "token_embd.weight",
            "layers/attention_norm/scale": "blk.{}.attn_norm.weight",
            "layers/attention/q": "blk.{}.attn_q.weight",
            "layers/attention/k": "blk.{}.attn_k.weight",
            "layers/attention/v": "blk.{}.attn_v.weight",
            "layers/attention/o": "blk.{}.attn_output.weight",
            "layers/mlp_norm/scale": "blk.{}.ffn_norm.weight",
            "layers/mlp/gate": "blk.{}.ffn_gate.weight",
            "layers/mlp/up": "blk.{}.ffn_up.weight",
            "layers/mlp/down": "blk.{}.ffn_down.weight",
            "norm/scale": "output_norm.weight",
            "head/kernel": "output.weight",
        },
        "blk.{}.attn_X_norm.weight",
    ),
    interleaved=True,
    ignored=r"rope_(freqs|factors_long|factors_short)\.weight",
)
GGUF_IN_HALVES = GGUF._replace(interleaved=False)
GGUF_PHI3 = GGUF_IN_HALVES._replace(
    names=GGUF.names
    | dict.fromkeys(_FUSED_HEADS, "blk.{}.attn_qkv.weight")
    | dict.fromkeys(_FUSED_BRANCHES, "blk.{}.ffn_up.weight")
)


class TensorSource(NamedTuple):
    """An opened and checked checkpoint in another format, with its tensors still on disk."""

    where: str
    """Its path, for messages."""
    naming: Naming
    """The names and the layout of its tensors."""
    config: LlamaConfig
    """The network."""
    read: Callable[[str, Index], np.ndarray]
    """read(name, (rows,) or (rows, columns)) returns a part of a tensor by its name in the file, in any float dtype."""
    files: Sequence[epath.Path]
    """The files, for the manifest."""
    stored: Callable[[str], dict[str, np.ndarray] | None] = lambda name: None
    """stored(name) returns the codes of a quantised tensor in the form of `quantization.py`, with rows of outputs and
    blocks along columns; None for any other tensor."""
    extra: Mapping[str, Any] = {}
    """Whatever else the reader found, such as a GGUF file's metadata."""


class Place(NamedTuple):
    """Where a parameter of camelid, or one layer of it, is stored in another format."""

    path: str
    """Camelid's path of the parameter."""
    layer: int | None
    """The layer; None for a parameter outside of the layers."""
    shape: tuple[int, ...]
    """Its shape in camelid, without the layer axis."""
    name: str
    """The name of its tensor in the format."""
    shape_there: tuple[int, ...]
    """The shape of its rows in that tensor."""
    first_row: int = 0
    """The first of these rows, if the tensor holds several parameters."""


def is_matrix(path: str) -> bool:
    """Whether a parameter is transposed in other formats; vectors and the embedding are not."""
    return not path.endswith((*VECTORS, "embed/embedding"))


def _turns(path: str) -> bool:
    """Whether rotary embeddings turn a parameter's last axis."""
    return path.endswith(("/q", "/k", "/q_bias", "/k_bias", "/q_norm/scale", "/k_norm/scale"))


def places(config: LlamaConfig, naming: Naming) -> Iterator[Place]:
    """Yields the place of every parameter of a network in another format, layer by layer."""
    leaves = jax.tree_util.tree_leaves_with_path(llama.build(config).abstract_params)
    shapes = {path_name(key_path): leaf.shape[is_stacked(path_name(key_path)) :] for key_path, leaf in leaves}
    there = {path: _shape_there(path, shape) for path, shape in shapes.items()}
    first_rows, rows = {}, collections.Counter()
    for path, name in naming.names.items():
        if path in shapes:
            first_rows[path], rows[name] = rows[name], rows[name] + there[path][0]
    for path, shape in shapes.items():
        for layer in range(config.n_layers) if is_stacked(path) else [None]:
            yield Place(path, layer, shape, naming.names[path].format(layer), there[path], first_rows[path])


def _shape_there(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in other formats of a parameter that has `shape` in camelid."""
    if path.endswith("embed/embedding"):
        return shape
    if not is_matrix(path):
        return (math.prod(shape),)
    axes = input_axes(path)
    return math.prod(shape[axes:]), math.prod(shape[:axes])


def shapes_there(config: LlamaConfig, naming: Naming) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor of a network in another format."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place in places(config, naming):
        rows, *columns = place.shape_there
        shapes[place.name] = (max(place.first_row + rows, shapes.get(place.name, (0,))[0]), *columns)
    return shapes


def check_tensors(where: str, config: LlamaConfig, naming: Naming, found: Mapping[str, Sequence[int]]) -> None:
    """Raises ValueError if a checkpoint has missing, surplus or misshapen tensors; the message lists them.

    Args:
      where: path of the checkpoint, for the message.
      config: the network.
      naming: the names of its tensors.
      found: {name: shape} of the tensors in the checkpoint.
    """
    expected = shapes_there(config, naming)
    surplus = {name for name in found if name not in expected and not re.fullmatch(naming.ignored, name)}
    problems = {
        "missing": [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found],
        "with no place in the network": [f"{name} {list(found[name])}" for name in sorted(surplus)],
        "of another shape": [
            f"{name} {list(found[name])}, the config says {list(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != shape
        ],
    }
    if listed := [
        f"{len(these)} tensor(s) {kind}: {'; '.join(these[:SHOWN])}{'; ...' if len(these) > SHOWN else ''}"
        for kind, these in problems.items()
        if these
    ]:
        raise ValueError(f"{where}: {' | '.join(listed)}")


def read_part(source: TensorSource, place: Place, index: Index) -> np.ndarray:
    """Reads a part of a parameter, or of one layer of it, in camelid's layout.

    Args:
      source: the checkpoint.
      place: the parameter.
      index: slices of its axes in camelid.
    """
    turns = source.naming.interleaved and _turns(place.path)
    if not is_matrix(place.path):
        if len(place.shape_there) > 1:
            return source.read(place.name, index)
        rows, inner = _span(index, place.shape)
        part = source.read(place.name, (rows,)).reshape(-1, *place.shape[1:])
        return (from_interleaved(part) if turns else part)[(slice(None), *inner)]
    axes = input_axes(place.path)
    columns, inner_in = _span(index[:axes], place.shape[:axes])
    rows, inner_out = _span(index[axes:], place.shape[axes:])
    rows = slice(rows.start + place.first_row, rows.stop + place.first_row)
    part = source.read(place.name, (rows, columns)).T
    part = part.reshape(-1, *place.shape[1:axes], part.shape[1])
    part = part.reshape(*part.shape[:-1], -1, *place.shape[axes + 1 :])
    part = from_interleaved(part) if turns else part
    return part[(slice(None), *inner_in, slice(None), *inner_out)]


def _span(index: Index, shape: Sequence[int]) -> tuple[slice, Index]:
    """Splits slices of several axes for reading from their flattened axis.

    Args:
      index: slices of the axes.
      shape: the sizes of the axes.

    Returns:
      The slice of the flattened axis that contains the part, and the slices that remain for the inner axes.
    """
    start, stop, _ = index[0].indices(shape[0])
    inner = math.prod(shape[1:])
    return slice(start * inner, stop * inner), index[1:]


def write_part(naming: Naming, place: Place, value: np.ndarray) -> np.ndarray:
    """Brings a parameter, or one layer of it, into the layout of another format.

    Args:
      naming: the format.
      place: the parameter.
      value: its array in camelid's layout.

    Returns:
      Its rows in the tensor of the format, as `read_part` reads them back.
    """
    if naming.interleaved and _turns(place.path):
        value = to_interleaved(value)
    if not is_matrix(place.path):
        return value.reshape(place.shape_there)
    rows, columns = place.shape_there
    return np.ascontiguousarray(value.reshape(columns, rows).T)


def load_params(source: TensorSource, abstract: llama.Params, quantize: Rules | None = None) -> llama.Params:
    """Loads the parameters of a checkpoint onto the devices, layer by layer.

    The host holds one layer of one parameter at a time, and reads only the parts that its own devices keep.

    Args:
      source: the checkpoint.
      abstract: tree of `jax.ShapeDtypeStruct` with the dtypes and shardings to load.
      quantize: rules as `storage.quantize` takes them, applied layer by layer. The kind "stored" keeps the codes of the
        checkpoint; a tensor without codes is loaded unquantised.
    """
    by_path: dict[str, list[Place]] = {}
    for place in places(source.config, source.naming):
        by_path.setdefault(place.path, []).append(place)

    def leaf(key_path, asked):
        path = path_name(key_path)
        layers = by_path[path]
        sharding = asked.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        whole = sharding if layers[0].layer is None else _without_layers(sharding)
        kind = storage.kind_at(quantize, path) if quantize is not None else None
        if kind == storage.STORED and all(_has_codes(source, place) for place in layers):
            return _stack(layers, sharding, lambda place: jax.tree.map(jnp.asarray, _codes(source, place)))
        if kind in (None, storage.STORED):
            return _stack(layers, sharding, lambda place: _array(source, place, asked.dtype, whole))
        encode = jax.jit(functools.partial(storage.encode_layer, kind, path))
        return _stack(layers, sharding, lambda place: encode(_array(source, place, jnp.float32, whole)))

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def _stack(layers: Sequence[Place], sharding: Sharding, read: Callable[[Place], Any]) -> Any:
    """Stacks the layers of a parameter on the devices.

    Args:
      layers: the places of the layers, or one place outside of the layers.
      sharding: of the whole parameter.
      read: returns one layer, an array or a dict of the parts of a quantised matrix.
    """
    path = layers[0].path

    def placed(name: str, shape: tuple[int, ...]) -> Sharding:
        if not name or not isinstance(sharding, NamedSharding):
            return sharding
        return part_sharding(sharding, path, (name,), shape)

    def blank(key_path, part):
        shape = (len(layers), *part.shape)
        where = placed(path_name(key_path), shape)
        return _compiled_zeros(shape, part.dtype, where)()

    if layers[0].layer is None:
        only = read(layers[0])
        return jax.tree_util.tree_map_with_path(
            lambda key_path, part: jax.device_put(part, placed(path_name(key_path), part.shape)), only
        )
    stack = None
    for place in layers:
        parts = read(place)
        if stack is None:
            stack = jax.tree_util.tree_map_with_path(blank, parts)
            put = _compiled_put(*_hashable(jax.tree.map(lambda x: x.sharding, stack)))
        stack = put(stack, parts, place.layer)
    return stack


# Parameters of one shape and sharding share their programs.


@functools.lru_cache(maxsize=256)
def _compiled_zeros(shape: tuple[int, ...], dtype: Any, sharding: Sharding) -> Callable[[], jax.Array]:
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=256)
def _compiled_put(shardings: tuple[Sharding, ...], tree: Any) -> Callable[..., Any]:
    return jax.jit(_put_layer, donate_argnums=0, out_shardings=tree.unflatten(shardings))


def _hashable(tree: Any) -> tuple[tuple[Any, ...], Any]:
    leaves, structure = jax.tree.flatten(tree)
    return tuple(leaves), structure


def _put_layer(stack: Any, parts: Any, layer: int) -> Any:
    return jax.tree.map(lambda x, part: jax.lax.dynamic_update_index_in_dim(x, part, layer, 0), stack, parts)


def _has_codes(source: TensorSource, place: Place) -> bool:
    """Whether a tensor has stored codes that camelid can keep: their blocks must not cross the end of a head."""
    parts = source.stored(place.name)
    if parts is None:
        return False
    blocks = parts["scales"].shape[1]
    inner = place.shape[input_axes(place.path) - 1] if is_matrix(place.path) else place.shape[-1]
    return inner % (place.shape_there[1] // blocks) == 0


def _codes(source: TensorSource, place: Place) -> dict[str, np.ndarray]:
    """The stored codes of a parameter, or of one layer of it, in the layout of `quantization.py`."""
    parts = source.stored(place.name)
    if not is_matrix(place.path):
        return parts
    axes = input_axes(place.path)
    outer, outputs = place.shape[: axes - 1], place.shape[axes:]
    turned, rows = {}, slice(place.first_row, place.first_row + place.shape_there[0])
    for name, part in parts.items():
        turned[name] = part[rows].T.reshape(*outer, -1, *outputs)
        if source.naming.interleaved and _turns(place.path):
            turned[name] = from_interleaved(turned[name])
    return {name: np.ascontiguousarray(part) for name, part in turned.items()}


def _array(source: TensorSource, place: Place, dtype: Any, sharding: Sharding) -> jax.Array:
    """Reads a parameter, or one layer of it, onto the devices in a dtype and a sharding."""
    read = {}  # a part that several devices keep is read once

    def part(index: Index) -> np.ndarray:
        key = tuple(cut.indices(size) for cut, size in zip(index, place.shape, strict=True))
        if key not in read:
            read[key] = np.ascontiguousarray(read_part(source, place, index)).astype(dtype, copy=False)
        return read[key]

    return jax.make_array_from_callback(place.shape, sharding, part)


def _without_layers(sharding: Sharding) -> Sharding:
    """The sharding of one layer of a stack."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding
