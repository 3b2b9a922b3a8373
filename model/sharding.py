"""Regex lists over parameter paths, device meshes, and the shardings of parameters.

A regex list is a sequence of (pattern, value). The first pattern that matches the whole path of a parameter, such as
`layers/attention/q`, gives the value; a path without a match is an error. Every setting that selects parameters is a
regex list.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .weights import SCALE_PARTS, matrix_of, part_spec

AXES = ("data", "fsdp", "tensor", "context")
BATCH = ("data", "fsdp")
"""The mesh axes over which the rows of a batch are split."""

# A spec names the mesh axis that splits each axis of an array; the first axis below layers/ is the stack of layers.
# The first group of a pattern allows several networks in one tree, as policy/... and critic/...
PARTITION_RULES: tuple[tuple[str, tuple], ...] = (
    (r"(.*/)?embed/embedding", ("tensor", "fsdp")),
    (r"(.*/)?layers/attention/[qkv]", (None, "fsdp", "tensor", None)),
    (r"(.*/)?layers/attention/o", (None, "tensor", None, "fsdp")),
    (r"(.*/)?layers/mlp/(gate|up)", (None, "fsdp", "tensor")),
    (r"(.*/)?layers/mlp/down", (None, "tensor", "fsdp")),
    (r"(.*/)?layers/attention/[qkv]_bias", (None, "tensor", None)),
    (r"(.*/)?layers/mlp/(gate|up)_bias", (None, "tensor")),
    (r"(.*/)?layers/(attention/o|mlp/down)_bias", ()),
    (r"(.*/)?head/kernel", ("fsdp", "tensor")),
    (r".*norm/scale", ()),
    (r"(.*/)?score/(kernel|bias)", ()),
)


def path_name(path: Sequence[Any]) -> str:
    """The string form of a jax key path that patterns match: `layers/attention/q`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def match(rules: Sequence[tuple[str, Any]], name: str) -> Any:
    """The value of the first rule whose pattern matches the whole `name`. Raises ValueError if no pattern does."""
    for pattern, value in rules:
        if re.fullmatch(pattern, name):
            return value
    patterns = [pattern for pattern, _ in rules]
    near = difflib.get_close_matches(name, patterns, n=1, cutoff=0.3)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    raise ValueError(f"no pattern of {patterns} matches parameter {name!r}{hint}; end the list with ('.*', ...)")


