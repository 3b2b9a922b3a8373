"""What is launched, the folder with its files, and the record of what was started.

WORKDIR/launch/launches.jsonl   a line for each launch: platform, id, host, command, time, and how to follow it
WORKDIR/launch/log              output of all attempts; of an array of workers a log for each: log-0, log-1, ...
WORKDIR/launch/job.sh           the job file, on platforms that read one
"""

import dataclasses
import datetime
import json
import os
import shlex
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import UserError

PYTHON = (sys.executable, "-P")
"""Python that does not import from the folder it is started in."""


@dataclass(frozen=True)
class Job:
    """A command of camelid that a platform runs."""

    command: tuple[str, ...]
    """The words after `camelid`, such as ("train", "--config=...", "--workdir=...")."""

    workdir: Path
    """Absolute path of the work directory, which holds `launch/`."""

    name: str
    """The job's name on the platform."""

    processes: int
    """Number of processes that run the command together."""

    workers: int | None
    """Number of workers of a sweep, each a job of its own with one process; None: no sweep."""

    most_restarts: int
    """Largest number of restarts."""

    progress: str
    """Absolute path or address of the folder whose checkpoints show that the command gets further: its own --workdir,
    which may be another one than `workdir`."""

    folder: Path = field(default_factory=Path.cwd)
    """Folder in which the command runs."""

    @property
    def launch(self) -> Path:
        """The folder of the files of all launches."""
        return self.workdir / "launch"


@dataclass(frozen=True)
class Launched:
    """A job that a platform was given, as a line of launches.jsonl."""

    platform: str
    """Name of the platform."""

    id: str | None
    """The platform's name of the job, or the process id; None: the job file was written and not submitted."""

    command: tuple[str, ...]
    """The words after `camelid`."""

    log: str
    """Absolute path of the log, or a pattern of the logs of several workers."""

    ways: dict[str, str]
    """{what: shell command} to see, follow and end the job."""

    file: str | None = None
    """Absolute path of the job file, on platforms that read one."""

    host: str = field(default_factory=socket.gethostname)
    """The host from which the job was launched."""

    folder: str = field(default_factory=os.getcwd)
    """The folder from which the job was launched."""

    time: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    """When the job was launched, ISO 8601 in UTC."""

    def write(self, launch: Path) -> None:
        """Appends the record to launches.jsonl."""
        with (launch / "launches.jsonl").open("a") as file:
            file.write(json.dumps(dataclasses.asdict(self)) + "\n")

    def lines(self, workdir: Path) -> list[str]:
        """What was launched in a work directory, and how to follow it, for the terminal."""
        rows = {"command": f"camelid {shlex.join(self.command)}", "job file": self.file, "log": self.log}
        if self.id is not None:
            where = shlex.quote(str(workdir))
            rows |= {action: f"camelid launch --{action}={where}" for action in ("status", "follow", "stop")}
        return [
            *(f"  {what:<10}{text}" for what, text in rows.items() if text is not None),
            *([f"by {self.platform}'s own commands:" if self.platform != "local" else "by commands of the system:"]),
            *(f"  {what:<10}{text}" for what, text in self.ways.items()),
        ]


def read_last(workdir: Path) -> Launched | None:
    """The record of the last launch in a work directory; None if there was none.

    Raises UserError if the record is damaged.
    """
    file = workdir / "launch" / "launches.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    if not lines:
        return None
    try:
        record = json.loads(lines[-1])
        known = {each.name: record[each.name] for each in dataclasses.fields(Launched) if each.name in record}
        return Launched(**known | {"command": tuple(record["command"])})  # a later version may write more
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{file}: its last line is damaged: see whether its job still runs, and delete it") from None
