"""The process of a program of several trials: `python -m camelid.launch.sweeps.vectorized_child PARENT`.

It reads the trials from standard input, trains them, and writes the exit code of each to standard output: the one that
`camelid train` would have ended with. What is told about a trial goes into the log in the trial's folder.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from ...errors import UserError
from ...evals.registry import Evaluations
from ...settings.config_files import load_phases
from ...train import vectorized
from ...train.host_memory import keep_freed_memory
from ...train.lock import only_process_of
from ...train.loop import Interrupted, TrainingStopped
from ..checks import check_phases
from ..commands.arguments import keep_programs
from ..phases import report_progress, whole_config
from ..recipes import run_of
from .child import follow
from .trials import LOG


def main() -> int:
    """Trains the trials that standard input names; PARENT is the process id of the worker."""
    if not follow(int(sys.argv[1])):
        return 128 + signal.SIGTERM
    trials = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w") as results:
        os.dup2(2, 1)  # what others print belongs to the log
        keep_programs()
        json.dump(train(trials), results)
    return 0


def train(trials: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Trains trials in one program, and says in the log of each how it ended.

    Args:
      trials: of each trial its "number", "config" with "overrides", its "folder", the "command" that trains it alone,
        and whether it "trains"; one that does not keeps its place in the program.

    Returns:
      The exit code of each trial that was trained, by its number.
    """
    codes = {trial["number"]: 0 for trial in trials if trial["trains"]}
    with contextlib.ExitStack() as stack:
        logs = {number: _log(Path(trial["folder"])) for number, trial in enumerate(trials) if trial["trains"]}
        for log in logs.values():
            stack.enter_context(log)

        def around(number: int) -> contextlib.AbstractContextManager:
            return _as_trial(logs[number], trials[number]["command"])

        for number, error in _train(trials, around).items():
            if error is not None:
                codes[trials[number]["number"]] = exit_code(error)
                with around(number):
                    _tell(error)
    return codes


def exit_code(error: BaseException) -> int:
    """The exit code of `camelid train` where an exception ends it (`launch/cli.py`)."""
    if isinstance(error, Interrupted):
        return 128 + error.number
    return 2 if isinstance(error, UserError) else 1


def _train(trials: Sequence[Mapping[str, Any]], around: vectorized.Around) -> dict[int, Exception | None]:
    """What ended each trial that trains, by its place; None for one that is complete."""
    evaluators, ended = Evaluations(), {}
    trains = {number for number, trial in enumerate(trials) if trial["trains"]}
    folders = [epath.Path(trial["folder"]) for trial in trials]
    try:
        phases = [load_phases(trial["config"], trial["overrides"]) for trial in trials]
        with contextlib.ExitStack() as stack:
            for number in trains:
                check_phases(phases[number], evaluators)
                stack.enter_context(only_process_of(folders[number]))
                stack.enter_context(whole_config(phases[number], folders[number]))
            before = None
            for name in phases[0]:
                configs = [each[name] for each in phases]
                for folder, config in zip(folders, configs, strict=True):
                    if before is not None:
                        config.init_from, config.model.preset = str(folder / before), None
                runs = [
                    run_of(config, folder / name, evaluators) for folder, config in zip(folders, configs, strict=True)
                ]
                keep_freed_memory(runs[0].mesh)
                absent = {number for number in range(len(trials)) if number not in trains or number in ended}
                errors = vectorized.train(runs, around, absent=absent)
                ended |= {number: error for number, error in enumerate(errors) if error is not None}
                if trains == ended.keys():
                    return ended
                before = name
            for number in trains - ended.keys():
                with around(number):
                    report_progress(phases[number], folders[number])
    except Exception as error:  # it ends all of them
        if not isinstance(error, UserError | OSError):
            traceback.print_exc()
        return {number: ended.get(number, error) for number in trains}
    return {number: ended.get(number) for number in trains}


def _log(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / LOG).open("a", encoding="utf-8", errors="replace", buffering=1)


@contextlib.contextmanager
def _as_trial(log: Any, command: Sequence[str]) -> Iterator[None]:
    """Around what is done for one trial: its log takes what is printed, and its record names its own command."""
    before = sys.argv
    sys.argv = [before[0], *command]
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        sys.argv = before


def _tell(error: Exception) -> None:
    """Prints what ended a trial, with a traceback where it was no error that users are told of."""
    if not isinstance(error, UserError | OSError | TrainingStopped | Interrupted):
        traceback.print_exception(error)
    print(f"camelid: {' '.join(str(error).split()) or type(error).__name__}")


if __name__ == "__main__":
    sys.exit(main())
