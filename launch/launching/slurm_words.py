"""What users give for Slurm in its own words: options of sbatch and srun, GPUs, time limits, lines of bash."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from ...errors import UserError

OWN = {
    "sbatch": (
        *("requeue", "no-requeue", "signal", "open-mode", "output", "error", "array", "job-name", "chdir", "wait"),
        *("test-only", "time", "nodes", "ntasks", "ntasks-per-node"),
    ),
    "srun": (
        *("kill-on-bad-exit", "wait", "label", "export", "cpus-per-task", "nodes", "ntasks", "ntasks-per-node"),
        *("output", "error", "input", "multi-prog", "pty", "chdir", "jobid", "relative"),
    ),
}
"""Options of each program that users cannot give: the job file has them, or counts on what they are."""
OWN_SHORT = {"sbatch": "oeaJDWtNn", "srun": "KWlcNnoeiDr"}
"""The short forms of the options in `OWN`."""
EXAMPLE = {"sbatch": "--qos=high", "srun": "--mpi=none"}
GPUS = re.compile(r"(?:[A-Za-z][\w.-]*:)?(\d+)", re.ASCII)
"""GPUs of a machine: their number, with or without their type."""
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
"""A time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes[:seconds]."""


def options_in(text: str, program: str) -> list[list[str]]:
    """The options in a text of a program's own words, each as its word and the values that follow it.

    Raises UserError for a text that is no list of options, and for options that the job file sets.

    Args:
      text: such as "--qos=high -C a100".
      program: "sbatch" or "srun".
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--{program}={text}: {error}") from None
    found: list[list[str]] = []
    for word in words:
        if word.startswith("-"):
            _check_not_own(word, text, program)
            found.append([word])
        elif found and "=" not in found[-1][-1]:
            found[-1].append(word)
        else:
            raise UserError(
                f"--{program}={text}: {word} is no option of {program}: give options, as in "
                f"--{program}='{EXAMPLE[program]}'"
            )
    return found


def _check_not_own(word: str, text: str, program: str) -> None:
    """Raises UserError for an option that camelid launch sets itself, also for a short or shortened form of one."""
    name = word.partition("=")[0]
    if name.startswith("--"):
        own = len(name) > 2 and any(each.startswith(name[2:]) for each in OWN[program])
    else:
        own = word[1:2] in OWN_SHORT[program] and word != "-"
    if own or name in ("-", "--"):
        raise UserError(f"--{program}={text}: {name} is what camelid launch sets itself: see its own options (--help)")


def gpus(text: str | None) -> int:
    """The number of GPUs of a machine in `8` or `a100:8`; 0 without a text. Raises UserError for another text."""
    if text is None:
        return 0
    if (parts := GPUS.fullmatch(text)) is None:
        raise UserError(f"--gpus_per_node={text}: give a number, or a type and a number as in a100:8")
    return int(parts[1])


def check_bash(text: str) -> None:
    """Raises UserError for a value of --setup that is no complete list of commands of bash."""
    if not text.strip():
        raise UserError("--setup= is empty: give commands of bash, as in --setup='module load cuda'")
    if (bash := shutil.which("bash")) is None:
        return
    said = subprocess.run([bash, "-n", "-c", f"{text}\n:"], capture_output=True, text=True).stderr
    if said:
        fault = said.splitlines()[0].removeprefix(f"{bash}: ").removeprefix("-c: ")
        raise UserError(f"--setup={text}: bash cannot read it: {fault}")


def seconds_of(time: str | None) -> int | None:
    """The seconds of a time limit of Slurm; None for one that is not given, or unlimited.

    Raises UserError for a text that is no time limit.
    """
    if time is None or time.upper() in ("UNLIMITED", "INFINITE"):
        return None
    if (parts := TIME.fullmatch(time)) is None:
        raise UserError(f"--time={time}: give minutes, or hours:minutes:seconds, or days-hours")
    days, *numbers = parts.groups()
    first, second, third = (int(number or 0) for number in numbers)
    if days is not None or numbers[2] is not None:
        return int(days or 0) * 86400 + first * 3600 + second * 60 + third
    return first * 60 + second


def check_notice(time: str | None, signal_seconds: int) -> None:
    """Raises UserError for a time limit that is none, or that leaves no time before the notice of its end."""
    limit = seconds_of(time)
    if limit is not None and 0 < limit <= signal_seconds:
        raise UserError(
            f"--time={time} is no longer than the notice of --signal_seconds={signal_seconds}: an attempt "
            "would be told to end as it begins: give more time, or less notice"
        )


def for_file(path: Path) -> str:
    """The text of a path in an `#SBATCH` line. Raises UserError for a path that such a line cannot hold."""
    text = str(path)
    if re.search(r"[\"\\]", text) or not text.isprintable():
        shown = text.encode(errors="backslashreplace").decode()
        raise UserError(
            f"{shown}: an #SBATCH line takes no path with double quotes, backslashes or control characters: use "
            "another folder"
        )
    return text


def quoted(word: str) -> str:
    """A word for an `#SBATCH` line, where # begins a comment; in quotes where it needs them."""
    if not re.search(r"[\s#\"'\\]", word):
        return word
    return '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'
