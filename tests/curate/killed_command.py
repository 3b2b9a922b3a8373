"""Runs `camelid curate instruct` again and again, and kills it after some seconds.

    python -m camelid.tests.curate.killed_command

Each line of standard input is a JSON list of the seconds and the arguments; null seconds kill nothing. After each run a
line says "killed", or its exit code. Runs are forks of this process, which has imported everything.
"""

import json
import os
import signal
import sys
import time

import camelid.curate.dataset
import camelid.curate.teachers.instruct_report
import camelid.serve.endpoint
from camelid.curate.words import split
from camelid.launch.cli import main


def run(arguments: list[str]) -> int:
    """`camelid curate instruct` with these arguments, whose waits between attempts are short."""
    camelid.serve.endpoint.LONGEST_BACKOFF = 0.02
    return main(["curate", "instruct", *arguments])


def forked(arguments: list[str], seconds: float | None) -> str:
    """Runs the command in a fork, and says how it ended."""
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        os._exit(run(arguments))
    time.sleep(seconds or 0)
    ended, status = os.waitpid(child, 0 if seconds is None else os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "killed"
    return str(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    split("中文", "zh")  # which reads the dictionary
    for line in sys.stdin:
        seconds, arguments = json.loads(line)
        print(forked(arguments, seconds), flush=True)
