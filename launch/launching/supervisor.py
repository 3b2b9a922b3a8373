"""Keeps a local job running: `python -m camelid.launch.launching.supervisor WORKDIR/launch/local.json`.

It starts the processes of an attempt, waits for all of them, and judges by `verdict.py` whether another one follows.
SIGTERM, SIGHUP and Ctrl-C are passed on as SIGTERM; the attempt then saves its state, and no further one follows.
It loads no JAX.
"""

import datetime
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from ...data.locks import locked
from .job import PYTHON
from .ports import free_port
from .verdict import judge_attempt

TASK = f"{__package__}.task"
"""The module that runs one process of the command."""
POLL_SECONDS = 0.05
PEER_SECONDS = 60.0
"""Time in which the other processes of an attempt must end after one of them has; then they are killed."""


class Supervisor:
    """A job and its attempts.

    Args:
      file: local.json, which `local.launch` writes.
    """

    def __init__(self, file: Path):
        plan = json.loads(file.read_text())
        self.command, self.folder, self.workdir = plan["command"], plan["folder"], plan["workdir"]
        self.processes, self.environments = plan["processes"], plan["environments"]
        self.most_restarts, self.launch = plan["most_restarts"], file.parent
        self.exits = self.launch / "exits" / str(os.getpid())
        self.told_to_end = 0
        self._running: list[subprocess.Popen] = []

    def run(self) -> int:
        """Runs attempts until the job has finished or failed, or is told to end. Returns the exit code of the job."""
        for suffix in (".verdict", ".killed"):  # of a job before the last reboot, whose supervisor had the same id
            self.exits.with_suffix(suffix).unlink(missing_ok=True)
        restarts = 0
        while True:
            code = self._attempt(restarts)
            verdict = judge_attempt(
                code, self.exits, self.workdir, self.processes, restarts=restarts, most=self.most_restarts
            )
            if verdict.word == "again" and self.told_to_end:
                return self._end(f"{signal.Signals(self.told_to_end).name} ended it; the same command resumes it", code)
            if verdict.word != "again":
                words = verdict.reason if verdict.word == "finished" else f"failed: {verdict.reason}"
                return self._end(words, verdict.code)
            self._say(f"{verdict.reason}: it is started again")
            restarts += 1

    def listen(self) -> None:
        """Begins to handle the signals that end the job."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def _attempt(self, restarts: int) -> int:
        """Runs all processes once. Returns the highest exit code, with 137 for one that was killed."""
        shutil.rmtree(self.exits, ignore_errors=True)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._say(f"attempt {restarts + 1}, on {socket.gethostname()}, {now}")
        commands = [self.command]
        if self.processes > 1:
            together = [
                "--distributed",
                f"--coordinator=127.0.0.1:{free_port(os.getpid())}",
                f"--num_processes={self.processes}",
            ]
            commands = [[*self.command, *together, f"--process_id={i}"] for i in range(self.processes)]
        for i, command in enumerate(commands):
            if not self.told_to_end:
                self._running.append(self._start(i, command))
        if self.told_to_end:  # perhaps while a process was started, which the handler does not know yet
            self._pass_on(self.told_to_end, None)
        codes = self._wait()
        return max(codes) if codes else 128 + self.told_to_end

    def _start(self, number: int, command: list[str]) -> subprocess.Popen:
        parent = f"--parent={os.getpid()}"
        environment = os.environ | self.environments[number] | {"PYTHONUNBUFFERED": "1"}
        with (self.launch / "log").open("ab") as log:
            return subprocess.Popen(
                [*PYTHON, "-m", TASK, f"--exits={self.exits}", f"--number={number}", parent, "--", *command],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait(self) -> list[int]:
        """Waits for all processes and returns their exit codes, as a shell would give them.

        Once one has ended the others have `PEER_SECONDS`, after which they are killed.
        """
        running, first = list(self._running), None
        while any(process.poll() is None for process in running):
            if first is None and any(process.poll() is not None for process in running):
                first = time.monotonic()
            if first is not None and time.monotonic() - first > PEER_SECONDS:
                self._say(f"a process goes on {PEER_SECONDS:.0f} seconds after another one ended: it is killed")
                for process in running:
                    process.kill()
                first = float("inf")
            time.sleep(POLL_SECONDS)
        self._running.clear()
        return [128 - process.returncode if process.returncode < 0 else process.returncode for process in running]

    def _pass_on(self, number: int, _) -> None:
        """The handler of signals."""
        self.told_to_end = number
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _end(self, words: str, code: int) -> int:
        self._say(words)
        return code

    def _say(self, words: str) -> None:
        """Writes a line into the log."""
        with (self.launch / "log").open("a") as log:
            log.write(f"camelid: {words}\n")


def main() -> int:
    """Runs the job of the file that the command line names, while holding the lock of its launch folder."""
    file = Path(sys.argv[1])

    def refuse(holder: str) -> None:
        print(f"camelid: {file.parent} has a supervisor already: {holder}", file=sys.stderr)
        sys.exit(2)

    supervisor = Supervisor(file)
    supervisor.listen()
    with locked(file.parent / "supervisor", refuse):
        return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
