"""How XLA's GPU compiler is told of a GPU that is not there."""

from typing import NamedTuple

from ...train.chips import Chip


class _Architecture(NamedTuple):
    """Limits of a streaming multiprocessor, which follow from the compute capability."""

    float32_units: int
    threads: int
    shared_bytes: int
    """Shared memory of a multiprocessor; a block may have all of it but 1 KiB."""


# CUDA C++ programming guide, technical specifications per compute capability.
ARCHITECTURES = {
    (8, 0): _Architecture(64, 2048, 164 * 1024),
    (8, 6): _Architecture(128, 1536, 100 * 1024),
    (8, 9): _Architecture(128, 1536, 100 * 1024),
    (9, 0): _Architecture(128, 2048, 228 * 1024),
}
DNN_VERSION = "9.8.0"
RUNTIME_VERSION = "12.8.0"


def target_text(chip: Chip) -> str:
    """XLA's GpuTargetConfig of a GPU in protobuf's text format.

    Args:
      chip: a chip with `gpu`.
    """
    cores = chip.gpu
    major, minor = cores.compute_capability
    limits = ARCHITECTURES[cores.compute_capability]
    extension = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": limits.threads,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_block_optin": limits.shared_bytes - 1024,
        "shared_memory_per_core": limits.shared_bytes,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "core_count": cores.count,
        "fpus_per_core": limits.float32_units,
        "clock_rate_ghz": chip.clock_hz / 1e9,
        "memory_bandwidth": int(chip.hbm_bandwidth),
        "device_memory_size": chip.hbm_usable or chip.hbm_bytes,
        "l2_cache_size": cores.l2_bytes,
    }
    lines = "\n".join(f"  {field}: {value}" for field, value in info.items())
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}"
    dnn = dict(zip(("major", "minor", "patch"), DNN_VERSION.split("."), strict=True))
    return (
        f"gpu_device_info {{\n{lines}\n  {capability}\n"
        f'  dnn_version: "{DNN_VERSION}"\n  runtime_version: "{RUNTIME_VERSION}"\n}}\n'
        'platform_name: "CUDA"\n'
        f"dnn_version_info {{ {' '.join(f'{key}: {value}' for key, value in dnn.items())} }}\n"
        f'device_description_str: "{chip.title}"\n'
    )
