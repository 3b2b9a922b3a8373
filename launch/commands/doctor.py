"""The command `camelid doctor`."""

import argparse
import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator

from .arguments import check_least, command, keep_programs
from .distributed_arguments import add_distributed, check_distributed, joined_processes

SECONDS = 60


def add_doctor(commands) -> None:
    """Adds `camelid doctor`."""
    parser = command(
        commands,
        "doctor",
        _doctor,
        "Check within a minute what runs need: devices, packages, disk, clock, limits, and the cache of programs. "
        "Each finding is a line: ok, warn or fail. The exit code is 1 if one of them is fail.",
        "camelid doctor --workdir=runs\n"
        "camelid launch --on=slurm --nodes=2 --gpus_per_node=8 --workdir=runs/doctor -- doctor",
    )
    parser.add_argument(
        "--workdir", metavar="DIR", help="folder whose disk, locks and clock are checked (default: the current one)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")
    parser.add_argument(
        "--seconds",
        type=int,
        default=SECONDS,
        metavar="S",
        help=f"seconds after which a check that does not answer has failed (default: {SECONDS})",
    )
    add_distributed(parser, "check")


def _doctor(args: argparse.Namespace) -> int:
    check_least(args, seconds=1)
    check_distributed(args)
    from ..doctor.finding import Finding, run_checks
    from ..doctor.host import check_cores, check_driver, check_limits, check_memory, check_ntp
    from ..doctor.software import check_extras, check_packages, check_python, check_variables
    from ..doctor.storage import check_storage

    findings: list[Finding] = []
    with _watchdog(args, findings) as doing:
        before = [
            ("python", check_python),
            ("packages", check_packages),
            ("extras", check_extras),
            ("variables", check_variables),
            ("cores", check_cores),
            ("memory", check_memory),
            ("limits", check_limits),
            ("disk", lambda: check_storage(args.workdir or ".")),
            ("clock", check_ntp),
            ("driver", check_driver),
        ]
        shows = not args.json and not args.distributed
        for finding in run_checks(before, doing):
            _add(findings, finding, shows)
        doing[0] = "jax"
        try:
            import jax  # noqa: F401
        except Exception as error:  # whatever a broken installation raises
            text = f"it cannot be imported: {' '.join(str(error).split())[:300]}"
            _add(findings, Finding("jax", "fail", text, "pip install --force-reinstall jax jaxlib"), not args.json)
            _end(args, findings)
            return 1
        doing[0] = "network"
        with joined_processes(args, seconds=args.seconds):
            return _with_jax(args, findings, doing)


def _with_jax(args: argparse.Namespace, findings: list, doing: list[str]) -> int:
    """Runs the checks that need JAX, and ends the report. Returns the exit code."""
    import jax

    from ..doctor.cache import check_cache
    from ..doctor.devices import check_collectives, check_devices, check_product
    from ..doctor.finding import run_checks
    from ..doctor.group import check_group, gather

    keep_programs()
    checks = [
        ("devices", check_devices),
        ("compute", check_product),
        ("collectives", check_collectives),
        ("compile cache", check_cache),
    ]
    together = jax.process_count() > 1
    if together:
        checks.append(("network", check_group))
    for finding in run_checks(checks, doing):
        _add(findings, finding, not args.json and not args.distributed)
    merged = gather(findings) if together else findings
    failed = any(finding.status == "fail" for finding in merged)
    if jax.process_index() == 0:
        _end(args, merged)
    return int(failed)


def _add(findings: list, finding, shows: bool) -> None:
    findings.append(finding)
    if shows:
        print(finding.line(), flush=True)


def _end(args: argparse.Namespace, findings: list) -> None:
    """Prints what is left of the report: all findings of a group of processes, or the counts."""
    if args.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2, ensure_ascii=False))
        return
    if args.distributed:
        print(*(finding.line() for finding in findings), sep="\n")
    counts = {status: sum(finding.status == status for finding in findings) for status in ("ok", "warn", "fail")}
    print(f"{counts['ok']} ok, {counts['warn']} warning{'s' * (counts['warn'] != 1)}, {counts['fail']} failed")


@contextlib.contextmanager
def _watchdog(args: argparse.Namespace, findings: list) -> Iterator[list[str]]:
    """Ends the command with a finding that failed when a check does not answer in time.

    The context gives a list, whose only element is the name of the check that runs.
    """
    doing = ["python"]

    def end() -> None:
        from ..doctor.finding import Finding

        text = f"no answer within {args.seconds} seconds of the whole check"
        _add(findings, Finding(doing[0], "fail", text, "see what it waits for, or give --seconds"), not args.json)
        _end(args, findings)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(1)

    timer = threading.Timer(min(args.seconds, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    try:
        yield doing
    finally:
        timer.cancel()
