"""The budget of a step: what must not change unnoticed about its compiled programs, as JSON for a file.

A budget has the memory of a device, FLOPs, collectives, which arrays of the state are updated in place, and how each
array is split. `differences` compares a budget with that of the same step compiled anew. Everything is compared
exactly but bytes that depend on the compiler's version: temporaries, results, the peak, and bytes of collectives.
"""

import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax

from ...model.sharding import path_name
from .collectives import Collective
from .hlo import parse
from .plan import Plan
from .planned_run import Program

TOLERANCE = 0.02
"""Largest relative difference of bytes that depend on the compiler's version."""
COMPILERS = {"tpu": "libtpu", "gpu": "jax-cuda12-plugin", "cpu": "jaxlib"}
"""{platform: the package whose compiler compiles for it}."""

Budget = dict[str, Any]
"""A budget as JSON."""


def budget_of(plan: Plan) -> Budget:
    """The budget of a plan whose programs are compiled."""
    platform = plan.topology.chip.platform
    return {
        "made_with": {"jax": jax.__version__, COMPILERS[platform]: _version(COMPILERS[platform])},
        "topology": plan.topology.name,
        "mesh": {axis: size for axis, size in plan.mesh.items() if size > 1},
        "parameters": plan.architecture.n_params,
        "tokens": plan.tokens,
        "refused": plan.memory.refused,
        "memory": {"stays": dict(plan.memory.stays), "on_host": plan.memory.on_host},
        "compiled_memory": {"peak": plan.memory.peak} | _temporaries(plan),
        "updated_in_place": {program.name: program.in_place for program in plan.memory.programs},
        "hardware_flops": {program.name: program.flops.total for program in plan.programs},
        "collectives": {program.name: _groups(program.collectives) for program in plan.programs},
        "copied": {} if plan.memory.refused else {each.name: copied(each) for each in _updates(plan)},
        "shardings": _shardings(plan.step.programs),
        "speed": _speed(plan),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _temporaries(plan: Plan) -> dict[str, int]:
    found = {}
    for program in plan.memory.programs:
        found |= {f"{program.name}: temporaries": program.temporaries, f"{program.name}: results": program.results}
    return found


def _speed(plan: Plan) -> dict[str, Any]:
    """Figures for tables, which nothing is compared with. A step with loops of unknown length has no time."""
    seconds, modelled = plan.seconds, plan.modelled_seconds is not None
    bounds = [each.modelled if modelled else each.roofline for each in plan.programs]
    slowest = max((each for each in bounds if each is not None and each.seconds), key=lambda x: x.seconds, default=None)
    return {
        "capacity": plan.capacity,
        "model_flops": plan.model_flops,
        "bound": "schedule" if modelled else "roofline",
        "seconds": seconds,
        "mfu": plan.mfu(seconds),
        "limit": slowest.limit if seconds and slowest else None,
        "tokens_per_second_per_chip": seconds and plan.tokens / seconds / plan.topology.n_chips,
    }


# Collectives ---------------------------------------------------------------------------------------------------------


def _groups(collectives: Any) -> list[dict[str, Any]]:
    """Collectives in groups of one kind, along the same axes, that serve the same kind of operation."""
    found: dict[tuple, dict[str, Any]] = {}
    for counted in collectives:
        one = counted.collective
        kind = f"{one.kind} that gathers" if one.gathers else one.kind
        key = kind, "+".join(one.axes), serves(one)
        new = {"kind": key[0], "axes": key[1], "serves": key[2], "times": 0, "asynchronous": 0, "bytes": 0, "from": []}
        group = found.setdefault(key, new)
        group["times"] += counted.times
        group["asynchronous"] += counted.times * one.asynchronous
        group["bytes"] += counted.times * one.bytes
        if (source := re.sub(r" \([^()]*\)", "", one.source)) and source not in group["from"]:
            group["from"].append(source)
    return [found[key] for key in sorted(found)]


def serves(one: Collective) -> str:
    """The part of a step and the JAX operation that a collective serves, such as `backward dot_general`.

    It does not name lines of code, which move.
    """
    path = one.what
    part = "recomputed " if "rematted_computation" in path else "backward " if "transpose(" in path else ""
    part = part or ("forward " if "jvp(" in path else "")
    if "/" not in path:
        return "an unnamed operation"
    return part + ("several operations" if ":" in path else path.rsplit("/", 1)[1])


# Donation and shardings ----------------------------------------------------------------------------------------------


def _updates(plan: Plan) -> Iterator[Program]:
    """The programs that change the state."""
    return (program for program in plan.step.programs if program.name != "rollout")


def copied(program: Program) -> list[str]:
    """Arrays of the state that a program does not update in place, so that a device holds them twice."""
    text = program.compiled.as_text()
    module = parse(text)
    aliases = re.search(r"input_output_alias=\{(.*?)\}, \w+=", text.split("\n", 1)[0])
    in_place = {int(number) for number in re.findall(r"\}: \((\d+)", aliases[1])} if aliases else set()
    parameters = {
        each.op_name.replace("\\", ""): int(each.operands[0])
        for each in module.computations[module.entry].instructions
        if each.opcode == "parameter"
    }
    state = jax.tree_util.tree_leaves_with_path(program.arguments["state"])
    named = {f"state{jax.tree_util.keystr(path)}": path_name(path) for path, _ in state}
    return sorted(name for key, name in named.items() if key in parameters and parameters[key] not in in_place)


def _shardings(programs: Any) -> dict[str, str]:
    """{path of an array of the state, the frozen base or the frozen models: the mesh axes that split its axes}."""
    found: dict[str, str] = {}
    for program in programs:
        trees = {"": program.arguments["state"]} | {name: program.arguments[name] for name in ("base", "frozen")}
        for prefix, tree in trees.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                name = "/".join(filter(None, (prefix, path_name(path))))
                found.setdefault(name, _spec(leaf))
    return found


def _spec(leaf: jax.ShapeDtypeStruct) -> str:
    """A sharding in words: `- fsdp tensor` splits the second axis over fsdp and the third over tensor."""
    if leaf.sharding is None:
        return "left to the compiler"
    axes = ["-" if axis is None else axis if isinstance(axis, str) else "+".join(axis) for axis in leaf.sharding.spec]
    while axes and axes[-1] == "-":
        axes.pop()
    host = ", in the host's memory" if leaf.sharding.memory_kind == "pinned_host" else ""
    return (" ".join(axes) or "whole") + host


# Comparison ----------------------------------------------------------------------------------------------------------


def differences(name: str, budget: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One line for each difference of a step from its budget, with the name of the program and of what differs.

    Args:
      name: the name of the budget.
      budget: the budget as it was kept.
      found: the budget of the step as it is compiled now.
    """
    lines = [f"{where}: {said}" for where, said in _differences(budget, found)]
    if lines and budget["made_with"] != found["made_with"]:
        lines.append(f"the budget was made with {_words(budget['made_with'])}, now {_words(found['made_with'])}")
    return [f"{name}: {line}" for line in lines]


def _words(versions: Mapping[str, str]) -> str:
    return " and ".join(f"{package} {version}" for package, version in versions.items())


def _differences(budget: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("topology", "mesh", "parameters", "tokens", "refused"):
        if budget[key] != found[key]:
            yield key, f"{found[key]!r}, {budget[key]!r} in the budget"
    yield from _sizes("memory of a device", budget["memory"]["stays"], found["memory"]["stays"])
    on_host = ({"in the host's memory": each["memory"]["on_host"]} for each in (budget, found))
    yield from _sizes("memory of a device", *on_host)
    yield from _sizes("memory of a device", budget["compiled_memory"], found["compiled_memory"], TOLERANCE)
    for name, size in budget["updated_in_place"].items():
        if (now := found["updated_in_place"].get(name)) != size:
            yield name, f"{_bytes(now)} of the state updated in place, {_bytes(size)} in the budget"
    for name in _names(budget["copied"], found["copied"]):
        before, now = (set(each["copied"].get(name, ())) for each in (budget, found))
        yield from ((name, f"{leaf} is not updated in place, in the budget it is") for leaf in sorted(now - before))
        yield from ((name, f"{leaf} is updated in place, in the budget it is not") for leaf in sorted(before - now))
    for name in _names(budget["hardware_flops"], found["hardware_flops"]):
        before, now = (each["hardware_flops"].get(name) for each in (budget, found))
        if before != now:
            yield name, f"{_flops(now)} hardware FLOPs, {_flops(before)} in the budget"
    for name in _names(budget["collectives"], found["collectives"]):
        yield from (
            (name, line) for line in _of_collectives(*(each["collectives"].get(name, []) for each in (budget, found)))
        )
    for name in _names(budget["shardings"], found["shardings"]):
        before, now = (each["shardings"].get(name, "not there") for each in (budget, found))
        if before != now:
            yield "sharding", f"{name} is split as ({now}), in the budget ({before})"


def _names(*tables: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))


def _sizes(
    where: str, budget: Mapping[str, int], found: Mapping[str, int], tolerance: float = 0.0
) -> Iterator[tuple[str, str]]:
    for name in _names(budget, found):
        before, now = budget.get(name, 0), found.get(name, 0)
        if abs(now - before) > tolerance * before:
            yield where, f"{name} {_bytes(now)}, {_bytes(before)} in the budget"


def _of_collectives(budget: list, found: list) -> Iterator[str]:
    before, now = ({(x["kind"], x["axes"], x["serves"]): x for x in groups} for groups in (budget, found))
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        what = f"{key[0]} along {key[1]} for {key[2]}"
        sources = (new or old)["from"]
        origin = f" (from {', '.join(sources)})" if sources else ""
        if old is None:
            yield f"{what} {new['times']:,} times, {_bytes(new['bytes'])}, not in the budget{origin}"
        elif new is None:
            yield f"no {what}, in the budget {old['times']:,} times{origin}"
        else:
            for field in ("times", "asynchronous"):
                if old[field] != new[field]:
                    word = "asynchronous times" if field == "asynchronous" else "times"
                    yield f"{what} {new[field]:,} {word}, {old[field]:,} in the budget{origin}"
            if old["times"] == new["times"] and abs(new["bytes"] - old["bytes"]) > TOLERANCE * old["bytes"]:
                yield f"{what}: {_bytes(new['bytes'])}, {_bytes(old['bytes'])} in the budget{origin}"


def _flops(number: int | None) -> str:
    return "no" if number is None else f"{number:,}"


def _bytes(size: int | None) -> str:
    if size is None:
        return "nothing"
    return f"{size / 2**30:,.3f} GiB" if size >= 2**27 else f"{size:,} bytes"
