"""The workers of one process: each runs a trial after the other until the sweep has all its trials.

Several processes, also on several machines that share the folder, may run the same sweep at once.
"""

import contextlib
import datetime
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.console import LOGGER
from ...errors import UserError
from ...train.loop import Interrupted
from .identity import Sweep
from .results import Results
from .space import short, shown
from .stopping import last_asked
from .study import Claimed, Study
from .trials import TrialProcess, curve, misses_objective, no_objective

LOG = "sweep.log"
"""The file in a sweep's folder with the lines of all its workers."""

LOOK = 0.1
"""Seconds between two looks at the trials that run."""

CLAIM = 1.0
"""Seconds between two looks for a trial to begin, where there was none."""


@dataclass(frozen=True)
class Options:
    """How a process works on a sweep; other processes of the same sweep may do otherwise."""

    workers: int = 1
    """Number of trials at a time."""

    retries: int = 3
    """How often a trial that was killed is resumed before it counts as failed."""

    retry_failed: bool = False
    """Whether trials that have failed before are run again."""

    keep_going: bool = False
    """Whether a trial that cannot begin counts as failed, also where no trial has finished yet."""

    wait: bool = True
    """Whether to wait, with nothing left to begin, for trials that other processes run, and to take them over where
    those processes die."""

    stop_mark: int = 0
    """`stopping.last_asked` when the command was given: what was asked before does not end it."""

    vmap: int | None = None
    """The most trials that a worker trains in one program; None: each trial has a process of its own."""


class Log:
    """Tells lines on standard error, and adds them to the sweep's log; once the terminal is gone, to the log alone.

    It does not ask JAX whether this is process 0, as `data.console.tell` does: the devices belong to the trials.
    """

    def __init__(self, folder: Path):
        self._path = folder / LOG
        self._terminals = [number for number in (0, 1, 2) if os.isatty(number)] if _has_files() else []

    def __call__(self, line: str) -> None:
        """Tells a line."""
        now = datetime.datetime.now().isoformat(" ", "seconds")
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{now}  {socket.gethostname()}:{os.getpid()}  {line}\n")
            if os.path.samestat(os.fstat(file.fileno()), os.fstat(2)):  # of a sweep in the background
                return
        with contextlib.suppress(OSError):
            LOGGER.info("%s", line)

    def leave_terminal(self) -> None:
        """Goes on without the terminal, which is gone."""
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in self._terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)


