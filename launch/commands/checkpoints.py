"""The commands `camelid convert` and `camelid diff`, which convert checkpoints and publish differences of them."""

import argparse
import pathlib

from ...errors import UserError
from .arguments import BASE, MODEL, TEMPLATE, WEIGHTS, Parser, command

FORMATS = ("camelid", "huggingface", "gguf", "peft")
FILES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".json", ".onnx", ".ggml", ".zip", ".tar", ".gz", ".tgz",
    ".msgpack", ".h5", ".hdf5", ".pkl", ".pickle", ".pb", ".model",
)  # fmt: skip
"""Endings of files that camelid does not write; given as an output, they are a mistake."""


def add_convert(commands) -> None:
    """Adds `camelid convert`."""
    parser = command(
        commands,
        "convert",
        _convert,
        "Convert a model to the format of camelid, Hugging Face, GGUF or PEFT. Other commands read these formats too.",
        "camelid convert SmolLM2.gguf runs/smollm2\n"
        "camelid convert runs/sft exported --to=huggingface\n"
        "camelid convert runs/sft exported.gguf --encoding=Q8_0\n"
        "camelid convert adapter merged --base=llama-7b",
    )
    parser.add_argument("source", help=f"the model to convert: {MODEL}")
    parser.add_argument("output", help="a run directory, a folder or a .gguf file that does not exist yet")
    parser.add_argument(
        "--to", choices=FORMATS, help="format of the output (default: gguf if the output ends in .gguf, else camelid)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="dtype of the parameters (default: as stored)"
    )
    parser.add_argument(
        "--encoding",
        metavar="E",
        help="with --to=gguf: encoding of the matrices, F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 or Q5_1 "
        "(default: the dtype of the parameters)",
    )
    parser.add_argument("--weights", choices=("params", "ema"), help=WEIGHTS)
    parser.add_argument("--template", metavar="NAME", help=TEMPLATE)
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="the model's tokenizer with further tokens, from `camelid tokenizer merge`"
    )
    parser.add_argument(
        "--vocab_size",
        type=int,
        metavar="N",
        help="number of rows of embedding and head; added rows are the mean of the others (default: as stored)",
    )
    parser.add_argument(
        "--max_file_gb",
        type=float,
        metavar="GB",
        help="with --to=huggingface: largest size of one file in gigabytes (default: 5)",
    )
    parser.add_argument("--base", metavar="PATH", help=BASE)
    parser.add_argument(
        "--base_name",
        metavar="NAME",
        help="with --to=peft: name of the base in adapter_config.json, a hub's id or a path "
        "(default: the Hugging Face folder that the run started from)",
    )


def _convert(args: argparse.Namespace) -> None:
    from ...checkpoints import convert, open_tokenizer
    from ...data.templates import load_template

    to = _format(args.output, args.to)
    _check_options(args, to)
    template = load_template(args.template) if args.template is not None else None
    tokenizer = open_tokenizer(args.tokenizer) if args.tokenizer is not None else None
    common = dict(dtype=args.dtype, weights=args.weights, template=template, tokenizer=tokenizer, base=args.base)
    common["vocab_size"] = args.vocab_size
    match to:
        case "camelid":
            convert.to_camelid(args.source, args.output, **common)
        case "huggingface":
            most = 5.0 if args.max_file_gb is None else args.max_file_gb
            convert.to_huggingface(args.source, args.output, **common, max_file_bytes=int(most * 1e9))
        case "gguf":
            convert.to_gguf(args.source, args.output, **common, encoding=args.encoding)
        case "peft":
            convert.to_peft(args.source, args.output, weights=args.weights, base_name=args.base_name)
    print(f"{args.output}: {to}, from {args.source}")


