"""The command line `camelid <command>`; the commands are in `commands/`.

The exit code says how a command ended:

    0    it is done, or stopped early as its config says
    1    it cannot go on: a check stopped the run, disk or memory is full, or another process died
    2    the user gave something wrong
    3    an audit found items of an evaluation set
    129  SIGHUP: the terminal was closed
    130  Ctrl-C
    143  SIGTERM, which schedulers send before they take a machine away

Every code but 0 comes with one line on standard error. After 129, 130 and 143 the state of a running training is saved,
and the same command resumes it.
"""

import argparse
import contextlib
import difflib
import os
import pathlib
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

from ..errors import DataError, UserError
from .commands import (
    auditing,
    checkpoints,
    comparing,
    configs,
    curating,
    data,
    doctor,
    documents,
    evaluating,
    instructing,
    judging,
    launching,
    making,
    models,
    planning,
    serving,
    showing,
    sweeping,
    training,
)
from .commands.arguments import Parser, replace_unencodable
from .libtpu import quiet_without_tpus

CLOSED = "standard output was closed before all of it was written"
ENDED = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "the terminal was closed"}
OUT_OF_MEMORY = (
    "out of memory: in training lower config.data.batch_size or seq_len, raise config.optim.accumulate, or set "
    "config.model.remat=full; in other commands give --quantize or a shorter context"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the arguments of this process) and returns its exit code."""
    warnings.formatwarning = _format_warning
    sys.unraisablehook = _show_unraisable
    replace_unencodable(sys.stdout)
    quiet_without_tpus()
    try:
        with _signals():
            args = _parse(argv)
            code = args.run(args) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except DataError as error:
        return _end(2, _advice(error, args))
    except UserError as error:
        return _end(2, str(error))
    except KeyboardInterrupt:
        return _end(130, ENDED[signal.SIGINT])
    except _Ended as error:
        return _end(128 + error.number, ENDED[error.number])
    except SystemExit as error:
        if error.code != 1:  # rich exits with 1 when nobody reads standard output; argparse exits with 0 after --help
            raise
        return _end(1, CLOSED)
    except BrokenPipeError:  # for example `camelid generate ... | head -1`
        return _end(1, CLOSED)
    except MemoryError:
        return _end(1, OUT_OF_MEMORY)
    except OSError as error:
        return _end(1, str(error))
    except RuntimeError as error:
        from ..train.loop import Interrupted, TrainingStopped

        if isinstance(error, Interrupted):
            return _end(128 + error.number, str(error))
        if isinstance(error, TrainingStopped):
            return _end(1, str(error))
        if "RESOURCE_EXHAUSTED" in str(error):
            return _end(1, f"{OUT_OF_MEMORY} ({' '.join(str(error).split())[:200]})")
        if "home directory" in str(error):  # of pathlib, for a path such as ~nobody/run
            return _end(2, "a path begins with ~ and a name that is no user's: give another path")
        if "can't start new thread" in str(error):
            return _end(1, "no thread can be started: free memory, or raise the limit of processes (ulimit -u)")
        raise


class _Ended(BaseException):
    """A signal ends the command. It is no Exception, so that no `except Exception` catches it."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turns signals that end the command into exceptions, so that half-written outputs are removed.

    Signals that are ignored (`nohup`) stay ignored. While a run trains, `train.loop` handles the signals instead.
    """
    listened_to = [number for number in ENDED if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        listened_to = []
    before = {number: signal.signal(number, _raise) for number in listened_to}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    """The signal handler: raises KeyboardInterrupt or `_Ended`, or exits at once during an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            # C code loses an exception during its import, or crashes; no output has been begun yet.
            with contextlib.suppress(OSError):
                os.write(2, f"camelid: {ENDED[number]}\n".encode())
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt if number == signal.SIGINT else _Ended(number)


def _end(code: int, message: str) -> int:
    """Prints on standard error how a command ended, and returns its exit code."""
    with contextlib.suppress(OSError):
        print(f"camelid: {' '.join(message.split())}", file=sys.stderr, flush=True)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # the reader is gone: Python must not flush to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments of a command, which `args.run(args)` then runs. Raises UserError for unknown arguments."""
    args, rest = _parser().parse_known_args(argv)
    overrides = [word for word in rest if word.startswith("--config.")]
    if stray := [word for word in rest if word not in overrides]:
        flag = stray[0].partition("=")[0]
        options = [option for action in args.parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, [*options, "--config."], n=1, cutoff=0.75)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown argument {stray[0]}{hint} (see `{args.parser.prog} --help`)")
    if overrides and getattr(args, "config", None) is None:
        raise UserError(f"{overrides[0]} changes a config file, but none was given: give --config=FILE")
    args.overrides, args.argv = overrides, list(sys.argv[1:] if argv is None else argv)
    return args


def _advice(error: DataError, args: argparse.Namespace) -> str:
    """The message of an error in data, with the option of this command that mends it, if there is one."""
    if getattr(args, "config", None) is not None:
        return error.advice("--config.data.")
    return error.advice("--") if hasattr(args, error.setting.partition("=")[0]) else error.problem


_FORMAT = warnings.formatwarning


def _format_warning(message, category, filename, lineno, line=None) -> str:
    """Formats a warning of this package as one line, like an error; others keep Python's format."""
    if pathlib.Path(__file__).parents[1] in pathlib.Path(filename).parents:
        return f"camelid: {message}\n"
    return _FORMAT(message, category, filename, lineno, line)


_UNRAISABLE = sys.unraisablehook


def _show_unraisable(unraisable) -> None:
    """Hides the errors that TensorStore's threads raise on a full disk after the first error was reported."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _UNRAISABLE(unraisable)


def _parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    description = "Train, tune, evaluate, convert and use LLaMA models. `camelid COMMAND --help` describes a command."
    parser = Parser(prog="camelid", description=description, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)
    training.add_train(commands)
    sweeping.add_sweep(commands)
    launching.add_launch(commands)
    configs.add_configs(commands)
    showing.add_show(commands)
    comparing.add_compare(commands)
    doctor.add_doctor(commands)
    planning.add_plan(commands)
    data.add_tokenizer(commands)
    data.add_data(commands)
    actions = curating.add_curate(commands)
    instructing.add_instruct(actions)
    making.add_making(actions)
    documents.add_documents(actions)
    auditing.add_ledger(actions)
    checkpoints.add_convert(commands)
    checkpoints.add_diff(commands)
    evaluating.add_eval(commands)
    evaluating.add_results(commands)
    judging.add_judge(commands)
    models.add_generate(commands)
    models.add_chat(commands)
    serving.add_serve(commands)
    serving.add_router(commands)
    training.add_quickstart(commands)
    return parser
