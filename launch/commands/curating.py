"""The commands `camelid curate conversations` and `camelid curate run`, which run a config of the data engine."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from ...errors import UserError
from .arguments import SOURCE, Parser, add_config, check_least, command, refuse_unread, require_output

CONVERSATIONS = Path(__file__).parents[2] / "configs" / "curate" / "conversations.py"

_OWN = ("format", "licence", "teacher")
"""The options that say something about each `--source`."""

_ARGUMENTS: dict[str, dict[str, Any]] = {
    "identity": {
        "choices": ("drop", "drop_pair", "rename"),
        "help": "drop records, or pairs of turns, whose answers name another assistant, or rename it as "
        "--config.step.identity.name and maker say (default: such answers stay)",
    },
    "refusals": {
        "choices": ("drop", "drop_pair"),
        "help": "drop records, or pairs of turns, whose answers refuse (default: such answers stay)",
    },
    "against": {"metavar": "FILES", "help": "path or glob of evaluation questions; records that hold one are dropped"},
    "tokenizer": {
        "metavar": "PATH",
        "help": "tokenizer in whose tokens lengths are counted (default: characters are counted)",
    },
    "budget": {
        "type": int,
        "metavar": "N",
        "help": "most tokens of a conversation, or characters without a tokenizer; longer ones are split (default: "
        "2048 tokens, or 8192 characters)",
    },
}
"""Arguments of CONVERSATIONS that are options of the command too, as argparse takes them."""


def add_curate(commands):
    """Adds `camelid curate` with the actions of `add_run`. Returns argparse's subparsers, for further actions."""
    group = command(commands, "curate", None, "Make, clean, mix and audit datasets.")
    actions = group.add_subparsers(dest="action", required=True, metavar="action", parser_class=Parser)
    add_run(actions)
    return actions


def add_run(actions) -> None:
    """Adds `camelid curate conversations` and `camelid curate run`."""
    parser = command(
        actions,
        "conversations",
        _run,
        "Clean exported conversations: repair, Markdown, languages, duplicates, personal data, splitting.",
        "camelid curate conversations --source='sharegpt/*.json' --output=datasets/chats\n"
        "camelid curate conversations --source=chats.json --show=3\n"
        "camelid curate conversations --source=chats.json --output=datasets/zh --config.step.language.keep='[\"zh\"]'\n"
        "camelid curate conversations --source=chats.json --output=datasets/own --identity=drop --refusals=drop_pair",
    )
    parser.set_defaults(config=str(CONVERSATIONS), arguments=tuple(_ARGUMENTS))
    for name, how in _ARGUMENTS.items():
        parser.add_argument(f"--{name}", **how)
    _add_options(parser, sources_required=True)
    parser = command(
        actions,
        "run",
        _run,
        "Run the steps of a config over its sources, and write a dataset.",
        "camelid curate run --config=configs/curate/text.py:sources=crawl/*.jsonl.gz --output=datasets/crawl\n"
        "camelid curate run --config=mine.py --output=datasets/mine --shard=0/8 --wait",
    )
    add_config(parser)
    parser.set_defaults(arguments=())
    _add_options(parser, sources_required=False)


def _add_options(parser: argparse.ArgumentParser, *, sources_required: bool) -> None:
    instead = "" if sources_required else "; replaces the sources of the config"
    parser.add_argument(
        "--source",
        action="append",
        required=sources_required,
        metavar="SOURCE",
        help=f"{SOURCE}; give the option again for further sources{instead}",
    )
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="format of each --source's records, such as alpaca, sharegpt or openai (default: found by their fields)",
    )
    parser.add_argument("--licence", metavar="NAME", help="licence of each --source, for the dataset's card")
    parser.add_argument(
        "--teacher", metavar="NAME", help="model that wrote the answers of each --source, for the dataset's card"
    )
    parser.add_argument(
        "--on_error",
        choices=("raise", "skip"),
        help="stop at a record that cannot be read, or reject it as unreadable (default: as the config says)",
    )
    parser.add_argument("--output", metavar="DIR", help="folder of the dataset; the same command resumes an ended run")
    parser.add_argument(
        "--write_as",
        choices=("camelid", "alpaca", "sharegpt", "openai"),
        help="format of the rows that are written (default: as the config says, camelid)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="number of worker processes (default: one for each core)"
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        help="do only units of work u with u %% N == I; N commands with the same output make the dataset together",
    )
    parser.add_argument(
        "--wait", action="store_true", help="wait for the units of other shards, and end when the dataset is complete"
    )
    parser.add_argument(
        "--show",
        type=int,
        metavar="N",
        help="write nothing, and print up to N examples of what each step changed or dropped in a sample",
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=2000,
        metavar="ROWS",
        help="number of rows in the sample of --show, drawn by a hash (default: 2000)",
    )


