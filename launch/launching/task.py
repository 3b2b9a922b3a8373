"""One process of a launched command: `python -m camelid.launch.launching.task --exits=DIR -- train ...`.

It runs the command as `camelid` does, and writes its exit code into DIR/<number of the process>. A job reads these
files because a launcher such as `srun` can report 0 for a process that it never started.
"""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from .verdict import EXIT_FILE, write_exit

PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl that names a signal for the death of the parent."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command after `--` and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--")
    parser = argparse.ArgumentParser(prog="camelid.launch.launching.task", allow_abbrev=False)
    parser.add_argument("--exits", type=Path, required=True, help="folder of the exit files")
    number = os.environ.get("SLURM_PROCID", "0")
    parser.add_argument("--number", default=number, help="number of the process (default: Slurm's, or 0)")
    parser.add_argument("--parent", type=int, help="id of the process with which this one ends (default: none)")
    args, command = parser.parse_args(words[:at]), words[at + 1 :]

    if args.parent is not None:
        _end_with(args.parent)
    args.exits.mkdir(parents=True, exist_ok=True)
    os.environ[EXIT_FILE] = str(args.exits.absolute() / args.number)
    sys.argv = ["camelid", *command]  # what locks and records show

    from ..cli import main as run

    code = 1  # of an exception that nobody expected, which Python prints
    try:
        code = run(command)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        raise
    finally:
        write_exit(str(code))
    return code


def _end_with(parent: int) -> None:
    """Makes Linux send SIGTERM to this process when its parent dies, so that no run goes on that nobody can stop."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
