"""The devices of this machine, and the environment variables that divide them among processes."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import UserError

VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "ROCR_VISIBLE_DEVICES", "tpu": "TPU_VISIBLE_CHIPS"}
"""The variable that says which devices a process sees, by platform."""

_ONE_CHIP = {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"}

# JAX calls the GPUs of both makers "gpu"; only the description of the platform's software tells them apart.
_PROBE = """import json, jax
devices = jax.local_devices()
chips = {str(getattr(device, "coords", device.id)) for device in devices}
print(json.dumps([devices[0].platform, devices[0].client.platform_version, len(chips)]))"""


class HostDevices(NamedTuple):
    """The devices of a machine."""

    platform: str
    """cpu, cuda, rocm, tpu, or JAX's name of another platform."""

    count: int
    """Number of devices; of a TPU, chips."""


def host_devices() -> HostDevices:
    """The devices of this machine that JAX finds.

    A process of its own asks, which leaves the devices free. Raises UserError if JAX finds none.
    """
    probe = [sys.executable, "-P", "-c", _PROBE]
    done = subprocess.run(probe, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise UserError(f"JAX finds no devices: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    platform, version, count = json.loads(done.stdout.splitlines()[-1])
    if platform == "gpu":
        platform = "rocm" if "rocm" in version.lower() else "cuda"
    return HostDevices(platform, count)


def names(devices: HostDevices, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The devices of a GPU or TPU platform, as its variable names them.

    Args:
      devices: the devices of this machine.
      environment: the variables of this process, which may see some of the machine's devices alone.
    """
    given = [part.strip() for part in environment.get(VISIBLE[devices.platform], "").split(",") if part.strip()]
    return given or [str(number) for number in range(devices.count)]


def divide(
    devices: HostDevices, processes: int, each: int, option: str, environment: Mapping[str, str] = os.environ
) -> list[dict[str, str]]:
    """The variables that give each of several processes devices of its own. On a CPU there are none: processes share
    the cores.

    Args:
      devices: the devices of this machine.
      processes: number of processes.
      each: number of devices of a process.
      option: the option that asks for the processes, with its value, for messages.
      environment: the variables of this process.

    Raises:
      UserError: there are too few devices, or they cannot be divided.
    """
    if devices.platform == "cpu":
        return [{} for _ in range(processes)]
    if devices.platform not in VISIBLE:
        raise UserError(f"{option}: {devices.platform} devices cannot be divided among the processes of one machine")
    if devices.platform == "tpu" and each > 1:
        raise UserError(
            f"{option} with {each} chips each: a process has one chip of a TPU or all {devices.count} of them"
        )
    if processes * each > devices.count:
        wanted = f"{each} devices each" if each > 1 else "a device each"
        raise UserError(f"{option} with {wanted}: there are {devices.count}: give at most {devices.count // each}")
    seen, more = names(devices, environment), _ONE_CHIP if devices.platform == "tpu" else {}
    parts = [",".join(seen[number * each : (number + 1) * each]) for number in range(processes)]
    return [{VISIBLE[devices.platform]: part} | more for part in parts]
