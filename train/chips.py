"""Accelerators with the figures of their vendors' pages.

Figures are for one chip. `GB` and `Gbit` of a vendor are powers of ten, `GiB` is 2**30. A figure that no page of the
vendor gives is None, unless the source of the chip names where else the figure comes from.
"""

from dataclasses import dataclass

import jax

GIB = 2**30
TPU_CLOCKS = "clock: peak FLOP/s over the FLOPs of its matrix units in a cycle"


@dataclass(frozen=True)
class GpuCores:
    """What XLA's GPU compiler has to know of a GPU to compile without it."""

    compute_capability: tuple[int, int]
    count: int
    """Streaming multiprocessors."""
    l2_bytes: int
    """Size of the level-2 cache, in bytes."""


@dataclass(frozen=True)
class Chip:
    """One kind of accelerator."""

    name: str
    """The name before the colon of a topology, such as v5p."""
    title: str
    """The vendor's name."""
    platform: str
    """tpu, gpu or cpu."""
    source: str
    """The vendor's pages that give the figures, and where a figure comes from that they do not give."""
    flops_bf16: float | None = None
    """Peak FLOP/s of products of bfloat16 matrices without sparsity, with sums in float32."""
    hbm_bytes: int | None = None
    """Capacity of the chip's memory, in bytes."""
    hbm_usable: int | None = None
    """Bytes of that memory that a program may use: on a TPU the limit of XLA's compiler, on a GPU what the driver
    reports."""
    hbm_bandwidth: float | None = None
    """Bytes a second between the chip and its memory."""
    clock_hz: float | None = None
    """Cycles a second: of a TPU those in which XLA estimates, of a GPU its boost clock."""
    link_bandwidth: float | None = None
    """Bytes a second of one link in one direction: ICI of a TPU, NVLink of a GPU, PCIe where there is no NVLink."""
    links: int | None = None
    """Number of such links."""
    devices_per_chip: int = 1
    """JAX devices of one chip. A device has this share of every figure."""
    devices_per_host: int | None = None
    """JAX devices of one host."""
    network_bandwidth: float | None = None
    """Bytes a second of one chip in one direction to chips that no link reaches: InfiniBand, or a data center's
    network."""
    max_chips: int | None = None
    """The largest number of chips that links join in one slice."""
    gpu: GpuCores | None = None
    """What XLA's GPU compiler has to know; None unless the platform is gpu."""


_TPUS = (
    Chip(
        name="v4",
        title="TPU v4",
        platform="tpu",
        source="cloud.google.com/tpu/docs/v4; link: jax-ml.github.io/scaling-book/tpus, which agrees with the page's "
        "1.1 PB/s for a pod; " + TPU_CLOCKS,
        flops_bf16=275e12,
        hbm_bytes=32 * GIB,
        hbm_usable=int(30.75 * GIB),
        hbm_bandwidth=1200e9,
        clock_hz=1.05e9,
        link_bandwidth=45e9,
        links=6,
        devices_per_host=4,
        max_chips=4096,
    ),
    Chip(
        name="v5e",
        title="TPU v5e",
        platform="tpu",
        source="cloud.google.com/tpu/docs/v5e; " + TPU_CLOCKS,
        flops_bf16=197e12,
        hbm_bytes=16 * GIB,
        hbm_usable=int(15.75 * GIB),
        hbm_bandwidth=819e9,
        clock_hz=1.5e9,
        link_bandwidth=50e9,
        links=4,
        devices_per_host=4,
        network_bandwidth=3.125e9,
        max_chips=256,
    ),
    Chip(
        name="v5p",
        title="TPU v5p",
        platform="tpu",
        source="cloud.google.com/tpu/docs/v5p; " + TPU_CLOCKS,
        flops_bf16=459e12,
        hbm_bytes=95 * GIB,
        hbm_usable=int(95.74 * GIB),
        hbm_bandwidth=2765e9,
        clock_hz=1.75e9,
        link_bandwidth=100e9,
        links=6,
        devices_per_host=4,
        network_bandwidth=6.25e9,
        max_chips=6144,
    ),
    Chip(
        name="v6e",
        title="TPU v6e (Trillium)",
        platform="tpu",
        source="cloud.google.com/tpu/docs/v6e and /tpu7x; " + TPU_CLOCKS,
        flops_bf16=918e12,
        hbm_bytes=32 * GIB,
        hbm_usable=int(31.25 * GIB),
        hbm_bandwidth=1638e9,
        clock_hz=1.75e9,
        link_bandwidth=100e9,
        links=4,
        devices_per_host=4,
        network_bandwidth=12.5e9,
        max_chips=256,
    ),
    Chip(
        name="tpu7x",
        title="TPU7x (Ironwood)",
        platform="tpu",
        source="cloud.google.com/tpu/docs/tpu7x; " + TPU_CLOCKS,
        flops_bf16=2307e12,
        hbm_bytes=192 * GIB,
        hbm_usable=int(189.5 * GIB),
        hbm_bandwidth=7380e9,
        clock_hz=2.2e9,
        link_bandwidth=100e9,
        links=6,
        devices_per_chip=2,
        devices_per_host=8,
        network_bandwidth=12.5e9,
        max_chips=9216,
    ),
)

