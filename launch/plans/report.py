"""A plan as text for a terminal, and as JSON. Every figure says where it comes from.

compiled: read from the compiled program. counted: in the jaxpr of the program. modelled: computed from the program with
assumptions (`bound.py`). datasheet: from the vendor's page (`train/chips.py`).
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ...model.sharding import mesh_words
from .plan import NOT_PLANNED, Plan
from .search import Found
from .topologies import HERE

GIB = 2**30
SECONDS_PER_DAY = 86_400
PREALLOCATED = 0.75
"""The share of a GPU's memory that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""


def lines(plan: Plan, price: float | None = None) -> Iterator[str]:
    """The lines of a report.

    Args:
      plan: the plan.
      price: price of a chip for an hour, in any currency.
    """
    yield from _head(plan)
    yield from _memory(plan)
    yield from _work(plan)
    yield from _collectives(plan)
    yield from _time(plan)
    yield from _run(plan, price)


def _head(plan: Plan) -> Iterator[str]:
    topology = plan.topology
    axes = mesh_words(plan.mesh)
    phase = f"phase {plan.phase}: " if plan.phase else ""
    network = f"{_count(plan.architecture.n_params)} parameters"
    yield f"{phase}{plan.recipe}, {network}, on {topology.name}: {topology.n_chips:,} x {topology.chip.title}"
    if topology.note:
        yield f"  {topology.note}"
    yield f"  mesh {axes}; {plan.tokens:,} tokens a step; planned in {plan.compile_seconds:.0f} s"
    model, optim = plan.settings.model, plan.settings.optim
    parts = f"{optim.accumulate} parts" if optim.accumulate > 1 else "one part"
    yield f"  remat {model.remat}; attention {model.attention}; {optim.name}; a batch in {parts}"


def _memory(plan: Plan) -> Iterator[str]:
    memory, capacity = plan.memory, plan.capacity
    yield f"memory of a device, GiB ({'compiled' if memory.programs else 'counted'})"
    for kind, size in memory.stays.items():
        yield _row(kind, _gib(size))
    for program in memory.programs:
        yield _row(f"{program.name}: activations, gradients, temporaries", _gib(program.temporaries))
    inner = "  " if memory.programs else ""  # of the temporaries
    yield _row(f"{inner}kept for the backward pass (modelled)", _gib(plan.saved_activations))
    for program in memory.programs:
        if program.results:
            yield _row(f"{program.name}: results", _gib(program.results))
        if program.inputs:
            yield _row(f"{program.name}: inputs", _gib(program.inputs))
    if hosted := memory.on_host + max((program.host for program in memory.programs), default=0):
        yield _row("in the host's memory", _gib(hosted))
    share = "" if capacity is None else f" of {_gib(capacity)} ({_source(plan)}), {memory.peak / capacity:.0%}"
    if memory.is_told:
        yield _row("peak", f"{_gib(memory.peak)}{share}")
    elif memory.refused:
        yield _row("peak", "not told by the compiler")
    else:
        yield _row("in all, between steps", f"{_gib(memory.peak)}{share}")
    counted = not memory.programs and not memory.refused and bool(capacity)
    if counted and memory.peak <= capacity < memory.peak + plan.saved_activations:
        yield "  what is kept for the backward pass does not fit beside that, as modelled: plan without --count_only"
    if plan.fits is False:
        yield f"  does not fit{': ' if memory.refused else ''}{memory.refused}"
    elif plan.topology.chip.platform == "gpu" and capacity and memory.peak > PREALLOCATED * capacity:
        yield f"  JAX takes {PREALLOCATED:.0%} of a GPU by default: set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 for more"


def _source(plan: Plan) -> str:
    """Where the capacity of a device is from."""
    return HERE if plan.topology.name == HERE else "datasheet"


