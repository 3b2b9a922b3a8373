"""The plan of a server: what `camelid serve` needs on devices that may be absent, and how fast it can decode.

A server keeps the parameters as they were loaded, their copy in the form of a decoder, rows of keys and values, and
blocks of prompts. Its programs are compiled here from shapes, for what they need beside them.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ... import checkpoints
from ...checkpoints import AdapterCheckpoint
from ...errors import UserError
from ...model import llama, slots, storage, xla_cpu
from ...model.config import PRESETS, LlamaConfig
from ...model.rows import make_decoder
from ...model.sampling import TokenTables
from ...model.sharding import make_mesh, placed, shardings
from ...serve.engine import slots_of
from ...serve.programs import Call, Program, calls_of, compile_program
from .memory import bytes_per_device
from .topologies import Topology

LARGEST = ("read", "score", "embed", "forward", "draw", "forward alone")
"""Programs that need most memory beside the rows. The others copy chunks of a row."""
GIB = 2**30


@dataclass(frozen=True)
class Served:
    """What a server is started with. The fields are the options of `camelid serve`."""

    config: LlamaConfig
    """The model's architecture, with its dtypes and the dtype of its cache."""
    quantize: str | None = None
    """How matrices are stored: int8, int4 or nf4; None: as they are."""
    rows: int = 8
    """Number of answers that are written at a time."""
    max_len: int | None = None
    """Most tokens of a prompt and its answer; None: the model's context."""
    chunk: int = 32
    """Tokens of a prompt that are read at a time."""
    kept_chunks: int | None = None
    """Chunks of prompts that are kept; None: as many as the rows hold."""
    exact: bool = True
    """Whether an answer that is alone comes from the same program as others."""

    @property
    def length(self) -> int:
        """Slots of a row."""
        return slots_of(self.config.max_len if self.max_len is None else self.max_len, self.chunk)

    @property
    def blocks(self) -> int:
        """Number of chunks that are kept."""
        whole = self.rows * self.length // self.chunk
        return max(whole if self.kept_chunks is None else self.kept_chunks, 1)


@dataclass(frozen=True)
class ServingPlan:
    """The plan of a server."""

    served: Served
    """What was planned."""
    topology: Topology
    """The devices."""
    mesh: Mapping[str, int]
    """Devices along each axis."""
    loaded: int
    """Bytes of a device for the parameters as they were loaded."""
    decoder: int
    """Bytes of a device for the parameters in the form of a decoder."""
    read_by_step: int
    """Bytes of the decoder that a step reads: all but the rows of the embedding, of which few are looked up."""
    rows: int
    """Bytes of a device for the rows: keys, values, and what is drawn."""
    kept: int
    """Bytes of a device for the chunks of prompts that are kept."""
    starting: int
    """Bytes of a device beside the parameters while the decoder is made from them."""
    programs: Mapping[str, int]
    """{program: bytes of its temporaries and results}, of the largest programs."""

    @property
    def capacity(self) -> int | None:
        """Bytes of a device that a program may use; None for a chip without a datasheet."""
        chip = self.topology.chip
        total = chip.hbm_usable or chip.hbm_bytes
        return total and total // chip.devices_per_chip

    @property
    def stays(self) -> int:
        """Bytes that a server keeps."""
        return self.loaded + self.decoder + self.rows + self.kept

    @property
    def peak(self) -> int:
        """The most bytes of a device at a time."""
        return max(self.loaded + self.decoder + self.starting, self.stays + max(self.programs.values()))

    @property
    def fits(self) -> bool | None:
        """Whether the server fits into memory; None where the capacity is not known."""
        return None if self.capacity is None else self.peak <= self.capacity

    def tokens_per_second(self, filled: float) -> float | None:
        """The most tokens a second that all rows write together; None if the datasheet lacks a figure.

        A step reads the weights and what rows hold, and computes the products of all rows, whichever takes longer.

        filled: the share of each row's slots that holds tokens.
        """
        chip, served = self.topology.chip, self.served
        if chip.hbm_bandwidth is None or chip.flops_bf16 is None:
            return None
        moved = (self.read_by_step + filled * self.rows) / chip.hbm_bandwidth
        forward = served.config.flops_per_token(1) / 3  # a third of a training step's
        computed = served.rows * forward / math.prod(self.mesh.values()) / chip.flops_bf16
        return served.rows / (max(moved, computed) * chip.devices_per_chip)


