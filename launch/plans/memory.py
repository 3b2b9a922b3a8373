"""The memory of one device: what stays between steps, by kind, and what a program needs beside it."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from .planned_run import PlannedStep, Program

KINDS = {
    "params": "parameters",
    "opt_state": "optimiser state",
    "ema": "moving average",
    "base": "frozen base weights",
    "frozen": "frozen models",
    "batch": "batch",
}
"""{entry of a program's arguments or of its state: its name in a report}. Everything else is counters."""


@dataclass(frozen=True)
class ProgramMemory:
    """What one program needs on a device beside what stays between steps, in bytes."""

    name: str
    """Name of the program."""
    temporaries: int
    """Activations, gradients and everything else that the program computes with."""
    results: int
    """Results that are not written in place of arguments."""
    inputs: int = 0
    """What it takes from the program before it, which no other program needs."""
    host: int = 0
    """Temporaries in the host's memory."""
    in_place: int = 0
    """Arguments in whose place results are written."""


@dataclass(frozen=True)
class Memory:
    """Memory of one device, in bytes. The parts are those of the compiled programs."""

    stays: Mapping[str, int]
    """What stays between steps, by kind."""
    programs: tuple[ProgramMemory, ...] = ()
    """What each program needs beside it."""
    on_host: int = 0
    """What stays in the host's memory, for one device."""
    refused: str = ""
    """Why the compiler refused a program, in its own words; empty where every program fits."""
    needed_if_refused: int | None = None
    """The peak that the compiler names in its refusal."""

    @property
    def is_told(self) -> bool:
        """Whether the compiler has told the peak: of a step that it refused, it may not."""
        return self.needed_if_refused is not None or (bool(self.programs) and not self.refused)

    @property
    def peak(self) -> int:
        """The most memory of a device at a time."""
        if self.needed_if_refused is not None:
            return self.needed_if_refused
        beside = (p.temporaries + p.results + p.inputs for p in self.programs)
        return sum(self.stays.values()) + max(beside, default=0)


def memory_of(step: PlannedStep, compiles: bool = True) -> Memory:
    """The memory of one device in a step, whose programs are compiled here if they are not yet.

    compiles: whether programs are compiled; without, only what stays between steps is known.
    """
    stays, on_host = _stays(step.programs)
    found, refused, needed = [], "", None
    for number, program in enumerate(step.programs if compiles else ()):
        try:
            stats = program.compiled.memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refused = _told(str(error))
            needed = _needed(str(error), sum(stays.values()), _on_device(program.arguments))
            break
        results = stats.output_size_in_bytes - stats.alias_size_in_bytes
        host, in_place = stats.host_temp_size_in_bytes, stats.alias_size_in_bytes
        inputs = _on_device(program.arguments["batch"]) if number else 0
        found.append(ProgramMemory(program.name, stats.temp_size_in_bytes, results, inputs, host, in_place))
    return Memory(stays, tuple(found), on_host, refused=refused, needed_if_refused=needed)


def _stays(programs: Iterable[Program]) -> tuple[dict[str, int], int]:
    """Bytes of one device that stay between steps, by kind, and bytes that stay in the host's memory."""
    trees: dict[str, Any] = {}
    for program in programs:
        arguments = program.arguments
        state = arguments["state"]
        trees |= {name: arguments["base"] for name in ("base",) if arguments["base"]}
        trees |= {"frozen": arguments["frozen"]} if jax.tree.leaves(arguments["frozen"]) else {}
        trees |= {name: state[name] for name in ("params", "opt_state", "ema") if name in state}
        trees.setdefault("batch", arguments["batch"])
    sizes, on_host = {}, 0
    for name in KINDS:
        leaves = jax.tree.leaves(trees.get(name, {}))
        on_host += sum(bytes_per_device(leaf) for leaf in leaves if _on_host(leaf))
        if size := _on_device(leaves):
            sizes[KINDS[name]] = size
    return sizes, on_host


def bytes_per_device(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array on one device, by its sharding."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _on_device(tree: Any) -> int:
    """Bytes of a tree in the memory of one device."""
    return sum(bytes_per_device(leaf) for leaf in jax.tree.leaves(tree) if not _on_host(leaf))


def _on_host(leaf: jax.ShapeDtypeStruct) -> bool:
    return getattr(leaf.sharding, "memory_kind", None) == "pinned_host"


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _needed(message: str, stays: int, own: int) -> int | None:
    """The memory that a step needs, in bytes, from the compiler's error for a program that does not fit.

    Args:
      message: the error.
      stays: bytes that stay between steps, which a figure of temporaries does not include.
      own: bytes of the program's own arguments, which a figure of everything it uses includes.
    """
    patterns = (
        (r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", max(stays - own, 0)),
        (r"temporaries \(([\d.]+)([KMGT]?)", stays),
        (r"allocate ([\d.]+)([KMGT]?)i?B", 0),
    )
    for pattern, beside in patterns:
        if found := re.search(pattern, message):
            return int(float(found[1]) * _UNITS[found[2]]) + beside
    return None


def _told(message: str) -> str:
    """The first sentence of the compiler's refusal."""
    return message.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
