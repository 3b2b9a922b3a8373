"""A trial as a process: `camelid train` with the settings of its point, in a run directory of its own."""

import contextlib
import os
import re
import signal
import site
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ...errors import did_you_mean
from ...train.metrics_file import read_metrics
from .identity import Sweep
from .space import Point, config_of
from .study import Claimed

LOG = "log.txt"
"""The file in a trial's folder with what its process printed."""

READ = 1.0
"""Seconds between two looks at the metrics of a trial."""

PACKAGE = __name__.partition(".")[0]


def train_command(sweep: Sweep, number: int, point: Point) -> list[str]:
    """The arguments of the camelid command of a trial."""
    config, flags = config_of(sweep.config_path, point)
    return ["train", f"--config={config}", *sweep.overrides, *flags, f"--workdir={sweep.trial_folder(number)}"]


def start_command() -> list[str]:
    """The words with which a worker starts a camelid command: to them its arguments are added."""
    return [sys.executable, "-P", "-m", f"{PACKAGE}.launch.sweeps.child", str(os.getpid())]


class TrialProcess:
    """A trial that runs.

    Args:
      sweep: the sweep.
      claimed: the trial.
      environment: variables for the process, besides those of this one.
    """

    def __init__(self, sweep: Sweep, claimed: Claimed, environment: Mapping[str, str]):
        self.claimed = claimed
        self.number, self.point = claimed.trial.number, claimed.trial.point
        self.ending: str | None = None
        """Why the process was asked to end: "pruned" or "stopped"; None: it was not."""
        self.reported = len(claimed.trial.stored.intermediate_values)
        """Number of evaluations that the study knows."""
        self._sweep, self._environment = sweep, environment
        self.fresh = False
        """Whether the last call of `new_values` found that the metrics have grown."""
        self._seen: tuple[int, int] | None = None
        self._looked = 0.0
        self._curve: dict[int, float] = {}
        self.start()

    def start(self) -> None:
        """Starts the process. The trial's run resumes where it was saved."""
        folder = self._sweep.trial_folder(self.number)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                [*start_command(), *train_command(self._sweep, self.number, self.point)],
                env=os.environ | importable() | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C and a closed terminal reach the worker alone
                pass_fds=(self.claimed.lock.file,),
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """The exit code; None while the process runs; 128 plus the number of the signal that killed it."""
        self.claimed.lock.touch()
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def end(self, why: str) -> None:
        """Asks the process to save its state and end."""
        self.ending = why
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process at once."""
        self._signal(signal.SIGKILL)

    def new_values(self) -> dict[int, float]:
        """The values of the objective's metric by step, in the order of steps; those of step 0 are left out. Files are
        read at most once a second, when they have grown."""
        path, self.fresh = self._sweep.run_folder(self.number) / "metrics.jsonl", False
        if time.monotonic() - self._looked < READ:
            return self._curve
        self._looked = time.monotonic()
        with contextlib.suppress(OSError):
            stat = path.stat()
            if (stat.st_mtime_ns, stat.st_size) != self._seen:
                self._seen, self.fresh = (stat.st_mtime_ns, stat.st_size), True
                self._curve = curve(self._sweep, self.number)
        return self._curve

    def last_line(self) -> str:
        """The last line that the process printed."""
        return last_line(self._sweep.trial_folder(self.number) / LOG)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def last_line(path: Path) -> str:
    """The last line of a log, without the command's name; empty where there is none."""
    with contextlib.suppress(OSError):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = map(_printable, re.split(r"[\r\n]", file.read().decode(errors="replace")))
        return next((line for line in reversed(list(lines)) if line), "").removeprefix("camelid: ")
    return ""


def _printable(line: str) -> str:
    """A line without escape sequences of terminals and other characters that nobody sees."""
    shown = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|.)", "", line)
    return "".join(letter for letter in shown.replace("\t", " ") if letter.isprintable()).strip()


def curve(sweep: Sweep, number: int) -> dict[int, float]:
    """The values of the objective's metric in a trial, by step, without those before the first step."""
    metric = sweep.identity.objective.metric
    metrics = read_metrics(sweep.run_folder(number))
    return {step: values[metric] for step, values in metrics.items() if step > 0 and metric in values}


def no_objective(sweep: Sweep, number: int) -> str:
    """A sentence about the metrics of a trial, which do not have the objective."""
    objective = sweep.identity.objective
    metrics = read_metrics(sweep.run_folder(number))
    names = sorted({name for step, values in metrics.items() if step > 0 for name in values})
    near = did_you_mean(objective.metric, names)
    shown = ", ".join([name for name in names if name.startswith("eval/")] or names) or "nothing"
    return f"the run reports no {objective.metric} after its first step{near}; it reports {shown}"


def misses_objective(sweep: Sweep, number: int) -> bool:
    """Whether a run has been through two evaluations after its first step, and none has ever given the objective.

    One that was given before the first step has an interval of its own (`config.evals.<name>.every`) and is awaited.
    """
    metric = sweep.identity.objective.metric
    if not metric.startswith("eval/"):
        return False
    metrics = read_metrics(sweep.run_folder(number))
    evaluated = [step for step, values in metrics.items() if any(name.startswith("eval/") for name in values)]
    return len(evaluated) > 2 and not any(metric in values for values in metrics.values())


def importable() -> dict[str, str]:
    """The environment in which a process finds this package wherever the command is started."""
    place = Path(__file__).resolve().parents[3]
    if os.fspath(place) in site.getsitepackages():
        return {}
    paths = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), os.fspath(place)]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
