"""Devices that are not there, to compile for: TPU slices, hosts with GPUs, simulated CPU devices.

A topology is named by a chip and how many of it stand where: `v5p:8x8x8` is a slice of TPUs by its three dimensions,
`h100:64x8` is 64 hosts of 8 GPUs, `cpu:8` is 8 simulated devices. Google Cloud's names of whole slices, such as
`v5p-512`, are translated to a chip and the default shape.
"""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from ...errors import UserError
from ...train.chips import CHIPS, Chip, chip_of
from ..libtpu import LIBTPU
from .gpu_target import target_text

PLANE = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
CUBES = (
    *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8)),
    *((8, 8, 16), (8, 16, 16), (16, 16, 16)),
)
SHAPES = {
    "v4": CUBES,
    "v5e": ((1, 1), *PLANE),
    "v5p": (*CUBES, (16, 16, 24)),
    "v6e": ((1, 1), *PLANE),
    "tpu7x": CUBES,
}
"""{TPU: the slices that Google Cloud offers}, of which libtpu knows others as well."""
ACCELERATOR_TYPES = {"v4": ("v4", 2), "v5litepod": ("v5e", 1), "v5e": ("v5e", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
"""{name before the dash of an accelerator type: (chip, cores of a chip where the type counts cores, else 1)}."""
MOST_CPUS = 512
"""The most simulated CPU devices."""
MOST_HOSTS = 4096
"""The most hosts with GPUs."""

LOCAL = "local"
"""The name of the devices of this machine."""
HERE = "this machine"
"""What plans call them."""
REINSTALL = f"install the one of JAX {jax.__version__} with pip install 'camelid[plan-gpu]'"
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}
"""Stops XLA from writing to stderr that a compilation is slow. Errors are still raised."""


class Topology(NamedTuple):
    """Devices to compile for."""

    name: str
    """The name in full, with a shape: v5p:8x8x8."""
    chip: Chip
    shape: tuple[int, ...]
    """Chips along each dimension of a TPU slice; hosts and GPUs of a host; the number of simulated CPU devices."""
    devices: Sequence[jax.Device]
    """All devices, for a mesh."""
    n_chips: int
    n_devices: int
    hosts: int
    note: str = ""
    """How the name that was asked for was understood, if it is not the name in full."""


class _Name(NamedTuple):
    """A name that was read."""

    chip: Chip
    shape: tuple[int, ...]
    note: str

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"


def topology(name: str) -> Topology:
    """The devices of a topology.

    JAX must not have started another backend than the CPU's: see `environment_for`.

    Args:
      name: such as v5p:8x8x8, v5p-512, h100:64x8, rtx4090:1, cpu:8, or local for the devices of this machine.

    Raises UserError for an unknown name, a shape that does not exist, and if the compiler for it is not installed.
    """
    if name == LOCAL:
        return local()
    read = _read(name)
    devices = {"tpu": _tpus, "gpu": _gpus, "cpu": _cpus}[read.chip.platform](read)
    n_chips = math.prod(read.shape)
    hosts = len({device.process_index for device in devices})
    return Topology(str(read), read.chip, read.shape, devices, n_chips, len(devices), hosts, read.note)


def local() -> Topology:
    """The devices of this machine, or of all processes of a run. A device has the memory that its backend reports; the
    devices of a CPU share that of the host."""
    devices = jax.devices()
    first, hosts = devices[0], len({device.process_index for device in devices})
    chip = chip_of(first) or Chip(first.device_kind, first.device_kind, first.platform, "no datasheet")
    if first.platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    else:
        memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    chip = dataclasses.replace(chip, title=first.device_kind, hbm_bytes=memory, hbm_usable=memory, devices_per_chip=1)
    return Topology(HERE, chip, (len(devices),), devices, len(devices), len(devices), hosts)


def environment_for(name: str) -> dict[str, str]:
    """The environment variables that `topology(name)` needs, to be set before JAX is imported.

    Raises UserError for a name that is unknown or not well formed.
    """
    if name == LOCAL:
        return {}
    read = _read(name)
    if read.chip.platform == "tpu":
        return {"JAX_PLATFORMS": "cpu", **LIBTPU, **QUIET}
    if read.chip.platform == "gpu":
        return {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", **QUIET}
    flag = "--xla_force_host_platform_device_count"
    others = [word for word in os.environ.get("XLA_FLAGS", "").split() if not word.startswith(flag)]
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join([*others, f"{flag}={read.shape[0]}"]), **QUIET}


def _read(name: str) -> _Name:
    """The chip and the shape that a name means."""
    if found := re.fullmatch(r"(v\d\w*)-(\d+)", name.lower()):
        return _slice(name, found[1], int(found[2]))
    word, _, text = name.lower().partition(":")
    chip = CHIPS.get(word)
    if chip is None:
        raise _unknown(name, word, text)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        example = {"tpu": _written(SHAPES.get(word, CUBES)[-1]), "gpu": "8", "cpu": "8"}[chip.platform]
        raise UserError(f"--topology={name}: give sizes of 1 or more after the chip, as in {word}:{example}")
    shape = tuple(map(int, text.split("x")))
    if chip.platform == "gpu":
        return _hosts(name, chip, shape)
    if chip.platform == "cpu" and len(shape) > 1:
        raise UserError(f"--topology={name}: give the number of simulated devices, as in cpu:{math.prod(shape)}")
    if chip.platform == "cpu" and shape[0] > MOST_CPUS:
        raise UserError(f"--topology={name}: each simulated device has threads of its own; give at most {MOST_CPUS}")
    return _Name(chip, shape, "")


def _unknown(name: str, word: str, sizes: str) -> UserError:
    """The error for a name whose part before the colon is no chip."""
    found = re.fullmatch(r"(\w+)-+(\d+)", name.lower())  # h100-8, written like an accelerator type
    word, sizes = found.groups() if found else (word, sizes)
    kinds = [chip for chip in CHIPS if chip == word or chip.startswith(f"{word}-")]
    near = kinds or difflib.get_close_matches(word, CHIPS, n=1, cutoff=0.7)
    if near and sizes:
        return UserError(f"--topology={name}: did you mean {' or '.join(f'{chip}:{sizes}' for chip in near)}?")
    known = [*CHIPS, *(f"{kind}-N" for kind in ACCELERATOR_TYPES)]
    return UserError(
        f"--topology={name}: give {LOCAL} alone, or a chip and sizes, as in h100:64x8, of {', '.join(known)}"
    )


def _slice(name: str, kind: str, count: int) -> _Name:
    """The chip and the default shape of Google Cloud's accelerator type `kind`-`count`."""
    if kind not in ACCELERATOR_TYPES:
        near = difflib.get_close_matches(kind, ACCELERATOR_TYPES, n=1, cutoff=0.4) or list(ACCELERATOR_TYPES)
        raise UserError(f"--topology={name}: unknown accelerator type {kind!r}: did you mean {near[0]}-{count}?")
    word, cores = ACCELERATOR_TYPES[kind]
    shapes = {math.prod(shape) * cores: shape for shape in SHAPES[word]}
    if count not in shapes:
        known = ", ".join(f"{kind}-{number}" for number in sorted(shapes))
        example = _written(SHAPES[word][-1])
        raise UserError(f"--topology={name}: no such slice; give one of {known}, or a shape such as {word}:{example}")
    read = _Name(CHIPS[word], shapes[count], "")
    counted = "counts cores, two of a chip" if cores > 1 else "counts chips"
    return read._replace(note=f"{name} {counted}: {count // cores} chips, taken as {read}")


def _hosts(name: str, chip: Chip, shape: tuple[int, ...]) -> _Name:
    """The hosts and GPUs of a host; one size alone is the GPUs of one host."""
    most = chip.devices_per_host
    hosts, gpus = (1, *shape) if len(shape) == 1 else shape[:2]
    if len(shape) > 2 or gpus > most or hosts > MOST_HOSTS:
        whole = f"{min(-(-math.prod(shape) // most), MOST_HOSTS)}x{most}"
        raise UserError(
            f"--topology={name}: give at most {MOST_HOSTS:,} hosts and {most} GPUs of a host, as in {chip.name}:{whole}"
        )
    note = f"{name} is one host" if len(shape) == 1 else ""
    return _Name(chip, (hosts, gpus), note)


def _written(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _refused(read: _Name, why: str) -> UserError:
    """The error for a slice that does not exist."""
    near = sorted(SHAPES[read.chip.name], key=lambda shape: abs(math.log(math.prod(shape) / math.prod(read.shape))))
    shapes = ", ".join(f"{read.chip.name}:{_written(shape)}" for shape in sorted(near[:4], key=math.prod))
    return UserError(f"--topology={read}: {why}; shapes of about this size that work: {shapes}")


def _tpus(read: _Name) -> Sequence[jax.Device]:
    """The devices of a slice of TPUs, from libtpu."""
    dimensions, most = len(SHAPES[read.chip.name][0]), read.chip.max_chips
    if len(read.shape) != dimensions:
        raise _refused(read, f"a slice of {read.chip.title} has {dimensions} dimensions")
    if math.prod(read.shape) > most:
        raise _refused(read, f"a slice of {read.chip.title} has at most {most} chips")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology={read}: libtpu, TPUs' compiler, is not installed: pip install 'camelid[plan]'")
    for key, value in LIBTPU.items():
        os.environ.setdefault(key, value)
    options: dict[str, Any] = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(read.shape) == 1 else {}
    if read.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # one device for both cores of a chip, as on a TPU host
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=str(read), **options).devices
    except jax.errors.JaxRuntimeError as error:
        kind, _, why = str(error).splitlines()[0].partition(": ")
        if kind != "INVALID_ARGUMENT":
            message = "set ALLOW_MULTIPLE_LIBTPU_LOAD=1 for other processes that use libtpu, or wait for their end"
            raise UserError(f"--topology={read}: libtpu does not start ({kind}: {why}): {message}") from None
        raise _refused(read, f"libtpu refuses this shape ({why})") from None


def _gpus(read: _Name) -> Sequence[jax.Device]:
    """The devices of hosts with GPUs, from JAX's CUDA plugin."""
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError(
            f"--topology={read}: JAX's CUDA plugin, which compiles for GPUs, is not installed: "
            "pip install 'camelid[plan-gpu]'"
        )
    size = f"1x{_written(read.shape)}"  # slices x hosts x GPUs of a host
    try:
        text = target_text(read.chip)
        return topologies.get_topology_desc(platform="cuda", target_config=text, topology=size).devices
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"--topology={read}: JAX's CUDA plugin cannot be used ({why}): {REINSTALL}") from None


def _cpus(read: _Name) -> Sequence[jax.Device]:
    """Simulated devices of this host's CPU."""
    devices, count = jax.devices("cpu"), read.shape[0]
    if len(devices) < count:
        flags = environment_for(str(read))["XLA_FLAGS"]
        raise UserError(
            f"--topology={read}: JAX has {len(devices)} CPU device(s): set XLA_FLAGS='{flags}' before it starts"
        )
    return devices[:count]
