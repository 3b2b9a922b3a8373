"""What follows from the exit code of an attempt: the end, or another attempt. One rule for all platforms.

    code                what it says                                            what follows
    0                   all processes finished                                  the job is done
    129, 130, 143       a signal ended it, and its state is saved               another attempt
    137                 it was killed: memory, a lost host, or no time to save  another attempt, if it gets further
    1 of all processes  each lost the others, none failed by itself             another attempt, if it gets further
    anything else       it failed                                               the job has failed

Attempts that are killed three times in a row without a new checkpoint between them count as failed, and so does an
attempt beyond the largest number of restarts.

A job file calls this file as `python -m camelid.launch.launching.verdict`. It loads no JAX.
"""

import argparse
import json
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from ...data.checksums import write_whole
from ...errors import UserError

SAVED = {129: "SIGHUP", 130: "Ctrl-C", 143: "SIGTERM"}
"""Exit codes after a signal at which the state was saved, with the name of the signal."""
KILLED = 137
KILLS = 3
"""Attempts in a row that are killed without a new checkpoint, after which a job has failed."""
EXIT_FILE = "CAMELID_EXIT_FILE"
"""The variable that names the file in which a process writes how it ended: its exit code, or `LOST`."""
LOST = "lost"
"""What a process writes that ended because it lost another one."""


class Verdict(NamedTuple):
    """What follows from an attempt."""

    word: str
    """"finished", "again" or "failed"."""

    code: int
    """The exit code of the job, unless it is started again."""

    reason: str
    """Why, in words for the log."""


def judge(code: int, said: Sequence[str], processes: int, *, restarts: int, most: int, stuck: bool) -> Verdict:
    """What follows from an attempt.

    Args:
      code: the exit code of the attempt: of several processes the highest one.
      said: what the processes wrote into their exit files; a process that was killed wrote nothing.
      processes: number of processes.
      restarts: number of attempts before this one.
      most: largest number of restarts.
      stuck: whether this would be the last of `KILLS` attempts that were killed without a new checkpoint.
    """
    if code == 0:
        if list(said).count("0") == processes:
            return Verdict("finished", 0, "finished")
        told = ", ".join(said) or "none"
        words = f"exit code 0, but not all of {processes} processes said that they finished (said: {told})"
        return Verdict("failed", 1, words)
    lost = code == 1 and LOST in said and all(word == LOST for word in said)
    if code not in SAVED and code != KILLED and not lost:
        return Verdict("failed", code, f"exit code {code}: the command failed, which a restart does not mend")
    if code in SAVED:
        reason = f"exit code {code}: {SAVED[code]} ended it, and its state is saved"
    else:
        reason = "the processes lost each other" if lost else f"exit code {code}: a process was killed"
        if stuck:
            return Verdict("failed", code, f"{reason}, {KILLS} times in a row without a new checkpoint")
    if restarts >= most:
        return Verdict("failed", code, f"{reason}; it has been restarted {restarts} times already")
    return Verdict("again", code, reason)


def note_kill(file: Path, workdir: epath.PathLike) -> bool:
    """Notes in `file` that an attempt was killed, and which checkpoints there were.

    Returns whether that makes `KILLS` attempts in a row without a new checkpoint.
    """
    mark = str(hash_of_checkpoints(workdir))
    marks = [*(file.read_text().split() if file.exists() else ()), mark]
    file.write_text("\n".join(marks[-KILLS:]) + "\n")
    return marks[-KILLS:] == [mark] * KILLS


def hash_of_checkpoints(workdir: epath.PathLike) -> int:
    """A hash of the names of all checkpoints in a work directory: of a run, of phases, of the trials of a sweep.

    Args:
      workdir: a folder, on this machine or in an object store.
    """
    found = sorted(
        str(step)
        for pattern in ("checkpoints", "*/checkpoints", "trials/*/checkpoints", "trials/*/*/checkpoints")
        for folder in epath.Path(workdir).glob(pattern)
        for step in (folder.iterdir() if folder.is_dir() else ())
        if step.name.isdecimal()
    )
    return zlib.crc32("\n".join(found).encode())


def read_exits(folder: Path) -> list[str]:
    """What the processes of an attempt wrote into their exit files, in the order of their numbers."""
    there = folder.iterdir() if folder.is_dir() else ()  # NFS adds .nfs... for files that are deleted while open
    files = sorted((file for file in there if file.name.isdecimal()), key=lambda file: int(file.name))
    return [file.read_text().strip() for file in files]


def judge_attempt(
    code: int, exits: Path, workdir: epath.PathLike, processes: int, *, restarts: int, most: int
) -> Verdict:
    """What follows from an attempt, by `judge`, from the files of its job.

    Beside the folder of the exit files, `<job>.verdict` gets the verdict; `<job>.killed` is the file of `note_kill`.

    Args:
      code: the exit code of the attempt.
      exits: the folder of the exit files.
      workdir: the work directory of the command, or its address.
      processes: number of processes.
      restarts: number of attempts before this one.
      most: largest number of restarts.
    """
    said = read_exits(exits)
    exits.parent.mkdir(parents=True, exist_ok=True)  # no process may have begun
    killed = exits.with_suffix(".killed")
    verdict = judge(code, said, processes, restarts=restarts, most=most, stuck=False)
    if code not in SAVED and verdict.word == "again":
        verdict = judge(code, said, processes, restarts=restarts, most=most, stuck=note_kill(killed, workdir))
    else:
        killed.unlink(missing_ok=True)
    write_whole(exits.with_suffix(".verdict"), json.dumps(verdict._asdict() | {"attempt": restarts + 1}) + "\n")
    return verdict


def read_verdicts(launch: Path, job: str) -> list[tuple[Verdict, int]]:
    """The verdict on the last attempt of a job and its number of attempts, for each job of an array."""
    files = sorted(file for name in (job, f"{job}_*") for file in (launch / "exits").glob(f"{name}.verdict"))
    return [_read_verdict(file) for file in files]


def _read_verdict(file: Path) -> tuple[Verdict, int]:
    try:
        record = json.loads(file.read_bytes())
        return Verdict(record["word"], record["code"], record["reason"]), record["attempt"]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{file} is damaged: see the job's log for how it ended") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Prints "finished", "again" or "failed" on standard output, and the reason on standard error.

    Returns the exit code of the job.
    """
    parser = argparse.ArgumentParser(prog="camelid.launch.launching.verdict", allow_abbrev=False)
    parser.add_argument("--code", type=int, required=True, help="exit code of the attempt")
    parser.add_argument("--exits", type=Path, required=True, help="folder of the exit files")
    parser.add_argument("--workdir", required=True, help="work directory of the command, or its address")
    parser.add_argument("--processes", type=int, required=True, help="number of processes")
    parser.add_argument("--restarts", type=int, required=True, help="number of attempts before this one")
    parser.add_argument("--most", type=int, required=True, help="largest number of restarts")
    a = parser.parse_args(argv)
    verdict = judge_attempt(a.code, a.exits, a.workdir, a.processes, restarts=a.restarts, most=a.most)
    print(verdict.word)
    print(f"camelid: {verdict.reason}", file=sys.stderr)
    return verdict.code


def write_exit(word: str) -> None:
    """Writes how this process ended into the file that `EXIT_FILE` names, if there is one and it is still empty."""
    path = os.environ.get(EXIT_FILE)
    if path and not os.path.exists(path):
        with open(path, "w") as file:
            file.write(word)


if __name__ == "__main__":
    sys.exit(main())
