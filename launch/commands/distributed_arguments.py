"""The options of commands that several processes run together: `camelid train` and `camelid doctor`."""

import argparse
import contextlib

from .arguments import refuse_unread

DISTRIBUTED = ("distributed", "coordinator", "num_processes", "process_id")
"""The options of `add_distributed`."""


def add_distributed(parser: argparse.ArgumentParser, doing: str) -> None:
    """Adds the options for a command that several processes run together. doing: what they do, such as "train"."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help=f"{doing} together with the other processes of a cluster; start the same command on each host",
    )
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="with --distributed: address of process 0 (default: found by JAX on TPU VMs, Slurm and Kubernetes)",
    )
    parser.add_argument("--num_processes", type=int, metavar="N", help="with --coordinator: total number of processes")
    parser.add_argument(
        "--process_id", type=int, metavar="I", help="with --coordinator: number of this process, from 0"
    )


def check_distributed(args: argparse.Namespace) -> None:
    """Raises UserError for options of `add_distributed` that are wrong, or without `--distributed`."""
    from ..distributed import check_group

    if not args.distributed:
        refuse_unread(args, DISTRIBUTED[1:], "--distributed")
    check_group(args.coordinator, args.num_processes, args.process_id)


def joined_processes(args: argparse.Namespace, **settings: int) -> contextlib.AbstractContextManager[None]:
    """The context in which the processes of the options of `add_distributed` are joined; nothing for one process.

    Args:
      args: the parsed options.
      **settings: further arguments of `distributed.joined`.
    """
    if not args.distributed:
        return contextlib.nullcontext()
    from ..distributed import joined

    return joined(args.coordinator, args.num_processes, args.process_id, **settings)
