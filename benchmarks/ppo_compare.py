"""Compares the speed of an iteration of PPO with TRL on PyTorch, on the same task (`ppo_task.py`) and machine.

    make bench-ppo

An iteration is a rollout, its scoring by policy, reference, reward model and critic, and epochs of minibatches. The
networks have random weights and the shape `nano-1m` in float32. Both sides are processes that stay warm and take turns
on the same two cores. camelid's scoring is the time of the first program of an iteration less that of a rollout alone.
TRL's pieces are the times between calls in its own loop, which scores the policy by the logits that it sampled from.
The ratio is TRL's seconds divided by camelid's, with its median and range over rounds. Run it on an idle machine: other
load slows PyTorch far more than XLA, so that the ratio flatters camelid.
"""

import argparse
import os
import statistics
import sys

from rich.console import Console
from rich.table import Table

from camelid.benchmarks import ppo_task as task
from camelid.benchmarks.compare import Side, spread, written_networks

CORES = 2
PIECES = {"seconds": "iteration", "rollout": "rollout", "scoring": "scoring", "update": "update"}


def take_turns(peer_python: str, rounds: int) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Measures iterations of both sides in turn; the first round compiles.

    Args:
      peer_python: interpreter for TRL.
      rounds: number of rounds after the first.

    Returns:
      The seconds of camelid's and of TRL's iteration and pieces in each round.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with written_networks([task.SHAPE]) as shared:
        sides = Side.start(sys.executable, "camelid_ppo.py"), Side.start(peer_python, "trl_ppo.py", shared)
        results = [tuple(side.measure("iteration") for side in sides) for _ in range(rounds + 1)]
    for side in sides:
        side.stop()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", required=True, help="a Python interpreter with benchmarks/requirements.txt")
    parser.add_argument("--rounds", type=int, default=15, help="number of timed rounds (default: 15)")
    args = parser.parse_args()

    first, *results = take_turns(args.peer_python, args.rounds)
    table = Table("", "camelid seconds", "TRL seconds", "ratio", "spread")
    for name, title in PIECES.items():
        mine, theirs = ([side[name] for side in sides] for sides in zip(*results, strict=True))
        seconds = [statistics.median(side) for side in (mine, theirs)]
        table.add_row(title, *(f"{median:.3f}" for median in seconds), *spread(theirs, mine))
        if name == "seconds":
            rates = [task.PROMPTS / median for median in seconds]
            compiled = first[0][name] - seconds[0]
    console = Console()
    console.print(table)
    console.print(f"samples/s: camelid {rates[0]:.1f}, TRL {rates[1]:.1f}; camelid compiles for {compiled:.0f} s first")


if __name__ == "__main__":
    main()
