"""Arguments that several commands share, and the checks and objects made from them."""

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from ...data.console import LEVELS, set_level
from ...data.json_values import MAX_RECORD_BYTES
from ...errors import UserError

WEIGHTS = "parameters to read of a run: params of the last step, or ema, their moving average (default: ema if kept)"
TEMPLATE = "chat template: alpaca, vicuna, chatml, llama2, llama3 or a path of a jinja file (default: the model's own)"
SOURCE = "path or glob of files, a dataset tfds:name/config:split, or a built-in task such as primer:chat"
MODEL = (
    "run directory, RUN@best, RUN@STEP, checkpoint, .gguf file, folder of Hugging Face, Meta or PEFT, or owner/name on "
    "the Hugging Face Hub"
)
BASE = "path or Hub name of the base model for adapters (default: the base that the adapters name)"


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake as a UserError of one line.

    Attributes:
      takes_config: whether the command takes --config: its help then lists the config that is given beside --help.
      takes_command: whether the command takes another command as `words` after --, without which its options are wrong.
    """

    takes_config = False
    takes_command = False

    def parse_known_args(self, args=None, namespace=None):
        words = list(sys.argv[1:] if args is None else args)
        if self.takes_config and not {"-h", "--help"}.isdisjoint(words) and (config := _value_of("--config", words)):
            self.print_help()
            _print_config(config, [word for word in words if word.startswith(("--config.", "--noconfig."))])
            self.exit()
        found, rest = super().parse_known_args(args, namespace)
        if self.takes_command and rest and found.words:
            raise UserError(
                f"{rest[0]} is no option of `{self.prog}`: give -- before the command, as in -- {found.words[0]}"
            )
        if self.takes_config and getattr(found, "config", None) is not None:
            self._refuse_settings(found.config, rest)
        return found, rest

    def _refuse_settings(self, config: str, rest: list[str]) -> None:
        """Raises UserError for words such as --lr=1e-3 and optim.lr=1e-3 that mean a leaf of the config."""
        words = [word for word in rest if not word.startswith(("--config.", "--noconfig."))]
        words = [word for word in words if word.startswith("--") or re.match(r"-?[\w.]+=", word)]
        if not words:
            return
        from ...settings.config_files import load_phases
        from ...settings.leaf_names import nearest_leaf
        from ...settings.overrides import names_in

        try:
            names = list(dict.fromkeys(name for phase in load_phases(config).values() for name in names_in(phase)))
        except UserError:  # told by whoever reads the config
            return
        for word in words:
            name, _, value = word.lstrip("-").partition("=")
            if leaf := nearest_leaf(name, names, only_known=True):
                meant = f"--config.{leaf}={value or 'VALUE'}"
                raise UserError(f"unknown argument {word}; did you mean {meant}? (see `{self.prog} --help`)")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def _value_of(option: str, words: list[str]) -> str | None:
    """The value of an option on a command line, as --option=value or as two words; the last one counts."""
    found = None
    for word, following in zip(words, [*words[1:], None], strict=True):
        if word.startswith(f"{option}="):
            found = word.removeprefix(f"{option}=")
        elif word == option:
            found = following
    return found


def _print_config(config: str, overrides: list[str]) -> None:
    """Prints a config with its leaves below the help of a command."""
    from ..config_listing import listing_of
    from .configs import print_listing

    print()
    print_listing(listing_of(config, overrides), every=True)


def command(commands, name: str, run, help: str, epilog: str = "") -> argparse.ArgumentParser:
    """Adds a command.

    Args:
      commands: argparse's subparsers.
      name: the word that is typed.
      run: the function that is called with the parsed arguments; None for a group of actions.
      help: what the command does.
      epilog: examples, shown below the options.
    """
    parser = commands.add_parser(
        name,
        help=help.replace("%", "%%"),  # which argparse formats, unlike a description
        description=help,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def refuse_unread(args: argparse.Namespace, names: Iterable[str], reader: str) -> None:
    """Raises UserError if one of the options `names` was given, because the option `reader` that uses it was not."""
    for name in names:
        if (value := getattr(args, name)) != args.parser.get_default(name):
            first = value[0] if isinstance(value, list) else value
            given = f"--{name}" if value is True else f"--{name}={first}"
            raise UserError(f"{given} does nothing without {reader}: give {reader}, or leave --{name} out")


def add_config(parser: Parser, *, required: bool = True) -> None:
    """Adds the option for a config."""
    parser.takes_config = True
    parser.add_argument(
        "--config",
        required=required,
        metavar="NAME[:key=value,...]",
        help="shipped config such as sft/lora (`camelid configs` lists them), Python file with get_config(), or "
        "config.json of a run, and arguments for it; --config.NAME=VALUE changes any setting in it, and --help beside "
        "it lists them",
    )


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """Adds the options for how much a command tells while it works; `set_log_level` reads them."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--log_level",
        choices=LEVELS,
        help="what is told: debug adds the messages of JAX and Orbax, warning leaves out reports and progress, error "
        "leaves out warnings too (default: info)",
    )
    group.add_argument(
        "--quiet",
        action="store_true",
        help="as --log_level=warning: tell warnings, errors and the result alone",
    )


