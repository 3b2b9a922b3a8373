"""Processes that work on a sweep at once, with trials of fake_trial.py, for tests.

`python -m camelid.tests.launch.sweeps.worker_processes` reads what is asked for from lines of JSON, such as
{"folder": ..., "lines": ["lr={0.1,1}"], "method": "grid", "trials": 2, "processes": 2}. For each line it prints the
process ids of the workers as a list and, after their end, {process id: exit code}. It imports camelid once and forks.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from camelid.launch import cli
from camelid.launch.sweeps import page, start, stopping, trials, workers
from camelid.launch.sweeps.claims import StudyLock
from camelid.launch.sweeps.identity import (
    NAME,
    Identity,
    Objective,
    Pruning,
    Sweep,
    begin_or_continue,
    read_sweep,
    study_name,
    without_password,
)
from camelid.launch.sweeps.results import Results
from camelid.launch.sweeps.space import read_space
from camelid.launch.sweeps.study import Study
from camelid.model.host_devices import HostDevices

FAKE = Path(__file__).with_name("fake_trial.py")


def sweep_of(asked: dict) -> tuple[Sweep, Study]:
    """What `start.begin` makes, but for the checks of a config."""
    folder, storage = Path(asked["folder"]), asked.get("storage", "journal")
    prune = Pruning(**asked["prune"]) if "prune" in asked else None
    objective = Objective(asked.get("metric", "eval/a/loss"), "min", asked.get("at", "last"))
    identity = Identity(read_space(asked["lines"]), objective, asked["method"], 0, prune, {})
    name = study_name(identity, folder, storage)
    flags = tuple(asked.get("flags", ()))
    sweep = Sweep(folder, identity, "c.py", flags, ("",), without_password(storage), name, asked["trials"], ())
    folder.mkdir(parents=True, exist_ok=True)
    lock = StudyLock(folder)
    with lock:
        counted = (folder / NAME).exists() and start._is_counted(read_sweep(folder), lock, storage)
        sweep = begin_or_continue(sweep, counted=counted)
        return sweep, Study(sweep, lock, url=storage)


def work(asked: dict) -> Results:
    """Works on a sweep until it is over, with trials of fake_trial.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "start_command", lambda: [sys.executable, "-S", os.fspath(FAKE)])
        patch.setattr(trials, "READ", 0.0)
        patch.setattr(workers, "LOOK", 0.02)
        patch.setattr(workers, "CLAIM", 0.1)
        patch.setattr(page, "SECONDS_BETWEEN", 3600.0)  # the page is written at the end alone
        patch.setattr(start, "host_devices", lambda: HostDevices("cpu", 1))
        mark = stopping.last_asked(Path(asked["folder"]))
        return start.run(*sweep_of(asked), workers.Options(stop_mark=mark, **asked.get("options", {})))


class Command:
    """Takes the place of the parsed command in `main`, which turns errors and signals into exit codes."""

    def __init__(self, asked: dict):
        self._asked = asked

    def run(self, _: object) -> int:
        work(self._asked)
        return 0


def serve() -> None:
    """Reads lines and starts processes until standard input ends."""
    cli._parse = lambda argv: Command(argv)
    for line in sys.stdin:
        asked, pids = json.loads(line), []
        for _ in range(asked.get("processes", 1)):
            pid = os.fork()
            if pid == 0:
                os.dup2(os.open(Path(asked["folder"]) / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
                os.dup2(2, 1)
                os._exit(cli.main(asked))
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        print(json.dumps({pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids}), flush=True)


if __name__ == "__main__":
    serve()