_GPUS = (
    Chip(
        name="a100-40gb",
        title="NVIDIA A100 SXM 40 GB",
        platform="gpu",
        source="nvidia.com/en-us/data-center/a100, NVIDIA A100 architecture whitepaper, DGX A100 datasheet",
        flops_bf16=312e12,
        hbm_bytes=40 * GIB,
        hbm_usable=42_298_834_944,
        hbm_bandwidth=1555e9,
        clock_hz=1.41e9,
        link_bandwidth=25e9,
        links=12,
        devices_per_host=8,
        network_bandwidth=25e9,
        gpu=GpuCores((8, 0), 108, 40 * 2**20),
    ),
    Chip(
        name="a100-80gb",
        title="NVIDIA A100 SXM 80 GB",
        platform="gpu",
        source="nvidia.com/en-us/data-center/a100, NVIDIA A100 architecture whitepaper, DGX A100 datasheet",
        flops_bf16=312e12,
        hbm_bytes=80 * GIB,
        hbm_usable=85_100_068_864,
        hbm_bandwidth=2039e9,
        clock_hz=1.41e9,
        link_bandwidth=25e9,
        links=12,
        devices_per_host=8,
        network_bandwidth=25e9,
        gpu=GpuCores((8, 0), 108, 40 * 2**20),
    ),
    Chip(
        name="h100",
        title="NVIDIA H100 SXM",
        platform="gpu",
        source="nvidia.com/en-us/data-center/h100 (half of its figure with sparsity), DGX H100 datasheet",
        flops_bf16=989.5e12,
        hbm_bytes=80 * GIB,
        hbm_usable=84_942_979_072,
        hbm_bandwidth=3350e9,
        clock_hz=1.98e9,
        link_bandwidth=25e9,
        links=18,
        devices_per_host=8,
        network_bandwidth=50e9,
        gpu=GpuCores((9, 0), 132, 50 * 2**20),
    ),
    Chip(
        name="h200",
        title="NVIDIA H200 SXM",
        platform="gpu",
        source="nvidia.com/en-us/data-center/h200 (half of its figure with sparsity), DGX H200 datasheet",
        flops_bf16=989.5e12,
        hbm_bytes=141 * 10**9,
        hbm_usable=None,
        hbm_bandwidth=4800e9,
        clock_hz=1.98e9,
        link_bandwidth=25e9,
        links=18,
        devices_per_host=8,
        network_bandwidth=50e9,
        gpu=GpuCores((9, 0), 132, 50 * 2**20),
    ),
    Chip(
        name="l4",
        title="NVIDIA L4",
        platform="gpu",
        source="nvidia.com/en-us/data-center/l4 (half of its figure with sparsity)",
        flops_bf16=121e12,
        hbm_bytes=24 * GIB,
        hbm_usable=23034 * 2**20,
        hbm_bandwidth=300e9,
        clock_hz=2.04e9,
        link_bandwidth=32e9,
        links=1,
        devices_per_host=8,
        gpu=GpuCores((8, 9), 58, 48 * 2**20),
    ),
    Chip(
        name="rtx3090",
        title="NVIDIA GeForce RTX 3090",
        platform="gpu",
        source="NVIDIA Ampere GA102 GPU architecture whitepaper",
        flops_bf16=71e12,
        hbm_bytes=24 * GIB,
        hbm_usable=24576 * 2**20,
        hbm_bandwidth=936e9,
        clock_hz=1.695e9,
        link_bandwidth=32e9,
        links=1,
        devices_per_host=8,
        gpu=GpuCores((8, 6), 82, 6 * 2**20),
    ),
    Chip(
        name="rtx4090",
        title="NVIDIA GeForce RTX 4090",
        platform="gpu",
        source="NVIDIA Ada GPU architecture whitepaper",
        flops_bf16=165.2e12,
        hbm_bytes=24 * GIB,
        hbm_usable=24564 * 2**20,
        hbm_bandwidth=1008e9,
        clock_hz=2.52e9,
        link_bandwidth=32e9,
        links=1,
        devices_per_host=8,
        gpu=GpuCores((8, 9), 128, 72 * 2**20),
    ),
)

_CPU = Chip(name="cpu", title="simulated devices of this host's CPU", platform="cpu", source="no datasheet")

CHIPS = {chip.name: chip for chip in (*_TPUS, *_GPUS, _CPU)}
"""{name before the colon of a topology: the chip}."""
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA A100": "a100-80gb",
    "NVIDIA H100": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA L4": "l4",
    "NVIDIA GeForce RTX 3090": "rtx3090",
    "NVIDIA GeForce RTX 4090": "rtx4090",
}
"""{how the name of a device's kind begins: its chip}. The longest one that a kind begins with counts."""


def chip_of(device: jax.Device) -> Chip | None:
    """The chip of a device by its kind; None for devices without a datasheet here, such as CPUs."""
    names = [name for name in KINDS if device.device_kind.startswith(name)]
    return CHIPS[KINDS[max(names, key=len)]] if names else None
