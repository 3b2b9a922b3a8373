"""Compares the speed of evaluations with lm-evaluation-harness' Hugging Face backend, on the same weights and machine.

    python -m camelid.benchmarks.eval_speed HF_FOLDER --reference=REFERENCE/bin/python

HF_FOLDER is a model in Hugging Face's format, such as `camelid convert` writes. REFERENCE is an environment with torch,
transformers, accelerate and lm_eval; camelid's own has `camelid[eval]`. Both sides are processes that stay warm, in
float32 on the processor, and take turns, so that other load hits both. A round is a whole evaluation: prompts are made,
tokens encoded, answers scored. The table has the median seconds over rounds, and the median over rounds of Hugging
Face's time divided by camelid's. The tasks are those of `eval_tasks.py`: choices after two examples, the letters of
choices, and written answers of at most 24 tokens after three examples.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .compare import Side
from .eval_tasks import write_tasks

TASKS = ("parity_choices", "parity_letters", "parity_answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder in Hugging Face's format")
    parser.add_argument("--reference", required=True, help="python of the environment with transformers")
    parser.add_argument("--documents", type=int, default=48, help="documents of each task (default: 48)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each task (default: 5)")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help=f"tasks (default: {' '.join(TASKS)})")
    parser.add_argument("--batch", type=int, default=16, help="Hugging Face's batch; ours is the default (default: 16)")
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1"}
    table = Table("task", "Hugging Face, s", "camelid, s", "times as fast", "metrics apart")
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), arguments.documents)
        theirs = Side.start(arguments.reference, "eval_side.py", "huggingface", arguments.model, folder)
        ours = Side.start(sys.executable, "eval_side.py", "camelid", arguments.model, folder)
        for task in arguments.tasks:
            requests = [
                json.dumps({"tasks": [task], "batch": batch, "chat": False}) for batch in (arguments.batch, None)
            ]
            warm = [side.measure(request) for side, request in zip((theirs, ours), requests, strict=True)]
            rounds = [
                [side.measure(request)["seconds"] for side, request in zip((theirs, ours), requests, strict=True)]
                for _ in range(arguments.rounds)
            ]
            apart = max(abs(value - warm[1]["metrics"][name]) for name, value in warm[0]["metrics"].items())
            medians = [f"{statistics.median(side):.2f}" for side in zip(*rounds, strict=True)]
            ratio = statistics.median(their / our for their, our in rounds)
            table.add_row(task, *medians, f"{ratio:.2f}", f"{apart:.1e}")
        theirs.stop()
        ours.stop()
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
