"""`camelid convert` and `camelid diff`: checkpoints in and out."""

import argparse
import pathlib

from ...errors import UserError
from .arguments import WEIGHTS, Parser, command

FORMATS = ("camelid", "huggingface", "gguf", "peft")
FILES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".json", ".onnx", ".ggml", ".zip", ".tar", ".gz", ".tgz",
    ".msgpack", ".h5", ".hdf5", ".pkl", ".pickle", ".pb", ".model",
)  # fmt: skip
"""Endings of files that no format is written as."""


def add_convert(commands) -> None:
    parser = command(
        commands,
        "convert",
        _convert,
        "Turn a checkpoint into another format: Hugging Face's, Meta's, GGUF or camelid's into camelid's, Hugging "
        "Face's or GGUF. Every command also takes the source itself.",
        "camelid convert SmolLM2.gguf runs/smollm2\n"
        "camelid convert runs/sft exported --to=huggingface\n"
        "camelid convert runs/sft exported.gguf --encoding=Q8_0\n"
        "camelid convert adapter merged --base=llama-7b",
    )
    parser.add_argument(
        "source", help="a folder of Hugging Face's, Meta's or PEFT's, a .gguf file, a run, a checkpoint"
    )
    parser.add_argument("output", help="a run directory, a folder or a .gguf file that does not exist yet")
    parser.add_argument("--to", choices=FORMATS, help="default: gguf where the output ends in .gguf, else camelid")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    parser.add_argument("--encoding", metavar="E", help="of matrices in GGUF: F32, F16, BF16, Q8_0, Q4_0, ...")
    parser.add_argument("--weights", choices=("params", "ema"), help=WEIGHTS)
    parser.add_argument("--template", metavar="NAME", help="chat template or jinja file; default: the source's")
    parser.add_argument("--tokenizer", metavar="DIR", help="the source's with further ids (camelid tokenizer merge)")
    parser.add_argument(
        "--vocab_size", type=int, metavar="N", help="rows of embedding and head; new ones are the mean of the others"
    )
    parser.add_argument("--max_file_gb", type=float, metavar="GB", help="of Hugging Face's files (default: 5)")
    parser.add_argument("--base", metavar="PATH", help="the model that adapters are put on; default: the one they name")
    parser.add_argument(
        "--base_name", metavar="NAME", help="with --to=peft: what adapters call their base, a hub's id or a path"
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
    """The format that is asked for. UserError where the output's ending says something else."""
    ending = pathlib.PurePath(output).suffix.lower()
    if ending in FILES:
        raise UserError(f"{output}: no format is written as a {ending} file; --to=huggingface writes a folder of them")
    if ending == ".gguf" and to not in (None, "gguf"):
        raise UserError(
            f"{output}: --to={to} writes a folder, and the name ends in .gguf: leave --to out, or rename it"
        )
    if to == "gguf" and ending != ".gguf":
        raise UserError(f"{output}: --to=gguf writes a file: give a name that ends in .gguf")
    return to or ("gguf" if ending == ".gguf" else "camelid")


def _check_options(args: argparse.Namespace, to: str) -> None:
    """Refuses options that the format has no use for."""
    useless = {
        "encoding": to != "gguf",
        "max_file_gb": to != "huggingface",
        "base_name": to != "peft",
        **dict.fromkeys(("dtype", "template", "tokenizer", "base"), to == "peft"),
    }
    if given := [name for name, without in useless.items() if without and getattr(args, name) is not None]:
        raise UserError(f"--{given[0]} means nothing with --to={to}: leave it out, or give another --to")
    if args.max_file_gb is not None and not args.max_file_gb > 0:
        raise UserError(f"--max_file_gb={args.max_file_gb:g}: give a size over 0")


def add_diff(commands) -> None:
    group = command(commands, "diff", None, "Share tuned weights without the base that they were tuned from.")
    actions = group.add_subparsers(dest="action", required=True, metavar="action", parser_class=Parser)
    parser = command(
        actions,
        "make",
        _make_difference,
        "Write what tuning changed.",
        "camelid diff make llama-7b runs/alpaca alpaca-difference",
    )
    parser.add_argument("base", help="the model that was tuned, in any format")
    parser.add_argument("tuned", help="what came of it")
    parser.add_argument("output", help="a run directory, or with --floats a folder, that does not exist yet")
    parser.add_argument(
        "--floats", action="store_true", help="as Alpaca published it: a folder of Hugging Face's, checked by its sum"
    )
    parser.add_argument(
        "--added", choices=("mean", "zero"), help="what rows of new tokens are compared with (default: the mean)"
    )
    parser = command(
        actions,
        "apply",
        _apply_difference,
        "Get the tuned model back from the base, checked bit for bit; also from published differences of floats.",
        "camelid diff apply llama-7b alpaca-difference runs/alpaca\n"
        "camelid diff apply llama-7b alpaca-7b-wdiff runs/alpaca --sum=50637.1836",
    )
    parser.add_argument("base", help="the model that was tuned, in any format")
    parser.add_argument("difference", help="what `diff make` wrote, or a folder of Hugging Face's to be added")
    parser.add_argument("output", help="a run directory that does not exist yet")
    parser.add_argument("--sum", type=float, metavar="S", help="of all parameters, which floats have to come to")
    parser.add_argument(
        "--added", choices=("mean", "zero"), help="with floats: what rows of new tokens begin from (default: the mean)"
    )


def _make_difference(args: argparse.Namespace) -> None:
    from ...checkpoints import differences

    if args.added is not None and not args.floats:
        raise UserError(f"--added={args.added} is of differences of floats: give --floats too, or leave it out")
    total = differences.make(args.base, args.tuned, args.output, floats=args.floats, added=args.added or "mean")
    said = "" if total is None else f"; the parameters of {args.tuned} add up to {total:.4f}"
    print(f"{args.output}: {args.tuned} without {args.base}{said}")


def _apply_difference(args: argparse.Namespace) -> None:
    from ...checkpoints import differences

    differences.apply(args.base, args.difference, args.output, total=args.sum, added=args.added)
    print(f"{args.output}: {args.base} with {args.difference}")
