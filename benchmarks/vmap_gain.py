"""Measures what it brings to train seeds in one program (`camelid sweep --vmap`), against runs of their own.

    .venv/bin/python benchmarks/vmap_gain.py --workdir=runs/vmap_gain --preset=nano-test --steps=50

Sweeps the seeds of a short pretraining on the primer's documents: one process a run, one after the other; the same with
two workers; one program; and one program that computes all runs at once (`jax.vmap`), as accelerators do. Each is done
twice, with an empty compilation cache and with the cache that the first left. Prints a table in Markdown: wall time and
CPU time of the whole command, processes included, and both relative to runs one after the other.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from camelid.evals.registry import Evaluations
from camelid.launch.recipes import run_of
from camelid.settings.config_files import load_config
from camelid.train import vectorized

CAMELID = [sys.executable, "-m", "camelid"]
SPECIAL = ("<|im_start|>", "<|im_end|>")
NAMES = {
    "alone": "runs one after the other",
    "workers": "--workers=2",
    "program": "--vmap={seeds}",
    "at_once": "one program, all at once",
}


class Cost(NamedTuple):
    """What a command took, in seconds."""

    wall: float
    cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the sweeps; old ones in it are replaced")
    parser.add_argument("--preset", default="nano-test", help="architecture (default: nano-test)")
    parser.add_argument("--steps", type=int, default=50, help="steps of each run (default: 50)")
    parser.add_argument("--seeds", type=int, default=8, help="number of runs (default: 8)")
    parser.add_argument("--at_once", type=Path, help=argparse.SUPPRESS)  # a process of this file's own
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    if args.at_once:
        train_at_once(args)
        return
    tokenizer = args.workdir / "tokenizer"
    if not tokenizer.exists():
        sources = [f"--source=primer:{name}" for name in ("documents", "chat")]
        special = [f"--special={token}" for token in SPECIAL]
        made = [*CAMELID, "tokenizer", "train", *sources, *special, "--vocab_size=1024", f"--output={tokenizer}"]
        subprocess.run(made, check=True)
    print(f"{args.seeds} seeds of {args.preset}, {args.steps} steps, {os.cpu_count()} cores\n")
    print("| | cache | wall | CPU | wall, relative | CPU, relative |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for cache in ("empty", "filled"):
        base = None
        for name, command in commands(args).items():
            compiled, runs = args.workdir / f"compiled-{name}", args.workdir / f"runs-{name}"
            for folder in [runs] + ([compiled] if cache == "empty" else []):
                shutil.rmtree(folder, ignore_errors=True)
            cost = measured(command, compiled, args.workdir / f"{name}.log")
            base = base or cost
            parts = f"{cost.wall:.0f} s | {cost.cpu:.0f} s | {cost.wall / base.wall:.2f} | {cost.cpu / base.cpu:.2f}"
            print(f"| {NAMES[name].format(seeds=args.seeds)} | {cache} | {parts} |", flush=True)


def commands(args: argparse.Namespace) -> dict[str, list[str]]:
    """The command of each way, by its name."""
    seeds = ",".join(map(str, range(args.seeds)))
    sweep = [*CAMELID, "sweep", f"--config={config(args)}", *overrides(args), f"--space=seed={{{seeds}}}"]
    sweep += ["--objective=eval/heldout/primer/loss:min"]
    own = ["--workdir", str(args.workdir), "--preset", args.preset, "--steps", str(args.steps)]
    own += ["--seeds", str(args.seeds)]
    return {
        "alone": [*sweep, f"--workdir={args.workdir / 'runs-alone'}"],
        "workers": [*sweep, "--workers=2", f"--workdir={args.workdir / 'runs-workers'}"],
        "program": [*sweep, f"--vmap={args.seeds}", f"--workdir={args.workdir / 'runs-program'}"],
        "at_once": [sys.executable, __file__, *own, f"--at_once={args.workdir / 'runs-at_once'}"],
    }


def config(args: argparse.Namespace) -> str:
    return f"pretrain/primer:preset={args.preset},tokenizer={args.workdir / 'tokenizer'},steps={args.steps}"


def overrides(args: argparse.Namespace) -> list[str]:
    rows = ["--config.data.batch_size=32", "--config.eval_percent=50.0"]
    return [f"--config.data.cache_dir={args.workdir / 'tokens'}", *rows]


def train_at_once(args: argparse.Namespace) -> None:
    """Trains all runs in one program that computes them at once, which `camelid sweep` does on accelerators alone."""
    evaluations = Evaluations()
    configs = [load_config(config(args), [*overrides(args), f"--config.seed={seed}"]) for seed in range(args.seeds)]
    runs = [run_of(each, args.at_once / str(seed), evaluations) for seed, each in enumerate(configs)]
    assert vectorized.train(runs, vmap=True) == [None] * args.seeds


def measured(command: list[str], compiled: Path, log: Path) -> Cost:
    """What a command and its processes take, with a folder of compiled programs."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compiled.absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with log.open("w") as file:
        subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.monotonic() - begin, cpu)


if __name__ == "__main__":
    main()