class Workers:
    """The workers of this process.

    Args:
      sweep: the sweep.
      study: its trials.
      options: how this process works.
      environments: variables for the trials of each worker.
      log: where lines go.
      process: starts the process of a trial: `TrialProcess`, or one that trials share.
      trial_ended: called after the end of a trial is written down.
    """

    def __init__(
        self,
        sweep: Sweep,
        study: Study,
        options: Options,
        environments: Sequence[Mapping[str, str]],
        log: Log,
        process: Callable[[Sweep, Claimed, Mapping[str, str]], TrialProcess] = TrialProcess,
        trial_ended: Callable[[], None] = lambda: None,
    ):
        self._sweep, self._study, self._options, self._log = sweep, study, options, log
        self._environments, self._process, self._trial_ended = environments, process, trial_ended
        self._places = options.workers * (options.vmap or 1)
        self._running: dict[int, TrialProcess] = {}  # by the number of the place
        self._kills: dict[int, int] = {}  # by the number of the trial
        self._waited, self._ending, self._next_claim = False, False, 0.0
        failed = (trial.stored for trial in study.trials() if trial.stored.state.name == "FAIL")
        self._retry = {stored.number for stored in failed} if options.retry_failed else set()

    def run(self) -> None:
        """Runs trials until all of the sweep's trials are over.

        Raises:
          Interrupted: a signal or `--stop` ended the workers; their trials are saved, and go on with the same command.
          UserError: the first trial cannot run for a reason that all trials share.
        """
        with _signals(self._log) as received:
            try:
                while not self._is_over():
                    if received or last_asked(self._sweep.folder) != self._options.stop_mark:
                        self._interrupt(received)
                    for worker, process in list(self._running.items()):
                        self._look(worker, process, received)
                    time.sleep(LOOK)
            except BaseException:
                self._end_all(received)
                raise

    def _is_over(self) -> bool:
        """Begins trials with free workers. Returns whether there is nothing left to do."""
        free = [number for number in range(self._places) if number not in self._running]
        if not free or time.monotonic() < self._next_claim:
            return False
        claimed = self._study.claim_next(limit=len(free), retry=self._retry)
        for worker, trial in zip(free, claimed, strict=False):
            self._begin(worker, trial)
        if len(claimed) == len(free):
            return False
        self._next_claim = time.monotonic() + CLAIM
        if self._running:
            return False
        trials = self._study.trials()
        others = [trial.number for trial in trials if not trial.stored.state.is_finished()]
        if not others and len(trials) >= self._sweep.trials:
            return True
        if others and not self._options.wait:
            self._log(f"nothing is left to begin; other workers still run {_numbers(others)}")
            return True
        if others and not self._waited:
            self._log(f"waiting for {_numbers(others)}, which other workers run")
            self._waited = True
        return False

    def _begin(self, worker: int, claimed: Claimed) -> None:
        """Starts the process of a trial."""
        trial = claimed.trial
        kills = trial.stored.user_attrs.get("kills", 0) + (claimed.resumed and claimed.lock.lost)
        self._kills[trial.number] = kills
        if kills > self._options.retries:
            self._fail(claimed, f"it was killed {_count(kills, 'time')}, and its worker with it")
            return
        if kills:
            self._study.note(trial, "kills", kills)
        how = "goes on" if claimed.resumed else "begins"
        self._log(f"trial {trial.number} {how}: {shown(trial.point)}")
        self._running[worker] = self._process(
            self._sweep, claimed, self._environments[worker // (self._options.vmap or 1)]
        )

    def _look(self, worker: int, process: TrialProcess, received: Sequence[int]) -> None:
        """Sees whether a trial has ended, and whether it shall."""
        code = process.exit_code()
        if code is not None:
            del self._running[worker]
            self._next_claim = 0.0
            self._ended(worker, process, code)
            self._trial_ended()
        elif process.ending is None:
            self._report(process)

    def _report(self, process: TrialProcess) -> None:
        """Reports new values of a trial that runs, and ends it where Hyperband says so."""
        values = process.new_values()
        if process.fresh and not values and misses_objective(self._sweep, process.number) and self._may_refuse():
            self._refuse(no_objective(self._sweep, process.number))
        if self._sweep.identity.prune is None:
            return
        for evaluation, value in list(enumerate(values.values(), 1))[process.reported :]:
            process.reported = evaluation
            if self._study.report(process.claimed.trial, evaluation, value):
                process.end("pruned")
                return

    def _ended(self, worker: int, process: TrialProcess, code: int) -> None:
        """Writes down how a trial ended, or starts it again."""
        claimed = process.claimed
        if code == 0:
            self._finish(claimed)
        elif process.ending == "pruned":
            self._study.finish(claimed, "pruned", reason=f"after {process.reported} evaluations")
            self._log(f"trial {process.number} pruned after {_count(process.reported, 'evaluation')}")
        elif code >= 128:
            kills = self._kills[process.number] = self._kills[process.number] + 1
            how = f"its process was ended by {_signal_name(code - 128)}"
            if kills > self._options.retries:
                self._fail(claimed, f"{how}, {_count(kills, 'time')} in all")
                return
            self._study.note(claimed.trial, "kills", kills)
            self._log(f"trial {process.number} goes on: {how}")
            process.start()
            self._running[worker] = process
        elif code == 2 and self._may_refuse():
            claimed.lock.release()
            self._refuse(f"trial {process.number} cannot run: {process.last_line()}")
        else:
            self._fail(claimed, process.last_line() or f"exit code {code}")

    def _finish(self, claimed: Claimed) -> None:
        """Writes down the value of a trial whose run is complete."""
        number, objective = claimed.trial.number, self._sweep.identity.objective
        value = objective.of(curve(self._sweep, number))
        if value is None:
            reason = no_objective(self._sweep, number)
            if not self._ending and self._may_refuse():
                claimed.lock.release()
                self._refuse(reason)
            self._fail(claimed, reason)
            return
        if not math.isfinite(value):
            self._fail(claimed, f"{objective.metric} is {value}")
            return
        self._study.finish(claimed, "finished", value)
        best = Results(self._sweep, self._study).best
        said = f"best so far {short(best.value)}, trial {best.number}" if best.number != number else "the best so far"
        self._log(f"trial {number} finished: {objective.metric} {short(value)}  ({said})")

    def _fail(self, claimed: Claimed, reason: str) -> None:
        self._study.finish(claimed, "failed", reason=reason)
        self._log(f"trial {claimed.trial.number} failed: {reason}")

    def _may_refuse(self) -> bool:
        """Whether a mistake ends the sweep: no trial has run to its end yet, so that it may be the mistake of all."""
        ran = any(trial.stored.state.name in ("COMPLETE", "PRUNED") for trial in self._study.trials())
        return not ran and not self._options.keep_going

    def _refuse(self, problem: str) -> None:
        raise UserError(
            f"{problem} (no trial counts as failed: mend it and give the same command; or go on all the same with "
            "--keep_going)"
        )

    def _interrupt(self, received: Sequence[int]) -> None:
        number = received[0] if received else signal.SIGTERM
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name if received else "--stop"
        self._end_all(received)
        results = Results(self._sweep, self._study)
        said = f"{results.over} of {self._sweep.trials} trials are over, those that ran are saved"
        raise Interrupted(f"{name} ended the sweep: {said}; the same command goes on", number)

    def _end_all(self, received: Sequence[int]) -> None:
        """Ends the trials of this process, which save their state, and gives them back. A second signal ends them at
        once."""
        self._ending = True
        for process in self._running.values():
            process.end("stopped")
        signals = len(received)
        while self._running:
            for worker, process in list(self._running.items()):
                code = process.exit_code()
                if code is None:
                    continue
                del self._running[worker]
                if code == 0:
                    self._finish(process.claimed)
                else:
                    process.claimed.lock.release()
            if len(received) > signals:
                for process in self._running.values():
                    process.kill()
            time.sleep(LOOK)


@contextlib.contextmanager
def _signals(log: Log) -> Iterator[list[int]]:
    """A list to which Ctrl-C and SIGTERM are appended. A closed terminal (SIGHUP) does not end the workers."""
    received: list[int] = []

    def note(number: int, _) -> None:
        if number == signal.SIGHUP:
            log.leave_terminal()
            return
        received.append(number)
        with contextlib.suppress(OSError):
            os.write(2, b"camelid: ending; trials are being saved (Ctrl-C again: at once, back to their last save)\n")

    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if mine}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_files() -> bool:
    return all(stream is not None for stream in (sys.stdin, sys.stdout, sys.stderr))


def _numbers(numbers: Sequence[int]) -> str:
    few = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"trial{'s' if len(numbers) > 1 else ''} {few}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
