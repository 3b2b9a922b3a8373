"""The command `camelid launch`."""

import argparse
import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data.console import tell, warn
from ...errors import UserError
from ..launching.job import Job, Launched
from ..launching.platforms import PLATFORMS
from .arguments import check_least, command, refuse_unread

EXAMPLES = """\
camelid launch --on=local -- train --config=configs/sft/primer.py --workdir=runs/sft
camelid launch --on=slurm --nodes=2 --gpus_per_node=8 --time=12:00:00 -- \\
  train --config=configs/pretrain/llama.py:size=7b --workdir=/shared/runs/7b
camelid launch --on=slurm --workers=8 --gpus_per_node=1 -- sweep --config=... --workdir=/shared/sweeps/lr
camelid launch --follow=runs/sft"""


def add_launch(commands) -> None:
    """Adds `camelid launch`."""
    parser = command(
        commands,
        "launch",
        lambda args: _launch(args, commands),
        "Run a command of camelid as a job, which outlives the terminal and goes on after it was cut off.",
        EXAMPLES,
    )
    parser.takes_command = True
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--on", choices=PLATFORMS, help="where the command after -- runs: this machine, or a cluster")
    what.add_argument("--status", metavar="DIR", help="print the state of the last job in a work directory")
    what.add_argument("--follow", metavar="DIR", help="print the log of the last job in a work directory until it ends")
    what.add_argument("--stop", metavar="DIR", help="tell the last job in a work directory to save and end")
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="folder for the job file, log and record, in DIR/launch (default: the --workdir of the command)",
    )
    parser.add_argument("--name", metavar="NAME", help="name of the job (default: that of the work directory)")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="with sweep: number of workers; on a cluster each is a job of an array (default: 1)",
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=100,
        metavar="N",
        help="largest number of further attempts after preemption, time limits and lost machines (default: 100)",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="check the command and print what would be started; nothing is written"
    )
    parser.add_argument(
        "--wait", action="store_true", help="print the log here until the job has ended; Ctrl-C ends the job"
    )
    for platform in PLATFORMS.values():
        platform.add_options(parser)
    parser.add_argument("words", nargs="*", metavar="-- COMMAND", help="the command, without the word camelid")


def _launch(args: argparse.Namespace, commands: Any) -> int:
    for action in ("status", "follow", "stop"):
        if getattr(args, action) is not None:
            return _of_last(args, action)
    _refuse_of_others(args)
    check_least(args, workers=1, restarts=0, processes=1, nodes=1, tasks_per_node=1, cpus_per_task=1)
    check_least(args, signal_seconds=1)
    if args.dry_run and args.wait:
        raise UserError("--wait does nothing with --dry_run: leave one of them out")
    from ..launching.check import check_command
    from ..outputs import check_writable

    parsed = check_command(commands, args.words)
    job, platform = _job(args, parsed), PLATFORMS[args.on]
    text = platform.describe(job, args)
    _check_inputs(args, parsed, job)
    if args.dry_run:
        print(platform.preview(job, text), end="")
        for hint in platform.hints(job, args):
            tell(hint)
        return 0
    check_writable(job.workdir)
    from ...data.locks import locked
    from ..launching.following import follow, sizes

    def refuse(holder: str) -> None:
        raise UserError(f"{job.workdir}: {holder} launches a job there at this moment")

    if job.launch.exists() and not job.launch.is_dir():
        raise UserError(
            f"{job.launch} is a file, and a job has its files in a folder of this name: rename it, or give launch "
            "another --workdir before --"
        )
    with _named(job.launch), locked(job.launch / "launching", refuse):
        _refuse_second(job.workdir)
        begin = sizes(job.launch)
        launched = platform.launch(job, text)
        try:
            launched.write(job.launch)
        except OSError:  # a job without a record could not be stopped
            if launched.id is not None:
                platform.stop(launched)
            raise
    _tell(launched, job, platform.hints(job, args))
    if not args.wait or launched.id is None:
        return 0
    try:
        return follow(launched, job.workdir, begin)
    except Exception:  # the job goes on where its state or its log cannot be read
        raise
    except BaseException:  # a signal: the user, or whoever waits for the job, ends it
        platform.stop(launched)
        raise


