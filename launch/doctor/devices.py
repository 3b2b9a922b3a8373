"""Checks of the devices: what there is, whether it computes right and how fast, and how fast arrays are exchanged."""

import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .finding import Finding, size

SECONDS = 0.5
"""Time for which a product or a collective is repeated."""
UNEVEN = 0.7
"""A device below this share of the fastest one's speed is told."""
HARDWARE = {"gpu": ("/dev/nvidia0", "/dev/kfd"), "tpu": ("/dev/accel0", "/dev/vfio/0")}
"""{platform: files that show that this host has devices of it}."""
INSTALL = {"gpu": "pip install 'jax[cuda12]'", "tpu": "pip install 'jax[tpu]'"}


def check_devices() -> Iterator[Finding]:
    """The devices that JAX uses."""
    devices = jax.local_devices()
    platform, kinds = devices[0].platform, sorted({device.device_kind for device in devices})
    memory = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    each = f", {size(min(filter(None, memory)))} of memory each" if all(memory) else ""
    text = f"{len(devices)} × {', '.join(kinds)} ({platform}){each}"
    if jax.process_count() > 1:
        text += f"; {jax.device_count()} devices in {jax.process_count()} processes"
    asked = os.environ.get("JAX_PLATFORMS", "")
    unused = [name for name, files in HARDWARE.items() if any(Path(file).exists() for file in files)]
    if platform == "cpu" and unused and asked != "cpu":
        name = unused[0]
        yield Finding("devices", "fail", f"{text}, but this host has {name.upper()}s", INSTALL[name])
    elif len(kinds) > 1:
        yield Finding("devices", "warn", f"{text}: different kinds", "use devices of one kind")
    else:
        yield Finding("devices", "ok", text)


def check_product() -> Iterator[Finding]:
    """A matrix product on each device: whether it is right, and its speed."""
    devices = jax.local_devices()
    on_cpu = devices[0].platform == "cpu"
    tested = devices[:1] if on_cpu else devices  # simulated devices share the cores
    for dtype, width in ((jnp.float32, 1024), (jnp.bfloat16, 1024)) if on_cpu else ((jnp.bfloat16, 8192),):
        speeds = [_product_speed(device, dtype, width) for device in tested]
        wrong = [device.id for device, speed in zip(tested, speeds, strict=True) if math.isnan(speed)]
        name = f"{jnp.dtype(dtype).name} product of {width} × {width}"
        if wrong:
            text = f"{name} is wrong on devices {', '.join(map(str, wrong))}"
            yield Finding("compute", "fail", text, "do not use these devices")
            continue
        slow = [f"{d.id} ({_speed(s)})" for d, s in zip(tested, speeds, strict=True) if s < UNEVEN * max(speeds)]
        where = "one device" if len(tested) == 1 else "the fastest device"
        text = f"{name}: {_speed(max(speeds))} on {where}"
        if slow:
            text += f", far less on {', '.join(slow)}"
            yield Finding("compute", "warn", text, "the slowest device sets the pace: see its temperature and clocks")
        else:
            yield Finding("compute", "ok", text)


def _speed(flops: float) -> str:
    """FLOP/s in words."""
    return f"{flops / 1e12:.3g} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP/s"


def _product_speed(device: jax.Device, dtype: Any, width: int) -> float:
    """FLOP/s of a product of square matrices on a device; nan if its numbers are wrong."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-1, 2, (width, width)).astype(np.float32) for _ in range(2))  # sums are exact in any dtype
    x, y = (jax.device_put(jnp.asarray(array, dtype), device) for array in (a, b))
    product = jax.jit(lambda x, y: jnp.dot(x, y, preferred_element_type=jnp.float32))
    found = np.asarray(product(x, y)[:16])
    if not np.array_equal(found, a[:16] @ b):
        return math.nan
    return 2 * width**3 / _seconds(lambda: product(x, y))


def check_collectives() -> Iterator[Finding]:
    """The speed of a sum over all devices (all-reduce): those of this process, and those of all processes."""
    groups = [("this process", jax.local_devices())] if len(jax.local_devices()) > 1 else []
    if jax.process_count() > 1:
        groups.append((f"{jax.process_count()} processes", jax.devices()))
    if not groups:
        yield Finding("collectives", "ok", "one device: there is nothing to exchange")
    for name, devices in groups:
        count, words = len(devices), (1 << 20) if devices[0].platform == "cpu" else (64 << 20)
        seconds, right = _sum_over(devices, words, across=name != "this process")
        moved = 4 * words * 2 * (count - 1) / count
        text = f"all-reduce of {size(4 * words)} over {count} devices of {name}: {size(moved / seconds)}/s each"
        if right:
            yield Finding("collectives", "ok", text)
        else:
            yield Finding("collectives", "fail", f"{text}, and its sums are wrong", "do not use these devices together")


def _sum_over(devices: list[jax.Device], words: int, *, across: bool) -> tuple[float, bool]:
    """Seconds of a sum of float32 arrays over devices, and whether it is right.

    Args:
      devices: the devices, each of which has an array.
      words: number of elements of each array.
      across: whether the devices belong to several processes, which must repeat the sum equally often.
    """
    mesh = Mesh(np.array(devices), ("all",))
    sharding = NamedSharding(mesh, P("all"))
    total = len(devices) * (len(devices) + 1) / 2
    numbers = jax.make_array_from_callback(
        (len(devices), words), sharding, lambda index: np.full((1, words), index[0].start + 1, np.float32)
    )
    reduce = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "all"), mesh=mesh, in_specs=P("all"), out_specs=P()))
    found = np.asarray(reduce(numbers).addressable_data(0))
    return _seconds(lambda: reduce(numbers), times=10 if across else None), bool((found == total).all())


def _seconds(run: Callable[[], jax.Array], times: int | None = None) -> float:
    """The shortest time of a compiled function over repetitions: `times`, or as many as fit into `SECONDS`."""
    run().block_until_ready()
    best, end, done = math.inf, time.perf_counter() + SECONDS, 0
    while done < times if times is not None else done < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        run().block_until_ready()
        best, done = min(best, time.perf_counter() - begin), done + 1
    return best
