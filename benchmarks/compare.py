"""Compares the speed of training and decoding with Hugging Face on PyTorch, and of training with tunix on JAX.

    make bench

The sides are processes that stay warm. Rounds alternate between them, so that other load on the machine hits all. The
table has the median over rounds of camelid's tokens per second divided by the peer's. There are two shapes in float32
with random weights: `nano-8m` (8.3 M parameters, width 288, 6 layers, vocabulary 4,096) and the quickstart's `nano-1m`
(0.9 M, width 128, 4 layers, vocabulary 1,024). Training uses AdamW and clipping; decoding is greedy, 128 tokens after a
prompt of 32.

All sides train the same weights on the same batch. Before training and after its first round, their losses must be
equal up to rounding, or the benchmark stops.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
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
OURS, HUGGING_FACE, TUNIX = "camelid", "Hugging Face", "tunix"
LOSS_TOLERANCE = 1e-4  # in nats per token


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


@contextlib.contextmanager
def written_networks(names: Iterable[str]) -> Iterator[str]:
    """A folder with weights and a batch of presets in Hugging Face's format, for as long as the context lasts."""
    with TemporaryDirectory() as shared:
        writer = Side.start(sys.executable, "camelid_side.py", shared)
        for name in names:
            writer.measure(f"{name} write")
        writer.stop()
        yield shared


def spread(above: Sequence[float], below: Sequence[float]) -> tuple[str, str]:
    """The median and the range, as text, of the rounds' ratios `above` / `below`."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    return f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} to {ratios[-1]:.2f}"


class LossesDiffer(Exception):
    """The sides do not compute the same: losses of one batch with the same weights are not equal."""


def check_losses(sides: Mapping[str, Side], name: str, when: str) -> None:
    """Raises LossesDiffer unless all sides have the same loss of the batch of the preset `name`."""
    losses = {side: process.measure(f"{name} loss")["loss"] for side, process in sides.items()}
    if max(losses.values()) - min(losses.values()) > LOSS_TOLERANCE:
        said = ", ".join(f"{side} {loss:.6f}" for side, loss in losses.items())
        raise LossesDiffer(f"{name}, {when}: {said}")


def take_turns(sides: Mapping[str, Side], task: str, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Measures a task on all sides in turn, and returns the measurements of each side in each round.

    Losses are compared before training and after its first round, in which the programs are compiled too. This round is
    not measured.
    """
    name, kind = task.split()[:2]
    if kind == "train":
        check_losses(sides, name, "at the start")
    results = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, process in sides.items():
            results[side].append(process.measure(task))
        if number == 0 and kind == "train":
            check_losses(sides, name, "after the first round")
    return {side: measured[1:] for side, measured in results.items()}


def rows_of(title: str, results: Mapping[str, list[dict[str, float]]], peak: float) -> Iterator[list[str]]:
    """Yields the table's row of each peer, from the measurements of each side in each round of a task."""
    rates = {side: [m["tokens_per_second"] for m in measured] for side, measured in results.items()}
    share = statistics.median(m["flops_per_second"] for m in results[OURS]) / peak
    speed = {side: f"{statistics.median(rate):,.0f}" for side, rate in rates.items()}
    for peer in [side for side in rates if side != OURS]:
        yield [title, speed[OURS], peer, speed[peer], *spread(rates[OURS], rates[peer]), f"{share:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", required=True, help="a Python interpreter with torch and transformers")
    parser.add_argument("--tunix_python", required=True, help="a Python interpreter with google-tunix")
    parser.add_argument("--rounds", type=int, default=7, help="number of timed rounds (default: 7)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    args = parser.parse_args()

    columns = ("", "camelid tokens/s", "peer", "peer tokens/s", "ratio", "spread", "share of peak")
    table, peaks, results = Table(*columns), [], {}
    with written_networks(sorted({task.split()[0] for task in args.tasks})) as shared:
        sides = {
            OURS: Side.start(sys.executable, "camelid_side.py", shared),
            HUGGING_FACE: Side.start(args.peer_python, "huggingface_side.py", shared),
            TUNIX: Side.start(args.tunix_python, "tunix_side.py", shared),
        }
        for task in args.tasks:
            peaks += [sides[OURS].measure("matmul")["flops_per_second"] for _ in range(2)]
            taking_part = sides if task.endswith("train") else {name: sides[name] for name in (OURS, HUGGING_FACE)}
            results[task] = take_turns(taking_part, task, args.rounds)
        for side in sides.values():
            side.stop()
    for task, measured in results.items():
        for row in rows_of(TASKS[task], measured, max(peaks)):
            table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(
        f"peak: {max(peaks) / 1e9:.0f} GFLOP/s in float32 products of 2048 x 2048 matrices, the best of {len(peaks)}"
    )
    console.print(f"losses of all sides agree within {LOSS_TOLERANCE:g}, before training and after a round of it")


if __name__ == "__main__":
    main()
