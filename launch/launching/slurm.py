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
from .slurm_words import check_bash, check_notice, for_file, gpus, options_in, quoted, seconds_of

ASKED = ("partition", "account", "time", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem")
"""Options of `camelid launch` that are options of sbatch, in the order of the job file."""
COMMENTS = {
    "partition": "Where the job runs, and for how long an attempt may.",
    "nodes": "Machines, processes on each, and what each process has.",
}
"""Sentences above the first option of a group."""
SECONDS = 30.0
"""Time that a command of Slurm may take."""


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
        "--gpus_per_node",
        metavar="[TYPE:]N",
        help="number of GPUs of each machine, such as 8 or a100:8 (default: none is asked for)",
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
    group.add_argument(
        "--srun",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="further options in srun's own words, such as '--container-image=lab+jax'; may be given again",
    )
    group.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="BASH",
        help="commands of bash that the job file runs on the first machine before the processes start, which get its "
        "variables, such as 'module load cuda; export NCCL_DEBUG=INFO'; may be given again",
    )


def processes(args: argparse.Namespace) -> int:
    """The number of processes that the options ask for. Raises UserError if the GPUs cannot be divided among them."""
    there, each = gpus(args.gpus_per_node), args.tasks_per_node
    if each is None:
        each = 1 if args.workers else there or 1
    if there % each:
        divisors = ", ".join(str(number) for number in range(1, there + 1) if there % number == 0)
        raise UserError(
            f"--tasks_per_node={each}: {there} GPU{'s' * (there != 1)} of --gpus_per_node cannot be divided evenly "
            f"among {each} processes: give one of {divisors}"
        )
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
    check_notice(args.time, args.signal_seconds)
    for text in args.setup:
        check_bash(text)
    array = job.workers is not None
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
        folder=quoted(for_file(job.folder)),
        log_of_slurm=quoted(for_file(job.launch / "log").replace("%", "%%") + ("-%a" if array else "")),
        options=_options(job, args),
        signal_seconds=args.signal_seconds,
        environment=environment,
        array=array,
        job="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if array else "$SLURM_JOB_ID",
        exits=f'{shlex.quote(str(job.launch))}/exits/"$job"',
        setup=args.setup,
        quote=shlex.quote,
        srun=[shlex.join(words) for text in args.srun for words in options_in(text, "srun")],
        processes=job.processes,
        python=shlex.join(PYTHON),
        package=__package__,
        command=_in_lines(command),
        workdir=shlex.quote(job.progress),
        most_restarts=job.most_restarts,
    )


def preview(job: Job, text: str) -> str:
    """The job file itself, which is written for people too."""
    return text


def sees(path: str, job: Job, args: argparse.Namespace) -> bool:
    """Whether what is missing at a path now and here is missing for the job too.

    So it is below the folders that a job has to share with this machine, unless the job waits for other jobs.
    """
    given = [words[0] for text in args.sbatch for words in options_in(text, "sbatch")]
    waits = any(word.startswith("-d") or word.partition("=")[0] in ("--dependency", "--begin") for word in given)
    place = Path(job.folder, Path(path).expanduser())
    shared = any(place.is_relative_to(folder) for folder in (job.folder, job.workdir))
    return shared and not waits and shutil.which("sbatch") is not None


def hints(job: Job, args: argparse.Namespace) -> list[str]:
    """What a job gets that asks for no cores and memory, and how long its attempts may take together."""
    found = []
    if missing := [f"--{name}" for name in ("cpus_per_task", "mem") if getattr(args, name) is None]:
        found.append(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} not given: most clusters then give a "
            "process one core and little memory"
        )
    attempts, limit = job.most_restarts + 1, seconds_of(args.time)
    if limit:
        found.append(
            f"at most {attempts} attempts of --time={args.time}, {_days(attempts * limit)} in all (--restarts)"
        )
    elif attempts > 1:
        found.append(f"at most {attempts} attempts, each as long as the partition allows (--restarts, --time)")
    return found


def _days(seconds: int) -> str:
    """A time in hours, or in days from two days on."""
    hours = seconds / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.1f} hours"


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
    given = [words for text in args.sbatch for words in options_in(text, "sbatch")]
    return found + [("", " ".join(_in_file(word) for word in words)) for words in given]


def _in_file(word: str) -> str:
    """An option or a value of one for an `#SBATCH` line."""
    name, sign, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return name + sign + quoted(value)


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
