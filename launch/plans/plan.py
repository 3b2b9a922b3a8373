"""The plan of a run: memory, work, collectives and time of a step on devices that may be absent, from its programs."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...model.config import LlamaConfig
from ...train.run import mesh_of
from ...train.run_config import RunConfig
from ..recipes import read_config, recipe_of
from .bound import Modelled, Roofline, mfu, modelled, roofline
from .collectives import Counted, collectives_of
from .flops import Flops, flops_of
from .hlo import parse, schedule
from .links import Links
from .memory import Memory, memory_of
from .memory_traffic import memory_bytes
from .planned_run import PlannedRun, PlannedStep, Program
from .saved import saved_bytes
from .topologies import Topology

NOT_PLANNED = "evaluations, saving, loading and the host"
"""What a plan leaves out."""


@dataclass(frozen=True)
class ProgramPlan:
    """What one program of a step costs."""

    name: str
    """step, and in a recipe that draws answers: rollout, then step."""
    jaxpr: Any
    """The program before it is lowered, a closed jaxpr."""
    flops: Flops
    """FLOPs as the hardware computes them, over all devices, counted in the jaxpr."""
    memory_bytes: int | None = None
    """Bytes that a device reads and writes in its memory, by the compiled program."""
    collectives: tuple[Counted, ...] = ()
    """Collectives of a device, loops multiplied out; compiled."""
    roofline: Roofline | None = None
    """Lower bounds of its time from datasheets."""
    modelled: Modelled | None = None
    """Its time by XLA's schedule; None where XLA estimates no cycles."""


@dataclass(frozen=True)
class Plan:
    """The plan of one run."""

    phase: str
    """Name of the phase; empty for a config without phases."""
    recipe: str
    """Name of the recipe."""
    topology: Topology
    """The devices."""
    mesh: Mapping[str, int]
    """Devices along each axis."""
    architecture: LlamaConfig
    """The network."""
    settings: RunConfig
    """The config."""
    tokens: int
    """Tokens of a step: of its rows, of both sides of its pairs, or of its prompts with the longest answers."""
    training_flops: float
    """Tokens of a step times FLOPs per token of a forward and a backward pass of the network that is trained."""
    steps: int | None
    """Steps of the run; None where they depend on the data."""
    memory: Memory
    """Memory of a device."""
    programs: tuple[ProgramPlan, ...]
    """The programs of a step."""
    compile_seconds: float
    """Seconds that compiling took here."""
    step: PlannedStep
    """What was planned: the programs themselves, with their arguments' shapes."""

    @property
    def capacity(self) -> int | None:
        """Bytes of a device that a program may use; None for a chip without a datasheet."""
        chip = self.topology.chip
        total = chip.hbm_usable or chip.hbm_bytes
        return total and total // chip.devices_per_chip

    @property
    def fits(self) -> bool | None:
        """Whether a step fits into a device's memory; None where the capacity is not known, or where nothing is
        compiled and what stays between steps fits."""
        if self.memory.refused:
            return False
        if self.capacity is None:
            return None
        if self.memory.peak > self.capacity:
            return False
        return True if self.memory.programs else None

    @property
    def is_counted(self) -> bool:
        """Whether all work of a step is counted; the answers of a rollout end when they end."""
        return not any(program.flops.uncounted for program in self.programs)

    @property
    def model_flops(self) -> float | None:
        """FLOPs that the algorithm needs; None where a step does more than to train on its tokens."""
        return self.training_flops if self.is_counted else None

    @property
    def hardware_flops(self) -> int:
        """FLOPs of a step as the hardware computes them, over all devices."""
        return sum(program.flops.total for program in self.programs)

    @property
    def saved_activations(self) -> float:
        """Bytes of a device that the forward pass keeps for the backward pass, if all axes of the mesh split them."""
        return max(saved_bytes(program.jaxpr) for program in self.programs) / self.topology.n_devices

    @property
    def roofline_seconds(self) -> float | None:
        """The roofline of a step; None where not all of its work is counted."""
        return _sum(program.roofline and program.roofline.seconds for program in self.programs if self.is_counted)

    @property
    def modelled_seconds(self) -> float | None:
        """The modelled bound of a step; None where not all of its work is counted."""
        return _sum(program.modelled and program.modelled.seconds for program in self.programs if self.is_counted)

    @property
    def seconds(self) -> float | None:
        """The best known lower bound of a step's time: modelled, else by the roofline."""
        return self.modelled_seconds or self.roofline_seconds

    def mfu(self, seconds: float | None) -> float | None:
        """The model FLOPs utilisation of a step that takes `seconds`."""
        if self.model_flops is None:
            return None
        return mfu(self.topology.chip, self.topology.n_devices, self.model_flops, seconds)


def _sum(values: Any) -> float | None:
    values = list(values)
    return None if not values or any(value is None for value in values) else sum(values)


def plan_phases(
    phases: Mapping[str, Any],
    topology: Topology,
    *,
    architecture: LlamaConfig | None = None,
    compiles: bool = True,
) -> Iterator[Plan]:
    """The plans of a config's phases, each of which starts from the model of the phase before.

    Args:
      phases: the phases, as `settings.config_files.load_phases` gives them.
      topology: the devices.
      architecture: that of checkpoints which are not on this machine.
      compiles: as in `plan`.
    """
    for number, (phase, config) in enumerate(phases.items()):
        if number:
            config.init_from, config.model.preset = "the phase before", None
        found = plan(config, topology, architecture=architecture, phase=phase, compiles=compiles)
        architecture = found.architecture
        yield found


def plan(
    config: Any,
    topology: Topology,
    *,
    architecture: LlamaConfig | None = None,
    phase: str = "",
    compiles: bool = True,
) -> Plan:
    """Plans the run of a config.

    Args:
      config: the config of one run, an `ml_collections.ConfigDict`.
      topology: the devices.
      architecture: that of checkpoints which the config names and which are not on this machine.
      phase: name of the phase.
      compiles: whether programs are compiled. Without, memory is only what stays between steps, and nothing is said of
        collectives and time.

    Raises UserError for a config that cannot run on these devices.
    """
    settings, began = read_config(config), time.perf_counter()
    mesh = mesh_of(settings.mesh, topology.devices)
    run = PlannedRun(settings, mesh, architecture, chain=compiles)
    step = run.plan(recipe_of(config).train)
    memory = memory_of(step, compiles)
    whole = compiles and not memory.refused
    programs = tuple(_program(each, Links(topology.chip, mesh), whole) for each in step.programs)
    return Plan(
        phase=phase,
        recipe=settings.recipe,
        topology=topology,
        mesh=dict(mesh.shape),
        architecture=run.model.config,
        settings=settings,
        tokens=step.tokens,
        training_flops=step.flops_per_token * step.tokens,
        steps=step.lengths.total if settings.total.unit in ("steps", "tokens") else None,
        memory=memory,
        programs=programs,
        compile_seconds=time.perf_counter() - began,
        step=step,
    )


def _program(program: Program, links: Links, whole: bool) -> ProgramPlan:
    jaxpr, flops = program.traced.jaxpr, flops_of(program.traced.jaxpr)
    if not whole:
        return ProgramPlan(program.name, jaxpr, flops)
    module = parse(program.compiled.as_text())
    events = schedule(module)
    counted, traffic = collectives_of(module, links.mesh.shape, events), memory_bytes(module)
    return ProgramPlan(
        program.name,
        jaxpr,
        flops,
        traffic,
        tuple(counted),
        roofline(links, flops.total, traffic, counted),
        modelled(links, module, events, flops.attention),
    )
