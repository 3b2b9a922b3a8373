"""The fastest settings that fit: meshes, remat policies, parts of a batch and attention kernels, by estimates and then
by compiling.

Counting FLOPs takes a second, compiling minutes. Every combination is thus estimated from a few traced programs. The
config's own settings are compiled, and those that should fit, the fastest first. Estimates do not tell attention
kernels apart, so the fastest settings that fit are compiled with another kernel too. What is reported is of compiled
programs only.

The estimate of a device's memory is the state over the devices that split it, gradients like parameters, and what the
forward pass of one part of a batch keeps for the backward pass. That of a step's time is FLOPs at peak, and collectives
at the bandwidth of their links that nothing hides: with `fsdp` a gather of all weights in each pass over a part, and
one reduction of the gradients; with `tensor` four reductions of the residual stream in each layer and pass.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.console import tell
from ...errors import UserError
from ...model.config import LlamaConfig
from ...train.run import mesh_of
from ...train.run_config import MeshSettings
from .links import Links
from .plan import Plan, plan
from .saved import saved_bytes
from .topologies import Topology

KERNEL = "model.attention"
LEAVES = ("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.context", "model.remat", "optim.accumulate", KERNEL)
"""Leaves that a search sets. One that the caller fixes keeps its value."""

POLICIES = ("full", "attention", "attention,residual", "attention,residual,gate", "attention,residual,gate,up", "dots")
"""Remat policies that a search tries, from the least memory to the fewest FLOPs."""

LONG_ROWS = 8192
"""Tokens of a row from which on rows may be split over `context`."""


@dataclass(frozen=True)
class Candidate:
    """Settings, and what is estimated of them."""

    settings: Mapping[str, Any]
    """{leaf: value}."""
    memory: float
    """Bytes of a device."""
    seconds: float
    """Time of a step."""


@dataclass(frozen=True)
class Found:
    """Settings whose step was compiled."""

    candidate: Candidate
    """The settings."""
    plan: Plan
    """The plan with these settings."""


@dataclass(frozen=True)
class _Traced:
    """What one traced program tells of all candidates with its remat policy."""

    flops: float
    """FLOPs of a step as the hardware computes them, over all devices."""
    saved: float
    """Bytes that the forward pass keeps for the backward pass, over all devices, for the whole batch."""
    state: float
    """Bytes that stay between steps, over all devices, each array counted once."""
    parameters: float
    """Bytes of the parameters in the state, over all devices, each array counted once."""


def search(
    config: Any,
    topology: Topology,
    *,
    architecture: LlamaConfig | None = None,
    fixed: Sequence[str] = (),
    most: int = 4,
    policies: Sequence[str] = POLICIES,
) -> Iterator[Found]:
    """Compiles the config's own settings, and the most promising others, the fastest by estimate first; yields their
    plans.

    Settings that the recipe refuses, since a mesh or a number of parts does not divide something, are passed over.
    Settings that do not fit after all do not count, but at most three times `most` settings are compiled.

    Args:
      config: the config of one run.
      topology: the devices.
      architecture: that of checkpoints which are not on this machine.
      fixed: leaves of `LEAVES` that keep their values.
      most: the most settings beside the config's own; with another attention kernel, one more.
      policies: remat policies to try.
    """
    check_topology(topology)
    options = dict(topology=topology, architecture=architecture)
    promising = candidates(config, fixed=fixed, policies=policies, **options)
    found = list(_planned(config, [Candidate({}, math.inf, math.inf)], **options))
    if found and (estimate := next((each for each in promising if _same(each, found[0])), None)):
        promising.remove(estimate)
        found = [Found(dataclasses.replace(estimate, settings={}), found[0].plan)]
    yield from found
    left = most
    for each in itertools.islice(_planned(config, promising, **options), 3 * most):
        found.append(each)
        yield each
        left -= each.plan.fits is not False
        if not left:
            break
    if KERNEL not in fixed and (front := pareto(found)):
        yield from _planned(config, [_with_other_kernel(front[0].candidate, config)], **options)


def _same(candidate: Candidate, own: Found) -> bool:
    """Whether settings are those of the config's own plan, whose mesh may be written otherwise."""
    model, optim = own.plan.settings.model, own.plan.settings.optim
    known = {f"mesh.{axis}": size for axis, size in own.plan.mesh.items()}
    known |= {"model.remat": model.remat, "optim.accumulate": optim.accumulate}
    return all(known[name] == value for name, value in candidate.settings.items())


