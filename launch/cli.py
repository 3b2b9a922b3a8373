"""The command line: `camelid <command>`, one function a command, in `commands/`.

A user's mistake is one line on standard error and exit code 2; a run that cannot go on is one line and exit code 1.
"""

import argparse
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence

from ..data.errors import DataError, UserError
from .commands import checkpoints, data, models, training
from .commands.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command of `argv` (default: that of the process) and returns its exit code."""
    args = None
    warnings.formatwarning = _format_warning
    try:
        args, rest = _parser().parse_known_args(argv)
        overrides = [word for word in rest if word.startswith("--config.")]
        if stray := [word for word in rest if word not in overrides]:
            raise UserError(f"unknown argument {stray[0]} (see `camelid {args.command} --help`)")
        if overrides and getattr(args, "config", None) is None:
            raise UserError(f"{overrides[0]}: there is no --config=FILE that it could change")
        args.overrides = overrides
        code = args.run(args) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except DataError as error:
        print(f"camelid: {_advice(error, args)}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"camelid: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as of `camelid generate ... | head -1`: nothing reads what is still buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("camelid: who read the output has gone; the rest was not written", file=sys.stderr)
        return 1
    except RuntimeError as error:
        from ..train.loop import TrainingStopped

        if not isinstance(error, TrainingStopped):
            raise
        print(f"camelid: {error}", file=sys.stderr)
        return 1


def _advice(error: DataError, args: argparse.Namespace) -> str:
    """The error with the flag of this command that mends it, if it has one."""
    if getattr(args, "config", None) is not None:
        return error.advice("--config.data.")
    return error.advice("--") if hasattr(args, error.setting.partition("=")[0]) else error.problem


_FORMAT = warnings.formatwarning


def _format_warning(message, category, filename, lineno, line=None) -> str:
    """What the package warns of as one line, like a mistake; other warnings as they are."""
    if pathlib.Path(__file__).parents[1] in pathlib.Path(filename).parents:
        return f"camelid: {message}\n"
    return _FORMAT(message, category, filename, lineno, line)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="camelid", description="From raw text to a model that answers.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)
    training.add_train(commands)
    data.add_tokenizer(commands)
    data.add_data(commands)
    checkpoints.add_convert(commands)
    checkpoints.add_diff(commands)
    models.add_eval(commands)
    models.add_generate(commands)
    models.add_chat(commands)
    training.add_quickstart(commands)
    return parser