def _work(plan: Plan) -> Iterator[str]:
    yield "work of a step, all devices"
    share = ""
    if plan.model_flops is not None:
        yield _row("model FLOPs (modelled)", f"{plan.model_flops:.3e}")
        share = (
            f", of which the model's are {plan.model_flops / plan.hardware_flops:.1%}" if plan.hardware_flops else ""
        )
    yield _row("hardware FLOPs (counted)", f"{plan.hardware_flops:.3e}{share}")
    traffic = sum(program.memory_bytes or 0 for program in plan.programs)
    if traffic:
        yield _row("bytes read and written by a device (compiled)", f"{_gib(traffic)} GiB")
    for note in dict.fromkeys(note for program in plan.programs for note in program.flops.bounds):
        yield f"    an upper bound: {note}"
    for note in dict.fromkeys(note for program in plan.programs for note in program.flops.uncounted):
        yield f"    not counted: {note}"


def _collectives(plan: Plan) -> Iterator[str]:
    groups: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for program in plan.programs:
        for counted in program.collectives:
            one = counted.collective
            total = groups[" and ".join(one.axes), one.kind]
            total[0] += counted.times
            total[1] += counted.times * one.moved
            total[2] += counted.times * one.moved * one.asynchronous
    if not groups:
        return
    yield "collectives of a device in a step (compiled)"
    for (axes, kind), (times, moved, hidden) in sorted(groups.items(), key=lambda item: -item[1][1]):
        share = f", {hidden / moved:.0%} asynchronous" if moved else ""
        yield _row(f"{kind} along {axes}", f"{times:,} x, {_gib(moved)} GiB sent{share}")


def _time(plan: Plan) -> Iterator[str]:
    roofline, modelled = plan.roofline_seconds, plan.modelled_seconds
    if roofline is not None:
        limit = max((p.roofline for p in plan.programs), key=lambda each: each.seconds).limit
        yield "time of a step, at best"
        yield _row("roofline (datasheet)", _speed(plan, roofline, limit))
    if modelled is None:
        return
    limit = max((p.modelled for p in plan.programs), key=lambda each: each.seconds).limit
    yield _row("by XLA's schedule (modelled)", _speed(plan, modelled, limit))
    parts: dict[str, float] = defaultdict(float)
    for each in (program.modelled for program in plan.programs):
        parts["computation"] += each.compute + each.kernels
        for axes, seconds in each.exposed.items():
            parts[f"waiting for collectives along {' and '.join(axes)}"] += seconds
    for name, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        yield _row(f"  {name}", f"{seconds:#.3g} s, {seconds / modelled:.1%}")
    hidden = sum(sum(each.modelled.busy.values()) for each in plan.programs)
    exposed = sum(sum(each.modelled.exposed.values()) for each in plan.programs)
    if hidden:
        yield _row("  collectives that computation hides", f"{1 - exposed / hidden:.0%}")


def _speed(plan: Plan, seconds: float, limit: str) -> str:
    share = plan.mfu(seconds)
    mfu = "" if share is None else f", {share:.1%} of peak"
    return f"{seconds:#.3g} s{mfu}; limited by {limit}"


def _run(plan: Plan, price: float | None) -> Iterator[str]:
    if not plan.is_counted:
        yield "time of a step: unknown, since some of its work is not counted"
    if not plan.seconds:
        if price is not None:
            yield "price of the run: unknown, as the time of a step is"
        return
    chips = plan.topology.n_chips
    per_second = plan.tokens / plan.seconds
    yield "the run, at that speed (modelled)"
    yield _row("tokens", f"{per_second:,.0f} a second, {per_second / chips:,.1f} for a chip")
    yield _row("tokens a day", _count(per_second * SECONDS_PER_DAY))
    if price is not None:
        hours = 1e9 / per_second / 3600 * chips
        yield _row("a billion tokens", f"{_rounded(hours)} chip-hours, at {price:g} an hour {_rounded(hours * price)}")
    if plan.steps is None:
        yield _row("days", "unknown: the run's length depends on the data")
        return
    days = plan.steps * plan.seconds / SECONDS_PER_DAY
    hours = days * 24 * chips
    cost = "" if price is None else f", at {price:g} an hour {_rounded(hours * price)}"
    yield _row("days", f"{_rounded(days)} for {plan.steps:,} steps; {_rounded(hours)} chip-hours{cost}")
    yield f"  without {NOT_PLANNED}"


