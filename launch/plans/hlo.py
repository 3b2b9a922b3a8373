"""Reading the text of a compiled program, `compiled.as_text()`: its computations, its loops, and its schedule.

XLA gives a program after optimisation as HLO text, in the order in which a device executes it. A schedule is what a
plan needs of it: the cycles that XLA estimates for computation, the collectives between, and how often each loop turns.

TPU programs hold an estimate of cycles for nearly every instruction. Pallas kernels have none, nor have GPU programs.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

DTYPE_BITS = {"pred": 8, "token": 0, "opaque": 0}
"""Bits of an element of the types whose name does not say them."""

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
"""Collectives, as HLO names them."""

KERNELS = ("tpu_custom_call", "triton", "cudnn", "cublas", "Mosaic", "mosaic")
"""Starts of `custom_call_target` (after underscores) of kernels that compute, of which XLA estimates no cycles."""

FUSED_START, FUSED_DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"
"""Targets of custom calls at the root of TPU fusions that start an asynchronous collective, and wait for it."""

CALLERS = 3
"""Number of functions that are named for an instruction: the one that it comes from, and those that call it."""

_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_TABLE = re.compile(r"^(FileNames|FunctionNames|FileLocations|StackFrames)$")
_SHAPE = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)")


@dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    """The name of its result."""
    shape: str
    """The shape of its result, or a tuple of shapes."""
    opcode: str
    """What it does, such as `fusion`."""
    operands: tuple[str, ...]
    """The names of its operands; the value of a constant."""
    attributes: str
    """All that follows."""
    root: bool = False
    """Whether its result is that of the computation."""

    def attribute(self, name: str) -> str | None:
        """The computation that an attribute such as `body` names."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found and found[1]

    @property
    def called(self) -> str | None:
        """The computation that a fusion, a call or an asynchronous operation runs."""
        found = _CALLED.search(self.attributes)
        return found and found[1]

    @property
    def op_name(self) -> str:
        """The path of the JAX operation that it comes from; empty where XLA does not say."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def cycles(self) -> int | None:
        """XLA's estimate; None where there is none, or a negative one."""
        found = re.search(r'"estimated_cycles":"?(-?\d+)', self.attributes)
        return int(found[1]) if found and int(found[1]) >= 0 else None

    @property
    def target(self) -> str:
        """The target of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def channel(self) -> str | None:
        """The number that the parts of one collective share; None where there is none."""
        found = re.search(r"\bchannel_id=(\d+)", self.attributes)
        return found and found[1]

    @property
    def collective(self) -> str | None:
        """The collective that it is, starts or ends."""
        kind = self.opcode.removesuffix("-start").removesuffix("-done")
        return kind if kind in KINDS else None


@dataclass(frozen=True)
class Computation:
    """A list of instructions, in the order of execution."""

    name: str
    """Its name in the module."""
    instructions: tuple[Instruction, ...]
    """Its lines."""

    @cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """{name of a result: its instruction}."""
        return {each.name: each for each in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        """The instruction of its result."""
        return next(each for each in self.instructions if each.root)

    def source(self, name: str) -> Instruction | None:
        """The instruction that makes a value, seen through copies and changes of form."""
        found = self.by_name.get(name)
        while found is not None and found.opcode in (
            "copy",
            "bitcast",
            "convert",
            "reshape",
            "copy-done",
            "copy-start",
        ):
            found = self.by_name.get(found.operands[0])
        return found


@dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: Mapping[str, Computation]
    """Its computations by name."""
    entry: str
    """The name of the computation that it runs."""
    frames: Mapping[int, str] = field(default_factory=dict)
    """{`stack_frame_id` of an instruction: functions, files and lines of Python code, the innermost last}."""


def parse(text: str) -> Module:
    """Reads a module from its text. Raises ValueError for a text without an entry computation."""
    computations, entry, name = {}, None, None
    lines: list[str] = []
    tables: dict[str, list[str]] = {}
    table: list[str] = []
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name, lines = start[2], []
            entry = name if start[1] else entry
        elif name is not None and line.startswith("}") and line.strip() == "}":
            computations[name] = Computation(name, tuple(_instruction(each) for each in lines))
            name = None
        elif name is not None and _INSTRUCTION.match(line):
            lines.append(line)
        elif name is not None and lines:
            lines[-1] += line  # an attribute with line breaks
        elif heading := _TABLE.match(line):
            table = tables.setdefault(heading[1], [])
        elif line and not line.startswith("HloModule"):
            table.append(line)
    if entry is None:
        raise ValueError("the text has no ENTRY computation: give compiled.as_text()")
    return Module(computations, entry, _frames(tables))


def _frames(tables: Mapping[str, Sequence[str]]) -> dict[int, str]:
    names = {
        kind: dict(re.match(r'(\d+) "(.*)"', line).groups() for line in tables.get(kind, ()))
        for kind in ("FileNames", "FunctionNames")
    }
    places = {}
    for line in tables.get("FileLocations", ()):
        if found := re.match(r"(\d+) \{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)", line):
            file, function = names["FileNames"].get(found[2], "?"), names["FunctionNames"].get(found[3], "?")
            places[found[1]] = f"{function} ({'/'.join(file.split('/')[-2:])}:{found[4]})"
    rows = [
        re.match(r"(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?", line)
        for line in tables.get("StackFrames", ())
    ]
    frames = {int(row[1]): (places.get(row[2], "?"), int(row[3] or 0)) for row in rows if row}
    shifted = any(parent >= own for own, (_, parent) in frames.items())  # 1 means none there, and else 0
    parents = {own: parent - shifted for own, (_, parent) in frames.items()}
    chains = {own: [own] for own in frames}
    for chain in chains.values():
        while len(chain) < CALLERS and (parent := parents[chain[0]]) in frames and parent not in chain:
            chain.insert(0, parent)
    return {own: " > ".join(frames[each][0] for each in chain) for own, chain in chains.items()}


def _instruction(line: str) -> Instruction:
    root, name, rest = _INSTRUCTION.match(line).groups()
    end = _closed(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closed("(" + rest, 0) - 1
    inside = re.sub(r"/\*.*?\*/", "", rest[: end - 1])
    operands = tuple(each.split()[-1].lstrip("%") for each in _split(inside) if each.strip())
    return Instruction(name, shape, opcode, operands, rest[end:], bool(root))


def _closed(text: str, start: int) -> int:
    """The place after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if not depth:
            return i + 1
    return len(text)


