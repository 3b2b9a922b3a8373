"""The command line: `camelid <command>`, one function a command, in `commands/`.

How a command ended, in its exit code:

    0    it is done
    1    it cannot go on: a check stopped the run, the disk is full, memory is not enough, another process died
    2    a mistake in what the user gave
    129  SIGHUP: the terminal was closed
    130  Ctrl-C
    143  SIGTERM, as schedulers send it before they take a machine away

All but the first come with one line on standard error. After 129, 130 and 143 the state of a run that had begun is
saved, and the same command goes on.
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
from .commands import checkpoints, data, models, training
from .commands.arguments import Parser, say_anything

CLOSED = "standard output was closed before all of it was written"
ENDED = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "the terminal was closed"}
OUT_OF_MEMORY = (
    "out of memory: in training lower config.data.batch_size or seq_len, raise config.optim.accumulate, or set "
    "config.model.remat=full; elsewhere give --quantize or a shorter context"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command of `argv` (default: that of the process) and returns its exit code."""
    warnings.formatwarning = _format_warning
    sys.unraisablehook = _show_unraisable
    say_anything(sys.stdout)
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
        if error.code != 1:  # as rich ends when nobody reads standard output; argparse ends by 0
            raise
        return _end(1, CLOSED)
    except BrokenPipeError:  # as of `camelid generate ... | head -1`
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
        if "can't start new thread" in str(error):
            return _end(1, "no further thread can be started: too little memory, or a limit of processes (ulimit -u)")
        raise


class _Ended(BaseException):
    """A signal ends the command; no `except Exception` on the way takes it for an error."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Signals that end the command do it as exceptions, so that what is half done is taken away. Those that are ignored
    (`nohup`) stay so; while a run trains, `train.loop` listens to them instead."""
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
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            # C code that is being imported loses an exception, or crashes; there is nothing yet to be taken away.
            with contextlib.suppress(OSError):
                os.write(2, f"camelid: {ENDED[number]}\n".encode())
            os._exit(128 + number)
        frame = frame.f_back
    raise KeyboardInterrupt if number == signal.SIGINT else _Ended(number)


def _end(code: int, message: str) -> int:
    """Says how a command ended, on standard error, and gives its exit code."""
    with contextlib.suppress(OSError):
        print(f"camelid: {' '.join(message.split())}", file=sys.stderr, flush=True)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # whoever read it is gone: nothing must be flushed to it when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command, which it runs by `args.run(args)`. Raises UserError for unknown ones."""
    args, rest = _parser().parse_known_args(argv)
    overrides = [word for word in rest if word.startswith("--config.")]
    if stray := [word for word in rest if word not in overrides]:
        flag = stray[0].partition("=")[0]
        options = [option for action in args.parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, [*options, "--config."], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"unknown argument {stray[0]}{hint} (see `{args.parser.prog} --help`)")
    if overrides and getattr(args, "config", None) is None:
        raise UserError(f"{overrides[0]}: there is no --config=FILE that it could change")
    args.overrides = overrides
    return args


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


_UNRAISABLE = sys.unraisablehook


def _show_unraisable(unraisable) -> None:
    """Keeps quiet about what TensorStore's threads still find on a full disk when the first error has been told."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _UNRAISABLE(unraisable)


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
