"""Collectives of a compiled program: what they move, along which mesh axes, and for which line of Python code.

Devices of a group are numbered as in the program: number i is `mesh.devices.flat[i]`, so that the axes along which a
group's numbers differ are the mesh axes that the collective spans.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .hlo import Computation, Instruction, Loop, Module, Schedule, Site, Start, Transfer, arrays


@dataclass(frozen=True)
class Collective:
    """One kind of transfer in a program."""

    kind: str
    """What it does, as HLO says: all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute, ..."""
    axes: tuple[str, ...]
    """The mesh axes whose devices take part."""
    group: int
    """Number of devices that take part together."""
    dtype: str
    """Type of its elements; those of several types are joined by commas."""
    bytes: int
    """Bytes of the whole array on a device: what an all-gather returns, and what a reduce-scatter reads."""
    asynchronous: bool
    """Whether it starts and ends in two instructions, or in one that computes as well, so that it may be hidden."""
    what: str
    """The path of the JAX operation that it serves, or its shape where XLA does not say."""
    source: str
    """Function, file and line of the Python code that it comes from; empty where XLA does not say."""
    gathers: bool = False
    """Whether an all-reduce does the work of an all-gather: its operand is zero but for the device's own part."""
    shift: int | None = None
    """For a collective-permute: the distance to the receiver along the axis."""

    @property
    def moved(self) -> float:
        """Bytes that each device sends, and receives, in a ring."""
        return self.bytes * SENT.get(self.kind, lambda n: (n - 1) / n)(self.group) if self.group > 1 else 0.0


SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "collective-permute": lambda n: 1.0,
    "collective-broadcast": lambda n: 1.0,
}
"""Bytes that each of n devices sends, as a share of the array; (n - 1) / n for other kinds."""


@dataclass(frozen=True)
class Counted:
    """A collective, and how often a step executes it."""

    collective: Collective
    """The collective."""
    times: int
    """Executions in a step, loops multiplied out."""


def collective_of(module: Module, mesh_shape: Mapping[str, int], site: Site, asynchronous: bool) -> Collective:
    """Describes a collective.

    Args:
      module: the program.
      mesh_shape: sizes of the mesh by axis, in order, as `mesh.shape`.
      site: where it stands.
      asynchronous: whether it starts and ends in two instructions, or in one that computes as well.
    """
    instruction, kind = site.collective, site.collective.collective
    groups = groups_of(instruction, math.prod(mesh_shape.values()))
    own = _sizes(instruction)
    group = groups.shape[1] if kind != "collective-permute" else _ring(groups, mesh_shape)
    size = sum(size for _, size in own) * (group if kind == "reduce-scatter" else 1)
    gathers = kind == "all-reduce" and _is_placed(module, site.where, instruction.operands[0])
    if kind == "all-reduce" and site.where is not site.outside and site.where.root.opcode == "dynamic-slice":
        kind = "reduce-scatter"  # a TPU's fusion of both reduces only the device's own part
    named = (
        instruction if instruction.op_name else _named(site.scheduled, site.outside, gathers or kind == "all-gather")
    )
    frame = re.search(r"stack_frame_id=(\d+)", named.attributes)
    return Collective(
        kind,
        axes_of(groups, mesh_shape),
        group,
        ",".join(dict.fromkeys(dtype for dtype, _ in own)),
        size,
        asynchronous,
        named.op_name or re.sub(r"\{[^{}]*\}", "", instruction.shape),
        module.frames.get(int(frame[1]), "") if frame else "",
        gathers,
        _shift(groups, mesh_shape) if kind == "collective-permute" else None,
    )


def collectives_of(module: Module, mesh_shape: Mapping[str, int], events: Schedule) -> list[Counted]:
    """The collectives of a schedule of `module`; those that differ in nothing are counted together."""
    found: dict[Collective, int] = {}
    for site, asynchronous, times in _walk(events, 1):
        one = collective_of(module, mesh_shape, site, asynchronous)
        found[one] = found.get(one, 0) + times
    return [Counted(one, times) for one, times in found.items()]


def _walk(events: Schedule, times: int) -> Iterator[tuple[Site, bool, int]]:
    for event in events:
        if isinstance(event, Loop):
            yield from _walk(event.body, times * event.turns)
        elif isinstance(event, Start | Transfer):
            yield event.site, isinstance(event, Start) or event.cycles > 0, times


def groups_of(instruction: Instruction, n_devices: int) -> np.ndarray:
    """The groups of a collective, one in each row; of a collective-permute, its pairs.

    Raises ValueError for a form of groups that is not known.
    """
    text = instruction.attributes
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        return np.array([[int(n) for n in each.split(",")] for each in re.findall(r"\{?(\d+,\d+)\}?", pairs[1])])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?) \{([^}]*)\}", text):
        return _mesh_groups(*mesh.groups())
    if iota := re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _iota(iota[1])
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text):
        rows = [[int(n) for n in each.split(",")] for each in re.findall(r"\{([\d,]+)\}", listed[1])]
        return np.array(rows or [list(range(n_devices))])
    if "replica_groups=" not in text:
        return np.arange(n_devices)[None]
    raise ValueError(f"replica groups in an unknown form: {re.search('replica_groups=.{0,80}', text)[0]}")


def _iota(text: str) -> np.ndarray:
    """The array of `[8,64]<=[512]` or `[8,64]<=[64,8]T(1,0)`: numbers in order, reshaped, transposed, reshaped."""
    shape, old, order = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    shape, old = ([int(n) for n in each.split(",")] for each in (shape, old))
    numbers = np.arange(math.prod(old)).reshape(old)
    return (numbers.transpose([int(n) for n in order.split(",")]) if order else numbers).reshape(shape)


