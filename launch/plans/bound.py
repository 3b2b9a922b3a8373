"""How fast a step can be at most: a plain roofline, and a bound from what XLA says of the compiled program.

The roofline takes the longest of three times: FLOPs at the chip's peak, bytes at the bandwidth of its memory, and bytes
of collectives at that of its links. It assumes that all three overlap perfectly.

The modelled bound goes through the program in the order of its schedule. Computation takes the cycles that XLA
estimates; attention kernels, of which XLA estimates none, their FLOPs at peak. A collective takes the time of a ring
on the links of its axes (`links.py`). A synchronous one stops computation. An asynchronous one runs beside the
computation between its start and its end, and waits for earlier collectives on the same links; only what it lasts
longer is exposed.

Neither knows latencies, stalls of the input pipeline, or slower clocks under load: a real step takes longer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ...train.chips import Chip
from .collectives import Collective, Counted, collective_of
from .hlo import Compute, Done, Kernel, Loop, Module, Schedule, Start, Transfer, total_cycles
from .links import Links

Axes = tuple[str, ...]


@dataclass(frozen=True)
class Roofline:
    """Lower bounds of a step's seconds from datasheets; None where a figure is missing."""

    compute: float | None
    """FLOPs of a device at its peak."""
    memory: float | None
    """Bytes of a device at the bandwidth of its memory."""
    network: float | None
    """Collectives at the bandwidth of their links, one after the other on each axis."""

    @property
    def times(self) -> dict[str, float]:
        """{what limits: seconds}, of those that are known."""
        all_times = {"matrix units": self.compute, "memory bandwidth": self.memory, "links": self.network}
        return {name: seconds for name, seconds in all_times.items() if seconds is not None}

    @property
    def seconds(self) -> float | None:
        """The longest of the times; None for devices whose peak is not known."""
        return None if self.compute is None else max(self.times.values())

    @property
    def limit(self) -> str | None:
        """What takes longest."""
        return max(self.times, key=self.times.get, default=None)


