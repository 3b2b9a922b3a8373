"""The command `camelid configs`, and the listing of a config below the help of commands that take one."""

import argparse
import json
import textwrap
from collections.abc import Sequence

from ...errors import UserError
from ...settings.config_names import split_name
from .arguments import command, require_output

INDENT = 6 * " "
"""What stands before the meaning of a leaf."""

UNLIMITED = 10**6
"""The width of lines that are not wrapped, where standard output is no terminal."""


def add_configs(commands) -> None:
    """Adds `camelid configs`."""
    parser = command(
        commands,
        "configs",
        _configs,
        "List the configs that come with camelid, or one config with its arguments, what it changes, and its leaves.",
        "camelid configs\n"
        "camelid configs sft\n"
        "camelid configs sft/lora\n"
        "camelid configs sft/lora --all\n"
        "camelid configs sft/lora 'optim|schedule'\n"
        "camelid configs sft/lora 'learning rate'\n"
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
        help="section, word or regular expression: leaves and arguments in whose names it is found are listed, or else "
        "leaves in whose meanings it is found (default: leaves that the config changes, and the sections)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="list every leaf, as --json does (default: leaves that the config changes, and the sections)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs (default: text)")


def _configs(args: argparse.Namespace) -> None:
    require_output()
    from ..config_listing import folders, listing_of, shipped, to_json

    if args.all and args.pattern is not None:
        raise UserError(f"--all lists every leaf, and PATTERN {args.pattern} some: give one of them")
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
        print_listing(listing, args.pattern, every=args.all)


def _print_table(found) -> None:
    """Prints names and first sentences, a block for each folder."""
    folder = None
    rows = []
    for each in found:
        if folder not in (None, each.name.partition("/")[0]):
            rows.append(("", ""))
        folder = each.name.partition("/")[0]
        rows.append((each.name, each.about))
    _print_rows(rows)
    print("\nEach is given as --config=NAME; `camelid configs NAME` lists its arguments and leaves.")


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    """Prints rows in columns: within the width of a terminal, elsewhere one line for each row."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table.grid(padding=(0, 2))
    for at, _ in enumerate(rows[0]):
        table.add_column(no_wrap=at < len(rows[0]) - 1)
    for name, *cells in rows:
        table.add_row(Text(name, style="bold"), *map(Text, cells))
    console.print(table)


def print_listing(listing, pattern: str | None = None, *, every: bool = False) -> None:
    """Prints a config: docstring, arguments, command, the leaves that it changes, and its sections.

    Args:
      listing: the config.
      pattern: which leaves and arguments are printed, and nothing else.
      every: whether all leaves are printed.
    """
    from rich.console import Console
    from rich.text import Text

    from ..config_listing import changed_leaves, chosen_arguments, chosen_leaves

    console = Console(highlight=False, soft_wrap=True)
    if pattern is None:
        console.print(Text(f"{listing.name} ({listing.file})", style="bold"))
        for text in (listing.about, _arguments(listing), _start(listing)):
            if text:
                console.print(Text(f"\n{text}"))  # as it stands: a docstring has its own lines, and commands
    name = split_name(listing.name)[0]
    if listing.problem:
        given = f"{name}:{next(iter(listing.arguments), 'key')}=VALUE"
        advice = f"; with other arguments, as in {given}, its leaves may be known" if listing.arguments else ""
        raise UserError(f"{listing.problem}{advice}")
    if pattern is not None:
        leaves = chosen_leaves(listing, pattern)
        for argument, value in chosen_arguments(listing, pattern).items():
            console.print(Text(f"  {argument}{'' if value is None else f' = {value}'}", style="bold"))
            console.print(Text(f"{INDENT}Argument of the config's file: --config={name}:{argument}=VALUE", style="dim"))
        _print_leaves(leaves, listing, console)
    elif every:
        console.print("\nA value in parentheses is the recipe's default, where the config has another one.")
        _print_leaves(listing.leaves, listing, console)
    else:
        changed = changed_leaves(listing)
        console.print("\nWhat it changes, with the recipe's defaults:" if changed else "\nIt changes no default.")
        _print_leaves(changed, listing, console, with_allowed=False)
        _print_sections(listing, name)


def _print_sections(listing, name: str) -> None:
    """Prints the number of leaves of each section and what it is for, and how a section is listed."""
    from ..config_listing import sections_in

    sections = sections_in(listing)
    print("\nIts sections, with the number of leaves in each:")
    _print_rows([(f"  {each.name}", str(each.leaves), each.meaning) for each in sections])
    some = next((each.name for each in sections if each.name != "config"), "config").removeprefix("config.")
    print(f"\n`camelid configs {name} {some}` lists a section, and `camelid configs {name} --all` every leaf.")


def _print_leaves(leaves, listing, console, *, with_allowed: bool = True) -> None:
    """Prints leaves with their values and meanings, and sections that have a meaning.

    Args:
      leaves: leaves and sections by name, for each phase.
      listing: the config that they are of.
      console: where they are printed.
      with_allowed: whether the values that a leaf may have are printed too.
    """
    from rich.text import Text

    from ..config_listing import sections_of

    width = min(console.width, 120) if console.is_terminal else UNLIMITED
    wrap, wrap_meaning = (
        textwrap.TextWrapper(each, break_long_words=False, break_on_hyphens=False)
        for each in (width, max(20, width - len(INDENT)))
    )
    for name, by_phase in sections_of(leaves):
        leaf = next(iter(by_phase.values()))
        if leaf.is_section:
            console.print(Text("\n" + wrap.fill(f"{name}: {leaf.meaning}")))
            continue
        values = _values(by_phase, len(listing.phases))
        is_changed = any(each.is_changed for each in by_phase.values())
        console.print(Text(f"  {name}", style="bold yellow" if is_changed else "bold").append(values, style="not bold"))
        allowed = f"Give {leaf.allowed}." if with_allowed and leaf.allowed not in ("nothing", "any value") else ""
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
