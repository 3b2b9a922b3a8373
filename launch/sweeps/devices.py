"""Which devices each worker of a machine trains on."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

from ...errors import UserError

VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "rocm": "HIP_VISIBLE_DEVICES"}
"""The variable that says which GPUs a process sees, by JAX's name of their platform."""

MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
"""The variable that says which share of a GPU's memory JAX takes at its start: 0.75 by default."""

LOOK = "import jax, json; d = jax.local_devices(); print(json.dumps([d[0].client.platform, len(d)]))"


class Devices(NamedTuple):
    """The devices of this machine."""

    platform: str
    """JAX's name of their platform: cpu, cuda, rocm or tpu."""

    count: int
    """Their number."""


def look() -> Devices:
    """The devices that JAX finds, in a process of its own: a sweep itself must not hold them. Raises UserError where
    JAX finds none."""
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=False)
    try:
        return Devices(*json.loads(found.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        said = (found.stderr.strip().splitlines() or ["JAX said nothing"])[-1]
        raise UserError(f"--workers: the devices of this machine cannot be found ({said})") from None


def environments(workers: int, devices: Devices) -> list[dict[str, str]]:
    """The environment variables of each worker's trials, which divide the GPUs among workers.

    With more GPUs than workers each worker has an equal share of them; with fewer, workers share a GPU and its memory.

    Raises:
      UserError: the devices cannot be divided.
    """
    if devices.platform == "cpu":
        return [{} for _ in range(workers)]
    if devices.platform not in VISIBLE:
        raise UserError(
            f"--workers={workers}: the processes of one machine cannot share its {devices.platform.upper()}: give "
            "--workers=1, and start the same command on each machine"
        )
    variable = VISIBLE[devices.platform]
    names = [name for name in os.environ.get(variable, "").split(",") if name.strip()]
    names = names or [str(number) for number in range(devices.count)]
    if workers <= len(names):
        share = len(names) // workers
        return [{variable: ",".join(names[at * share : (at + 1) * share])} for at in range(workers)]
    memory = float(os.environ.get(MEMORY, 0.75))
    sharing = [len(range(at, workers, len(names))) for at in range(len(names))]
    return [
        {variable: names[at % len(names)], MEMORY: f"{memory / sharing[at % len(names)]:.3f}"} for at in range(workers)
    ]
