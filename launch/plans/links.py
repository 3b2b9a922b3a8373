"""How fast devices along mesh axes exchange data, from their places and the datasheet of their chip.

Figures are of full links without latency, contention, or the overhead of protocols: no collective is faster.

On a TPU slice, devices of an axis stand along dimensions of a torus. A dimension whose ends are joined gives two links
to a ring, one in each direction, and a dimension that is not gives one, since data must come back the other way. A
dimension is joined where the axis takes all of it, and it is long enough: a multiple of 4 chips on slices of three
dimensions, 16 on slices of two. An axis of several dimensions uses the links of all of them at once.

GPUs of a host exchange data over all their links (NVLink through switches). Between hosts, or between TPU slices, each
device of the group sends its share over its own network adapter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jax.sharding import Mesh

from ...train.chips import Chip
from .collectives import Collective

JOINED_3D, JOINED_2D = 4, 16
"""Chips along a dimension of a torus from which on its ends are joined, for slices of three and of two dimensions."""


@dataclass(frozen=True)
class Links:
    """The network between the devices of a mesh."""

    chip: Chip
    """The kind of device."""
    mesh: Mesh
    """The devices."""

    def bandwidth(self, axes: Sequence[str]) -> float | None:
        """Bytes a second that each device of a group along `axes` sends in a ring; None where a figure is missing."""
        group = self._group(axes)
        clusters = self._clusters(group)
        inside = self._inside(group)
        if len(clusters) == 1:
            return inside
        if self.chip.network_bandwidth is None:
            return None
        own = min(clusters.values())
        outside = own * self.chip.network_bandwidth / self.chip.devices_per_chip
        return outside if own == 1 or inside is None else min(inside, outside)

    def neighbour(self, axes: Sequence[str]) -> float | None:
        """Bytes a second from a device to the next along `axes`."""
        if len(self._clusters(self._group(axes))) > 1:
            network = self.chip.network_bandwidth
            return network and network / self.chip.devices_per_chip
        link = self.chip.link_bandwidth
        return link and link * (self.chip.links if self.chip.platform == "gpu" else 1) / self.chip.devices_per_chip

    def seconds(self, one: Collective) -> float | None:
        """Seconds of one execution of a collective that has the links to itself; None where a figure is missing.

        All kinds but two are rings: an all-gather and a reduce-scatter move the array once, an all-reduce twice. A
        collective-permute crosses one link. An all-to-all on a torus crosses a quarter of a ring on average.
        """
        if one.group == 1 or not one.axes:
            return 0.0
        if one.kind == "collective-permute":
            speed = self.neighbour(one.axes)
            hops = abs(one.shift) if self.chip.platform == "tpu" and one.shift else 1
            return speed and one.bytes * min(hops, 2) / speed
        speed = self.bandwidth(one.axes)
        if speed is None:
            return None
        if one.kind.endswith("all-to-all") and self.chip.platform == "tpu":
            side = max(map(len, self._sides(self._group(one.axes))), default=1)
            return one.bytes * max(side, 2) / (4 * speed)
        return one.moved / speed

    @cached_property
    def _torus(self) -> tuple[int, ...]:
        """Chips along each dimension of one slice; () where devices have no coordinates."""
        devices = list(self.mesh.devices.flat)
        if self.chip.platform != "tpu" or getattr(devices[0], "coords", None) is None:
            return ()
        return tuple(max(places) + 1 for places in zip(*(device.coords for device in devices), strict=True))

    def _group(self, axes: Sequence[str]) -> list:
        """The devices of the first group along `axes`."""
        index = tuple(slice(None) if axis in axes else 0 for axis in self.mesh.axis_names)
        return list(np.asarray(self.mesh.devices[index]).flat)

    def _clusters(self, group: list) -> dict[int, int]:
        """{host of GPUs, or slice of TPUs: devices of the group in it}."""
        found: dict[int, int] = {}
        for device in group:
            of_gpu = self.chip.platform == "gpu"
            place = device.process_index if of_gpu else getattr(device, "slice_index", 0) or 0
            found[place] = found.get(place, 0) + 1
        return found

    def _sides(self, group: list) -> list[set[int]]:
        """The places of a group along each dimension of the torus."""
        return [set(places) for places in zip(*(device.coords for device in group), strict=True)] if self._torus else []

    def _inside(self, group: list) -> float | None:
        """Bytes a second of a ring within a host, or within a slice."""
        if self.chip.link_bandwidth is None:
            return None
        if not self._torus:
            return self.chip.link_bandwidth * (self.chip.links or 1) / self.chip.devices_per_chip
        flat = math.prod(self._torus[2:]) == 1 and self.chip.links == 4
        links = 0
        for side, size in zip(self._sides(group), self._torus, strict=True):
            joined = size >= JOINED_2D if flat else size % JOINED_3D == 0
            links += 0 if len(side) == 1 else 2 if joined and len(side) == size else 1
        return max(links, 1) * self.chip.link_bandwidth / self.chip.devices_per_chip