def _split(text: str) -> list[str]:
    """The parts between commas outside of brackets."""
    parts, depth, begin = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append(text[begin:i])
            begin = i + 1
    return [*parts, text[begin:]]


def arrays(shape: str) -> list[tuple[str, int]]:
    """The (element type, bytes) of each array of a shape, without padding."""
    found = []
    for match in _SHAPE.finditer(re.sub(r"\{[^{}]*\}", "", shape)):
        size = math.prod(int(n.removeprefix("<=")) for n in match[2].split(",") if n)
        found.append((match[1], math.ceil(size * _bits(match[1]) / 8)))
    return found


def _bits(dtype: str) -> int:
    if dtype in DTYPE_BITS:
        return DTYPE_BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def turns(module: Module, loop: Instruction, where: Computation) -> int | None:
    """How often a while loop turns: as XLA says, or else from its counter, which a constant limits; None if unknown."""
    if known := re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.attributes):
        return int(known[1])
    condition = module.computations[loop.attribute("condition")]
    limit = _limit(module, condition)
    if limit is None:
        return None
    index, last = limit
    begin, step = _start(where, loop, index), _step(module.computations[loop.attribute("body")], index)
    return max(0, -(-(last - begin) // step))


def _limit(module: Module, condition: Computation) -> tuple[int, int] | None:
    """The index of a loop's counter in what the loop carries, and the number that ends the loop."""
    compare, inner = condition.root, condition
    arguments = {}
    if compare.opcode == "fusion":
        inner = module.computations[compare.called]
        parameters = {int(each.operands[0]): each.name for each in inner.instructions if each.opcode == "parameter"}
        arguments = {parameters[i]: name for i, name in enumerate(compare.operands)}
        compare = inner.root
    if compare.opcode != "compare":
        return None
    direction = re.search(r"direction=(\w\w)", compare.attributes)[1]
    sides = [_resolve(inner, condition, name, arguments) for name in compare.operands]
    if direction in ("GT", "GE"):
        sides, direction = sides[::-1], direction.replace("G", "L")
    counter, limit = sides
    if direction not in ("LT", "LE", "NE") or counter is None or limit is None:
        return None
    if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
        return None
    index = int(re.search(r"index=(\d+)", counter.attributes)[1])
    return index, int(limit.operands[0]) + (direction == "LE")


def _resolve(inner: Computation, outer: Computation, name: str, arguments: Mapping[str, str]) -> Instruction | None:
    found = inner.source(name)
    if found is not None and found.opcode == "parameter" and found.name in arguments:
        return outer.source(arguments[found.name])
    return found


def _start(where: Computation, loop: Instruction, index: int) -> int:
    """The first value of a loop's counter; 0 where it is not a constant."""
    carried = where.source(loop.operands[0])
    if carried is None or carried.opcode != "tuple":
        return 0
    first = where.source(carried.operands[index])
    return int(first.operands[0]) if first is not None and first.opcode == "constant" else 0


def _step(body: Computation, index: int) -> int:
    """What a turn of a loop adds to its counter; 1 where it is not a constant."""
    if body.root.opcode != "tuple":
        return 1
    added = body.source(body.root.operands[index])
    if added is None or added.opcode != "add":
        return 1
    constants = [each for each in map(body.source, added.operands) if each is not None and each.opcode == "constant"]
    return max(1, int(constants[0].operands[0])) if len(constants) == 1 else 1


@dataclass(frozen=True)
class Compute:
    """Computation of XLA's own instructions."""

    cycles: int
    """XLA's estimate."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of which XLA estimates no cycles."""

    name: str
    """Its name."""


@dataclass(frozen=True)
class Site:
    """Where a collective stands in a program."""

    collective: Instruction
    """The collective."""
    where: Computation
    """The computation that holds it."""
    scheduled: Instruction
    """The instruction that executes it: itself, or the fusion or asynchronous operation around it."""
    outside: Computation
    """The computation that holds the scheduled instruction."""


@dataclass(frozen=True)
class Transfer:
    """A collective that the program waits for, with what the device computes in the same instruction."""

    site: Site
    """The collective."""
    cycles: int = 0
    """Estimate of the computation in the same fusion."""


@dataclass(frozen=True)
class Start:
    """The start of an asynchronous collective."""

    site: Site
    """The collective."""
    key: str
    """Its name, that its end has too."""


@dataclass(frozen=True)
class Done:
    """The end of an asynchronous collective, which the program waits for."""

    key: str
    """The name of its start."""


@dataclass(frozen=True)
class Loop:
    """A loop, or a computation that is called once."""

    turns: int
    """How often it turns; 1 where that is not known."""
    known: bool
    """Whether the number of turns is known."""
    name: str
    """The path of the JAX operation that it comes from."""
    body: "Schedule"
    """One turn."""


Schedule = tuple[Compute | Kernel | Transfer | Start | Done | Loop, ...]
"""What a device does, in order."""


def schedule(module: Module, name: str | None = None) -> Schedule:
    """The schedule of a module, or of one of its computations. A branch counts as the one with the most cycles."""
    return tuple(_merged(_events(module, module.computations[name or module.entry])))


def _events(module: Module, computation: Computation) -> Iterator[Compute | Kernel | Transfer | Start | Done | Loop]:
    begun: dict[str, str] = {}
    for each in computation.instructions:
        if each.opcode == "while":
            n = turns(module, each, computation)
            yield Loop(1 if n is None else n, n is not None, each.op_name, schedule(module, each.attribute("body")))
        elif each.opcode == "conditional":
            cases = [schedule(module, case) for case in branches(each)]
            yield Loop(1, True, each.op_name, max(cases, key=total_cycles))
        elif each.opcode == "call":
            yield Loop(1, True, each.op_name, schedule(module, each.called))
        elif each.opcode.endswith("-done") or each.opcode == "async-update":
            start = _first(computation, each)
            if each.opcode.endswith("-done") and _collective_of(module, start, computation) is not None:
                yield Done(start.name)
        elif (collective := _collective_of(module, each, computation)) is not None:
            yield from _collective_events(module, Site(*collective, each, computation), begun)
        elif each.opcode == "custom-call" and each.target.strip("_").startswith(KERNELS):
            yield Kernel(each.name)
        elif each.cycles:
            yield Compute(each.cycles)


def _collective_events(
    module: Module, site: Site, begun: dict[str, str]
) -> Iterator[Compute | Transfer | Start | Done]:
    """The events of an instruction that is a collective, or holds one.

    A TPU executes an asynchronous collective in fusions, each of which holds the collective: one that starts it, some
    that compute while it goes on, and one that waits for it. `begun` is {channel: fusion that started it}.
    """
    each, channel = site.scheduled, site.collective.channel
    part = module.computations[each.called].root.target if each.opcode == "fusion" else ""
    if each.opcode.endswith("-start") or part == FUSED_START:
        begun[channel] = each.name
        yield Start(site, each.name)
    elif part == FUSED_DONE:
        yield Done(begun.pop(channel, each.name))
    elif channel is None or channel not in begun:
        yield Transfer(site, each.cycles or 0)
        return
    if each.opcode == "fusion" and each.cycles:
        yield Compute(each.cycles)


def _collective_of(module: Module, each: Instruction, where: Computation) -> tuple[Instruction, Computation] | None:
    """The collective that an instruction is, or that the computation in it holds."""
    if each.collective:
        return each, where
    if each.opcode in ("fusion", "async-start") and (inside := module.computations.get(each.called or "")):
        for inner in inside.instructions:
            if found := _collective_of(module, inner, inside):
                return found
    return None


def _first(computation: Computation, done: Instruction) -> Instruction:
    """The start of an asynchronous operation."""
    found = done
    while found.opcode.endswith("-done") or found.opcode in ("async-update", "get-tuple-element", "bitcast"):
        if found.operands[0] not in computation.by_name:
            break
        found = computation.by_name[found.operands[0]]
    return found


def branches(conditional: Instruction) -> list[str]:
    """The computations of which a conditional runs one."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
    if listed:
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return [conditional.attribute(f"{case}_computation") for case in ("true", "false")]


def _merged(events: Iterator) -> Iterator:
    """Events with neighbouring computation added up."""
    waiting = 0
    for event in events:
        if isinstance(event, Compute):
            waiting += event.cycles
            continue
        if waiting:
            yield Compute(waiting)
        waiting = 0
        yield event
    if waiting:
        yield Compute(waiting)


def total_cycles(events: Schedule) -> int:
    """XLA's estimate of a schedule's computation, loops multiplied out; collectives and kernels have none."""
    total = 0
    for event in events:
        if isinstance(event, Loop):
            total += event.turns * total_cycles(event.body)
        elif isinstance(event, Compute | Transfer):
            total += event.cycles
    return total
