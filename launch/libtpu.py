"""libtpu, TPUs' runtime and compiler, on machines without TPUs, where `camelid plan` compiles for absent ones."""

import importlib.util
import os
from pathlib import Path

LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # asks no metadata server, which only TPU hosts have
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may load libtpu at once; one aborts otherwise
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # with the next one: libtpu warns on stderr where they are not set
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""What libtpu reads from the environment when it is loaded."""

GOOGLE = "0x1ae0"
"""The vendor of TPUs among PCI devices."""


def quiet_without_tpus() -> None:
    """Keeps libtpu from warning on stderr, on a machine where it is installed and no TPU is.

    JAX loads libtpu at its start wherever it is installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        return
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if not any(path.read_text().strip() == GOOGLE for path in vendors):
        for name, value in LIBTPU.items():
            os.environ.setdefault(name, value)
