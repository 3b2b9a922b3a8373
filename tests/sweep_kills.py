"""Sweeps trainings with eight workers, kills two of them, continues, and compares with a sweep that was left alone.

python -m camelid.tests.sweep_kills --root=/tmp/camelid-sweep-kills

The undisturbed sweep has 36 trials and two workers. The disturbed one is started eight times at once with --trials=24;
two of these processes are killed with kill -9, each with the training that it runs; a last command with --trials=36
continues it. Compared are the points, the values, all metrics but times, and every array of the last checkpoints.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from camelid.launch.sweeps.results import read_results
from camelid.tests.kills import CAMELID, Kind

CONFIG = Path(__file__).with_name("tiny.py")


def sweep(root: Path, folder: Path, trials: int, workers: int) -> subprocess.Popen:
    """Starts the sweep's command, with its output in a file beside the folder."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    line = [
        *("sweep", f"--config={CONFIG}:root={root}", "--space=optim.lr=log(1e-3,3e-2) seed={0,1,2}"),
        *("--objective=eval/heldout/text/loss:min", "--method=random", f"--trials={trials}", f"--workers={workers}"),
        *("--config.total_steps=16", "--config.checkpoint.every_steps=4", f"--workdir={folder}"),
    ]
    with open(f"{folder}.log", "a") as log:
        return subprocess.Popen([*CAMELID, *line], env=environment, stdout=log, stderr=log)


def kill_two(folder: Path, processes: list[subprocess.Popen]) -> list[int]:
    """Kills two workers and their trainings once these have been saved. Returns the numbers of their trials."""
    killed = []
    while len(killed) < 2:
        for process in processes:
            for worker in folder.glob("trials/*/.worker"):
                content = worker.read_text()
                run = worker.parent
                begun = content and json.loads(content)["pid"] == process.pid and process.poll() is None
                if not begun or not list(run.glob("checkpoints/*")) or len(killed) == 2:
                    continue
                training = json.loads((run / "run.json").read_text())["attempts"][-1]["pid"]
                process.kill()
                os.kill(training, signal.SIGKILL)
                process.wait()
                killed.append(int(run.name))
        time.sleep(0.02)
    return killed


def outcome(root: Path, folder: Path) -> dict[int, tuple]:
    """What two sweeps have in common, by trial."""
    kind = Kind("train", root)
    return {
        trial.number: (trial.state, trial.point, trial.value, kind._metrics(trial.folder), kind._state(trial.folder))
        for trial in read_results(folder).trials
    }


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("/tmp/camelid-sweep-kills"))
    root = parser.parse_args().root
    if not (root / "tokenizer").exists():
        from camelid.tests.conftest import make_corpus

        root.mkdir(parents=True, exist_ok=True)
        make_corpus(root)
    alone, disturbed = root / "alone", root / "disturbed"
    shutil.rmtree(disturbed, ignore_errors=True)
    begin = time.monotonic()
    assert sweep(root, alone, 36, 2).wait() == 0
    assert read_results(alone).counts == {"finished": 36}
    print(f"undisturbed: {time.monotonic() - begin:.0f} s", flush=True)
    begin = time.monotonic()
    processes = [sweep(root, disturbed, 24, 1) for _ in range(8)]
    killed = kill_two(disturbed, processes)
    codes = sorted(process.wait() for process in processes)
    counts = read_results(disturbed).counts
    print(
        f"eight commands at once: killed were the workers of trials {killed}; exit codes {codes}; {counts}", flush=True
    )
    assert sweep(root, disturbed, 36, 2).wait() == 0
    print(f"disturbed and continued: {time.monotonic() - begin:.0f} s", flush=True)
    trials = read_results(disturbed).trials
    attempts = [len(json.loads((trial.folder / "run.json").read_text())["attempts"]) for trial in trials]
    again = {number: count for number, count in enumerate(attempts) if count > 1}
    print(f"trials: {[trial.number for trial in trials] == list(range(36))}; attempts beyond one: {again}", flush=True)
    one, other = outcome(root, alone), outcome(root, disturbed)
    same = [number for number in range(36) if one[number] == other[number]]
    print(f"{len(same)} of 36 trials are the same bit for bit; killed ones among them: {set(killed) <= set(same)}")
    return 0 if len(same) == 36 and again.keys() == set(killed) else 1


if __name__ == "__main__":
    sys.exit(run())