def _mesh_groups(axes: str, devices: str, chosen: str) -> np.ndarray:
    """The groups of `mesh['a'=2,'b'=64], device_ids=([64,2]T(1,0)) {'b'}`, whose devices are numbers in order, reshaped
    and transposed. `'b':(2)4` is the part of axis b of size 4 after a part of size 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    numbers = np.arange(math.prod(sizes.values()))
    if iota := re.search(r"device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\)", devices):
        old, order = ([int(n) for n in each.split(",")] for each in iota.groups())
        numbers = np.arange(math.prod(old)).reshape(old).transpose(order).reshape(-1)
    elif listed := re.search(r"device_ids=\(([\d, ]+)\)", devices):
        numbers = np.array([int(n) for n in listed[1].split(",")])
    elif devices:
        raise ValueError(f"the mesh of replica groups has its devices in an unknown form: {devices}")
    shape, inside = [], []
    parts = [(name, before, size) for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen)]
    for name, size in sizes.items():
        borders = {1, size}
        wanted = [(int(before or 1), int(part or size)) for each, before, part in parts if each == name]
        for before, part in wanted:
            borders |= {before, before * part}
        edges = sorted(borders)
        for low, high in pairwise(edges):
            inside.append(any(before <= low and high <= before * part for before, part in wanted))
            shape.append(high // low)
    order = [i for i, chosen in enumerate(inside) if not chosen] + [i for i, chosen in enumerate(inside) if chosen]
    group = math.prod(n for n, chosen in zip(shape, inside, strict=True) if chosen)
    return numbers.reshape(shape).transpose(order).reshape(-1, group)


def axes_of(groups: np.ndarray, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which devices of one group differ."""
    places = np.unravel_index(groups, tuple(mesh_shape.values()))
    return tuple(axis for axis, place in zip(mesh_shape, places, strict=True) if np.any(place != place[:, :1]))


def _ring(pairs: np.ndarray, mesh_shape: Mapping[str, int]) -> int:
    return math.prod(mesh_shape[axis] for axis in axes_of(pairs, mesh_shape))


def _shift(pairs: np.ndarray, mesh_shape: Mapping[str, int]) -> int:
    """The commonest distance from a sender to its receiver, counted along the axes that the pairs span."""
    axes = axes_of(pairs, mesh_shape)
    places = dict(zip(mesh_shape, np.unravel_index(pairs, tuple(mesh_shape.values())), strict=True))
    along = np.zeros_like(pairs)
    for axis in axes:
        along = along * mesh_shape[axis] + places[axis]
    size = _ring(pairs, mesh_shape)
    distances = (along[:, 1] - along[:, 0] + size // 2) % size - size // 2
    values, counts = np.unique(distances, return_counts=True)
    return int(values[np.argmax(counts)])


def _sizes(instruction: Instruction) -> list[tuple[str, int]]:
    """The (element type, bytes) of the arrays of a collective, as its results have them; of a reduce-scatter, times
    the devices. A result may be narrower than its operand: a TPU rounds float32 to bfloat16 on the way."""
    found = arrays(instruction.shape)
    if instruction.opcode.endswith("-start") and instruction.collective != "all-reduce":
        n = len(instruction.operands)  # operands, results, and what the device needs to wait
        found = found[n : 2 * n]
    return found


def _named(instruction: Instruction, where: Computation, gathers: bool) -> Instruction:
    """The instruction that says what a collective serves: itself, or else the nearest with a name among those that use
    its result, as for what is gathered, or among those that make its operand."""
    if instruction.op_name:
        return instruction
    found = [_user(instruction, where), _maker(instruction, where)]
    return next(filter(None, found if gathers else found[::-1]), instruction)


def _user(instruction: Instruction, where: Computation) -> Instruction | None:
    names = {instruction.name}
    for each in where.instructions:
        if names & set(each.operands):
            if each.op_name:
                return each
            names.add(each.name)
    return None


def _maker(instruction: Instruction, where: Computation) -> Instruction | None:
    names = set(instruction.operands)
    for each in reversed(where.instructions):
        if each.name in names:
            if each.op_name:
                return each
            names |= set(each.operands)
    return None


def _is_placed(module: Module, where: Computation, name: str) -> bool:
    """Whether a value is a constant into which the device's own part is written."""
    made, inside = where.source(name), where
    arguments: dict[str, str] = {}
    if made is not None and made.opcode == "fusion":
        inside = module.computations[made.called]
        parameters = {int(x.operands[0]): x.name for x in inside.instructions if x.opcode == "parameter"}
        arguments = {parameters[i]: operand for i, operand in enumerate(made.operands)}
        made = inside.source(inside.root.name)
    if made is None or made.opcode != "dynamic-update-slice":
        return False
    return _is_constant(module, inside, made.operands[0], arguments, where)


def _is_constant(
    module: Module, inside: Computation, name: str, arguments: Mapping[str, str], outside: Computation
) -> bool:
    found = inside.source(name)
    if found is not None and found.name in arguments:
        found, inside = outside.source(arguments[found.name]), outside
    if found is not None and found.opcode == "fusion":
        root = module.computations[found.called].root
        return root.opcode == "broadcast"
    if found is not None and found.opcode == "broadcast":
        found = inside.source(found.operands[0])
    return found is not None and found.opcode == "constant"