def config_of(
    name: str, *, dtype: str | None, cache: str | None, rope: tuple[str, int] | None, weights: str | None = None
) -> LlamaConfig:
    """The architecture of a checkpoint, or of a name in `PRESETS`, changed as `camelid serve` changes it.

    An architecture without a checkpoint has parameters in bfloat16 by default. Raises UserError for what is neither,
    and for options that do not fit.
    """
    if name in PRESETS and not Path(name).exists():
        config, dtype = LlamaConfig.preset(name), dtype or "bfloat16"
    else:
        found = checkpoints.open(name, weights)
        if found.kind == "scalar" or isinstance(found, AdapterCheckpoint):
            raise UserError(f"--serve={name}: a plan is for a whole language model: give one, or its architecture")
        config = found.config
    if dtype is not None:
        config = config.replace(dtype=dtype, param_dtype=dtype)
    try:
        config = config.replace(cache=cache)
        return config if rope is None else config.stretched(rope[0], max_len=rope[1])
    except ValueError as error:
        raise UserError(f"--serve={name}: {error}") from None


def serving_plan(served: Served, topology: Topology, axes: Mapping[str, int]) -> ServingPlan:
    """Plans a server. axes: devices along each mesh axis, of which there may be fewer than the topology has.

    Raises UserError for devices that are not there, and for options that do not fit.
    """
    n = math.prod(axes.values())
    if n > len(topology.devices):
        raise UserError(
            f"--mesh of {n} devices: {topology.name} has {len(topology.devices)}: give sizes for at most these"
        )
    mesh = make_mesh(axes, topology.devices[:n])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return _planned(served, topology, mesh)


def _planned(served: Served, topology: Topology, mesh: Mesh) -> ServingPlan:
    config = served.config
    params = _placed(llama.build(config).abstract_params, mesh)
    if served.quantize is not None:
        rules = storage.rules_of(served.quantize)
        params = _placed(jax.eval_shape(functools.partial(storage.quantize, rules=rules), params), mesh)
    options = xla_cpu.compiler_options(params)
    make = functools.partial(make_decoder, config, max(served.chunk, served.rows), bool(options))
    making = compile_program("decoder", make, params, ())
    decoder = placed(jax.eval_shape(make, params, ()), making.call.output_shardings)
    rows = _made(lambda: slots.empty(config, served.rows, served.length), mesh)
    blocks = _made(lambda: slots.empty_caches(config, served.blocks, served.chunk), mesh)
    offsets = _made(lambda: jnp.zeros((served.rows, config.vocab_size), jnp.float32), mesh)
    how = dict(
        chunk=served.chunk, most_blocks=served.length // served.chunk, alone=not served.exact and served.rows > 1
    )
    programs = {
        call.name: _beside(_compiled(call))
        for call in calls_of(decoder, rows, blocks, TokenTables(None, None), offsets, **how, options=options)
        if call.name in LARGEST
    }
    whole = _bytes(decoder)
    table = 0 if config.tied else _bytes(decoder.table)
    return ServingPlan(
        served,
        topology,
        dict(mesh.shape),
        loaded=_bytes(params),
        decoder=whole,
        read_by_step=whole - table,
        rows=_bytes(rows) + _bytes(offsets),
        kept=_bytes(blocks),
        starting=making.bytes,
        programs=programs,
    )


def _placed(tree: Any, mesh: Mesh) -> Any:
    try:
        return placed(tree, shardings(tree, mesh))
    except ValueError as error:
        raise UserError(f"--mesh: {error}") from None


def _made(make: Callable[[], Any], mesh: Mesh) -> Any:
    """The shapes of what make() returns on the devices of a mesh, with the shardings that the compiler chooses."""
    somewhere = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    done = jax.jit(lambda _: make(), keep_unused=True).lower(somewhere).compile()
    return placed(jax.eval_shape(make), done.output_shardings)


def _compiled(call: Call) -> Program:
    return compile_program(call.name, call.function, *call.arguments, changes=call.changes, options=call.options)


def _beside(program: Program) -> int:
    """Bytes of a program's temporaries, and of results that are not written in place of arguments."""
    memory = program.call.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _bytes(tree: Any) -> int:
    """Bytes of one device; of random keys, which are small, those of their numbers."""
    return sum(
        bytes_per_device(leaf)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool
    )


def largest(plan: ServingPlan) -> ServingPlan | None:
    """The plan with the largest number of rows that fits, compiled for that number; None if not one row fits.

    The number follows from what a row needs in `plan`, and again from what it needs in each plan that is compiled,
    until the next number is less than a twentieth larger.
    """
    best, too_many, rows = None, None, _most_rows(plan)
    while rows and (best is None or rows > 1.05 * best.served.rows):
        same = rows == plan.served.rows
        found = plan if same else serving_plan(replace(plan.served, rows=rows), plan.topology, plan.mesh)
        best, too_many = (found, too_many) if found.fits else (best, rows)
        rows = _most_rows(found) if too_many is None else min(_most_rows(found), too_many - 1)
    return plan if plan.fits and (best is None or best.served.rows < plan.served.rows) else best


