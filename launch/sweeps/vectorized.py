"""Trials that share a compiled program, and so a process: `camelid sweep --vmap`.

A program trains several trials that differ in seeds and scalar hyperparameters alone (`train/vectorized.py`). For the
workers each of its trials is a process of its own, all of which end when the program's process does.

    SWEEP/programs/0004.json    {trial: point}, of the program whose first trial is 4, in the order of its members

A trial that is resumed gets its place in the same program again, so that its bits do not depend on when it was cut off.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from ...data.checksums import write_whole
from ...errors import UserError
from ...settings.config_files import load_phases
from ...train.vectorized import check
from ...train.vectorized_settings import program_of
from ..recipes import read_config
from .identity import Sweep
from .space import Point, config_of
from .study import Claimed
from .trials import PACKAGE, TrialProcess, importable, last_line, train_command

Plan = dict[int, Point]
"""The trials of a program with their points, in the order of its members."""

PROGRAMS = "programs"
"""The folder in a sweep's folder that says which trials share a program."""

NOT_BEGUN = 128 + signal.SIGTERM
"""The exit code of a trial that was asked to end before its program had begun."""


def check_programs(sweep: Sweep) -> None:
    """Raises UserError for a sweep whose trials cannot share programs."""
    if sweep.identity.prune is not None:
        raise UserError("--vmap: trials that share a program end together: leave out --prune, or --vmap")
    _program_key(sweep, next(iter(sweep.identity.space.probes())))


class Programs:
    """Puts trials into programs, each with a process; made once for all workers of a command.

    Args:
      size: the most trials of a program.
    """

    def __init__(self, size: int):
        self._size = size
        self._waiting: list[MemberProcess] = []
        self._running: dict[int, Program] = {}  # by the identity of a worker's environment
        self._keys: dict[int, str] = {}  # by the numbers of trials

    def __call__(self, sweep: Sweep, claimed: Claimed, environment: Mapping[str, str]) -> "MemberProcess":
        """A trial that a worker begins. Its program starts at the next `poll`."""
        return MemberProcess(self, sweep, claimed, environment)

    def add(self, member: "MemberProcess") -> None:
        """Lets a trial wait for a program."""
        self._waiting.append(member)

    def remove(self, member: "MemberProcess") -> None:
        """Lets a trial wait no longer."""
        self._waiting.remove(member)

    def poll(self) -> None:
        """Starts a program for each worker that has none and for which trials wait."""
        for member in list(self._waiting):
            worker = id(member.environment)
            running = self._running.get(worker)
            if member not in self._waiting or (running is not None and running.exit_code() is None):
                continue
            try:
                plan, members = self._program(member)
            except UserError as error:
                member.refuse(str(error))
                continue
            for each in members:
                self._waiting.remove(each)
            self._running[worker] = Program(member.sweep, plan, members, member.environment)

    def _program(self, first: "MemberProcess") -> tuple["Plan", list["MemberProcess"]]:
        """The program that a waiting trial belongs to, and its trials that wait for it."""
        waiting = [member for member in self._waiting if member.environment is first.environment]
        plans = read_plans(first.sweep)
        if first.number in plans:
            plan = plans[first.number]
            return plan, [member for member in waiting if member.number in plan]
        key = self._key(first)
        alike = [member for member in waiting if member.number not in plans and self._key(member) == key]
        members = sorted(alike[: self._size], key=lambda member: member.number)
        plan = {member.number: dict(member.point) for member in members}
        _keep_plan(first.sweep, plan)
        return plan, members

    def _key(self, member: "MemberProcess") -> str:
        if member.number not in self._keys:
            self._keys[member.number] = _program_key(member.sweep, member.point)
        return self._keys[member.number]


