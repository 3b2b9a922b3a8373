"""run.json and heartbeat.json: what a run was started with, how each attempt ended, and where its time went.

An attempt is the work of one process, or of one group of processes, on a run: from its start to its end. Each start of
the same command that finds something to do adds one. `train/recording.py` writes both files.

    run.json        {"attempts": [...], "seconds": {bucket: seconds over all attempts}, "goodput": share of training}
    heartbeat.json  {"time", "attempt", "start", "command", "pid", "host", "every", "step", "doing", "since", "seconds"}
"""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from etils import epath

from ..data.console import tell
from .config_record import as_text
from .goodput import BUCKETS, goodput, now, process_created

T = TypeVar("T")

RECORD, HEARTBEAT = "run.json", "heartbeat.json"
COMPLETE = ("finished", "stopped early")
"""Ends of an attempt after which a run is complete."""
INTERRUPTED = "interrupted"
"""The end of an attempt that a signal ended: Ctrl-C, a command that stops it, or a scheduler that takes the machine."""
FORMER_EXITS = {"preempted": INTERRUPTED}
"""Ends of attempts by the names that older versions wrote, with the names that they have now."""
ENDED = "ended"
"""What the last heartbeat of an attempt that ended by itself says it is doing."""

CLOCKS_DIFFER = 10.0
"""Seconds by which the wall clock and the clock since the boot may differ over the time of a heartbeat."""

SILENT = 30.0
"""Seconds without a heartbeat after which a run on another host counts as lost; more where heartbeats are rarer."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run."""

    command: list[str] = field(default_factory=list)
    """The command and its arguments."""

    folder: str = ""
    """The folder in which the command was started."""

    host: str = ""
    """Name of the host of process 0."""

    pid: int = 0
    """Process id of process 0."""

    commit: str | None = None
    """Commit of the checkout of camelid that ran; None where it was installed from a package, or without git."""

    dirty: bool | None = None
    """Whether files of that commit were changed."""

    project: dict[str, Any] | None = None
    """{"folder", "commit", "dirty"} of the checkout around `folder`, where it is another one; None where there is none.
    Own rewards, losses and recipes are often there."""

    code: dict[str, str] | None = None
    """Own code: {name of a function in the config: SHA-256 of its file}. None where an older version ran, which did not
    say."""

    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python and packages."""

    devices: dict[str, Any] = field(default_factory=dict)
    """{"platform", "kind", "count", "processes", "mesh"}: devices over all processes, and along each mesh axis."""

    start: str = ""
    """When the process was created, ISO 8601 in UTC."""

    stop: str | None = None
    """When it ended, ISO 8601 in UTC. None: it is running, or nobody knows yet."""

    exit: str | None = None
    """finished, "stopped early", interrupted (by a signal), failed, or lost (it was killed, or its machine was lost).
    None: it is running, or lost and not yet followed by another attempt."""

    reason: str | None = None
    """In a sentence, why it ended before the end of the run."""

    exit_code: int | None = None
    """Exit code of the process; None where it is not known."""

    from_step: int = 0
    """The step from which it resumed; 0 for a new run."""

    to_step: int = 0
    """The last step that it did."""

    total_steps: int | None = None
    """Number of steps of the whole run; None where an older version ran, which did not say."""

    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds in each bucket (`train/goodput.py`)."""

    @property
    def version(self) -> str:
        """The code of camelid that ran, in a few words; "" where that is not known."""
        if self.commit:
            return f"{str(self.commit)[:7]}{' with changed files' if self.dirty else ''}"
        return f"camelid {self.versions['camelid']}" if "camelid" in self.versions else ""


@dataclass(frozen=True)
class RunRecord:
    """The attempts at a run, and the last heartbeat."""

    attempts: list[Attempt]
    """In the order in which they began. Empty while the first one is starting."""

    heartbeat: dict[str, Any] | None = None
    """The content of heartbeat.json."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds in each bucket over all attempts, until the last heartbeat of the one that is running."""
        return seconds_of(with_heartbeat(self.attempts, self.heartbeat))

    @property
    def goodput(self) -> float:
        """The share of wall time that was spent in training steps which were kept."""
        return goodput(self.seconds)

    @property
    def step(self) -> int:
        """The last step that was done, as far as it is known."""
        last = with_heartbeat(self.attempts, self.heartbeat)[-1:]
        return last[0].to_step if last else 0

    @property
    def status(self) -> str:
        """running, finished, "stopped early", interrupted, failed or lost; unknown where it ended without run.json."""
        beat, last = self.heartbeat, self.attempts[-1] if self.attempts else Attempt()
        newest = len(self.attempts) - (last.exit is None and bool(self.attempts))  # number of the attempt that may run
        if beat is not None and beat["doing"] == ENDED and not self.attempts:
            return "unknown"
        if beat is not None and beat["doing"] != ENDED and beat["attempt"] >= newest and is_alive(beat):
            return "running"
        return last.exit or "lost"


def read_record(workdir: epath.PathLike) -> RunRecord | None:
    """The record of a run, also while it runs; None where no attempt has begun, or the run is of an older version."""
    workdir = epath.Path(workdir)
    attempts, beat = _read(workdir / RECORD, _attempts_in), _read(workdir / HEARTBEAT, _heartbeat_in)
    if attempts is None and beat is None:
        return None
    return RunRecord(attempts or [], beat)


def to_json(attempts: Sequence[Attempt]) -> str:
    """The content of run.json."""
    total = seconds_of(attempts)
    content = {"attempts": [dataclasses.asdict(each) for each in attempts], "seconds": total, "goodput": goodput(total)}
    return as_text(content)


def seconds_of(attempts: Sequence[Attempt]) -> dict[str, float]:
    """Seconds in each bucket over all attempts."""
    return {bucket: sum(each.seconds.get(bucket, 0.0) for each in attempts) for bucket in BUCKETS}