def _with_other_kernel(candidate: Candidate, config: Any) -> Candidate:
    """The settings with XLA's attention in place of the devices' own kernel, or the other way round."""
    other = "auto" if config.model.attention == "xla" else "xla"
    return dataclasses.replace(candidate, settings={**candidate.settings, KERNEL: other})


def _planned(config: Any, promising: Iterable[Candidate], **options: Any) -> Iterator[Found]:
    """The plans of settings, without those that the recipe refuses."""
    for candidate in promising:
        tell(f"compiling with {flags(candidate, config)}")
        try:
            found = plan(with_settings(config, candidate.settings), **options)
        except UserError as error:
            tell(f"passed over: {error}")
            continue
        yield Found(candidate, found)


def candidates(
    config: Any,
    topology: Topology,
    *,
    architecture: LlamaConfig | None,
    fixed: Sequence[str],
    policies: Sequence[str],
) -> list[Candidate]:
    """All settings that should fit, the fastest by estimate first; the arguments are those of `search`."""
    own = config.model.remat
    tried = [own] if "model.remat" in fixed else dict.fromkeys((own, *policies))
    capacity = topology.chip.hbm_usable or topology.chip.hbm_bytes or math.inf
    capacity /= topology.chip.devices_per_chip
    found = []
    for remat in tried:
        traced, network = _trace(with_settings(config, {"model.remat": remat}), topology, architecture)
        for sizes in _meshes(config, topology, network, fixed):
            mesh = mesh_of(MeshSettings(**sizes), topology.devices)
            for parts in _parts(config, sizes, fixed):
                settings = {f"mesh.{axis}": size for axis, size in sizes.items()}
                settings |= {"model.remat": remat, "optim.accumulate": parts}
                found.append(_estimate(settings, sizes, parts, traced, Links(topology.chip, mesh), network, config))
    return sorted((each for each in found if each.memory <= capacity), key=lambda each: each.seconds)


def with_settings(config: Any, settings: Mapping[str, Any]) -> Any:
    """A copy of a config with other values of some leaves, {dotted name: value}."""
    config = config.copy_and_resolve_references()
    for name, value in settings.items():
        section, leaf = name.rsplit(".", 1)
        config[section][leaf] = value
    return config


def _trace(config: Any, topology: Topology, architecture: LlamaConfig | None) -> tuple[_Traced, LlamaConfig]:
    """The FLOPs and sizes of a step on one device, as one part."""
    config = with_settings(
        config, {"optim.accumulate": 1, **{f"mesh.{axis}": 1 for axis in ("data", "tensor", "context")}}
    )
    config.mesh.fsdp = 1
    one = topology._replace(devices=topology.devices[:1], n_devices=1)
    found = plan(config, one, architecture=architecture, compiles=False)
    stays = found.memory.stays
    saved = max(saved_bytes(program.jaxpr) for program in found.programs)
    state = sum(size for kind, size in stays.items() if kind != "batch")
    return _Traced(found.hardware_flops, saved, state, stays.get("parameters", 0)), found.architecture


