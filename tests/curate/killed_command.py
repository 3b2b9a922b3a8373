"""Runs a command again and again, and kills it after the seconds that it reads from standard input.

python -m camelid.tests.curate.killed_command ARGUMENTS

Each line of standard input is a number of seconds, or "whole" for a run that is not killed. After each run a line says
"killed", or its exit code. The command runs in a fork of this process, which has imported everything.
"""

import os
import signal
import sys
import time

import camelid.curate.dataset
import camelid.curate.instruct_report
import camelid.serve.endpoint
from camelid.curate.words import split
from camelid.errors import UserError
from camelid.launch.commands.arguments import Parser
from camelid.launch.commands.instructing import add_instruct


def run(arguments: list[str]) -> int:
    """`camelid curate instruct` with these arguments, whose waits between attempts are short."""
    camelid.serve.endpoint.LONGEST_BACKOFF = 0.02
    parser = Parser(prog="camelid curate")
    add_instruct(parser.add_subparsers(parser_class=Parser))
    args = parser.parse_args(["instruct", *arguments])
    args.overrides = []
    try:
        args.run(args)
    except UserError as error:
        print(f"camelid: {error}", file=sys.stderr)
        return 2
    return 0


def forked(arguments: list[str], seconds: float | None) -> str:
    """Runs the command in a fork, and says how it ended."""
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        os._exit(run(arguments))
    if seconds is not None:
        time.sleep(seconds)
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "killed"
        return "0"
    return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    split("中文", "zh")  # which reads the dictionary
    for line in sys.stdin:
        print(forked(sys.argv[1:], None if line.strip() == "whole" else float(line)), flush=True)
