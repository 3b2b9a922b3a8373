"""Compares evaluations with those of lm-evaluation-harness' Hugging Face backend, on the same weights.

    python -m camelid.benchmarks.eval_parity HF_FOLDER --reference=REFERENCE/bin/python

HF_FOLDER is a model in Hugging Face's format, such as `camelid convert` writes. REFERENCE is an environment with torch,
transformers, accelerate and lm_eval; camelid's own has `camelid[eval]`. The tasks are those of `eval_tasks.py`. The
table has the value of each metric in each setting: batches of 1, 8 and 32, a mesh of 8 simulated devices, a run that is
broken off and resumed, and our own server. The second table has the largest difference of a continuation's
log-probability, that of a whole text's relative to it, and the number of texts that differ.

The reference computes in float64 (`--dtype`), so that the differences are ours. In float32 its own log-probabilities
were off by up to 2.5e-5 a token of SmolLM2, ours by up to 1.9e-5.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .compare import Side
from .eval_tasks import write_tasks

CHAT = ["parity_choices", "parity_prefix", "parity_answers"]
"""Tasks that are also run in the model's chat template."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder in Hugging Face's format")
    parser.add_argument("--reference", required=True, help="python of the environment with transformers")
    parser.add_argument("--documents", type=int, default=24, help="documents of each task (default: 24)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="batch sizes (default: 1 8 32)")
    parser.add_argument("--dtype", default="float64", help="dtype of the reference (default: float64)")
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1"}
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    with tempfile.TemporaryDirectory() as folder:
        names = write_tasks(Path(folder), arguments.documents)
        for tasks, chat in ((names, False), (CHAT, True)):
            how = {"tasks": tasks, "batch": 8, "chat": chat}
            how_there = [f"--dtype={arguments.dtype}"]
            reference = measured(arguments.reference, "huggingface", arguments.model, folder, [how], how_there)[0]
            found = ours(arguments.model, folder, how, arguments.batches)
            print_tables(reference, found, "in the chat template" if chat else "as texts")


def measured(
    python: str,
    backend: str,
    path: str,
    folder: str,
    requests: Sequence[Mapping[str, Any]],
    options: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """What a side finds for each request."""
    side = Side.start(python, "eval_side.py", backend, path, folder, *options)
    try:
        return [side.measure(json.dumps(request)) for request in requests]
    finally:
        side.stop()


def ours(model: str, folder: str, how: Mapping[str, Any], batches: list[int]) -> dict[str, dict[str, Any]]:
    """What we find in each setting."""
    settings = {f"batch {batch}": {"batch": batch} for batch in batches} | {"mesh 8": {"mesh": 8}}
    requests = [dict(how) | changes for changes in settings.values()]
    cache = f"{folder}/cache-{how['chat']}.sqlite"
    requests += [dict(how) | {"cache": cache, "stop": 2}, dict(how) | {"cache": cache}]
    *found, broken, resumed = measured(sys.executable, "camelid", model, folder, requests)
    assert "metrics" not in broken and resumed["batches"] < found[0]["batches"]
    results = dict(zip(settings, found, strict=True)) | {"resumed": resumed}
    with Server(model) as address:
        results["server"] = measured(sys.executable, "camelid", address, folder, [dict(how)])[0]
    return results


class Server:
    """`camelid serve` with a model, on a free port."""

    def __init__(self, model: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        code = "import sys; from camelid.launch.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "serve", model, f"--port={port}"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def __enter__(self) -> str:
        while self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self._address}/v1/models", timeout=5).read()
                return self._address
            except OSError:
                time.sleep(0.5)
        raise SystemExit(f"camelid serve ended with exit code {self._process.returncode}")

    def __exit__(self, *_) -> None:
        self._process.terminate()
        self._process.wait()


def print_tables(reference: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], title: str) -> None:
    console = Console(width=200)
    table = Table("metric/task", "Hugging Face", *found, title=f"Metrics, {title}")
    for name, value in reference["metrics"].items():
        table.add_row(name, f"{value:.6g}", *(f"{each['metrics'][name]:.6g}" for each in found.values()))
    console.print(table)
    table = Table("setting", "continuations apart", "whole texts apart", "greedy marks differ", "answers differ")
    for name, each in found.items():
        table.add_row(name, *difference(reference["answers"], each["answers"]))
    console.print(table)


def difference(reference: Mapping[str, list], found: Mapping[str, list]) -> list[str]:
    """Of continuations the largest difference of log-probabilities, of whole texts the largest relative one, and the
    numbers of greedy marks and of written answers that differ."""
    if reference.keys() != found.keys():
        raise SystemExit(f"documents differ: {sorted(reference.keys() ^ found.keys())[:5]}")
    pairs = [pair for name in reference for pair in zip(reference[name], found[name], strict=True)]
    written = [one != other for one, other in pairs if isinstance(one, str)]
    texts = [abs(one - other) / abs(one) for one, other in pairs if isinstance(one, float)]
    choices = [abs(one[0] - other[0]) for one, other in pairs if isinstance(one, list)]
    marks = [one[1] != other[1] for one, other in pairs if isinstance(one, list)]
    counts = [f"{sum(each)} of {len(each)}" for each in (marks, written)]
    return [f"{max(each):.1e}" if each else "" for each in (choices, texts)] + counts


if __name__ == "__main__":
    main()
