"""Which parameters, and where they live: regex lists over parameter paths, meshes, shardings.

A regex list is a sequence of (pattern, value); the first pattern that matches the whole `/`-joined path gives the
value, and a path that none matches is an error. Everything that asks "which parameters" is such a list.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .weights import SCALE_PARTS, matrix_of, part_spec

AXES = ("data", "fsdp", "tensor", "context")
BATCH = ("data", "fsdp")
"""The mesh axes over which the rows of a batch are split."""

# A spec names, per array axis, the mesh axis that splits it; the leading axis of layers/ is the stack of layers.
# Several networks of a run stand side by side in one tree, as policy/... and critic/...: hence the first group.
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
    """A jax key path as the `/`-joined string that patterns match: `layers/attention/q`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def match(rules: Sequence[tuple[str, Any]], name: str) -> Any:
    """The value of the first rule whose pattern matches all of `name`. Raises ValueError when none does."""
    for pattern, value in rules:
        if re.fullmatch(pattern, name):
            return value
    patterns = [pattern for pattern, _ in rules]
    near = difflib.get_close_matches(name, patterns, n=1, cutoff=0.3)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    raise ValueError(f"no pattern of {patterns} matches parameter {name!r}{hint}; end the list with ('.*', ...)")


def map_rules(rules: Sequence[tuple[str, Any]], tree: Any) -> Any:
    """The tree of `match(rules, path)` for each leaf of `tree`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: match(rules, path_name(path)), tree)


def make_mesh(axes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh over `devices` (default: all of them) with sizes for the axes `data, fsdp, tensor, context`.

    An axis left out has size 1; one may be -1 for "the rest"; none given means fsdp takes all.
    Raises ValueError when the sizes do not multiply to the number of devices.
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
            f"mesh {sizes} does not fit {len(devices)} device(s); sizes must multiply to it, one may be -1"
        )
    for axis in free:
        sizes[axis] = len(devices) // taken
    shape = tuple(sizes[axis] for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def shardings(abstract: Any, mesh: jax.sharding.Mesh, rules: Sequence[tuple[str, tuple]] = PARTITION_RULES) -> Any:
    """The NamedSharding of each leaf of a parameter-shaped tree. `rules` name matrices; the parts of an adapted or
    quantised one are split as it would be.

    Raises ValueError naming the parameter when a mesh axis does not divide the array axis it should split.
    """

    def one(path, leaf):
        name = path_name(path)
        matrix, parts = matrix_of(name)
        spec = tuple(match(rules, matrix))
        if parts:
            spec = tuple(part_sharding(NamedSharding(mesh, PartitionSpec(*spec)), matrix, parts, leaf.shape).spec)
        if len(spec) > len(leaf.shape):
            raise ValueError(f"partition rule {spec} for {name} has more axes than its shape {leaf.shape}")
        for size, axis in zip(leaf.shape, spec, strict=False):
            count = _parts_along(mesh, axis)
            if size % count:
                raise ValueError(
                    f"{name} {tuple(leaf.shape)}: mesh axis {axis!r} of size {count} does not divide {size}; "
                    "choose another mesh, or give config.partition_rules a rule that leaves this axis whole"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(one, abstract)


def part_sharding(
    sharding: NamedSharding, matrix: str, parts: tuple[str, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """Where a part of a matrix lies, given where the matrix at the path `matrix` does: split along the axes that both
    have, but whole along one of scales that the mesh does not divide."""
    spec = part_spec(matrix, parts, len(shape), tuple(sharding.spec))
    if parts[-1] in SCALE_PARTS:
        sizes = [_parts_along(sharding.mesh, axis) for axis in spec]
        spec = tuple(axis if n % size == 0 else None for axis, n, size in zip(spec, shape, sizes, strict=True))
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def _parts_along(mesh: jax.sharding.Mesh, axis: str | tuple[str, ...] | None) -> int:
    """Into how many parts an entry of a spec splits an array axis."""
    return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis or ()))


def constrain(x: jax.Array, *spec: Any) -> jax.Array:
    """Asks XLA to split an activation as `spec` says, under `jax.set_mesh`; without a mesh it does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def axis_size(axis: str) -> int:
    """Size of an axis of the mesh set with `jax.set_mesh`; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]


def init_sharded(
    init: Callable[[jax.Array], Any],
    key: jax.Array,
    mesh: jax.sharding.Mesh,
    rules: Sequence[tuple[str, tuple]],
) -> Any:
    """`init(key)` compiled so that each device makes only its own part: the whole tree never exists in one place."""
    out = shardings(jax.eval_shape(init, key), mesh, rules)
    with jax.set_mesh(mesh):
        return jax.jit(init, out_shardings=out)(key)