def is_alive(beat: Mapping[str, Any]) -> bool:
    """Whether the process of a heartbeat still runs: on this host by its id, on others by the age of the heartbeat.

    On this host a process that is suspended or cannot write runs too.
    """
    age, silent = time.time() - beat["time"], max(SILENT, 3 * beat["every"])
    if beat["host"] != socket.gethostname():
        return age < silent
    created = process_created(beat["pid"])
    if created is None:  # the system does not tell: another process may have got the id since
        return _exists(beat["pid"]) and age < silent
    return now() - created > age - CLOCKS_DIFFER


def with_heartbeat(attempts: Sequence[Attempt], beat: Mapping[str, Any] | None) -> list[Attempt]:
    """The attempts with what the last heartbeat knows better than run.json. An attempt that had not begun to train is
    added."""
    attempts = list(attempts)
    if not beat or beat["doing"] == ENDED or beat["attempt"] not in (len(attempts), len(attempts) - 1):
        return attempts
    if beat["attempt"] == len(attempts):
        step = min(beat["step"], attempts[-1].to_step if attempts else 0)  # from which it would have gone on
        whose = {name: beat[name] for name in ("command", "host", "pid", "start")}
        attempts.append(Attempt(**whose, from_step=step))
    if attempts[-1].exit is None:
        step = max(beat["step"], attempts[-1].to_step)
        attempts[-1] = dataclasses.replace(attempts[-1], to_step=step, seconds=dict(beat["seconds"]))
    return attempts


def closed(attempts: Sequence[Attempt], beat: Mapping[str, Any] | None) -> list[Attempt]:
    """The attempts of a run that another process takes up: those that did not say how they ended were lost.

    The last one lived on for half an interval after its last heartbeat on average, which is counted as lost.
    """
    killed = "killed, or its machine was lost"
    attempts = with_heartbeat(attempts, beat)
    before = [each if each.exit else dataclasses.replace(each, exit="lost", reason=killed) for each in attempts[:-1]]
    if not attempts or attempts[-1].exit is not None:
        return before + attempts[-1:]
    last, stop, reason = attempts[-1], None, killed
    seconds = dict(last.seconds)
    if beat and beat["attempt"] == len(attempts) - 1:
        seconds["lost"] = seconds.get("lost", 0.0) + beat["every"] / 2
        stop = iso(beat["time"] + beat["every"] / 2)
        reason += f", while {beat['doing']} at step {beat['step']}"
    return [*before, dataclasses.replace(last, exit="lost", stop=stop, reason=reason, seconds=seconds)]


def resumed(attempts: Sequence[Attempt], step: int, saved: Mapping[str, Any] | None) -> list[Attempt]:
    """The attempts of a run that resumes, where all that was done after the checkpoint counts as lost.

    Args:
      attempts: the attempts so far, all of them `closed`.
      step: the step of the checkpoint; 0 where there is none.
      saved: the entry "attempt" of its manifest: the number of the attempt that saved it, and its seconds at that time.
        None where the checkpoint has none, as one of an older version, or where there is no checkpoint.
    """
    if saved is None and step:
        return list(attempts)
    number, seconds = (-1, {}) if saved is None else (saved["number"], saved["seconds"])
    found = []
    for i, each in enumerate(attempts):
        if i == number and not (each.to_step == step and each.exit != "lost"):
            each = _with_lost(each, seconds)
        elif i > number:
            each = _with_lost(each, {})
        found.append(each)
    return found


def iso(unix_seconds: float) -> str:
    """A time as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(unix_seconds, UTC).isoformat(timespec="milliseconds")


def _with_lost(attempt: Attempt, kept: Mapping[str, float]) -> Attempt:
    lost = sum(attempt.seconds.values()) - sum(kept.values())
    return dataclasses.replace(attempt, seconds={**dict.fromkeys(BUCKETS, 0.0), **kept, "lost": max(lost, 0.0)})


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _read(path: epath.Path, content: Callable[[Any], T]) -> T | None:
    """What `content` finds in a JSON file; None where there is none. Files are written whole, so that a damaged one is
    rare: a line says that it is left out."""
    try:
        return content(json.loads(path.read_text())) if path.exists() else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        tell(f"{path} cannot be read, and is left out: {type(error).__name__}: {error}")
        return None


KINDS = {"command": list, "versions": dict, "devices": dict}
"""Types of entries of an attempt that readers go through."""


def _attempts_in(record: Any) -> list[Attempt]:
    known = {each.name for each in dataclasses.fields(Attempt)}  # a later version may write more
    found = []
    for each in record["attempts"]:
        for name, kind in KINDS.items():
            if not isinstance(each.get(name, kind()), kind):
                raise TypeError(f"{name} is no {kind.__name__}")
        numbers = {name: int(each[name]) for name in ("from_step", "to_step") if name in each}
        numbers["seconds"] = _seconds_in(each.get("seconds") or {})
        end = {"exit": FORMER_EXITS.get(each.get("exit"), each.get("exit"))}
        found.append(Attempt(**{key: each[key] for key in each.keys() & known} | numbers | end))
    return found


def _heartbeat_in(beat: Any) -> dict[str, Any]:
    numbers = {name: int(beat[name]) for name in ("attempt", "pid", "step")}
    numbers |= {name: float(beat[name]) for name in ("time", "every")}
    words = {name: str(beat[name]) for name in ("host", "doing", "start")}
    return beat | numbers | words | {"command": list(beat["command"]), "seconds": _seconds_in(beat["seconds"])}


def _seconds_in(seconds: Any) -> dict[str, float]:
    return {str(bucket): float(spent) for bucket, spent in seconds.items()}
