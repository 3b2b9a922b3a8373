"""The speed of an iteration of PPO against TRL's on PyTorch: same numbers (`ppo_task.py`), same machine, taking turns.

    make bench-ppo

An iteration is a rollout, what policy, reference, reward model and critic say of it, and epochs of minibatches. The
networks have random weights and the shape `nano-1m` in float32. Both sides are processes that stay warm and wait, on
the same two cores. camelid's whole is one program, its pieces are programs of their own; TRL's pieces are what passes
between calls in its own loop, where the policy is scored by the logits that it drew from. The ratio is TRL's seconds /
camelid's: the median over rounds, and the range. Run it on an idle machine: whatever else runs slows PyTorch by far
more than it does XLA, and the ratio flatters camelid.
"""

import argparse
import os
import statistics
import sys

from rich.console import Console
from rich.table import Table

from camelid.benchmarks import ppo_task as task
from camelid.benchmarks.compare import Side, spread

CORES = 2
PIECES = {"seconds": "iteration", "rollout": "rollout", "scoring": "scoring", "update": "update"}


def take_turns(peer_python: str, rounds: int) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Both sides' seconds in each round, after a first that compiles and warms up."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    sides = Side.start(sys.executable, "camelid_ppo.py"), Side.start(peer_python, "trl_ppo.py")
    results = [tuple(side.measure("iteration") for side in sides) for _ in range(rounds + 1)]
    for side in sides:
        side.stop()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", required=True, help="an interpreter that has what requirements.txt lists")
    parser.add_argument("--rounds", type=int, default=15)
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
