"""Reports of a run: on the console, as JSON lines, for TensorBoard and, on request, for Weights & Biases.

Each is an outlet with the methods `metrics(step, values)`, `table(step, name, rows)` and `close(finished)`. Metrics are
floats under names grouped by slashes ("train/loss", "eval/primer/all"); tables of samples are lists of rows. Only
process 0 of a run writes. A run that resumes drops the reports of later steps than the one it resumes from.
"""

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ..data.checksums import write_whole, writing
from ..data.console import shows
from ..settings.sections import to_config
from .tensorboard import TensorBoard
from .weights_and_biases import WeightsAndBiases

SHOWN = 8
"""The most metrics of an evaluation on the terminal."""

SHORT = 24
"""The most characters of the cells in a table whose rows may be printed as lines."""

HEADLINE = {"train/loss": "loss", "train/tokens_per_second": "tokens/s"}


class Reporter:
    """Writes the metrics and tables of a run.

    Args:
      workdir: folder of metrics.jsonl, samples.jsonl and tensorboard/.
      total_steps: number of steps of the run; None: the progress line shows neither it nor the time left.
      start_step: the step that the run resumes from; 0 for a new run.
      headline: metrics of the progress line, with their labels.
      config: the settings of the run (`run_config.RunConfig`), for TensorBoard and Weights & Biases. Its section
        `wandb` says what is sent to the latter. None: TensorBoard gets metrics and tables alone, and nothing is sent.
      console: where lines and tables are printed. Default: standard output.

    Raises:
      UserError: the config asks for Weights & Biases, and the package is not installed.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        total_steps: int | None,
        *,
        start_step: int = 0,
        headline: Mapping[str, str] = HEADLINE,
        config: Any = None,
        console: Console | None = None,
    ):
        self._outlets = []
        if jax.process_index() != 0:
            return
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        settings = {} if config is None else to_config(config).to_dict()
        if config is not None and config.wandb.project is not None:  # first: it may be missing, and nothing is open yet
            self._outlets.append(WeightsAndBiases(config.wandb, workdir, settings))
        self._outlets += [
            _JsonLines(workdir, start_step),
            TensorBoard(workdir, start_step, settings),
            _Terminal(console or _Output(), total_steps, start_step, headline),
        ]

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Reports metrics of the state after a number of steps."""
        values = {name: float(value) for name, value in metrics.items()} if self._outlets else {}
        for outlet in self._outlets:
            outlet.metrics(step, values)

    def text(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Reports a table of samples, whose rows have the same columns."""
        for outlet in self._outlets:
            outlet.table(step, name, rows)

    def close(self, finished: bool = True) -> None:
        """Closes the files. finished: whether the run came to its end, and was not cut off."""
        with contextlib.ExitStack() as closing:  # all of them, whatever one raises
            while self._outlets:
                closing.callback(self._outlets.pop(0).close, finished)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind, *exception) -> None:
        with contextlib.suppress(OSError) if kind is not None else contextlib.nullcontext():  # it has been said
            self.close(finished=kind is None)


class _Output(Console):
    """Standard output, which says when nobody reads it any more (`camelid train | head`) and does not just end."""

    def on_broken_pipe(self) -> None:
        raise


class _Terminal:
    """A progress bar on a terminal; elsewhere a line per report. Reports without a headline metric are always lines.

    Of an evaluation the main metrics are printed (`main_metrics`), and a table of short cells is lines where it has
    one row, or is wider than the terminal.
    Nothing is printed at the levels warning and error (`data.console`).
    """

    def __init__(self, console: Console, total_steps: int | None, start_step: int, headline: Mapping[str, str]):
        self._console = console
        self._total = total_steps
        self._headline = headline
        self._first = None  # (step, time) of the first report: from there speed is measured, without compilation
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[line]}"))
        self._progress = Progress(*columns, console=console) if console.is_terminal and shows("info") else None
        if self._progress:
            self._task = self._progress.add_task("", total=total_steps, completed=start_step, line="")
            self._progress.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        shown = {label: values[name] for name, label in self._headline.items() if name in values}
        main = shown or main_metrics(values)
        line = "  ".join(f"{label} {_number(value)}" for label, value in main.items())
        if not shown:
            more = len(values) - len(main)
            self._print(f"step {step}  {line}{f'  ({more} more in metrics.jsonl)' if more else ''}")
            return
        line += self._time_left(step)
        if self._progress:
            self._progress.update(self._task, completed=step, line=line)
        else:
            self._print(f"step {step}{f'/{self._total}' if self._total else ''}  {line}")

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        if not shows("info"):
            return
        is_short = all(len(cell) <= SHORT and "\n" not in cell for row in rows for cell in map(str, row.values()))
        if rows and is_short and (len(rows) == 1 or _least_width(rows) > self._console.width):
            for row in rows:
                said = ", ".join(f"{head} {cell}" for head, cell in row.items() if str(cell))
                self._print(f"{name}, step {step}: {said}")
            return
        table = Table(title=f"{name}, step {step}", show_lines=not is_short)
        for column in rows[0] if rows else ():
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row.values()))
        with writing("standard output"):
            self._console.print(table)

    def close(self, finished: bool) -> None:
        if self._progress:
            self._progress.stop()

    def _print(self, line: str) -> None:
        if not shows("info"):
            return
        with writing("standard output"):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _time_left(self, step: int) -> str:
        now = time.monotonic()
        self._first = self._first or (step, now)
        steps, seconds = step - self._first[0], now - self._first[1]
        if not self._total or not steps:
            return ""
        left = round((self._total - step) * seconds / steps)
        return f"  left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


def _least_width(rows: Sequence[Mapping[str, str]]) -> int:
    """The width of a table in which no word of its heads and cells is cut."""
    columns = [[head, *(str(row[head]) for row in rows)] for head in rows[0]]
    return sum(3 + max(len(word) for text in column for word in text.split() or [""]) for column in columns) + 1


def main_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """The metrics of an evaluation that a line has room for, at most SHOWN of them.

    A metric of a group is left out where that of all groups is there, as "all" or under the name before the last slash:
    "eval/primer/sort" beside "eval/primer/all", and "eval/heldout/scores/en" beside "eval/heldout/scores".
    """

    def is_part(name: str) -> bool:
        above, _, last = name.rpartition("/")
        prefixes = [name[:at] for at, letter in enumerate(name) if letter == "/"]
        return any(prefix in values for prefix in prefixes) or (last != "all" and f"{above}/all" in values)

    main = [name for name in values if not is_part(name)]
    return {name: values[name] for name in main[:SHOWN]}


class _JsonLines:
    """metrics.jsonl, a line {"step", metrics...} each, and samples.jsonl, a line {"step", "name", "rows"} each."""

    def __init__(self, workdir: epath.Path, start_step: int):
        self._files = {}
        for name in ("metrics", "samples"):
            path = workdir / f"{name}.jsonl"
            _drop_lines_after(path, start_step)
            self._files[name] = path.open("a", encoding="utf-8")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        self._append("metrics", {"step": step, **finite})

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        self._append("samples", {"step": step, "name": name, "rows": [dict(row) for row in rows]})

    def close(self, finished: bool) -> None:
        for file in self._files.values():
            file.close()

    def _append(self, name: str, record: dict) -> None:
        with writing(self._files[name].name):
            self._files[name].write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            self._files[name].flush()


def _drop_lines_after(path: epath.Path, step: int) -> None:
    """Keeps the lines of a file up to the step that the run resumes from; none for step 0, a new run."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    write_whole(path, b"".join(line for line in lines if step and _step_of(line) <= step))


def _step_of(line: bytes) -> float:
    """The step of a line; infinity for a line that a kill cut off."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
