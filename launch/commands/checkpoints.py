"""`camelid convert` and `camelid diff`: checkpoints in and out."""

import argparse

from .arguments import Parser, command


def add_convert(commands) -> None:
    parser = command(
        commands,
        "convert",
        _convert,
        "Turn a checkpoint into another format: Hugging Face's, Meta's, GGUF or camelid's into camelid's, Hugging "
        "Face's or GGUF. Every command also takes the source itself.",
        "camelid convert SmolLM2.gguf runs/smollm2\n"
        "camelid convert runs/sft exported --to=huggingface\n"
        "camelid convert runs/sft exported.gguf --to=gguf --encoding=Q8_0",
    )
    parser.add_argument("source", help="a folder of Hugging Face's or Meta's, a .gguf file, a run or a checkpoint")
    parser.add_argument("output", help="a run directory, a folder or a .gguf file that does not exist yet")
    parser.add_argument(
        "--to", default="camelid", choices=("camelid", "huggingface", "gguf", "peft"), help="default: camelid"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as stored")
    parser.add_argument("--encoding", metavar="E", help="of matrices in GGUF: F32, F16, BF16, Q8_0, Q4_0, ...")
    parser.add_argument("--weights", default="params", choices=("params", "ema"), help="of a run (default: params)")
    parser.add_argument("--template", metavar="NAME", help="chat template or jinja file; default: the source's")
    parser.add_argument("--tokenizer", metavar="DIR", help="the source's with further ids (camelid tokenizer merge)")
    parser.add_argument(
        "--vocab_size", type=int, metavar="N", help="rows of embedding and head; new ones are the mean of the others"
    )
    parser.add_argument("--max_file_gb", type=float, default=5.0, metavar="GB", help="of Hugging Face's (default: 5)")


def _convert(args: argparse.Namespace) -> None:
    from ...data.templates import load_template
    from ...train import convert, origin

    template = load_template(args.template) if args.template is not None else None
    tokenizer = origin.tokenizer_at(args.tokenizer) if args.tokenizer is not None else None
    common = dict(dtype=args.dtype, weights=args.weights, vocab_size=args.vocab_size)
    common |= dict(template=template, tokenizer=tokenizer)
    match args.to:
        case "camelid":
            convert.to_camelid(args.source, args.output, **common)
        case "huggingface":
            convert.to_huggingface(args.source, args.output, **common, max_file_bytes=int(args.max_file_gb * 1e9))
        case "gguf":
            convert.to_gguf(args.source, args.output, **common, encoding=args.encoding)
        case "peft":
            convert.to_peft(args.source, args.output, weights=args.weights)
    print(f"{args.output}: {args.to}, from {args.source}")


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
    parser.add_argument("output", help="a run directory that does not exist yet")
    parser = command(
        actions,
        "apply",
        _apply_difference,
        "Get the tuned model back from the base, checked bit for bit; also from published differences of floats.",
        "camelid diff apply llama-7b alpaca-difference runs/alpaca",
    )
    parser.add_argument("base", help="the model that was tuned, in any format")
    parser.add_argument("difference", help="what `diff make` wrote, or a folder of Hugging Face's to be added")
    parser.add_argument("output", help="a run directory that does not exist yet")


def _make_difference(args: argparse.Namespace) -> None:
    from ...train import differences

    differences.make(args.base, args.tuned, args.output)
    print(f"{args.output}: {args.tuned} without {args.base}")


def _apply_difference(args: argparse.Namespace) -> None:
    from ...train import differences

    differences.apply(args.base, args.difference, args.output)
    print(f"{args.output}: {args.base} with {args.difference}")