def set_log_level(args: argparse.Namespace) -> None:
    """Sets what is told while a command works, as the options of `add_log_level` say."""
    set_level("warning" if args.quiet else args.log_level or "info")


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Adds a repeatable option for sources, and the options for how they are read."""
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="SOURCE",
        help=f"{SOURCE}; give the option again for further sources",
    )
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Adds the options for how records are read."""
    parser.add_argument(
        "--format",
        default="auto",
        metavar="NAME",
        help="format of the records, such as alpaca, sharegpt or openai (default: auto, found by their fields)",
    )
    parser.add_argument(
        "--on_error",
        default="raise",
        choices=("raise", "skip"),
        help="stop at a bad record, or leave it out and list it at the end (default: raise)",
    )
    parser.add_argument(
        "--max_record_bytes",
        type=int,
        default=MAX_RECORD_BYTES,
        metavar="N",
        help=f"largest size of one line or record in bytes (default: {MAX_RECORD_BYTES})",
    )
    parser.add_argument(
        "--columns",
        type=columns,
        default={},
        metavar="JSON",
        help='the columns of the records that hold the fields of the format, as in \'{"instruction": "Ask", "output": '
        "\"Tell\"}' (default: the fields' own names)",
    )


READING = ("format", "on_error", "max_record_bytes", "columns")
"""The options of `add_reading`."""


def source_of(args: argparse.Namespace, location: str | None = None, **more: float):
    """The source that the options describe.

    Args:
      args: the parsed options, with those of `add_reading`.
      location: one of the values of a repeatable `--source`; None takes the only one.
      **more: further fields of `Source`, such as `heldout`.
    """
    from ...data.sources import Source

    how = {name: getattr(args, name) for name in READING}
    return Source(args.source if location is None else location, **how, **more)


def columns(text: str) -> dict[str, str]:
    """A map from fields to columns on the command line."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        example = '{"instruction": "question", "output": "answer"}'
        raise argparse.ArgumentTypeError(f"{text} is no JSON object of names, as in '{example}'")
    return found


def add_model(parser: argparse.ArgumentParser, or_else: str = "") -> None:
    """Adds the path of a model and the options for how it is loaded. or_else: what the path may be besides."""
    parser.add_argument("path", help=f"the model: {MODEL}{or_else}")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="dtype of parameters and computation (default: as trained or stored)",
    )
    parser.add_argument(
        "--cache",
        choices=("int8",),
        help="dtype in which attention keys and values are kept while decoding (default: that of the computation)",
    )
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4", "nf4", "stored"),
        help="keep the weight matrices quantised; stored keeps a GGUF file's own codes (default: no quantisation)",
    )
    parser.add_argument(
        "--rope",
        metavar="KIND:TOKENS",
        help="stretch the context to TOKENS by a rotary scaling, linear, ntk, dynamic or yarn, as in yarn:8192",
    )
    for axis, said in MESH.items():
        parser.add_argument(
            f"--mesh.{axis}", type=int, metavar="N", help=f"number of devices that split {said} (default: 1)"
        )
    parser.add_argument("--weights", choices=("params", "ema"), help=WEIGHTS)
    parser.add_argument("--template", metavar="NAME", help=TEMPLATE)
    parser.add_argument("--base", metavar="PATH", help=BASE)


def add_draft(parser: argparse.ArgumentParser) -> None:
    """Adds the options for a draft model."""
    parser.add_argument(
        "--draft", metavar="PATH", help="smaller model with the same vocabulary, for faster speculative decoding"
    )
    parser.add_argument(
        "--draft_tokens",
        type=int,
        metavar="K",
        help="number of tokens that the draft model proposes at a time (default: 4)",
    )


MESH = {"data": "the rows of a batch", "fsdp": "each matrix", "tensor": "the attention heads and the MLP's width"}
"""{mesh axis: what it splits}."""


def _mesh(args: argparse.Namespace):
    """The devices that the options `--mesh.*` name; None without one of them, for one device."""
    import math

    import jax

    from ...model.sharding import make_mesh

    sizes = {axis: size for axis in MESH if (size := getattr(args, f"mesh.{axis}")) is not None}
    if not sizes:
        return None
    wanted, there = math.prod(sizes.values()), len(jax.local_devices())
    if min(sizes.values()) < 1 or wanted > there:
        raise UserError(
            f"--mesh of {wanted} devices: give sizes of 1 or more, whose product is at most the {there} here"
        )
    return make_mesh(sizes, jax.local_devices()[:wanted])


COMPILED = "~/.cache/camelid/compiled"


def keep_programs() -> None:
    """Keeps what takes more than half a second to compile in a folder, from which later commands read it.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false
    keeps nothing. The folder holds at most 2 GB; what was not used for longest is deleted first.
    """
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(COMPILED))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        jax.config.update("jax_compilation_cache_max_size", 2 << 30)


MODEL_OPTIONS = (
    *("dtype", "cache", "quantize", "rope", "draft", "draft_tokens", "weights", "template", "base"),
    *(f"mesh.{axis}" for axis in MESH),
)
"""The options of `add_model` and `add_draft`."""


def load_model(args: argparse.Namespace):
    """The `LanguageModel` that the options of `add_model` describe. Raises UserError for options that do not fit."""
    keep_programs()
    from ...checkpoints.language_model import load
    from ...data.templates import load_template

    model = load(args.path, weights=args.weights, base=args.base, **_how(args))
    if args.template is not None:
        model.template = load_template(args.template)
    return model


def load_with_draft(args: argparse.Namespace):
    """The `LanguageModel` of `load_model`, with the draft model that the options of `add_draft` describe."""
    if args.draft is None:
        refuse_unread(args, ["draft_tokens"], "--draft")
        return load_model(args)
    from ...checkpoints.language_model import load

    model = load_model(args)
    return model.assist(load(args.draft, **_how(args)), 4 if args.draft_tokens is None else args.draft_tokens)


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `load` that a model and its draft have in common."""
    return dict(dtype=args.dtype, quantize=args.quantize, cache=args.cache, rope=rope_of(args), mesh=_mesh(args))