def map_rules(rules: Sequence[tuple[str, Any]], tree: Any) -> Any:
    """A tree of the same structure whose leaves are the values that (regex, value) rules give to their paths.

    The first rule whose regex matches the whole path counts. Raises ValueError for a path that no rule matches.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: match(rules, path_name(path)), tree)


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Makes a device mesh with the axes data, fsdp, tensor and context.

    Args:
      axes: sizes by axis. An axis left out has size 1, and one may be -1, which takes all remaining devices. None: fsdp
        takes all devices.
      devices: the devices. None: all.

    Raises ValueError for an unknown axis, and unless the product of all sizes is the number of devices.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = dict.fromkeys(AXES, 1) | dict(axes if axes is not None else {"fsdp": -1})
    if unknown := set(sizes) - set(AXES):
        raise ValueError(f"unknown mesh axis {', '.join(sorted(unknown))}; the axes are {', '.join(AXES)}")
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = [size for size in sizes.values() if size != -1]
    taken = math.prod(fixed)
    if len(free) > 1 or min(fixed) < 1 or len(devices) % taken or (not free and taken != len(devices)):
        raise ValueError(
            f"mesh {sizes} does not fit {len(devices)} device(s); give sizes whose product is that number, or one -1"
        )
    for axis in free:
        sizes[axis] = len(devices) // taken
    shape = tuple(sizes[axis] for axis in AXES)
    types = (AxisType.Auto,) * len(AXES)
    try:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # an axis takes a part of a dimension of a TPU slice, such as 2 of 4 chips
        places = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(places, AXES, axis_types=types)


def mesh_words(sizes: Mapping[str, int]) -> str:
    """A mesh in words, such as "data 8 x fsdp 64"; axes of size 1 are left out."""
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one device"


def shardings(abstract: Any, mesh: jax.sharding.Mesh, rules: Sequence[tuple[str, tuple]] = PARTITION_RULES) -> Any:
    """The NamedSharding of each leaf of a tree of parameters.

    Args:
      abstract: the tree, or its shapes.
      mesh: the devices.
      rules: partition specs by regexes over paths of matrices. The parts of an adapted or quantised matrix are split
        like the matrix.

    Raises ValueError naming the parameter if a mesh axis does not divide the array axis that it splits.
    """

    def one(path, leaf):
        name = path_name(path)
        matrix, parts = matrix_of(name)
        spec = tuple(match(rules, matrix))
        if parts:
            spec = tuple(part_sharding(NamedSharding(mesh, PartitionSpec(*spec)), matrix, parts, leaf.shape).spec)
        if len(spec) > len(leaf.shape):
            raise ValueError(
                f"partition rule {spec} for {name} has more axes than its shape {leaf.shape}; give at most "
                f"{len(leaf.shape)}"
            )
        for size, axis in zip(leaf.shape, spec, strict=False):
            count = _parts_along(mesh, axis)
            if size % count:
                raise ValueError(
                    f"{name} {tuple(leaf.shape)}: mesh axis {axis!r} of size {count} does not divide {size}; "
                    "choose another mesh, or, in a config, give partition_rules a rule that leaves this axis whole"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(one, abstract)


def placed(abstract: Any, where: Any) -> Any:
    """A tree of shapes and dtypes with the shardings of a tree of the same structure."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, where)


def part_sharding(
    sharding: NamedSharding, matrix: str, parts: tuple[str, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """The sharding of a part of a matrix: split like the matrix along the axes that both have.

    An axis of scales that the mesh does not divide is not split.

    Args:
      sharding: sharding of the matrix.
      matrix: path of the matrix.
      parts: names of the part (`weights.matrix_of`).
      shape: shape of the part.
    """
    spec = part_spec(matrix, parts, len(shape), tuple(sharding.spec))
    if parts[-1] in SCALE_PARTS:
        sizes = [_parts_along(sharding.mesh, axis) for axis in spec]
        spec = tuple(axis if n % size == 0 else None for axis, n, size in zip(spec, shape, sizes, strict=True))
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def _parts_along(mesh: jax.sharding.Mesh, axis: str | tuple[str, ...] | None) -> int:
    """The number of parts into which an entry of a spec splits an array axis."""
    return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis or ()))


def constrain(x: jax.Array, *spec: Any) -> jax.Array:
    """Constrains an activation to the sharding `spec` under `jax.set_mesh`; without a mesh it returns x unchanged."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def compile_platform() -> str:
    """The platform that a function traced here is compiled for: "cpu", "gpu" or "tpu".

    It is that of the devices under `jax.set_mesh`, which need not be there, and JAX's default backend without a mesh.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else platform_of(device)


def platform_of(device: jax.Device | jax.sharding.AbstractDevice) -> str:
    """The platform of a device: "cpu", "gpu" or "tpu"."""
    return "gpu" if device.platform in ("cuda", "rocm") else device.platform


def axis_size(axis: str) -> int:
    """The size of an axis of the mesh that is set with `jax.set_mesh`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]


def on_host(arrays: Any) -> Any:
    """A tree of arrays as numpy arrays, whole on each host. Where an array lies on several hosts, all must call it."""
    leaves = jax.tree.leaves(arrays)
    if all(leaf.is_fully_addressable for leaf in leaves if isinstance(leaf, jax.Array)):
        return jax.device_get(arrays)
    return multihost_utils.process_allgather(arrays, tiled=True)
