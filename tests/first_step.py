"""Measures the seconds from `camelid train` to the report of the first step, with a cold and a warm compilation cache.

    python -m camelid.tests.first_step                      the tiny config of the tests
    python -m camelid.tests.first_step --config=camelid/configs/pretrain/primer.py --repeats=5

Each repeat is a pair: a run with an empty folder of compiled programs, then the same one with what the first left
there. Both have a fresh WORKDIR; token caches are made before by a run that does not count. Printed are the wall time
to the first step's line, the CPU time of the process, and where the time went by WORKDIR/run.json: `start` holds
imports, data and the first parameters, `compile` tracing and compiling, or reading from the cache.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from camelid.tests.make_loss_goldens import write_data

CAMELID = [sys.executable, "-c", "import sys; from camelid.launch.cli import main; sys.exit(main())"]
COLUMNS = ("to the first step", "CPU", "start", "compile", "data")


def measure(argv: list[str], workdir: Path, compiled: Path) -> dict[str, float]:
    """Seconds of a run of one step, by column."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
    }
    argv = [*CAMELID, "train", *argv, f"--workdir={workdir}", "--config.log_steps=1"]
    before, begin = os.times(), time.monotonic()
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        said, first = [], None
        for line in process.stdout:
            said.append(line)
            if first is None and line.startswith("step 1/"):
                first = time.monotonic() - begin
    assert process.returncode == 0 and first is not None, "".join(said)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    record = json.loads((workdir / "run.json").read_text())["seconds"]
    return dict(zip(COLUMNS, (first, cpu, *(record.get(name, 0.0) for name in COLUMNS[2:])), strict=True))


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="config file with its argument (default: the tiny config of the tests)")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs (default: 3)")
    args, more = parser.parse_known_args()
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory(prefix="camelid-first-step-") as folder:
        root = Path(folder)
        write_data(root)
        config = args.config or f"{Path(__file__).with_name('tiny.py')}:root={root}"
        argv = [f"--config={config}", "--config.total_steps=1", "--config.schedule.warmup_percent=0.0", *more]
        measure(argv, root / "first", root / "compiled")
        for n in range(args.repeats):
            shutil.rmtree(root / "compiled")
            for kind in found:
                found[kind].append(measure(argv, root / f"{kind}-{n}", root / "compiled"))
    for kind, rows in found.items():
        values = [f"{name} {statistics.median(row[name] for row in rows):.1f}" for name in COLUMNS]
        lowest = min(row[COLUMNS[0]] for row in rows)
        print(f"{kind}: median seconds of {len(rows)} runs: {', '.join(values)}; fastest {lowest:.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run())
