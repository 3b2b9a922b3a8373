"""Compares the speed of training and decoding with Hugging Face on PyTorch, on the same shapes and machine.

    make bench

Both sides are processes that stay warm. Rounds alternate between them, so that other load on the machine hits both. The
table has the median over rounds of camelid's tokens per second divided by Hugging Face's. There are two shapes in
float32 with random weights: `nano-8m` (8.3 M parameters, width 288, 6 layers, vocabulary 4,096) and the quickstart's
`nano-1m` (0.9 M, width 128, 4 layers, vocabulary 1,024). Training uses AdamW and clipping; decoding is greedy, 128
tokens after a prompt of 32.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
TASKS = {
    "nano-8m train": "nano-8m, training on 8 x 256",
    "nano-8m decode 1": "nano-8m, decoding 1 stream",
    "nano-8m decode 8": "nano-8m, decoding 8 streams",
    "nano-1m train": "nano-1m, training on 32 x 128",
    "nano-1m decode 1": "nano-1m, decoding 1 stream",
    "nano-1m decode 8": "nano-1m, decoding 8 streams",
}


class Side(NamedTuple):
    """A process that reads the name of a task from each line of input and prints its measurements as JSON."""

    process: subprocess.Popen

    @classmethod
    def start(cls, python: str, script: str, *arguments: str) -> "Side":
        """Starts a script of this folder with an interpreter and arguments."""
        # Old OpenBLAS builds need these two variables and new ones are slowed by them; neither side uses OpenBLAS.
        environment = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        return cls(subprocess.Popen([python, str(HERE / script), *arguments], **pipes))

    def measure(self, task: str) -> dict[str, float]:
        """The measurements of one round of a task."""
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[1]} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def spread(above: Sequence[float], below: Sequence[float]) -> tuple[str, str]:
    """The median and the range, as text, of the rounds' ratios `above` / `below`."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    return f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", required=True, help="a Python interpreter with torch and transformers")
    parser.add_argument("--rounds", type=int, default=7, help="number of timed rounds (default: 7)")
    args = parser.parse_args()

    ours, theirs = Side.start(sys.executable, "camelid_side.py"), Side.start(args.peer_python, "huggingface_side.py")
    rounds = {task: [] for task in TASKS}
    peaks = []
    for task, results in rounds.items():
        peaks += [ours.measure("matmul")["flops_per_second"] for _ in range(2)]
        for _ in range(args.rounds + 1):  # the first round compiles and is not reported
            results.append((ours.measure(task), theirs.measure(task)))
    for side in (ours, theirs):
        side.stop()

    peak = max(peaks)
    table = Table("", "camelid tokens/s", "Hugging Face tokens/s", "ratio", "spread", "share of peak")
    for task, results in rounds.items():
        mine, peer = zip(*results[1:], strict=True)
        rates = [[m["tokens_per_second"] for m in side] for side in (mine, peer)]
        table.add_row(
            TASKS[task],
            *(f"{statistics.median(side):,.0f}" for side in rates),
            *spread(*rates),
            f"{statistics.median(m['flops_per_second'] for m in mine) / peak:.0%}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"peak: {peak / 1e9:.0f} GFLOP/s in float32 products of 2048 x 2048 matrices, the best of {len(peaks)}"
    )


if __name__ == "__main__":
    main()