def _format(output: str, to: str | None) -> str:
    """The format of the output: `to`, else by its ending.

    Raises:
      UserError: the output's ending does not fit the format.
    """
    ending = pathlib.PurePath(output).suffix.lower()
    if ending in FILES:
        raise UserError(f"{output}: camelid writes no {ending} file; --to=huggingface writes a folder: give its name")
    if ending == ".gguf" and to not in (None, "gguf"):
        raise UserError(
            f"{output}: --to={to} writes a folder, and the name ends in .gguf: leave --to out, or rename it"
        )
    if to == "gguf" and ending != ".gguf":
        raise UserError(f"{output}: --to=gguf writes a file: give a name that ends in .gguf")
    return to or ("gguf" if ending == ".gguf" else "camelid")


def _check_options(args: argparse.Namespace, to: str) -> None:
    """Raises UserError for options that do nothing in the output's format."""
    useless = {
        "encoding": to != "gguf",
        "max_file_gb": to != "huggingface",
        "base_name": to != "peft",
        **dict.fromkeys(("dtype", "template", "tokenizer", "base"), to == "peft"),
    }
    if given := [name for name, without in useless.items() if without and getattr(args, name) is not None]:
        raise UserError(f"--{given[0]} does nothing with --to={to}: leave it out, or give another --to")
    if args.max_file_gb is not None and not args.max_file_gb > 0:
        raise UserError(f"--max_file_gb={args.max_file_gb:g}: give a size above 0")


def add_diff(commands) -> None:
    """Adds `camelid diff make` and `camelid diff apply`."""
    group = command(commands, "diff", None, "Publish tuned weights as their difference from the base weights.")
    actions = group.add_subparsers(dest="action", required=True, metavar="action", parser_class=Parser)
    parser = command(
        actions,
        "make",
        _make_difference,
        "Write the difference of a tuned model from its base; `camelid diff apply` restores the tuned model from both.",
        "camelid diff make llama-7b runs/alpaca alpaca-difference",
    )
    parser.add_argument("base", help="the base model, in any format")
    parser.add_argument("tuned", help="the model that was tuned from it, in any format")
    parser.add_argument("output", help="a run directory, or with --floats a folder, that does not exist yet")
    parser.add_argument(
        "--floats",
        action="store_true",
        help="write differences of floats in Hugging Face's format, as Alpaca published them (default: of bits, exact)",
    )
    parser.add_argument(
        "--added",
        choices=("mean", "zero"),
        help="with --floats: what rows of new tokens are compared with, the mean of the base's rows or zeros "
        "(default: mean)",
    )
    parser = command(
        actions,
        "apply",
        _apply_difference,
        "Restore a tuned model from its base and a difference, and check that it is the right one.",
        "camelid diff apply llama-7b alpaca-difference runs/alpaca\n"
        "camelid diff apply llama-7b alpaca-7b-wdiff runs/alpaca --sum=50637.1836",
    )
    parser.add_argument("base", help="the base model, in any format")
    parser.add_argument(
        "difference", help="the output of `camelid diff make`, or a published difference of floats in a folder"
    )
    parser.add_argument("output", help="a run directory that does not exist yet")
    parser.add_argument(
        "--sum",
        type=float,
        metavar="S",
        help="for differences of floats: expected sum of all parameters (default: as in difference.json, or no check)",
    )
    parser.add_argument(
        "--added",
        choices=("mean", "zero"),
        help="for differences of floats: what rows of new tokens were compared with (default: as in difference.json, "
        "else mean)",
    )


def _make_difference(args: argparse.Namespace) -> None:
    from ...checkpoints import differences

    if args.added is not None and not args.floats:
        raise UserError(f"--added={args.added} is for differences of floats: give --floats too, or leave --added out")
    total = differences.make(args.base, args.tuned, args.output, floats=args.floats, added=args.added or "mean")
    said = "" if total is None else f"; the parameters of {args.tuned} add up to {total:.4f}"
    print(f"{args.output}: {args.tuned} without {args.base}{said}")


def _apply_difference(args: argparse.Namespace) -> None:
    from ...checkpoints import differences

    differences.apply(args.base, args.difference, args.output, total=args.sum, added=args.added)
    print(f"{args.output}: {args.base} with {args.difference}")
