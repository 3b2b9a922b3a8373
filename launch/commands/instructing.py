"""The command `camelid curate instruct`."""

import argparse
import sys
from pathlib import Path

from ...errors import UserError
from .arguments import add_config, check_least, command
from .asking import add_teacher, asking, check_asking, tell_shortfall

INSTRUCT = str(Path(__file__).parents[2] / "configs" / "curate" / "instruct.py")


def add_instruct(actions) -> None:
    """Adds `camelid curate instruct`."""
    parser = command(
        actions,
        "instruct",
        _instruct,
        "Let a teacher write new instructions with inputs and answers after the model of seed tasks, as self-instruct "
        "and Alpaca do. The same command resumes after an interruption.",
        "camelid curate instruct --seeds=seeds.jsonl --rows=1000 --teacher=http://localhost:8000 --output=made\n"
        "camelid curate instruct --config=configs/curate/colossalchat.py:english=en.jsonl,chinese=zh.jsonl \\\n"
        "    --teacher=https://api.openai.com/v1 --model=gpt-4o --output=instructions --report=instructions-report",
    )
    add_config(parser, required=False)
    parser.set_defaults(config=INSTRUCT)
    parser.add_argument(
        "--seeds",
        action="append",
        default=[],
        metavar="FILES",
        help="seed tasks of one language, which is detected: path, glob or folder of files in self-instruct's or "
        "Alpaca's form, or a .txt file with an instruction on each line; give the option again for the other language. "
        "Seeds without answers take the method self_instruct, unless a config says another",
    )
    parser.add_argument("--rows", type=int, metavar="N", help="tasks to keep in each language (default: the config's)")
    parser.add_argument(
        "--requests", type=int, metavar="N", help="most requests for lists of tasks (default: the config's, no limit)"
    )
    parser.add_argument(
        "--prompts",
        metavar="DIR",
        help="folder of own prompts: tasks, instructions and instance, each as in tasks.en.toml and tasks.zh.toml "
        "(default: camelid's)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the dataset to write")
    parser.add_argument(
        "--write_as",
        choices=("camelid", "alpaca", "sharegpt", "openai"),
        default="camelid",
        help="format of the rows (default: camelid, which keeps everything that is known of a row)",
    )
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer whose tokens the tables count (default: characters are counted)"
    )
    parser.add_argument(
        "--report", metavar="DIR", help="folder for a report on the diversity of the kept tasks, with pictures"
    )
    add_teacher(parser)


def _instruct(args: argparse.Namespace) -> None:
    from ...curate.dataset import Layout, write_dataset
    from ...curate.outputs import check_replaceable
    from ...curate.run_table import to_rich
    from ...curate.teachers.instruct import instruct
    from ...curate.teachers.instruct_report import about, ledger_of
    from ..outputs import check_writable

    check_asking(args, args.seeds, folder=True)
    check_least(args, rows=1, requests=1)
    settings = _settings(args)
    check_replaceable(args.output, [wanted.seeds for wanted in settings.languages.values()])
    if args.report:
        check_writable(args.report, "--report")
    more = {} if args.seed is None else {"seed": args.seed}
    more |= args.settings
    prices = (args.prompt_price or 0.0, args.completion_price or 0.0)
    with asking(args, args.teacher) as asker:
        made = instruct(settings, asker, more, _tell)
        said = about(made, settings, asker.name, more, prices)
        layout = Layout(write_as=args.write_as)
        card, table = write_dataset(
            args.output, made.rows, made.rejected, said, tokenizer=args.tokenizer, layout=layout
        )
    if args.report:
        from ...curate.teachers.diversity import write_report

        write_report(args.report, made.rows)
    _print(to_rich(table.tables(card.steps)))
    print(ledger_of(made, prices).splitlines()[-1])
    for language, why in made.ended.items():
        print(f"camelid: {language} ended early: {why}", file=sys.stderr)
    print(f"{len(made.rows):,} tasks of {asker.name} in {args.output}")
    wanted = sum(each.rows for each in settings.languages.values())
    advice = "give more seeds, another --teacher, more --requests, or a lower --config.least_share"
    tell_shortfall(len(made.rows), wanted, "tasks", made.rejected, advice)


def _settings(args: argparse.Namespace):
    """The settings of the config, with what the options say in its place."""
    from ...curate.teachers.instruct import Instruct
    from ...settings.config_files import load_config
    from ...settings.sections import read

    config = load_config(args.config, args.overrides)
    is_told = args.config != INSTRUCT or any(word.startswith("--config.method=") for word in args.overrides)
    with config.unlocked():
        if args.seeds:
            config.languages = _languages(args.seeds, config.languages)
            if not is_told and (bare := next(filter(_is_bare, args.seeds), None)):
                config.method = "self_instruct"
                print(f"camelid: {bare} has seeds without an answer: config.method is self_instruct", file=sys.stderr)
        for wanted in config.languages.values():
            wanted.rows = args.rows or wanted.get("rows")
        for name in ("requests", "prompts"):
            if getattr(args, name) is not None:
                config[name] = getattr(args, name)
    if not config.languages:
        raise UserError("there are no seed tasks: give --seeds=FILE, or a --config that names them")
    if missing := [name for name, wanted in config.languages.items() if wanted.rows is None]:
        raise UserError(f"the number of tasks to keep in {missing[0]} is not set: give --rows=N")
    return read(config, Instruct)


def _languages(paths: list[str], known) -> dict:
    """What is wanted in the language of each file of seeds: what the config says, with these seeds."""
    from ...curate.teachers.seeds import language_of, read_seeds

    found = {}
    for path in paths:
        language = language_of("\n".join(seed.instruction for seed in read_seeds(path)))
        if language in found:
            raise UserError(f"--seeds={path} is {language}, as is {found[language]['seeds']}: give one glob for both")
        if language is None:
            raise UserError(f"--seeds={path} is neither English nor Chinese: tasks can be asked for in these two")
        found[language] = {**known.get(language, {"rows": None}), "seeds": path}
    return found


def _is_bare(path: str) -> bool:
    """Whether some seeds of a file have no answer."""
    from ...curate.teachers.seeds import read_seeds

    return not all(seed.output for seed in read_seeds(path))


def _tell(round) -> None:
    """Prints what a round brought, on standard error."""
    print(f"camelid: round {round.number}, {round.language}: {round}", file=sys.stderr, flush=True)


def _print(tables) -> None:
    from rich.console import Console

    Console().print(tables)
