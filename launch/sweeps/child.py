"""A camelid command as the process of a worker: `python -m camelid.launch.sweeps.child PARENT train ...`.

When the worker is killed, the operating system sends SIGTERM to the command (Linux): a training saves its state and
ends, so that it does not compete for the devices with the worker that takes it over.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Runs the command of this process's arguments; PARENT is the process id of the worker;
    with 0 the command outlives whoever started it."""
    parent = int(sys.argv.pop(1))
    if parent and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it was killed before
            return 128 + signal.SIGTERM
    from ..cli import main as camelid

    return camelid()


if __name__ == "__main__":
    sys.exit(main())