def search_lines(found: Found, flags: str) -> Iterator[str]:
    """The lines of settings that a search compiled; `flags` are those that change the config to them."""
    plan = found.plan
    yield flags
    peak = "unknown" if plan.memory.refused and not plan.memory.needed_if_refused else f"{_gib(plan.memory.peak)} GiB"
    if not plan.fits:
        yield _row("does not fit", f"{peak} of {_gib(plan.capacity)}")
        return
    yield _row("memory of a device", f"{peak} of {_gib(plan.capacity)}")
    if plan.seconds is None:
        yield _row("hardware FLOPs", f"{plan.hardware_flops:.3e}; some of the work is not counted")
        return
    yield _row("model's share of hardware FLOPs", f"{plan.model_flops / plan.hardware_flops:.1%}")
    kind = "roofline" if plan.modelled_seconds is None else "modelled"
    yield _row(f"time of a step ({kind})", f"{plan.seconds:#.3g} s, {plan.mfu(plan.seconds):.1%} of peak")


def _row(name: str, value: str) -> str:
    return f"  {name:<48} {value}"


def _gib(size: float) -> str:
    """Bytes in GiB, with two digits at least and at most two behind the point."""
    if size > 100 * GIB:
        return f"{size / GIB:,.0f}"
    return f"{size / GIB:.2f}" if size > GIB / 10 else f"{size / GIB:.2g}"


def _rounded(number: float) -> str:
    """A number of 100 or more as a whole number, a smaller one with three digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _count(number: float) -> str:
    """A number with a unit: 65.3 billion."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}"


def to_json(plan: Plan, price: float | None = None) -> dict[str, Any]:
    """A plan for JSON: bytes, FLOPs and seconds, in sections named by where the figures come from."""
    chip, memory = plan.topology.chip, plan.memory
    hours = plan.steps and plan.seconds and plan.steps * plan.seconds / 3600 * plan.topology.n_chips
    return {
        "phase": plan.phase,
        "recipe": plan.recipe,
        "topology": plan.topology.name,
        "chips": plan.topology.n_chips,
        "devices": plan.topology.n_devices,
        "mesh": dict(plan.mesh),
        "parameters": plan.architecture.n_params,
        "tokens_per_step": plan.tokens,
        "steps": plan.steps,
        "remat": plan.settings.model.remat,
        "attention": plan.settings.model.attention,
        "optimizer": plan.settings.optim.name,
        "accumulate": plan.settings.optim.accumulate,
        "fits": plan.fits,
        "datasheet": {
            "source": chip.source,
            "capacity": plan.capacity,
            "flops_bf16": chip.flops_bf16,
            "hbm_bandwidth": chip.hbm_bandwidth,
            "roofline_seconds": plan.roofline_seconds,
            "roofline_mfu": plan.mfu(plan.roofline_seconds),
        },
        "compiled": {
            "programs": {
                p.name: {"temporaries": p.temporaries, "results": p.results, "inputs": p.inputs}
                for p in memory.programs
            },
            "on_host": memory.on_host,
            "memory_bytes": {p.name: p.memory_bytes for p in plan.programs},
            "peak": memory.peak if memory.is_told else None,
            "refused": memory.refused or None,
            "collectives": [_collective(p.name, counted) for p in plan.programs for counted in p.collectives],
        },
        "counted": {
            "hardware_flops": plan.hardware_flops,
            "stays": dict(memory.stays),
            "not_counted": sorted({note for program in plan.programs for note in program.flops.uncounted}),
        },
        "modelled": {
            "model_flops": plan.model_flops,
            "saved_activations": plan.saved_activations,
            "seconds": plan.modelled_seconds,
            "mfu": plan.mfu(plan.modelled_seconds),
            "exposed": {
                p.name: {"+".join(axes): seconds for axes, seconds in p.modelled.exposed.items()}
                for p in plan.programs
                if p.modelled
            },
            "tokens_per_day": plan.seconds and plan.tokens / plan.seconds * SECONDS_PER_DAY,
            "chip_hours": hours,
            "price": hours and price and hours * price,
        },
    }


def _collective(program: str, counted: Any) -> dict[str, Any]:
    one = counted.collective
    return {
        "program": program,
        "kind": one.kind,
        "axes": list(one.axes),
        "times": counted.times,
        "bytes": one.bytes,
        "dtype": one.dtype,
        "asynchronous": one.asynchronous,
        "what": one.what,
        "source": one.source,
    }
