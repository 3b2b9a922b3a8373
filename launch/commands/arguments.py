"""What the commands share: a parser that says a mistake in one line, and groups of arguments."""

import argparse
import io
import sys
from collections.abc import Iterable
from typing import NoReturn

from ...data.json_values import MAX_RECORD_BYTES
from ...errors import UserError

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
    parser.set_defaults(run=run, parser=parser)
    return parser


def refuse_unread(args: argparse.Namespace, names: Iterable[str], reader: str) -> None:
    """Raises UserError where one of these options was given though `reader`, the only option that reads it, was not."""
    for name in names:
        if (value := getattr(args, name)) != args.parser.get_default(name):
            raise UserError(f"--{name}={value} does nothing without {reader}: give that too, or leave --{name} out")


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
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """How records are read."""
    parser.add_argument("--format", default="auto", metavar="NAME", help="of the records; auto goes by their fields")
    parser.add_argument("--on_error", default="raise", choices=("raise", "skip"), help="what to do with bad records")
    parser.add_argument(
        "--max_record_bytes",
        type=int,
        default=MAX_RECORD_BYTES,
        metavar="N",
        help=f"how long a line or record may be (default: {MAX_RECORD_BYTES})",
    )


READING = ("format", "on_error", "max_record_bytes")


def source_of(args: argparse.Namespace, location: str | None = None, **more: float):
    """The source of `--source`, read as the arguments of `add_reading` say.

    location: which source, where `--source` is repeatable. more: `heldout`, where the command has that argument.
    """
    from ...data.sources import Source

    how = {name: getattr(args, name) for name in READING}
    return Source(args.source if location is None else location, **how, **more)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", help="a run directory, a checkpoint, a folder of Hugging Face's, Meta's or PEFT's, or a .gguf file"
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
    parser.add_argument("--base", metavar="PATH", help="the model that adapters are put on; default: the one they name")


def load_model(args: argparse.Namespace):
    from ...checkpoints.language_model import load
    from ...data.templates import load_template

    if args.draft is None:
        refuse_unread(args, ["draft_tokens"], "--draft")
    rope = None
    if args.rope is not None:
        kind, _, tokens = args.rope.partition(":")
        if not tokens.isdecimal():
            raise UserError(f"--rope={args.rope}: give a kind and a number of tokens, as in --rope=yarn:8192")
        rope = kind, int(tokens)
    how = dict(dtype=args.dtype, quantize=args.quantize, cache=args.cache, rope=rope)
    llama = load(args.path, weights=args.weights, base=args.base, **how)
    if args.template is not None:
        llama.template = load_template(args.template)
    if args.draft is not None:
        llama.assist(load(args.draft, **how), 4 if args.draft_tokens is None else args.draft_tokens)
    return llama


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    own = dict(max_tokens=max_tokens, temperature=0.7)
    parser.set_defaults(own_sampling=own)
    parser.add_argument("--max_tokens", type=int, metavar="N", help=f"most tokens of an answer (default: {max_tokens})")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: 0.7)")
    parser.add_argument("--top_p", type=float, metavar="P", help="default: 1, all of the distribution")
    parser.add_argument("--top_k", type=int, metavar="K", help="default: 0, the whole vocabulary")
    parser.add_argument(
        "--min_p", type=float, metavar="P", help="leave out tokens less likely than P times the likeliest (default: 0)"
    )
    parser.add_argument(
        "--repetition_penalty",
        type=float,
        metavar="X",
        help="above 1: tokens already there are less likely (default: 1)",
    )
    add_stop(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.epilog += "\nWhere the model recommends a way to sample, its values are the defaults; a line says so."


def add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end an answer before this text; repeatable; a newline is $'\\n' in bash",
    )


SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Refuses a value below the least one that its argument can have, before anything is loaded for it."""
    for name, number in least.items():
        if (value := getattr(args, name)) is not None and value < number:
            raise UserError(f"--{name} {value}: give {number} or more")


def check_sampling(args: argparse.Namespace) -> None:
    """Refuses values out of range, before a model is loaded for nothing."""
    from ...model.sampling import Sampling

    given = {name: getattr(args, name) for name in (*SAMPLING, "n") if getattr(args, name, None) is not None}
    if "" in args.stop:
        raise UserError("--stop= is empty: give the text before which an answer is to end")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: give 0 to {2**32 - 1}")
    try:
        Sampling(**given)
    except ValueError as error:
        raise UserError(str(error).replace("sampling ", "--", 1)) from None


def sampling(args: argparse.Namespace, llama) -> dict:
    """What is given on the command line, else what the model recommends, told in one line, else the command's own."""
    given = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    recommended = {name: value for name, value in llama.generation.sampling().items() if name not in given}
    said = [f"{name} {value}" for name, value in recommended.items()]
    said += [f"stop {stop!r}" for stop in llama.generation.stop]
    if said:
        print(f"camelid: as the model recommends: {', '.join(said)}", file=sys.stderr)
    return args.own_sampling | recommended | given | {"stop": args.stop}


def need_output() -> None:
    """Ends a command whose answer would go nowhere, before it is computed (`camelid generate ... >&-`)."""
    if sys.stdout is None:
        raise BrokenPipeError


def say_anything(stream) -> None:
    """Makes a stream write `?` for characters that its encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def tell_skipped(tally) -> None:
    """Lists the records that `--on_error=skip` left out, the first of them by place and fault."""
    if tally.skipped:
        print(f"{tally.read:,} records read, {tally.skipped:,} left out:", *tally.problems, sep="\n  ")
