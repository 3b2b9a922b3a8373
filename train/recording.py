"""Writes the record of one attempt at a run: run.json, heartbeat.json and config.json (`train/run_record.py`)."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from ..data.checksums import write_whole
from ..data.console import tell
from ..errors import UserError
from ..settings.functions import code_of
from . import config_record, run_record
from .code_version import PACKAGE, Checkout, checkouts, versions
from .goodput import Clock, now
from .heartbeat import Heartbeat
from .run_record import COMPLETE, ENDED, HEARTBEAT, INTERRUPTED, RECORD, Attempt

EVERY = 1.0
"""Seconds between two heartbeats; `EVERY_REMOTE` where the run directory is in an object store."""
EVERY_REMOTE = 30.0
LEFTOVER = re.compile(rf"\.({re.escape(RECORD)}|{re.escape(HEARTBEAT)}|{re.escape(config_record.CONFIG)})\.\d+\.tmp")
RECORD_EVERY = 10.0
"""Least seconds between two versions of run.json while a run goes on."""


class Recording:
    """The record of one attempt at a run, as a context around all of its work.

    From the start of the context heartbeats are written. `begin` adds the attempt to run.json. The end of the context
    writes how the attempt ended, by the exception that ended it. A run that is complete already, or whose command is
    refused before it begins (UserError), gets no attempt. Only process 0 writes; files that cannot be written never end
    a run.

    Args:
      workdir: the run directory.
      began: when the attempt began, by `goodput.now`.

    Attributes:
      clock: where the time of the attempt goes.
    """

    def __init__(self, workdir: epath.PathLike, began: float):
        self.clock = Clock(began)
        self._workdir, self._writes = epath.Path(workdir), jax.process_index() == 0
        self._every = EVERY_REMOTE if "://" in os.fspath(workdir) else EVERY
        self._heartbeat = Heartbeat(self._beat, self._every)
        self._lock = threading.Lock()  # run.json is written by the heartbeat's thread, and at the end by the run's
        self._written = now()
        self._number = 0  # of the attempt
        self._begun = self._discarded = self._told = self._made = False
        self._exit, self._reason = "finished", None
        self._former: bytes | None = None  # heartbeat.json of the attempt before
        self._attempts: list[Attempt] = []
        self._own = Attempt(
            command=_command(),
            folder=_folder(),
            host=socket.gethostname(),
            pid=os.getpid(),
            start=run_record.iso(time.time() - (now() - began)),
        )
        self._code: list[tuple[Checkout | None, Checkout | None]] = []
        self._code_thread = threading.Thread(target=lambda: self._code.append(checkouts(self._own.folder)), daemon=True)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Recording":
        self._stack.enter_context(self.clock.watching_compiler())
        if self._writes:
            self._take_up()
            with contextlib.suppress(RuntimeError):  # no thread can be started: the commit stays unknown
                self._code_thread.start()
            self._heartbeat.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        with self._stack:
            if not self._writes:
                return
            self._heartbeat.stop()
            complete = bool(self._attempts) and self._attempts[-1].exit in COMPLETE
            if self._discarded or (not self._begun and (isinstance(error, UserError) or complete)):
                self._leave_no_trace()
                return
            self._own = dataclasses.replace(self._own, **self._end(error), stop=run_record.iso(time.time()))
            self._write_record()
            self._write(HEARTBEAT, json.dumps(self._beat_content() | {"doing": ENDED}))

    def begin(
        self,
        config: ConfigDict,
        mesh: Mapping[str, int],
        step: int,
        saved: Mapping[str, Any] | None,
        total: int | None = None,
    ) -> None:
        """Adds the attempt to run.json, and writes config.json.

        Args:
          config: the config of the run.
          mesh: number of devices along each mesh axis.
          step: the step from which it resumes; 0 for a new run.
          saved: the entry "attempt" of the manifest of the checkpoint from which it resumes, if it has one.
          total: number of steps of the whole run, if it is known.
        """
        self.clock.step = step
        if not self._writes:
            return
        self._code_thread.join(timeout=10)
        code, project = self._code[0] if self._code else (None, None)
        devices = jax.devices()
        self._attempts = run_record.resumed(self._attempts, step, saved)
        self._own = dataclasses.replace(
            self._own,
            commit=code and code.commit,
            dirty=code and code.dirty,
            project=project and project._asdict(),
            code=code_of(config),
            versions=versions(),
            devices={
                "platform": devices[0].platform,
                "kind": devices[0].device_kind,
                "count": len(devices),
                "processes": jax.process_count(),
                "mesh": dict(mesh),
            },
            from_step=step,
            to_step=step,
            total_steps=total,
        )
        self._begun = True
        self._write(config_record.CONFIG, config_record.to_json(config))
        self._write_record()

    def discard(self, exit: str) -> None:
        """Says that the run was complete already, so that there is no attempt.

        exit: how it ended, finished or "stopped early"; so did an attempt that was killed after its last checkpoint.
        """
        self._discarded = True
        if self._writes and self._attempts and self._attempts[-1].exit == "lost":
            self._attempts[-1] = dataclasses.replace(self._attempts[-1], exit=exit, reason="killed after its last save")
            self._write(RECORD, run_record.to_json(self._attempts))

    def stopped_early(self, reason: str) -> None:
        """Says that the run ends before its last step, as it should."""
        self._exit, self._reason = "stopped early", reason

    def described(self) -> dict[str, Any]:
        """The entry "attempt" of the manifest of a checkpoint that is saved now."""
        return {"number": self._number, "seconds": self.clock.seconds()}

    def _leave_no_trace(self) -> None:
        """Puts heartbeat.json back as it was: a run that is complete, or is refused, stays as it is."""
        with contextlib.suppress(OSError):
            if self._former is not None:
                write_whole(self._workdir / HEARTBEAT, self._former)
                return
            (self._workdir / HEARTBEAT).unlink(missing_ok=True)
            if self._made:
                self._workdir.rmdir()  # unless something else is in it

    def _take_up(self) -> None:
        """Reads the attempts before this one, and removes what a killed process left half written."""
        try:
            self._made = not self._workdir.exists()
            self._workdir.mkdir(parents=True, exist_ok=True)
            for path in list(self._workdir.glob(".*.json.*.tmp")):
                if LEFTOVER.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            beat = self._workdir / HEARTBEAT
            self._former = beat.read_bytes() if beat.exists() else None
        except OSError as error:
            self._tell(error)
        record = run_record.read_record(self._workdir)
        if record is not None:
            self._attempts = run_record.closed(record.attempts, record.heartbeat)
            if self._attempts != record.attempts:  # before this attempt's heartbeat takes the place of what was known
                self._write(RECORD, run_record.to_json(self._attempts))
            self._number = len(self._attempts)
            step = self._attempts[-1].to_step if self._attempts else 0
            self._own = dataclasses.replace(self._own, from_step=step, to_step=step)
            self.clock.step = step

    def _end(self, error: BaseException | None) -> dict[str, Any]:
        """How an attempt ended, by its exception; the exit codes are those of `launch/cli.py`."""
        if error is None:
            return dict(exit=self._exit, reason=self._reason, exit_code=0)
        words = " ".join(str(error).split())
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else getattr(error, "number", None)
        if number is not None:  # `loop.Interrupted`, or a signal before the loop
            name = signal.Signals(number).name
            return dict(exit=INTERRUPTED, reason=words if len(words) > 3 else name, exit_code=128 + number)
        if isinstance(error, SystemExit):
            return dict(exit="failed", reason="the process was told to exit", exit_code=1)
        known = isinstance(error, UserError | OSError) or type(error).__name__ == "TrainingStopped"
        reason = words if known else f"{type(error).__name__}: {words}"
        return dict(exit="failed", reason=reason, exit_code=2 if isinstance(error, UserError) else 1)

    def _beat(self) -> None:
        """Writes heartbeat.json, and every few seconds run.json."""
        write_whole(self._workdir / HEARTBEAT, json.dumps(self._beat_content()), sync=False)
        if self._begun and now() - self._written > max(RECORD_EVERY, self._every):
            self._write_record(sync=False)

    def _beat_content(self) -> dict[str, Any]:
        doing, since = self.clock.doing()
        at = time.time()
        return {
            "time": at,
            "attempt": self._number,
            **{name: getattr(self._own, name) for name in ("start", "command", "pid", "host")},
            "every": self._every,
            "step": self.clock.step,
            "doing": doing,
            "since": at - since,
            "seconds": self.clock.seconds(),
        }

    def _write_record(self, *, sync: bool = True) -> None:
        if not self._lock.acquire(timeout=5):  # the heartbeat's thread hangs in a write
            return
        try:
            own = dataclasses.replace(self._own, to_step=self.clock.step, seconds=self.clock.seconds())
            self._write(RECORD, run_record.to_json([*self._attempts, own]), sync=sync)
            self._written = now()
        finally:
            self._lock.release()

    def _write(self, name: str, content: str, *, sync: bool = True) -> None:
        try:
            write_whole(self._workdir / name, content, sync=sync)
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            tell(f"the record of the run cannot be written, and the run goes on: {error}")
        self._told = True


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""


def _command() -> list[str]:
    """The command line of this process, without the path of the interpreter where it is `camelid`."""
    program = Path(sys.argv[0] or "-")
    file = program.resolve()  # a trial of a sweep has a file of `launch/`
    is_own = program.name in ("camelid", "-c") or file == PACKAGE / "__main__.py" or PACKAGE / "launch" in file.parents
    return ["camelid" if is_own else os.fspath(program), *sys.argv[1:]]
