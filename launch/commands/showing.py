"""The command `camelid show`."""

import argparse

from .arguments import command, require_output


def add_show(commands) -> None:
    """Adds `camelid show`."""
    parser = command(
        commands,
        "show",
        _show,
        "Show what a run is and did: its status, command, code and devices, its attempts, where its time went, its "
        "checkpoints and metrics. A config with phases has a block for each phase.",
        "camelid show runs/sft\ncamelid show runs/lr-*\ncamelid show runs/sft --json | jq '.[0].status'",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run directory, glob, or folder with runs anywhere below, such as that of a sweep or a config with "
        "phases; the runs may still be training",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a list of JSON objects, with all attempts and digits (default: text)"
    )


def _show(args: argparse.Namespace) -> None:
    require_output()
    from ...train.config_record import as_text
    from ..comparison_tables import finite
    from ..run_summary import summaries
    from ..run_summary_text import text_of

    found = summaries(args.runs)
    if args.json:
        print(as_text(finite([each.to_json() for each in found])))
    else:
        print("\n\n".join(map(text_of, found)))
