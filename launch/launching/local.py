"""The platform local: the command on this machine, in the background, started again when it is cut off.

    WORKDIR/launch/local.json      what the supervisor is to run, and how often it may start it again
    WORKDIR/launch/supervisor      the lock of the supervisor, with its process id; held as long as the job lives

The supervisor (`supervisor.py`) is a session of its own, so that the job outlives the terminal.
"""

import argparse
import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

from ...errors import UserError
from .job import PYTHON, Job, Launched
from .verdict import read_verdicts

BEGIN_SECONDS = 30.0
"""Time in which the supervisor must have its lock."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this platform."""
    group = parser.add_argument_group("options of --on=local")
    group.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="number of processes that train together; they divide the GPUs, and share the cores of a CPU (default: 1)",
    )


def processes(args: argparse.Namespace) -> int:
    """The number of processes that the options ask for."""
    return args.processes


def describe(job: Job, args: argparse.Namespace) -> str:
    """The text of local.json.

    Raises UserError if there are too few devices for the processes.
    """
    command = list(job.command)
    if job.workers is not None:
        command.append(f"--workers={job.workers}")
    plan = {
        "command": command,
        "workdir": job.progress,
        "folder": str(job.folder),
        "processes": job.processes,
        "environments": _environments(job.processes),
        "most_restarts": job.most_restarts,
    }
    return json.dumps(plan, indent=2) + "\n"


def preview(job: Job, text: str) -> str:
    """The command, its processes and their variables, in words."""
    plan = json.loads(text)
    count = plan["processes"]
    together = "1 process" if count == 1 else f"{count} processes together, which meet at a free port of this machine"
    rows = [("command", f"camelid {shlex.join(plan['command'])}"), ("folder", plan["folder"]), ("processes", together)]
    for number, variables in enumerate(plan["environments"]):
        said = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        rows.append((f"process {number}" if count > 1 else "variables", said or "the variables of this shell"))
    rows += [("restarts", f"at most {plan['most_restarts']}"), ("checkpoints", plan["workdir"])]
    rows += [("log", str(job.launch / "log"))]
    return "".join(f"{what:<12}{words}\n" for what, words in rows)


def sees(path: str, job: Job, args: argparse.Namespace) -> bool:
    """Always: the job runs here, and now."""
    return True


def hints(job: Job, args: argparse.Namespace) -> list[str]:
    """None: a job has all of this machine."""
    return []


def launch(job: Job, text: str) -> Launched:
    """Starts the supervisor of a job in the background.

    Raises UserError if the supervisor does not start.
    """
    file = job.launch / "local.json"
    file.write_text(text)
    supervisor = [*PYTHON, "-m", f"{__package__}.supervisor", str(file)]
    log = job.launch / "log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            supervisor, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    end = time.monotonic() + BEGIN_SECONDS
    while _pid(job.launch) != process.pid and process.poll() is None:
        if time.monotonic() > end:
            process.kill()
            raise UserError(f"the supervisor did not start within {BEGIN_SECONDS:.0f} seconds: see {log}")
        time.sleep(0.02)
    if process.poll() is not None and not (job.launch / "exits" / f"{process.pid}.verdict").exists():
        raise UserError(f"the supervisor ended before it began: see {log}")
    ways = {"see": f"ps -p {process.pid}", "follow": f"tail -F {shlex.quote(str(log))}", "end": f"kill {process.pid}"}
    return Launched("local", str(process.pid), job.command, str(log), ways, str(file))


def _environments(count: int) -> list[dict[str, str]]:
    """The variables that give each process its part of this machine's devices.

    Raises UserError if there are not enough devices, or they cannot be divided evenly.
    """
    if count == 1 or os.environ.get("JAX_PLATFORMS") == "cpu":
        return [{} for _ in range(count)]
    from ...model.host_devices import divide, host_devices

    devices, option = host_devices(), f"--processes={count}"
    if devices.platform == "tpu":
        raise UserError(f"{option}: one process has all chips of a TPU host: leave --processes out")
    if devices.platform == "cpu":
        return divide(devices, count, 1, option)
    if devices.count % count:
        raise UserError(
            f"{option}: the {devices.count} devices here cannot be divided evenly: give a divisor of {devices.count}"
        )
    return divide(devices, count, devices.count // count, option)


def state(launched: Launched) -> str | None:
    """ "running" with what the supervisor does, or None once it has ended. Raises UserError on another host."""
    if launched.host != socket.gethostname():
        raise UserError(f"the job runs on {launched.host}, and this is {socket.gethostname()}: ask there")
    pid = _pid(Path(launched.log).parent)
    if pid is None or str(pid) != launched.id:
        return None
    verdicts = read_verdicts(Path(launched.log).parent, launched.id)  # on the attempts before
    after = f", attempt {verdicts[0][1] + 1}, after {verdicts[0][0].reason}" if verdicts else ", attempt 1"
    return f"running as process {pid}{after}"


def stop(launched: Launched) -> None:
    """Sends SIGTERM to the supervisor, which ends the job once its state is saved. Raises UserError on another host."""
    if state(launched) is not None:
        os.kill(int(launched.id), signal.SIGTERM)


def _pid(launch: Path) -> int | None:
    """The process id of the supervisor that holds the lock of a launch folder; None if there is none."""
    try:
        with (launch / "supervisor").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(json.loads(text)["pid"]) if text else None
    except (FileNotFoundError, ValueError):
        pass
    return None