def rope_of(args: argparse.Namespace) -> tuple[str, int] | None:
    """The rotary scaling and the context in tokens that --rope gives. Raises UserError for another form."""
    if args.rope is None:
        return None
    kind, _, tokens = args.rope.partition(":")
    if not tokens.isdecimal():
        raise UserError(f"--rope={args.rope}: give a kind and a number of tokens, as in --rope=yarn:8192")
    return kind, int(tokens)


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """Adds the sampling options; an answer has `max_tokens` tokens at most by default."""
    own = dict(max_tokens=max_tokens, temperature=0.7)
    parser.set_defaults(own_sampling=own)
    parser.add_argument(
        "--max_tokens", type=int, metavar="N", help=f"largest number of tokens in an answer (default: {max_tokens})"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="temperature of sampling; 0 is greedy decoding (default: 0.7)"
    )
    parser.add_argument(
        "--top_p",
        type=float,
        metavar="P",
        help="sample from the likeliest tokens whose probabilities add up to P (default: 1, from all)",
    )
    parser.add_argument(
        "--top_k", type=int, metavar="K", help="sample from the K likeliest tokens (default: 0, from all)"
    )
    parser.add_argument(
        "--min_p",
        type=float,
        metavar="P",
        help="leave out tokens less likely than P times the likeliest one (default: 0)",
    )
    parser.add_argument(
        "--repetition_penalty",
        type=float,
        metavar="X",
        help="factor that makes tokens of the prompt and the answer less likely; 1 is no penalty (default: 1)",
    )
    add_stop(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default: 0)")
    parser.epilog += "\nA model's recommended sampling settings replace these defaults; a line on stderr lists them."


def add_stop(parser: argparse.ArgumentParser) -> None:
    """Adds the option for stop strings."""
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end an answer before this text; give the option again for further texts (a newline is $'\\n' in bash)",
    )


SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""The options of `add_sampling` that a model may recommend values for."""


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Raises UserError for an option below its smallest value; called before anything is loaded."""
    for name, number in least.items():
        if (value := getattr(args, name)) is not None and value < number:
            raise UserError(f"--{name} {value}: give {number} or more")


def check_sampling(args: argparse.Namespace) -> None:
    """Raises UserError for sampling options out of range; called before a model is loaded."""
    from ...model.sampling import Sampling

    given = {name: getattr(args, name) for name in (*SAMPLING, "n") if getattr(args, name, None) is not None}
    if "" in args.stop:
        raise UserError("--stop= is empty: give the text before which an answer ends")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: give 0 to {2**32 - 1}")
    try:
        Sampling(**given)
    except ValueError as error:
        raise UserError(str(error).replace("sampling ", "--", 1)) from None


def given_sampling(args: argparse.Namespace) -> dict:
    """The sampling settings that are given on the command line, without stop strings."""
    return {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}


def sampling(args: argparse.Namespace, model) -> dict:
    """The sampling settings of a command: its options, else the model's recommendations, else the command's defaults.

    A line on standard error lists the recommendations that are used.
    """
    given = given_sampling(args)
    recommended = {name: value for name, value in model.generation.sampling().items() if name not in given}
    said = [f"{name} {value}" for name, value in recommended.items()]
    said += [f"stop {stop!r}" for stop in model.generation.stop]
    if said:
        print(f"camelid: as the model recommends: {', '.join(said)}", file=sys.stderr)
    return args.own_sampling | recommended | given | {"stop": args.stop}


def require_output() -> None:
    """Raises BrokenPipeError if standard output is closed (`camelid generate ... >&-`), before anything is computed."""
    if sys.stdout is None:
        raise BrokenPipeError


def replace_unencodable(stream) -> None:
    """Makes a stream write `?` in place of characters that its encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def print_skipped(tally) -> None:
    """Prints the number of records that `--on_error=skip` left out, and the place and the fault of the first ones."""
    if tally.skipped:
        print(f"{tally.read:,} records read, {tally.skipped:,} left out:", *tally.problems, sep="\n  ")
