"""Compares the speed of a GRPO step with TRL on PyTorch and with tunix on JAX, on the same task and machine.

    make bench-ppo

A step (`grpo_task.py`) is a rollout of several answers to each prompt by the policy's own sampler, their rewards by a
Python function of the text, and one update on all answers. Policy and reference begin with the same random weights of
the shape `nano-1m` in float32. The sides are processes that stay warm and take turns on the same two cores. The ratio
is the peer's seconds divided by camelid's, with its median and range over rounds.

Every side draws answers of the same length and takes one update. camelid also scores the answers with the policy once
more before the update, and reports entropy and exact KL divergence. With one update for each rollout, TRL and tunix
take the first probability ratio to be 1.
"""

import argparse
import os
import statistics
import sys

from rich.console import Console
from rich.table import Table

from camelid.benchmarks import grpo_task as task
from camelid.benchmarks.compare import HUGGING_FACE, OURS, TUNIX, Side, spread, written_networks
from camelid.benchmarks.ppo_compare import CORES

TITLES = {OURS: "camelid", HUGGING_FACE: "TRL", TUNIX: "tunix"}


def take_turns(pythons: dict[str, str], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Measures steps of all sides in turn; the first round compiles.

    Args:
      pythons: the interpreter of each side.
      rounds: number of rounds after the first.

    Returns:
      The seconds of a step and the mean reward of its answers, for each side in each round.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    scripts = {OURS: "camelid_grpo.py", HUGGING_FACE: "trl_grpo.py", TUNIX: "tunix_grpo.py"}
    with written_networks([task.SHAPE]) as shared:
        sides = {name: Side.start(python, scripts[name], f"{shared}/{task.SHAPE}") for name, python in pythons.items()}
        results = {name: [] for name in sides}
        for _ in range(rounds + 1):
            for name, side in sides.items():
                results[name].append(side.measure("step"))
        for side in sides.values():
            side.stop()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", required=True, help="a Python interpreter with benchmarks/requirements.txt")
    parser.add_argument("--tunix_python", required=True, help="a Python interpreter with google-tunix")
    parser.add_argument("--rounds", type=int, default=15, help="number of timed rounds (default: 15)")
    args = parser.parse_args()

    results = take_turns({OURS: sys.executable, HUGGING_FACE: args.peer_python, TUNIX: args.tunix_python}, args.rounds)
    seconds = {name: [step["seconds"] for step in steps[1:]] for name, steps in results.items()}
    table = Table("", "seconds", "answers/s", "tokens/s", "of camelid's seconds", "spread", "mean reward")
    for name, title in TITLES.items():
        median = statistics.median(seconds[name])
        answers = task.PROMPTS * task.ANSWERS / median
        ratio = ("", "") if name == OURS else spread(seconds[name], seconds[OURS])
        reward = statistics.mean(step["reward"] for step in results[name])
        speeds = f"{median:.3f}", f"{answers:,.0f}", f"{answers * task.ANSWER:,.0f}"
        table.add_row(title, *speeds, *ratio, f"{reward:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
