"""Speed of a run, and its share of the hardware's peak."""

import resource
import sys
import time

import jax

from .chips import chip_of


def peak_flops(device: jax.Device) -> float | None:
    """The peak of a device in bfloat16 FLOP/s by its data sheet; None for devices without one, such as CPUs."""
    chip = chip_of(device)
    return chip and chip.flops_bf16 and chip.flops_bf16 / chip.devices_per_chip


class Meter:
    """Measures tokens per second between two readings, without the time given to `pause`.

    MFU is model FLOPs per second (`LlamaConfig.flops_per_token`, without recomputation and padding) divided by the
    devices' peak. It is a fraction, and left out for devices whose peak is not known.
    """

    def __init__(self, flops_per_token: float):
        self._flops_per_token = flops_per_token
        self._devices = jax.device_count()
        self._peak = peak_flops(jax.devices()[0])
        self._start = time.perf_counter()
        self._passed_over = 0.0

    def pause(self, seconds: float) -> None:
        """Leaves seconds spent on evaluations, saving or compiling out of the next reading."""
        self._passed_over += seconds

    def read(self, tokens: float, steps: int) -> dict[str, float]:
        """Rates since the last reading, in which so many steps trained so many tokens (padding not counted)."""
        now = time.perf_counter()
        seconds = max(now - self._start - self._passed_over, 1e-9)
        self._start, self._passed_over = now, 0.0
        rates = {
            "seconds_per_step": seconds / steps,
            "tokens_per_second": tokens / seconds,
            "tokens_per_second_per_device": tokens / seconds / self._devices,
        }
        if self._peak:
            rates["mfu"] = rates["tokens_per_second_per_device"] * self._flops_per_token / self._peak
        return rates


def memory() -> dict[str, float]:
    """Peak memory in bytes: of this process on the host, and of the first device where its backend reports it."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"host_memory_peak_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        found["device_memory_peak_bytes"] = float(stats["peak_bytes_in_use"])
    return found
