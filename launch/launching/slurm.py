"""The platform Slurm: a job file for `sbatch`, which starts one process for each task and requeues what is cut off."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import jinja2

from ...errors import UserError
from .job import PYTHON, Job, Launched

ASKED = ("partition", "account", "time", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem")
"""Options of `camelid launch` that are options of sbatch, in the order of the job file."""
COMMENTS = {
    "partition": "Where the job runs, and for how long an attempt may.",
    "nodes": "Machines, processes on each, and what each process has.",
}
"""Sentences above the first option of a group."""
SECONDS = 30.0
"""Time that a command of Slurm may take."""
OWN = (
    *("requeue", "no-requeue", "signal", "open-mode", "output", "error", "array", "job-name", "chdir", "wait"),
    *("test-only", "time", "nodes", "ntasks", "ntasks-per-node"),
)
"""Options of sbatch that `--sbatch` cannot give: the job file has them, or counts on what they are."""
OWN_SHORT = "oeaJDWtNn"
"""The short forms of the options in `OWN`."""
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
"""A time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes[:seconds]."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this platform."""
    group = parser.add_argument_group("options of --on=slurm")
    group.add_argument("--nodes", type=int, default=1, metavar="N", help="number of machines (default: 1)")
    group.add_argument(
        "--tasks_per_node",
        type=int,
        metavar="N",
        help="number of processes on each machine (default: one for each GPU, or 1)",
    )
    group.add_argument(
        "--gpus_per_node", type=int, metavar="N", help="number of GPUs of each machine (default: none is asked for)"
    )
    group.add_argument(
        "--cpus_per_task", type=int, metavar="N", help="number of cores of each process (default: as Slurm gives)"
    )
    group.add_argument("--mem", metavar="SIZE", help="memory of each machine, such as 64G (default: as Slurm gives)")
    group.add_argument(
        "--time",
        metavar="TIME",
        help="time limit of an attempt, such as 12:00:00; the job is requeued after it (default: the partition's)",
    )
    group.add_argument("--partition", metavar="NAME", help="partition, or several with commas (default: Slurm's)")
    group.add_argument("--account", metavar="NAME", help="account that is charged (default: the user's)")
    group.add_argument(
        "--signal_seconds",
        type=int,
        default=120,
        metavar="S",
        help="seconds before the time limit at which processes are told to save; longer than a step and a checkpoint "
        "take (default: 120)",
    )
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="further options in sbatch's own words, such as '--qos=high --exclude=node7'; may be given again",
    )


def processes(args: argparse.Namespace) -> int:
    """The number of processes that the options ask for."""
    each = args.tasks_per_node
    if each is None:
        each = 1 if args.workers else args.gpus_per_node or 1
    return args.nodes * each


def launch(job: Job, text: str) -> Launched:
    """Writes the job file, and submits it if there is `sbatch` on this machine.

    Raises UserError if sbatch refuses it.
    """
    file = job.launch / "job.sh"
    file.write_text(text)
    file.chmod(0o755)
    log = str(job.launch / ("log" if job.workers is None else "log-*"))
    if shutil.which("sbatch") is None:
        ways = {"submit": f"sbatch {shlex.quote(str(file))}, on a machine that has Slurm and this folder"}
        return Launched("slurm", None, job.command, log, ways, str(file))
    said = _slurm("sbatch", "--parsable", str(file))
    if said.returncode:
        words = (said.stderr.strip() or said.stdout.strip() or "no message").splitlines()
        raise UserError(f"sbatch refused {file}: {' '.join(line.removeprefix('sbatch: ') for line in words)}")
    number = said.stdout.strip().partition(";")[0]
    ways = {
        "see": f"squeue --jobs={number}",
        "follow": f"tail -F {shlex.quote(str(job.launch))}/{Path(log).name}",
        "requeue": f"scontrol requeue {number}",
        "end": f"scancel {number}",
    }
    return Launched("slurm", number, job.command, log, ways, str(file))