def _meshes(config: Any, topology: Topology, network: LlamaConfig, fixed: Sequence[str]) -> Iterator[dict[str, int]]:
    """Sizes of meshes: powers of two times what is left over, where heads and rows divide evenly."""
    n = topology.n_devices
    most = topology.chip.devices_per_host if topology.chip.platform == "gpu" else 16
    seq_len = config.data.get("seq_len", 0)
    tensors = [size for size in _powers(n) if size <= most and network.n_kv_heads % size == 0]
    contexts = [size for size in _powers(n) if seq_len >= LONG_ROWS and seq_len % size == 0] or [1]
    for tensor, context in itertools.product(tensors, contexts):
        for fsdp in _powers(n):
            if n % (tensor * context * fsdp):
                continue
            sizes = {"data": n // (tensor * context * fsdp), "fsdp": fsdp, "tensor": tensor, "context": context}
            kept = {name.removeprefix("mesh.") for name in fixed if name.startswith("mesh.")}
            if all(config.mesh[axis] in (-1, sizes[axis]) for axis in kept):
                yield sizes


def _powers(n: int) -> list[int]:
    return [2**i for i in range(n.bit_length()) if n % 2**i == 0]


def _parts(config: Any, sizes: Mapping[str, int], fixed: Sequence[str]) -> Iterator[int]:
    """Numbers of parts of a batch that divide its rows over the devices."""
    rows, devices = config.data.batch_size, sizes["data"] * sizes["fsdp"]
    own = config.optim.accumulate
    for parts in [own] if "optim.accumulate" in fixed else sorted({own, *(2**i for i in range(11))}):
        if rows % (parts * devices) == 0:
            yield parts


def _estimate(
    settings: Mapping[str, Any],
    sizes: Mapping[str, int],
    parts: int,
    traced: _Traced,
    links: Links,
    network: LlamaConfig,
    config: Any,
) -> Candidate:
    split, rows = sizes["fsdp"] * sizes["tensor"], sizes["data"] * sizes["fsdp"] * sizes["context"]
    chip = links.chip
    memory = (traced.state + traced.parameters) / split + traced.saved / rows / parts
    peak = chip.flops_bf16 or 1.0  # without a datasheet, settings are ordered by FLOPs alone
    seconds = traced.flops * chip.devices_per_chip / links.mesh.size / peak

    def ring(size: float, axis: str) -> float:
        n, bandwidth = sizes[axis], links.bandwidth((axis,)) if sizes[axis] > 1 else None
        return size * (n - 1) / n / bandwidth if bandwidth else 0.0

    weights = traced.parameters / sizes["tensor"]
    gathered = 2 * (weights / 2) * parts  # forward and backward, in 16 bits
    seconds += ring(gathered, "fsdp") + ring(weights, "fsdp") + ring(2 * weights / sizes["fsdp"], "data")
    tokens = config.data.batch_size * config.data.get("seq_len", 1) / rows
    stream = tokens * network.dim * 2
    seconds += ring(2 * stream * network.n_layers * 4, "tensor")
    return Candidate(settings, memory, seconds)


def pareto(found: Sequence[Found]) -> list[Found]:
    """Of settings that fit, those that no other one beats in both time and memory, the fastest first."""
    known = sorted((each for each in found if each.plan.fits is not False), key=_cost)
    front: list[Found] = []
    for each in known:
        if not front or each.plan.memory.peak < front[-1].plan.memory.peak:
            front.append(each)
    return front


def _cost(found: Found) -> tuple[float, int]:
    return found.plan.seconds or found.candidate.seconds, found.plan.memory.peak


def nearest_that_fits(
    config: Any,
    topology: Topology,
    *,
    architecture: LlamaConfig | None = None,
    most: int = 4,
    policies: Sequence[str] = POLICIES,
) -> Found | None:
    """Settings that fit, with the fewest changes of a config whose step does not; None if none of `most` does.

    The mesh stays. The arguments are those of `search`.
    """
    fixed = tuple(name for name in LEAVES if name.startswith("mesh."))
    options = dict(topology=topology, architecture=architecture)
    own = {"model.remat": config.model.remat, "optim.accumulate": config.optim.accumulate}
    found = candidates(config, fixed=fixed, policies=policies, **options)
    changes = lambda each: sum(each.settings[name] != value for name, value in own.items())  # noqa: E731
    nearest = sorted(filter(changes, found), key=lambda each: (changes(each), each.seconds))
    changed = (dataclasses.replace(each, settings={name: each.settings[name] for name in own}) for each in nearest)
    tried = itertools.islice(_planned(config, changed, **options), most)
    return next((each for each in tried if each.plan.fits), None)


def flags(candidate: Candidate, config: Any) -> str:
    """The flags that change a config to these settings."""
    changed = {name: value for name, value in candidate.settings.items() if _value(config, name) != value}
    return " ".join(f"--config.{name}={value}" for name, value in changed.items()) or "no change"


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def check_topology(topology: Topology) -> None:
    """Raises UserError for devices without datasheet, among which a search cannot choose."""
    if topology.chip.flops_bf16 is None:
        raise UserError(f"--search: the datasheet of {topology.chip.title} is not known; give a TPU or GPU topology")
