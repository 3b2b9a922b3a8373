"""Kills or stops one of the two processes of a run; measures how long the other one takes to end, and with what line.

    python -m camelid.tests.peers                         all moments, victims and signals
    python -m camelid.tests.peers training saving --signals=KILL --victims=1 --repeat=5

Moments: compiling (the step is being compiled), training, saving (a checkpoint after every step), evaluating (an
evaluation after every step). STOP leaves a process that hangs: it is continued once the other one has ended, and has to
end as well. A line is "late" where the other process took longer than 30 seconds.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from camelid.tests import make_loss_goldens as goldens

CAMELID = [sys.executable, "-c", "import sys; from camelid.launch.cli import main; sys.exit(main())"]
LIMIT, GIVE_UP = 30, 120  # seconds
OFTEN = {
    "compiling": [],
    "training": ["--config.checkpoint.every_steps=100000"],
    "saving": ["--config.checkpoint.every_steps=1"],
    "evaluating": ["--config.eval_steps=1", "--config.eval_percent=None", "--config.checkpoint.every_steps=100000"],
}


class Process:
    """A process of the run, whose lines a thread reads."""

    def __init__(self, argv: list[str], environment: dict[str, str]):
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        self.popen = subprocess.Popen([*CAMELID, *argv], **pipes)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(iter(self.popen.stdout.readline, "")))
        self._reader.start()

    def ended(self, seconds: float) -> bool:
        """Whether the process ends within some seconds."""
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._reader.join()
        return True


def start(moment: str, root: Path, workdir: Path) -> list[Process]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": str(moment != "compiling").lower(),
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    config = f"--config={Path(__file__).with_name('tiny.py')}:root={root},recipe=sft,init_from={root / goldens.START}"
    argv = ["train", config, f"--workdir={workdir}", "--config.total_steps=100000", *OFTEN[moment]]
    cluster = ["--distributed", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [Process([*argv, *cluster, f"--process_id={i}"], environment) for i in range(2)]


def wait_until(happened: Callable[[], bool], processes: list[Process]) -> None:
    while not happened():
        assert all(process.popen.poll() is None for process in processes), [process.lines for process in processes]
        time.sleep(0.01)


def lose(moment: str, victim: int, number: signal.Signals, root: Path, workdir: Path, rng: random.Random) -> str:
    """How the other process ended: its exit code, seconds and words."""
    processes = start(moment, root, workdir)
    other = processes[1 - victim]
    try:
        word = "compiling the step" if moment == "compiling" else "step 3/"
        wait_until(lambda: any(word in line for line in processes[0].lines), processes)
        time.sleep(rng.uniform(0.0, 1.0))
        said = len(other.lines)
        processes[victim].popen.send_signal(number)
        begin = time.monotonic()
        if not other.ended(GIVE_UP):
            return f"hangs after {GIVE_UP} s"
        seconds = time.monotonic() - begin
        words = [line.strip() for line in other.lines[said:] if not line.startswith("step ") and line.strip()]
        late = " late" if seconds > LIMIT else ""
        more = ""
        if number == signal.SIGSTOP:
            processes[victim].popen.send_signal(signal.SIGCONT)
            begin = time.monotonic()
            ended = processes[victim].ended(GIVE_UP)
            code = processes[victim].popen.returncode
            more = f"; continued, it ends with {code} after {time.monotonic() - begin:.1f} s" if ended else "; it hangs"
        return f"exit code {other.popen.returncode} after {seconds:.1f} s{late}: {' | '.join(words)}{more}"
    finally:
        for process in processes:
            process.popen.kill()


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("moments", nargs="*", metavar="MOMENT", help=f"default: all: {', '.join(OFTEN)}")
    parser.add_argument("--signals", default="KILL,STOP", help="KILL, STOP or both (default: KILL,STOP)")
    parser.add_argument("--victims", default="0,1", help="numbers of the processes that are lost (default: 0,1)")
    parser.add_argument("--repeat", type=int, default=1, help="times that each is done (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    args = parser.parse_args()
    rng, bad = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory(prefix="camelid-peers-") as folder:
        goldens.write_data(Path(folder))
        goldens.train(goldens.START, Path(folder))
        for n in range(args.repeat):
            for moment in args.moments or OFTEN:
                for victim in map(int, args.victims.split(",")):
                    for name in args.signals.split(","):
                        workdir = Path(folder) / f"{moment}-{victim}-{name}-{n}"
                        number = signal.Signals[f"SIG{name}"]
                        how = lose(moment, victim, number, Path(folder), workdir, rng)
                        bad += "late" in how or "hangs" in how or not how.startswith("exit code 1 ")
                        print(f"{moment}, {name} to process {victim}: {how}", flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(run())
