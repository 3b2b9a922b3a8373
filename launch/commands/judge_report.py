"""The command `camelid judge report`."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from ...errors import UserError
from .arguments import command


def add_judge_report(actions) -> None:
    """Adds `camelid judge report`."""
    parser = command(
        actions,
        "report",
        _report,
        "Report on judgments: win rates, scores and ratings with intervals, and how far the judge can be trusted.",
        "camelid judge report judgments.jsonl --output=report.md --plot=report.svg\n"
        "camelid judge report judgments.jsonl --gold=votes.jsonl --baseline=gpt-4",
    )
    parser.add_argument(
        "judgments", nargs="+", metavar="JUDGMENTS", help="files of `camelid judge grade`, or published judgments"
    )
    parser.add_argument("--output", metavar="FILE", help="the report as Markdown (default: a table on the terminal)")
    parser.add_argument("--json", metavar="FILE", help="all numbers of the report as JSON")
    parser.add_argument("--plot", metavar="FILE", help="win rates, scores and ratings with intervals, as .svg or .png")
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="model that the others are compared with (default: the one that is part of every pair, if there is one)",
    )
    parser.add_argument(
        "--gold",
        action="append",
        default=[],
        metavar="FILE",
        help="judgments of people, or true scores, of the same answers, to compare the judge with; may be repeated",
    )
    parser.add_argument(
        "--questions",
        metavar="FILE",
        help="questions with their categories, for published judgments that do not name them (default: no categories)",
    )


def _report(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ...data.checksums import write_whole
    from ...evals.judge_report import make_report, one_line, read_files

    outputs = {flag: path for flag in ("output", "json", "plot") if (path := getattr(args, flag)) is not None}
    _check_outputs(outputs)
    judgments, sources = read_files(args.judgments, args.questions)
    gold, gold_sources = read_files(args.gold, args.questions) if args.gold else ([], [])
    report = make_report(judgments, sources=[*sources, *gold_sources], gold=gold, baseline=args.baseline)
    contents = {"output": report.markdown, "json": report.json}
    if args.plot is not None:
        from ...evals.judge_plot import draw

        contents["plot"] = lambda: draw(report, Path(args.plot).suffix[1:])
    contents = {flag: contents[flag]() for flag in outputs}
    if args.output is None:
        report.show(Console(force_terminal=sys.stdout.isatty()))
    for flag, path in outputs.items():
        if contents[flag] is not None:
            write_whole(path, contents[flag])
    if args.output is not None:
        for line in report.headlines:
            print(one_line(line))
    for flag, path in outputs.items():
        if contents[flag] is not None:
            print(f"{flag}: {path}")
    if args.plot is not None and contents["plot"] is None:
        raise UserError(f"--plot={args.plot}: the judgments have no win rates or scores to draw; leave --plot out")


def _check_outputs(outputs: Mapping[str, str]) -> None:
    """Raises UserError for an output that exists, cannot be written, or is another output too."""
    from ..outputs import check_new_file

    taken: dict[Path, str] = {}
    for flag, path in outputs.items():
        check_new_file(path, f"--{flag}")
        if Path(path).exists():
            raise UserError(f"--{flag}={path} exists: give another name, or delete it")
        if twin := taken.get(Path(path).resolve()):
            raise UserError(f"--{flag}={path} is the file of --{twin} too: give each a name of its own")
        taken[Path(path).resolve()] = flag
        if flag == "plot" and Path(path).suffix not in (".svg", ".png"):
            raise UserError(f"--plot={path}: give a name that ends in .svg or .png")
