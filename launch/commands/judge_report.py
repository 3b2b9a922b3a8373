"""The command `camelid judge report`."""

import argparse
import sys
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
    parser.add_argument(
        "--rounds",
        type=int,
        default=1000,
        metavar="N",
        help="number of bootstrap samples behind the intervals of ratings (default: 1000)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the bootstrap (default: 0)")


def _report(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ...data.checksums import write_whole
    from ...evals.judge_report import make_report, read_files
    from ..outputs import check_new_file

    outputs = {"--output": args.output, "--json": args.json, "--plot": args.plot}
    for flag, path in outputs.items():
        if path is not None:
            check_new_file(path, flag)
    if args.plot is not None and Path(args.plot).suffix not in (".svg", ".png"):
        raise UserError(f"--plot={args.plot}: give a name that ends in .svg or .png")
    if args.rounds < 1:
        raise UserError(f"--rounds={args.rounds}: give 1 or more")
    judgments, sources = read_files(args.judgments, args.questions)
    gold, gold_sources = read_files(args.gold, args.questions) if args.gold else ([], [])
    report = make_report(
        judgments,
        sources=[*sources, *gold_sources],
        gold=gold,
        baseline=args.baseline,
        rounds=args.rounds,
        seed=args.seed,
    )
    if args.plot is not None:
        from ...evals.judge_plot import draw

        draw(report, args.plot)
    if args.json is not None:
        write_whole(args.json, report.json())
    if args.output is not None:
        write_whole(args.output, report.markdown())
        for line in report.headlines:
            print(line)
    else:
        report.show(Console(force_terminal=sys.stdout.isatty()))
    for flag, path in outputs.items():
        if path is not None:
            print(f"{flag[2:]}: {path}")
