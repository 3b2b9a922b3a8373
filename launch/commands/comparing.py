"""The command `camelid compare`."""

import argparse
import os
import sys
from collections.abc import Sequence

from ...errors import UserError
from .arguments import command, require_output

KINDS = (".svg", ".png")


def add_compare(commands) -> None:
    """Adds `camelid compare`."""
    parser = command(
        commands,
        "compare",
        _compare,
        "Compare runs: the settings in which they differ, and the best and last values of their metrics. Runs that "
        "differ in their seed alone are one line, with means and 95% intervals.",
        "camelid compare runs/lr-*\n"
        "camelid compare runs/sweep --metric=eval/heldout/text/loss:min --csv=sweep.csv --figure=sweep.svg",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run directory, glob, or folder with runs anywhere below, such as that of a sweep or a config with phases",
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME[:min|max]",
        help="metric of metrics.jsonl, and whether less or more of it is better; give the option again for further "
        "metrics (default: one metric of each evaluation, else train/loss; less of a loss, perplexity, kl, "
        "error or cost is better, and more of others)",
    )
    parser.add_argument(
        "--leaves",
        default="",
        metavar="LEAF,...",
        help="leaves to show even if they do not differ, such as optim.*,data.cache_dir, or 'code *' for the hashes of "
        "own code (default: those that differ)",
    )
    parser.add_argument("--each", action="store_true", help="show every run below the line of its seeds' mean")
    parser.add_argument(
        "--goodput", action="store_true", help="show the share of wall time that went into training steps that count"
    )
    parser.add_argument("--output", metavar="FILE", help="write the table as Markdown (default: no file)")
    parser.add_argument("--csv", metavar="FILE", help="write the table as CSV, with all digits (default: no file)")
    parser.add_argument("--json", metavar="FILE", help="write groups, runs and intervals as JSON (default: no file)")
    parser.add_argument(
        "--figure",
        metavar="FILE",
        help="draw the metrics over the steps, with intervals over seeds as bands, as .svg or .png (default: no file)",
    )


def _compare(args: argparse.Namespace) -> None:
    from pathlib import Path

    from rich.console import Console

    from ...data.checksums import write_whole
    from ...data.console import tell
    from ..comparison import default_metrics, read_runs
    from ..comparison_notes import no_metric, notes
    from ..comparison_tables import Comparison
    from ..outputs import check_new_file

    require_output()
    outputs = {flag: path for flag in ("output", "csv", "json", "figure") if (path := getattr(args, flag)) is not None}
    for flag, path in outputs.items():
        check_new_file(path, f"--{flag}")
        if list(map(os.path.abspath, outputs.values())).count(os.path.abspath(path)) > 1:
            raise UserError(f"--{flag}={path}: another option names the same file: give each a file of its own")
    if args.figure is not None and Path(args.figure).suffix not in KINDS:
        raise UserError(f"--figure={args.figure}: give a name that ends in {' or '.join(KINDS)}")
    runs = read_runs(args.runs)
    metrics = _asked(args.metric, runs) or default_metrics(runs)
    asked = [name.strip().removeprefix("config.") for name in args.leaves.split(",") if name.strip()]
    found = Comparison(runs, metrics, asked, each=args.each, goodput=args.goodput)
    contents = {"output": found.markdown, "csv": found.csv, "json": found.json}
    if args.figure is not None:
        from ..comparison_figure import draw

        if not metrics:
            raise UserError(f"--figure={args.figure}: {no_metric(runs)}")
        contents["figure"] = lambda: draw(found.groups, metrics, Path(args.figure).suffix[1:])
    for flag, path in outputs.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = contents[flag]()  # names of files may be no UTF-8
        write_whole(path, content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
    for line in notes(found):
        tell(line)
    console = Console(width=None if sys.stdout.isatty() else 500)  # a pipe has no width: no cell is broken
    table = found.table()
    print(found.title())
    if console.measure(table, options=console.options.update(max_width=10_000)).maximum > console.width:
        print(found.blocks())
    else:
        console.print(table)
    for flag, path in outputs.items():
        print(f"{flag}: {path}")


def _asked(texts: Sequence[str], runs: Sequence) -> list:
    """The metrics that are asked for. Raises UserError for one that no run has reported, or that is named twice."""
    from ...errors import did_you_mean
    from ..comparison import Metric, names_of

    found = [Metric.parse(text) for text in texts]
    there = list(dict.fromkeys(name for run in runs for name in names_of(run)))
    for metric in found:
        if metric.name not in there:
            raise UserError(f"--metric={metric.name}: no run has reported it{did_you_mean(metric.name, there)}")
        if [each.name for each in found].count(metric.name) > 1:
            raise UserError(f"--metric={metric.name} is given twice: give it once")
    return found
