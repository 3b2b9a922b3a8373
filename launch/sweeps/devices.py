"""Which devices each worker of a machine trains on."""

import os

from ...model.host_devices import VISIBLE, HostDevices, divide, names

MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
"""The variable that says which share of a GPU's memory JAX takes at its start: 0.75 by default."""


def environments(workers: int, devices: HostDevices) -> list[dict[str, str]]:
    """The environment variables of each worker's trials, which divide the devices among workers.

    With more devices than workers each worker has an equal share of them; with fewer, workers share a GPU and its
    memory.

    Raises:
      UserError: the devices cannot be divided.
    """
    option = f"--workers={workers}"
    if workers <= devices.count or devices.platform not in ("cuda", "rocm"):
        return divide(devices, workers, max(1, devices.count // workers), option)
    seen, memory = names(devices), float(os.environ.get(MEMORY, 0.75))
    sharing = [len(range(at, workers, len(seen))) for at in range(len(seen))]
    return [
        {VISIBLE[devices.platform]: seen[at % len(seen)], MEMORY: f"{memory / sharing[at % len(seen)]:.3f}"}
        for at in range(workers)
    ]