def _most_rows(plan: ServingPlan) -> int:
    """The largest number of rows that fit if a row needs what it needs in `plan`.

    Chunks that are kept grow with the rows unless their number is given, and so do the temporaries of a step.
    """
    if plan.loaded + plan.decoder + plan.starting > plan.capacity:
        return 0
    served, given = plan.served, plan.served.kept_chunks is not None
    step = max(plan.programs[name] for name in ("forward", "draw"))
    growing = plan.rows + step + (0 if given else plan.kept)
    fixed = plan.loaded + plan.decoder + (plan.kept if given else 0) + max(plan.programs.values()) - step
    return max(int((plan.capacity - fixed) // (growing / served.rows)), 0)


# The report ----------------------------------------------------------------------------------------------------------


def lines(plan: ServingPlan, most: ServingPlan | None, price: float | None = None) -> Iterator[str]:
    """The lines of a report.

    Args:
      plan: the plan.
      most: the plan with the most slots that fit; None if none fits, or if the capacity is not known.
      price: price of a chip for an hour, in any currency.
    """
    served, topology = plan.served, plan.topology
    axes = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    stored = served.quantize or served.config.param_dtype
    yield f"serving {served.config.n_params:,} parameters in {stored} on {topology.name}: {topology.chip.title}, {axes}"
    yield f"  {served.rows:,} slots of {served.length:,} tokens, {served.blocks:,} kept chunks of {served.chunk}"
    yield "memory of a device, GiB (compiled)"
    yield _row("weights as loaded", _gib(plan.loaded))
    yield _row("weights in the form of the decoder", _gib(plan.decoder))
    yield _row("keys and values of the slots", _gib(plan.rows))
    yield _row("kept chunks of prompts", _gib(plan.kept))
    for name, size in sorted(plan.programs.items(), key=lambda item: -item[1]):
        yield _row(f"{name}: temporaries and results", _gib(size))
    share = f" of {_gib(plan.capacity)} (datasheet), {plan.peak / plan.capacity:.0%}" if plan.capacity else ""
    yield _row("peak", _gib(plan.peak) + share)
    yield _row("peak while the server starts", _gib(plan.loaded + plan.decoder + plan.starting))
    if plan.fits is False:
        yield "  does not fit: give fewer --slots, --kept_chunks or --max_len, or --quantize"
    if plan.capacity is not None:
        fits = f"{most.served.rows:,}, with a peak of {_gib(most.peak)}" if most else "none fits"
        yield _row(f"largest number of slots of {served.length:,} tokens", fits)
    yield from _speed(plan, most, price)


def _speed(plan: ServingPlan, most: ServingPlan | None, price: float | None) -> Iterator[str]:
    if plan.tokens_per_second(1.0) is None:
        if price is not None:
            yield "price of tokens: unknown, as their number a second is"
        return
    yield "tokens a second of all slots together, at most (datasheet)"
    chips = max(1, math.prod(plan.mesh.values()) // plan.topology.chip.devices_per_chip)
    for each in [plan] if most is None or most.served == plan.served else [plan, most]:
        for name, filled in (("short answers", 0.0), ("full slots", 1.0)):
            speed = each.tokens_per_second(filled)
            cost = (
                "" if price is None else f", at {price:g} an hour {price * chips / speed / 3600 * 1e6:,.3g} a million"
            )
            yield _row(f"{each.served.rows:,} slots, {name}", f"{speed:,.0f}{cost}")
    yield "  by the bandwidth of memory and the peak of matrix units; without prompts, links and the host"


def _row(name: str, value: str) -> str:
    return f"  {name:<48} {value}"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}" if size > GIB / 10 else f"{size / GIB:.2g}"


def to_json(plan: ServingPlan, most: ServingPlan | None) -> dict[str, Any]:
    """A plan for JSON: bytes, and tokens a second."""
    return {
        "topology": plan.topology.name,
        "mesh": dict(plan.mesh),
        "parameters": plan.served.config.n_params,
        "slots": plan.served.rows,
        "max_len": plan.served.length,
        "kept_chunks": plan.served.blocks,
        "fits": plan.fits,
        "capacity": plan.capacity,
        "compiled": {
            "weights_loaded": plan.loaded,
            "weights_decoder": plan.decoder,
            "slots": plan.rows,
            "kept_chunks": plan.kept,
            "programs": dict(plan.programs),
            "peak": plan.peak,
        },
        "most_slots": most and most.served.rows,
        "tokens_per_second": {"short": plan.tokens_per_second(0.0), "full": plan.tokens_per_second(1.0)},
    }