@dataclass(frozen=True)
class Modelled:
    """A step's seconds by XLA's schedule."""

    compute: float
    """Cycles of XLA's own instructions at the chip's clock."""
    kernels: float
    """Attention kernels, at the chip's peak."""
    exposed: Mapping[Axes, float]
    """{mesh axes: seconds for which computation waits for collectives along them}."""
    busy: Mapping[Axes, float]
    """{mesh axes: seconds of collectives along them, hidden or not}."""
    unknown_loops: tuple[str, ...] = ()
    """Loops that were counted as one turn, since their number of turns is not known."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.kernels + sum(self.exposed.values())

    @property
    def limit(self) -> str:
        """What takes longest: computation, or collectives along the axes that are named."""
        times = {"computation": self.compute + self.kernels}
        times |= {f"collectives along {' and '.join(axes)}": seconds for axes, seconds in self.exposed.items()}
        return max(times, key=times.get)


def roofline(links: Links, flops: float, hbm_bytes: float | None, collectives: Sequence[Counted]) -> Roofline:
    """The roofline of a step.

    Args:
      links: the devices and their network.
      flops: FLOPs of a step over all devices.
      hbm_bytes: bytes that a device reads and writes in its memory in a step; None if unknown.
      collectives: the collectives of a step.
    """
    chip = links.chip
    own = flops / links.mesh.size
    compute = chip.flops_bf16 and own * chip.devices_per_chip / chip.flops_bf16
    memory = chip.hbm_bandwidth and hbm_bytes and hbm_bytes * chip.devices_per_chip / chip.hbm_bandwidth
    return Roofline(compute, memory, _network(links, collectives))


def _network(links: Links, collectives: Sequence[Counted]) -> float | None:
    """Seconds of the busiest direction of the busiest axis."""
    busy: dict[tuple[str, int], float] = {}
    for one, times in ((each.collective, each.times) for each in collectives):
        seconds = links.seconds(one)
        if seconds is None:
            return None
        for lane in _lanes(one):
            busy[lane] = busy.get(lane, 0.0) + times * seconds
    return max(busy.values(), default=0.0)


def modelled(links: Links, module: Module, events: Schedule, kernel_flops: float) -> Modelled | None:
    """The modelled bound of a step; None where XLA estimates no cycles, or a datasheet lacks a figure.

    Args:
      links: the devices and their network.
      module: the compiled program.
      events: its schedule (`hlo.schedule`).
      kernel_flops: FLOPs of kernels without an estimate over all devices, which all their executions share evenly.
    """
    chip = links.chip
    if not total_cycles(events) or chip.clock_hz is None or chip.flops_bf16 is None:
        return None
    kernels = kernel_flops / links.mesh.size * chip.devices_per_chip / chip.flops_bf16
    timeline = _Timeline(links, module, kernels / max(1, _n_kernels(events)))
    try:
        timeline.play(events)
    except _MissingFigure:
        return None
    return Modelled(
        total_cycles(events) / chip.clock_hz,
        kernels if _n_kernels(events) else 0.0,
        timeline.exposed,
        timeline.busy,
        tuple(_unknown(events)),
    )


class _MissingFigure(Exception):
    """A datasheet lacks the bandwidth that a collective needs."""


@dataclass
class _Timeline:
    """A device that executes a schedule."""

    links: Links
    module: Module
    kernel_seconds: float
    now: float = 0.0
    exposed: dict[Axes, float] = field(default_factory=dict)
    busy: dict[Axes, float] = field(default_factory=dict)
    lanes: dict[tuple[str, int], float] = field(default_factory=dict)
    """{(axis, direction): when it is free}."""
    running: dict[str, tuple[float, Axes]] = field(default_factory=dict)
    """{started collective: when it ends, and its axes}."""

    def play(self, events: Schedule) -> None:
        """Executes events from the time `now` on."""
        for event in events:
            if isinstance(event, Compute):
                self.now += event.cycles / self.links.chip.clock_hz
            elif isinstance(event, Kernel):
                self.now += self.kernel_seconds
            elif isinstance(event, Loop):
                self._loop(event)
            elif isinstance(event, Done):
                end, axes = self.running.pop(event.key, (self.now, ()))
                self._wait(end, axes)
            else:
                self._transfer(event)

    def _loop(self, loop: Loop) -> None:
        """All turns of a loop take as long as its first, after which no collective of its own is under way."""
        inner = _Timeline(self.links, self.module, self.kernel_seconds)
        inner.play(loop.body)
        self.now += loop.turns * inner.now
        for own, more in ((self.exposed, inner.exposed), (self.busy, inner.busy)):
            for axes, seconds in more.items():
                own[axes] = own.get(axes, 0.0) + loop.turns * seconds

    def _transfer(self, event: Start | Transfer) -> None:
        starts = isinstance(event, Start)
        one = collective_of(self.module, self.links.mesh.shape, event.site, starts)
        seconds = self.links.seconds(one)
        if seconds is None:
            raise _MissingFigure
        lanes = _lanes(one)
        end = max([self.now, *(self.lanes.get(lane, 0.0) for lane in lanes)]) + seconds
        self.lanes |= dict.fromkeys(lanes, end)
        self.busy[one.axes] = self.busy.get(one.axes, 0.0) + seconds
        if starts:
            self.running[event.key] = end, one.axes
        else:
            self.now += event.cycles / self.links.chip.clock_hz
            self._wait(end, one.axes)

    def _wait(self, end: float, axes: Axes) -> None:
        waited = max(0.0, end - self.now)
        if waited:
            self.exposed[axes] = self.exposed.get(axes, 0.0) + waited
        self.now += waited


def _lanes(one: Collective) -> list[tuple[str, int]]:
    """The directions of axes that a collective takes: a collective-permute one of them, others both."""
    directions = ((1 if one.shift > 0 else -1),) if one.shift else (1, -1)
    return [(axis, direction) for axis in one.axes for direction in directions]


def _n_kernels(events: Schedule) -> int:
    inner = (event.turns * _n_kernels(event.body) for event in events if isinstance(event, Loop))
    return sum(isinstance(event, Kernel) for event in events) + sum(inner)


def _unknown(events: Schedule) -> Iterator[str]:
    for event in events:
        if isinstance(event, Loop):
            if not event.known:
                yield event.name or "a loop without a name"
            yield from _unknown(event.body)


def mfu(chip: Chip, n_devices: int, model_flops: float, seconds: float | None) -> float | None:
    """Model FLOPs utilisation: model FLOPs of a step over those that its devices do in its time at their bfloat16 peak.

    Args:
      chip: the kind of device.
      n_devices: number of devices.
      model_flops: tokens of a step times `model.config.flops_per_token`.
      seconds: the step's time; None if unknown.
    """
    if not seconds or chip.flops_bf16 is None:
        return None
    return model_flops / (seconds * n_devices * chip.flops_bf16 / chip.devices_per_chip)