def _run(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ...curate.outputs import check_replaceable
    from ...curate.pipeline import run
    from ...curate.run_table import to_rich

    check_least(args, workers=1, show=1, sample=1, **({"budget": 1} if "budget" in args.arguments else {}))
    config = _config(args)
    if args.show is not None:
        refuse_unread(args, ("output", "shard", "wait"), "a run without --show")
        _show(args, config)
        return
    refuse_unread(args, ("sample",), "--show")
    if args.output is None:
        raise UserError("give --output, the folder of the dataset, or --show=N to see what the steps do")
    shard, output = _shard(args), Path(args.output).expanduser()
    check_replaceable(output, [source.source for source in config.sources.values()])
    made = run(
        config,
        output,
        workers=args.workers or os.cpu_count() or 1,
        shard=shard,
        wait=args.wait,
        tell=lambda line: print(f"camelid: {line}", file=sys.stderr),
    )
    if made is None:
        return
    card, table = made
    if table is None:
        report = Path(args.output).expanduser() / "report.md"
        tables = f"its tables are in {report}" if report.exists() else f"{report} is missing, card.json has its counts"
        print(f"{args.output} was complete before; {tables}")
        return
    Console().print(to_rich(table.tables(card.steps)))
    splits = ", ".join(f"{count.rows:,} rows in {name}" for name, count in card.splits.items())
    if splits:
        print(f"{args.output}: {splits}; data.mixture reads the folder as a source")
        return
    why = "the table says what was dropped" if table.came["read"] else "the sources hold no record"
    print(f"camelid: {args.output} holds no rows: {why}", file=sys.stderr)


def _config(args: argparse.Namespace):
    """The config of the command, with what its options change."""
    from ml_collections import ConfigDict

    from ...curate.settings import read_config, sources_at
    from ...settings.config_files import load_config

    arguments = [f"{name}={value}" for name in args.arguments if (value := getattr(args, name)) is not None]
    path = ":".join([args.config, *([",".join(a.replace(",", r"\,") for a in arguments)] if arguments else [])])
    config = load_config(path, args.overrides)
    for word in args.overrides:
        if (step := re.match(r"--(?:no)?config\.step\.(\w+)", word)) and step[1] not in config.steps:
            advice = f"give --{step[1]} too" if step[1] in args.arguments else "add it there"
            raise UserError(f"{word} does nothing: {step[1]} is not in config.steps; {advice}")
    with config.unlocked():
        if args.source:
            told = {name: value for name in _OWN if (value := getattr(args, name)) is not None}
            config.sources = ConfigDict(sources_at(args.source, **told))
        else:
            refuse_unread(args, _OWN, "--source")
        for name in ("on_error", "write_as"):
            if (value := getattr(args, name)) is not None:
                config[name] = value
    return read_config(config)


def _shard(args: argparse.Namespace):
    """The shard that `--shard` names; the whole run without it."""
    from ...curate.pipeline import Shard

    if args.shard is None:
        refuse_unread(args, ("wait",), "--shard")
        return Shard()
    index, _, count = args.shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard={args.shard}: give I/N with I from 0 to N - 1, such as 0/4")
    return Shard(int(index), int(count))


def _show(args: argparse.Namespace, config) -> None:
    """Prints examples of what the steps of a config do to a sample of its rows."""
    from rich.console import Console

    from ...curate.showing import examples_of

    require_output()
    for part in examples_of(config, args.sample, args.show):
        Console().print(part)
