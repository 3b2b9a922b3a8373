"""What the commands share: a parser that says a mistake in one line, and groups of arguments."""

import argparse
from typing import NoReturn

from ...data.errors import UserError

WEIGHTS = "params, or ema: the moving average of a run that kept one (default: ema where there is one)"


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def command(commands, name: str, run, help: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE[:key=value,...]",
        help="a file with get_config(); any leaf is changed by --config.<name>=<value>",
    )


def add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="SOURCE",
        help="a glob of files, tfds:name/config:split, or generated records, as primer:chat; repeatable",
    )
    parser.add_argument("--format", default="auto", metavar="NAME", help="of the records; auto goes by their fields")
    parser.add_argument("--on_error", default="raise", choices=("raise", "skip"), help="what to do with bad records")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", help="a run directory, a checkpoint, a folder of Hugging Face's or Meta's, or a .gguf file"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as trained")
    parser.add_argument("--cache", choices=("int8",), help="keys and values while decoding (default: as computed)")
    parser.add_argument(
        "--quantize", choices=("int8", "int4", "nf4", "stored"), help="matrices; stored: as a GGUF file has them"
    )
    parser.add_argument(
        "--rope", metavar="KIND:TOKENS", help="stretch the context to so many tokens by linear, ntk, dynamic or yarn"
    )
    parser.add_argument("--draft", metavar="PATH", help="a smaller model of the same vocabulary, to decode faster with")
    parser.add_argument("--draft_tokens", type=int, metavar="K", help="that it proposes at a time (default: 4)")
    parser.add_argument("--weights", choices=("params", "ema"), help=WEIGHTS)
    parser.add_argument("--template", metavar="NAME", help="chat template or jinja file; default: as trained")


def load_model(args: argparse.Namespace):
    from ...data.templates import load_template
    from ...train.bundle import load

    if args.draft is None and args.draft_tokens is not None:
        raise UserError(f"--draft_tokens={args.draft_tokens} without --draft=PATH, the model that is to propose them")
    rope = None
    if args.rope is not None:
        kind, _, tokens = args.rope.partition(":")
        if not tokens.isdecimal():
            raise UserError(f"--rope={args.rope}: give a kind and a number of tokens, as in --rope=yarn:8192")
        rope = kind, int(tokens)
    how = dict(dtype=args.dtype, quantize=args.quantize, cache=args.cache, rope=rope)
    llama = load(args.path, weights=args.weights, **how)
    if args.template is not None:
        llama.template = load_template(args.template)
    if args.draft is not None:
        llama.assist(load(args.draft, **how), 4 if args.draft_tokens is None else args.draft_tokens)
    return llama


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    parser.add_argument("--max_tokens", type=int, default=max_tokens, metavar="N", help=f"default: {max_tokens}")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="0 is greedy (default: 0.7)")
    parser.add_argument("--top_p", type=float, default=1.0, metavar="P", help="default: 1, all of the distribution")
    parser.add_argument("--top_k", type=int, default=0, metavar="K", help="default: 0, the whole vocabulary")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def sampling(args: argparse.Namespace) -> dict:
    return {name: getattr(args, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}


def tell_skipped(report) -> None:
    """Lists the records that `--on_error=skip` left out, the first of them by place and fault."""
    if report.skipped:
        print(f"{report.read:,} records read, {report.skipped:,} left out:", *report.problems, sep="\n  ")
