"""`camelid eval`, `camelid generate` and `camelid chat`."""

import argparse
import io
import sys
import warnings

from ... import tasks
from ...errors import UserError
from .arguments import (
    READING,
    add_model,
    add_reading,
    add_sampling,
    check_least,
    check_sampling,
    command,
    load_model,
    need_output,
    refuse_unread,
    sampling,
    source_of,
    tell_skipped,
)


def positions(text: str) -> list[int]:
    return [int(position) for position in text.split(",")]


def add_eval(commands) -> None:
    parser = command(
        commands,
        "eval",
        _eval,
        "Measure a model: the scores of its answers in a task, or loss and perplexity on held-out text.",
        "camelid eval runs/sft --task=primer\ncamelid eval runs/sft --source='mytext/*.txt'\n"
        "camelid eval runs/longer --source=books.jsonl --seq_len=8192 --borders=2048,4096",
    )
    add_model(parser)
    parser.add_argument("--task", metavar="NAME", help=f"score answers to held-out prompts of {', '.join(tasks.NAMES)}")
    parser.add_argument(
        "--per_group",
        type=int,
        default=20,
        metavar="N",
        help="held-out prompts of each group of a task, such as a skill in a language (default: 20)",
    )
    parser.add_argument("--source", metavar="SOURCE", help="text or conversations to measure the perplexity of")
    add_reading(parser)
    parser.add_argument("--split", choices=("train", "heldout"), help="of the source; default: all of it")
    parser.add_argument("--heldout", type=float, default=0.01, metavar="SHARE", help="share that the split holds out")
    parser.add_argument(
        "--seq_len", type=int, metavar="N", help="tokens in a row (default: 512, or the model's context if shorter)"
    )
    parser.add_argument(
        "--borders",
        default=(),
        type=positions,
        metavar="N,N",
        help="positions in a row: the perplexity between each two as well",
    )
    parser.add_argument("--cache_dir", default="~/.cache/camelid", metavar="DIR", help="of tokenised text")


PERPLEXITY = ("split", "heldout", "seq_len", "borders", "cache_dir")


def _eval(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    need_output()
    if args.task is None and args.source is None:
        raise UserError("say what to measure: --task=NAME, --source=..., or both")
    if args.task is None and (args.cache or args.draft):
        raise UserError(
            "--cache and --draft are of decoding, and perplexity decodes nothing: give --task=NAME, or leave them out"
        )
    if args.task is None:
        refuse_unread(args, ["per_group"], "--task")
    else:
        tasks.find(args.task)
    if args.source is None:
        refuse_unread(args, (*READING, *PERPLEXITY), "--source")
    elif args.split is None:
        refuse_unread(args, ["heldout"], "--split")
    check_least(args, seq_len=2, per_group=1)
    llama = load_model(args)
    metrics = {}
    if args.task is not None:
        from ...evals.tasks import evaluator

        means, _ = evaluator(args.task)(llama, per_group=args.per_group)
        metrics |= {f"{args.task}/{name}": value for name, value in means.items()}
    if args.source is not None:
        from ...evals.perplexity import perplexity, text_cache

        context = llama.config.max_len
        if args.seq_len is not None and args.seq_len > context:
            raise UserError(
                f"--seq_len={args.seq_len}: the model's context has {context:,} tokens: give that or less, or stretch "
                f"it, as by --rope=yarn:{args.seq_len}"
            )
        cache = text_cache(llama, source_of(args, heldout=args.heldout), args.split, args.cache_dir)
        metrics |= perplexity(llama, {args.source: cache}, seq_len=args.seq_len, borders=args.borders)
        tell_skipped(cache.tally)
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)


def add_generate(commands) -> None:
    parser = command(
        commands,
        "generate",
        _generate,
        "Continue texts, or answer questions with --chat.",
        "camelid generate runs/sft 'Once upon a time' --max_tokens=50\n\n"
        "Of several texts, each is printed under a line that says of which prompt and answer it is.",
    )
    add_model(parser)
    parser.add_argument("prompts", nargs="+", metavar="prompt")
    parser.add_argument("--chat", action="store_true", help="take each prompt for a user's message")
    parser.add_argument("--n", type=int, default=1, metavar="N", help="samples of each prompt (default: 1)")
    add_sampling(parser, max_tokens=128)


def _generate(args: argparse.Namespace) -> int:
    need_output()
    check_sampling(args)
    from ...checkpoints.language_model import PromptTooLong

    llama = load_model(args)
    answer = llama.chat_batch if args.chat else llama.generate
    with warnings.catch_warnings(record=True) as told:
        texts = answer(args.prompts, seed=args.seed, n=args.n, **sampling(args, llama))
    for place, text in enumerate(texts):
        if len(texts) > 1:  # as `head` tells several files apart
            prompt, sample = divmod(place, args.n)
            print(f"==> prompt {prompt + 1}{f', answer {sample + 1}' if args.n > 1 else ''} <==")
        print(text)
    for warning in told:
        print(f"camelid: {warning.message}", file=sys.stderr)
    tell_draft(llama)
    return int(any(issubclass(warning.category, PromptTooLong) for warning in told))


def add_chat(commands) -> None:
    parser = command(commands, "chat", _chat, "Talk to a tuned model in the terminal.", "camelid chat runs/sft")
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    add_sampling(parser, max_tokens=512)


def _chat(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ...serve.terminal import chat

    need_output()
    check_sampling(args)
    if sys.stdin is None or sys.stdin.closed:
        raise UserError("chat reads messages from standard input, which is closed")
    llama = load_model(args)
    if llama.template is None:
        raise UserError(
            f"{args.path}: a model without a chat template: give --template=NAME, or use `camelid generate`"
        )
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a message that is not UTF-8 is told, and the next one read
    chat(llama, system=args.system, console=Console(), seed=args.seed, **sampling(args, llama))
    tell_draft(llama)


def tell_draft(llama) -> None:
    """What a draft was worth, on standard error: standard output is the answers'."""
    if llama.draft is not None:
        print(llama.draft, file=sys.stderr)
