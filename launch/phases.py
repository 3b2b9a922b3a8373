"""The phases of a config as runs, each of which starts from the end of the run before, and a table of evaluations.

    WORKDIR/<phase>/      an ordinary run
    WORKDIR/config.json   the config of all phases
    WORKDIR/phases.json   {metric: {"before": value, <phase>: value, ...}}

The same command resumes the phase that was cut off; the phases before it are complete.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping

import jax
import ml_collections
from etils import epath
from rich.console import Console
from rich.table import Table

from ..data.checksums import write_whole
from ..errors import UserError
from ..train.config_record import CONFIG, phases_to_json
from ..train.evaluations import Evaluator
from ..train.lock import only_process_of
from ..train.metrics_file import read_metrics
from ..train.run_record import RECORD
from .checks import check_phases
from .outputs import check_writable
from .recipes import train

Progress = dict[str, dict[str, float]]


def run(
    phases: Mapping[str, ml_collections.ConfigDict], workdir: epath.Path, evaluators: Mapping[str, Evaluator]
) -> None:
    """Runs the phases that `settings.config_files.load_phases` gives; a config without phases in `workdir` itself.

    After the last phase the table of all evaluations is printed and written. A signal raises `loop.Interrupted`.
    """
    check_phases(phases, evaluators)
    check_writable(workdir)
    before = None
    with only_process_of(workdir), whole_config(phases, workdir):
        for name, config in phases.items():
            if before is not None:
                config.init_from, config.model.preset = str(before), None
            before = workdir / name
            train(config, before, evaluators)
        report_progress(phases, workdir)


def report_progress(phases: Iterable[str], workdir: epath.Path) -> None:
    """Prints the table of all evaluations of finished phases, and writes phases.json; nothing for a config without
    phases."""
    if jax.process_index() == 0 and "" not in phases:
        progress = read_progress(workdir, phases)
        told = {metric: {when: _told(x) for when, x in values.items()} for metric, values in progress.items()}
        write_whole(workdir / "phases.json", json.dumps(told, indent=2))
        Console().print(progress_table(progress))


@contextlib.contextmanager
def whole_config(phases: Mapping[str, ml_collections.ConfigDict], workdir: epath.Path) -> Iterator[None]:
    """Writes config.json of several phases, and removes it again where a mistake ends the command before any of them
    has begun."""
    if "" in phases or jax.process_index() != 0:  # a run writes its own
        yield
        return
    write_whole(workdir / CONFIG, phases_to_json(phases))
    try:
        yield
    except UserError:
        if not any((workdir / name / RECORD).exists() for name in phases):
            with contextlib.suppress(OSError):
                (workdir / CONFIG).unlink()
        raise


def read_progress(workdir: epath.Path, phases: Iterable[str]) -> Progress:
    """Each metric of the evaluations before the first phase and after each: {metric: {"before" or phase: value}}."""
    progress: Progress = {}
    first = next(iter(phases))
    for name in phases:
        for step, values in read_metrics(workdir / name).items():
            when = "before" if name == first and step == 0 else name
            for metric, value in values.items():
                if metric.startswith("eval/"):
                    progress.setdefault(metric.removeprefix("eval/"), {})[when] = value
    return progress


def _told(value: float) -> float | str:
    """A value as metrics.jsonl has it: JSON has no numbers that are not finite."""
    return value if math.isfinite(value) else str(value)


def progress_table(progress: Progress) -> Table:
    """A row for each metric, a column for each point in time."""
    columns = list(dict.fromkeys(name for values in progress.values() for name in values))
    table = Table("", *columns)
    for metric, values in progress.items():
        table.add_row(metric, *(f"{values[name]:.4g}" if name in values else "" for name in columns))
    return table
