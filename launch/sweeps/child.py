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
    if not follow(int(sys.argv.pop(1))):
        return 128 + signal.SIGTERM
    from ..cli import main as camelid

    return camelid()


def follow(parent: int) -> bool:
    """Lets the operating system send SIGTERM to this process when its parent ends (Linux).

    parent: the parent's process id; 0: this process outlives it.

    Returns:
      Whether the parent has not ended yet.
    """
    if not parent or sys.platform != "linux":
        return True
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    return os.getppid() == parent


if __name__ == "__main__":
    sys.exit(main())