def describe(job: Job, args: argparse.Namespace) -> str:
    """The text of the job file."""
    command = list(job.command)
    if job.processes > 1:
        command.append("--distributed")
    if job.workers is not None:
        command.append("--workers=1")
    _check_notice(args)
    array = job.workers is not None
    per_task = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if array else "$SLURM_JOB_ID"
    environment = [(name, shlex.quote(os.environ[name])) for name in ("PYTHONPATH",) if os.environ.get(name)]
    loader = jinja2.FileSystemLoader(Path(__file__).parents[1])
    maker = jinja2.Environment(
        loader=loader,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    together = f"{job.processes} processes together" if job.processes > 1 else "one process"
    return maker.get_template("slurm_job.sh.jinja").render(
        what=f"{job.workers} workers of a sweep, one process each" if array else together,
        file=shlex.quote(str(job.launch / "job.sh")),
        shown=f"camelid {shlex.join(job.command)}".replace("\n", "\n#     "),
        name=job.name,
        folder=_quoted(_for_slurm(job.folder)),
        log_of_slurm=_quoted(_for_slurm(job.launch / "log").replace("%", "%%") + ("-%a" if array else "")),
        options=_options(job, args),
        signal_seconds=args.signal_seconds,
        environment=environment,
        exits=f'{shlex.quote(str(job.launch))}/exits/"{per_task}"',
        processes=job.processes,
        python=shlex.join(PYTHON),
        package=__package__,
        command=_in_lines(command),
        workdir=shlex.quote(job.progress),
        most_restarts=job.most_restarts,
    )


def _options(job: Job, args: argparse.Namespace) -> list[tuple[str, str]]:
    """(sentence above it or "", option) for each `#SBATCH` line that the options of the command ask for."""
    values = {name: getattr(args, name) for name in ASKED}
    values["tasks_per_node"] = job.processes // args.nodes
    found = []
    said = False
    for name, value in values.items():
        if value is None:
            continue
        if re.search(r"[\s#\"'\\]", str(value)) or value == "":
            raise UserError(f"--{name}={value}: give one word of sbatch, without spaces and quotes")
        group = "partition" if name in ("partition", "account", "time") else "nodes"
        comment = "" if said == group else COMMENTS[group]
        said = group
        option = "ntasks-per-node" if name == "tasks_per_node" else name.replace("_", "-")
        found.append((comment, f"--{option}={value}"))
    if job.workers is not None:
        found.append(("One job for each worker; all share the sweep's folder.", f"--array=0-{job.workers - 1}"))
    return found + [("", option) for text in args.sbatch for option in _words(text)]


def _words(text: str) -> list[str]:
    """The options in a text of sbatch's own words. Raises UserError for a text that is no list of options."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--sbatch={text}: {error}") from None
    joined: list[str] = []
    for word in words:
        if word.startswith("-"):
            _check_not_own(word, text)
            name, sign, value = word.partition("=")
            joined.append(name + sign + _quoted(value))
        elif joined and "=" not in joined[-1]:
            joined[-1] += f" {_quoted(word)}"
        else:
            raise UserError(
                f"--sbatch={text}: {word} is no option of sbatch: give options, as in --sbatch='--qos=high'"
            )
    return joined


def _check_not_own(word: str, text: str) -> None:
    """Raises UserError for an option that camelid launch sets itself, also for a short or shortened form of one."""
    name = word.partition("=")[0]
    if name.startswith("--"):
        own = len(name) > 2 and any(each.startswith(name[2:]) for each in OWN)
    else:
        own = word[1:2] in OWN_SHORT and word != "-"
    if own:
        raise UserError(f"--sbatch={text}: {name} is what camelid launch sets itself: see its own options (--help)")


def _check_notice(args: argparse.Namespace) -> None:
    """Raises UserError for a time limit that is none, or that leaves no time before the notice of its end."""
    if args.time is None or args.time.upper() in ("UNLIMITED", "INFINITE"):
        return
    if (parts := TIME.fullmatch(args.time)) is None:
        raise UserError(f"--time={args.time}: give minutes, or hours:minutes:seconds, or days-hours")
    days, *numbers = parts.groups()
    first, second, third = (int(number or 0) for number in numbers)
    if days is not None or numbers[2] is not None:
        limit = int(days or 0) * 86400 + first * 3600 + second * 60 + third
    else:
        limit = first * 60 + second
    if 0 < limit <= args.signal_seconds:
        raise UserError(
            f"--time={args.time} is no longer than the notice of --signal_seconds={args.signal_seconds}: an attempt "
            "would be told to end as it begins: give more time, or less notice"
        )


def _for_slurm(path: Path) -> str:
    """The text of a path in an `#SBATCH` line. Raises UserError for a path that such a line cannot hold."""
    text = str(path)
    if re.search(r"[\"\\]", text) or not text.isprintable():
        shown = text.encode(errors="backslashreplace").decode()
        raise UserError(
            f"{shown}: an #SBATCH line takes no path with double quotes, backslashes or control characters: use "
            "another folder"
        )
    return text


def _quoted(word: str) -> str:
    """A word for an `#SBATCH` line, where # begins a comment; in quotes where it needs them."""
    if not re.search(r"[\s#\"'\\]", word):
        return word
    return '"' + re.sub(r'(["\\])', r"\\\1", word) + '"'


def _in_lines(words: list[str]) -> str:
    """A command for bash, with a line for each option."""
    return " \\\n    ".join(shlex.quote(word) for word in words)


def state(launched: Launched) -> str | None:
    """The state of a job in Slurm's words, such as "RUNNING" or "PENDING (Resources)"; None once it has ended.

    Raises UserError if Slurm does not answer.
    """
    said = _slurm("squeue", "--noheader", "--array", f"--jobs={launched.id}", "--format=%T|%r")
    if said.returncode:
        if "Invalid job id" in said.stderr:  # Slurm has forgotten it
            return None
        raise UserError(f"squeue does not answer: {' '.join(said.stderr.split())}")
    counts: dict[str, int] = {}
    for line in said.stdout.splitlines():
        word, _, reason = line.strip().partition("|")
        word += f" ({reason})" if reason not in ("None", "") else ""
        counts[word] = counts.get(word, 0) + 1
    if not counts:
        return None
    if sum(counts.values()) == 1:
        return next(iter(counts))
    return ", ".join(f"{number} {word}" for word, number in counts.items())


def stop(launched: Launched) -> None:
    """Cancels a job. Its processes get SIGTERM, and as long to save as Slurm's KillWait says (30 seconds).

    Raises UserError if Slurm refuses.
    """
    said = _slurm("scancel", str(launched.id))
    if said.returncode:
        raise UserError(f"scancel {launched.id}: {' '.join(said.stderr.split())}")


def _slurm(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of Slurm. Raises UserError if it is missing or does not answer."""
    try:
        return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=SECONDS)
    except FileNotFoundError:
        raise UserError(f"{words[0]} is not on this machine: use one that has Slurm's commands") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]} did not answer within {SECONDS:.0f} seconds") from None
