"""The command `camelid configs`, and the listing of a config below the help of commands that take one."""

import argparse
import json
import textwrap

from ...errors import UserError
from ...settings.config_names import split_name
from .arguments import command, require_output

INDENT = 6 * " "
"""What stands before the meaning of a leaf."""


def add_configs(commands) -> None:
    """Adds `camelid configs`."""
    parser = command(
        commands,
        "configs",
        _configs,
        "List the configs that come with camelid, or one config with its arguments and every leaf.",
        "camelid configs\n"
        "camelid configs sft\n"
        "camelid configs sft/lora\n"
        "camelid configs sft/lora 'optim|schedule'\n"
        "camelid configs mine.py:rank=8 --config.optim.lr=1e-4 --json\n"
        "camelid configs runs/sft/config.json",
    )
    parser.add_argument(
        "config",
        nargs="?",
        metavar="NAME[:key=value,...]",
        help="shipped config such as sft/lora, folder of configs such as sft, Python file, or config.json of a run; "
        "--config.NAME=VALUE changes any setting in it (default: all shipped configs)",
    )
    parser.add_argument(
        "pattern",
        nargs="?",
        metavar="PATTERN",
        help="regular expression: only leaves whose dotted names it is found in are listed (default: all leaves)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs (default: text)")


def _configs(args: argparse.Namespace) -> None:
    require_output()
    from ..config_listing import folders, listing_of, shipped, to_json

    if args.config is None or args.config.rstrip("/") in folders():
        if args.pattern is not None:
            raise UserError(
                f"PATTERN {args.pattern} chooses leaves of a config, and {args.config} is a folder of configs"
            )
        found = shipped((args.config or "").rstrip("/"))
        if args.overrides:
            raise UserError(f"{args.overrides[0]} changes a config, and {args.config} is a folder of configs")
        if args.json:
            print(json.dumps([each._asdict() for each in found], indent=2, ensure_ascii=False))
        else:
            _print_table(found)
        return
    listing = listing_of(args.config, args.overrides)
    if args.json:
        print(json.dumps(to_json(listing, args.pattern), indent=2, ensure_ascii=False, default=str))
    else:
        print_listing(listing, args.pattern)


def _print_table(found) -> None:
    """Prints names and first sentences, a block for each folder."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    folder = None
    for each in found:
        if folder not in (None, each.name.partition("/")[0]):
            table.add_row("", "")
        folder = each.name.partition("/")[0]
        table.add_row(Text(each.name, style="bold"), Text(each.about))
    Console().print(table)
    print("\nEach is given as --config=NAME; `camelid configs NAME` lists its arguments and leaves.")


def print_listing(listing, pattern: str | None = None) -> None:
    """Prints a config: docstring, arguments, command, and its leaves, or only those that a pattern chooses."""
    from rich.console import Console
    from rich.text import Text

    from ..config_listing import chosen_leaves, sections_of

    console = Console(highlight=False, soft_wrap=True)
    width = min(console.width, 120)
    wrap, wrap_meaning = (
        textwrap.TextWrapper(each, break_long_words=False, break_on_hyphens=False)
        for each in (width, max(20, width - len(INDENT)))
    )
    if pattern is None:
        console.print(Text(f"{listing.name} ({listing.file})", style="bold"))
        for text in (listing.about, _arguments(listing), _start(listing)):
            if text:
                console.print(Text(f"\n{text}"))  # as it stands: a docstring has its own lines, and commands
    if listing.problem:
        given = f"{split_name(listing.name)[0]}:{next(iter(listing.arguments), 'key')}=VALUE"
        advice = f"; with other arguments, as in {given}, its leaves may be known" if listing.arguments else ""
        raise UserError(f"{listing.problem}{advice}")
    chosen = chosen_leaves(listing, pattern)
    if pattern is None:
        console.print("\nA value in parentheses is the recipe's default, where the config has another one.")
    for name, by_phase in sections_of(chosen):
        leaf = next(iter(by_phase.values()))
        if leaf.is_section:
            console.print(Text("\n" + wrap.fill(f"{name}: {leaf.meaning}")))
            continue
        values = _values(by_phase, len(listing.phases))
        is_changed = any(each.is_changed for each in by_phase.values())
        console.print(Text(f"  {name}", style="bold yellow" if is_changed else "bold").append(values, style="not bold"))
        allowed = f"Give {leaf.allowed}." if leaf.allowed not in ("nothing", "any value") else ""
        said = textwrap.indent(wrap_meaning.fill(f"{leaf.meaning} {allowed}".strip()), INDENT)
        console.print(Text(said, style="dim"))


def _values(by_phase, phases: int) -> str:
    """The value of a leaf with its default where that is another; that of each phase where they differ."""
    from ...settings.meanings import ABSENT
    from ..config_listing import plain

    first = next(iter(by_phase.values()))
    shown = {phase: "" if leaf.value is ABSENT else f"{plain(leaf.value)!r}" for phase, leaf in by_phase.items()}
    default = "required" if first.default is ABSENT else f"default: {plain(first.default)!r}"
    if len(set(shown.values())) > 1 or len(by_phase) < phases:
        said = " = " + ", ".join(f"{value or 'not set'} in {phase}" for phase, value in shown.items())
    else:
        said = f" = {shown[next(iter(shown))]}" if first.value is not ABSENT else ""
    told = first.value is ABSENT or any(leaf.is_changed for leaf in by_phase.values())
    return f"{said} ({default})" if told else said


def _arguments(listing) -> str:
    if not listing.arguments:
        return ""
    said = ", ".join(f"{name}={'' if value is None else value}" for name, value in listing.arguments.items())
    return f"Arguments, with their defaults: {said}"


def _start(listing) -> str:
    return f"Start it: {listing.command}" if listing.command else ""