class MemberProcess(TrialProcess):
    """A trial that shares its process with others.

    Attributes:
      sweep: the sweep.
      environment: variables for the process, the same object for all trials of a worker.
    """

    def __init__(self, programs: Programs, sweep: Sweep, claimed: Claimed, environment: Mapping[str, str]):
        self.sweep, self.environment, self._programs = sweep, environment, programs
        self.program: Program | None = None
        self._code, self._reason = None, ""  # of a trial that ends before its program begins
        super().__init__(sweep, claimed, environment)

    def start(self) -> None:
        """Lets the trial wait for a program."""
        self.sweep.trial_folder(self.number).mkdir(parents=True, exist_ok=True)
        self.program, self._code = None, None
        self._programs.add(self)

    def refuse(self, reason: str, code: int = 2) -> None:
        """Ends the trial before its program begins."""
        self._programs.remove(self)
        self._code, self._reason = code, reason

    @property
    def pid(self) -> int:
        """The process id of the program."""
        return self.program.pid if self.program is not None else 0

    def exit_code(self) -> int | None:
        """The exit code that the trial would have alone; None while its program runs, or it waits for one."""
        self.claimed.lock.touch()
        self._programs.poll()
        return self._code if self.program is None else self.program.exit_code(self.number)

    def last_line(self) -> str:
        """The last line of the trial's log; of the program's log, where that ended without a word about its trials."""
        if self.program is None:
            return self._reason
        return super().last_line() if self.program.tells(self.number) else last_line(self.program.log)

    def _signal(self, number: int) -> None:
        if self.program is not None:
            self.program.signal(number)
        elif self._code is None:
            self.refuse("it had not begun", NOT_BEGUN)


class Program:
    """A process that trains several trials.

    Args:
      sweep: the sweep.
      plan: the trials of the program.
      members: those of them that are trained now.
      environment: variables for the process, besides those of this one.

    Attributes:
      log: the file with what the process printed, besides what belongs to one trial.
    """

    def __init__(self, sweep: Sweep, plan: Plan, members: Sequence[MemberProcess], environment: Mapping[str, str]):
        trained, self._codes = {member.number for member in members}, None
        for member in members:
            member.program = self
        request = [_asked(sweep, number, point) | {"trains": number in trained} for number, point in plan.items()]
        self.log = sweep.folder / PROGRAMS / f"{next(iter(plan)):04d}.log"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{PACKAGE}.launch.sweeps.vectorized_child", str(os.getpid())],
                env=os.environ | importable() | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C and a closed terminal reach the worker alone
                pass_fds=[member.claimed.lock.file for member in members],
            )
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # it has ended already
            pipe.write(json.dumps(request).encode())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def exit_code(self, number: int | None = None) -> int | None:
        """The exit code of a trial, or of the process; None while the process runs."""
        code = self._process.poll()
        if code is None:
            return None
        if self._codes is None:
            with self._process.stdout as pipe, contextlib.suppress(ValueError):
                self._codes = {int(name): code for name, code in json.loads(pipe.read() or "{}").items()}
        return (self._codes or {}).get(number, 128 - code if code < 0 else code)

    def tells(self, number: int) -> bool:
        """Whether the process said how a trial ended, before it ended itself."""
        return number in (self._codes or {})

    def signal(self, number: int) -> None:
        """Sends a signal to the process."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def read_plans(sweep: Sweep) -> dict[int, Plan]:
    """The plan of the program of each trial that has been in one."""
    found = {}
    for path in sorted((sweep.folder / PROGRAMS).glob("*.json")):
        try:
            plan = {int(number): dict(point) for number, point in json.loads(path.read_text("utf-8")).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it; its trials then make a program anew") from None
        found |= dict.fromkeys(plan, plan)
    return found


def _keep_plan(sweep: Sweep, plan: Plan) -> None:
    folder = sweep.folder / PROGRAMS
    folder.mkdir(exist_ok=True)
    write_whole(epath.Path(folder / f"{next(iter(plan)):04d}.json"), json.dumps(plan))


def _asked(sweep: Sweep, number: int, point: Point) -> dict[str, Any]:
    """What the process of a program has to know of a trial."""
    config, flags = config_of(sweep.config_path, point)
    return {
        "number": number,
        "config": config,
        "overrides": [*sweep.overrides, *flags],
        "folder": os.fspath(sweep.trial_folder(number)),
        "command": train_command(sweep, number, point),
    }


def _program_key(sweep: Sweep, point: Point) -> str:
    """What trials of one program have in common. Raises UserError for settings that no program has."""
    config, flags = config_of(sweep.config_path, point)
    phases = [read_config(phase) for phase in load_phases(config, [*sweep.overrides, *flags]).values()]
    for phase in phases:
        try:
            check(phase)
        except UserError as error:
            raise UserError(f"--vmap: {error}") from None
    return "\n".join(map(program_of, phases))
