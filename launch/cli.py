"""The command line: `camelid <command>`, one function a command, in `commands/`.

A user's mistake is one line on standard error and exit code 2; a run that cannot go on is one line and exit code 1.
"""

import argparse
import sys
from collections.abc import Sequence

from ..data.errors import DataError, UserError
from .commands import checkpoints, data, models, training
from .commands.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command of `argv` (default: that of the process) and returns its exit code."""
    args = None
    try:
        args, rest = _parser().parse_known_args(argv)
        overrides = [word for word in rest if word.startswith("--config.")]
        if stray := [word for word in rest if word not in overrides]:
            raise UserError(f"unknown argument {stray[0]} (see `camelid {args.command} --help`)")
        if overrides and getattr(args, "config", None) is None:
            raise UserError(f"{overrides[0]}: there is no --config=FILE that it could change")
        args.overrides = overrides
        return args.run(args) or 0
    except DataError as error:
        print(f"camelid: {_advice(error, args)}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"camelid: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
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