def _job(args: argparse.Namespace, parsed: argparse.Namespace) -> Job:
    """The job that the options describe. Raises UserError for options that do not fit its command."""
    name = args.words[0]
    workdir = args.workdir or getattr(parsed, "workdir", None)
    if workdir is None:
        raise UserError(f"`camelid {name}` has no --workdir: give launch one before --, for the job's log")
    if "://" in workdir:
        raise UserError(f"{workdir}: the job file and log need a folder: give launch a --workdir=DIR before --")
    processes = PLATFORMS[args.on].processes(args)
    if processes > 1 and not hasattr(parsed, "distributed"):
        raise UserError(f"{processes} processes: `camelid {name}` runs as one process: ask for one")
    if name != "sweep":
        refuse_unread(args, ["workers"], "the command sweep")
    workdir = Path(workdir).expanduser().absolute()
    title = args.name or re.sub(r"[^\w.-]+", "-", f"camelid-{workdir.name}")
    if not re.fullmatch(r"[\w.-]+", title):
        raise UserError(f"--name={title}: give letters, digits, dots, hyphens and underscores")
    workers = (args.workers or 1) if name == "sweep" else None
    own = str(getattr(parsed, "workdir", None) or workdir)
    progress = own if "://" in own else str(Path(own).expanduser().absolute())
    return Job(tuple(args.words), workdir, title, processes, workers, args.restarts, progress)


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Adds a folder to errors that name no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _check_inputs(args: argparse.Namespace, parsed: argparse.Namespace, job: Job) -> None:
    """Raises UserError for an input of the command's config that is missing, or warns where the job may yet find it."""
    from ..launching.check import missing_inputs

    for missing in missing_inputs(parsed):
        if missing.certain and PLATFORMS[args.on].sees(missing.path, job, args):
            raise UserError(missing.problem)
        warn(f"{missing.problem} (here; the job fails unless it is there on its machine)")


def _refuse_of_others(args: argparse.Namespace) -> None:
    """Raises UserError for an option that only another platform reads."""
    for name, platform in PLATFORMS.items():
        if name != args.on:
            own = argparse.ArgumentParser(add_help=False)
            platform.add_options(own)
            refuse_unread(args, [action.dest for action in own._actions], f"--on={name}")


def _refuse_second(workdir: Path) -> None:
    """Raises UserError if a job that was launched in a work directory has not ended."""
    from ..launching.following import state_of
    from ..launching.job import read_last

    last = read_last(workdir)
    if last is None or last.id is None:
        return
    if (state := state_of(last)) is not None:
        raise UserError(
            f"{workdir}: job {last.id} on {last.platform} is {state}: "
            f"`camelid launch --stop={shlex.quote(str(workdir))}` ends it"
        )


def _tell(launched: Launched, job: Job, hints: list[str]) -> None:
    """Prints what was done, and how to follow it. A reader that has read enough (`| head -1`) is no fault."""
    parts = [f"{job.processes} processes" if job.processes > 1 else "1 process"]
    if job.workers is not None:
        parts = [f"{job.workers} worker{'s' * (job.workers > 1)}"]
    if launched.id is None:
        first = f"the job file is written and not submitted: there is no {launched.platform} client on this machine"
    else:
        first = f"job {launched.id} on {launched.platform}: {job.name}, {parts[0]}"
    try:
        print(first, *launched.lines(job.workdir), *(f"hint: {hint}" for hint in hints), sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _of_last(args: argparse.Namespace, action: str) -> int:
    """Shows, follows or ends the last job in a work directory."""
    given = [name for name in vars(args) if name in _own(args) and name != action]
    refuse_unread(args, given, "--on")
    if args.words:
        raise UserError(f"--{action}={getattr(args, action)} takes no command after --")
    from ..launching import following

    workdir = Path(getattr(args, action)).expanduser().absolute()
    launched = following.last_launch(workdir)
    if action == "follow":
        return following.follow(launched, workdir)
    state = following.state_of(launched)
    if action == "stop":
        if state is None:
            print(f"job {launched.id} has ended already")
            return 0
        PLATFORMS[launched.platform].stop(launched)
        print(f"job {launched.id} was {state}; it is told to save and to end")
        return 0
    return _show(launched, workdir, state)


def _own(args: argparse.Namespace) -> set[str]:
    """The names of the options of `camelid launch`."""
    return {action.dest for action in args.parser._actions if action.option_strings and action.dest != "help"}


def _show(launched: Launched, workdir: Path, state: str | None) -> int:
    """Prints the state of a job and of its run, and the end of its log."""
    from ...train.run_record import read_record
    from ..launching.following import logs_of, outcome

    code, words = (0, state) if state is not None else outcome(launched, workdir)
    print(f"job {launched.id} on {launched.platform}, launched {launched.time}: {words}")
    print(*launched.lines(workdir), sep="\n")
    for folder in (workdir, *sorted(workdir.glob("*/run.json"))):
        record = read_record(folder if folder == workdir else folder.parent)
        if record is not None:
            where = "run" if folder == workdir else f"phase {folder.parent.name}"
            doing = f", {record.heartbeat['doing']}" if record.heartbeat and record.status == "running" else ""
            print(f"  {where:<10}{record.status} at step {record.step}{doing}")
    for log in logs_of(launched):
        lines = log.read_text(errors="replace").splitlines()[-3:]
        print(f"{log}:", *lines, sep="\n  ")
    return code
