"""The commands `camelid tokenizer` and `camelid data`, which prepare tokenizers and training data."""

import argparse

from ...errors import UserError
from .arguments import (
    MODEL,
    READING,
    SOURCE,
    Parser,
    add_config,
    add_reading,
    add_sources,
    add_stop,
    check_least,
    check_sampling,
    command,
    print_skipped,
    refuse_unread,
    require_output,
    source_of,
)


def add_tokenizer(commands) -> None:
    """Adds `camelid tokenizer train` and `camelid tokenizer merge`."""
    group = command(commands, "tokenizer", None, "Train a tokenizer, or add tokens to one.")
    actions = group.add_subparsers(dest="action", required=True, metavar="action", parser_class=Parser)
    parser = command(
        actions, "train", _train_tokenizer, "Train a SentencePiece BPE tokenizer with LLaMA's settings on any sources."
    )
    add_sources(parser)
    parser.add_argument(
        "--vocab_size", type=int, default=32_000, metavar="N", help="total number of tokens (default: 32000)"
    )
    parser.add_argument(
        "--special",
        action="append",
        default=[],
        metavar="TOKEN",
        help="control token to add, such as '<|im_end|>'; give the option again for further tokens",
    )
    parser.add_argument(
        "--character_coverage",
        type=float,
        default=0.99995,
        metavar="SHARE",
        help="share of the text's characters that get a token of their own; the rest is encoded in bytes "
        "(default: 0.99995)",
    )
    parser.add_argument(
        "--max_records", type=int, metavar="N", help="read at most N records of each source (default: all)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for tokenizer.model")

    parser = command(
        actions,
        "merge",
        _merge_tokenizer,
        "Add tokens for another language or field to a tokenizer. `camelid convert --tokenizer` adds rows for them.",
        "camelid tokenizer merge model.gguf --source='chinese/*.txt' --pieces=4000 --characters=chinese --output=grown",
    )
    parser.add_argument("base", help="a tokenizer's file or folder, or a model with a tokenizer")
    add_sources(parser)
    parser.add_argument("--pieces", type=int, required=True, metavar="N", help="number of tokens that are added")
    parser.add_argument(
        "--characters",
        metavar="C",
        help="characters of the added tokens: han, chinese (with punctuation) or a regular expression (default: any)",
    )
    parser.add_argument(
        "--max_records", type=int, metavar="N", help="read at most N records of each source (default: all)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the extended tokenizer")


HELD_OUT = 20
"""One text in 20 is held out, to measure the characters per token."""


def _merge_tokenizer(args: argparse.Namespace) -> None:
    from ...checkpoints import open_tokenizer
    from ...data.tally import Tally
    from ...data.tokenizer_merging import CHINESE, HAN, characters_per_token, merge
    from ..corpus import texts
    from ..outputs import check_writable

    check_writable(args.output, "--output")
    base = open_tokenizer(args.base)
    tally = Tally()
    found = list(texts([source_of(args, each) for each in args.source], args.max_records, tally))
    learnt = [text for i, text in enumerate(found) if i % HELD_OUT]
    characters = {"han": HAN, "chinese": CHINESE}.get(args.characters, args.characters)
    merged = merge(base, learnt, n_pieces=args.pieces, output_dir=args.output, characters=characters)
    print_skipped(tally)
    before, after = (characters_per_token(tokenizer, found[::HELD_OUT]) for tokenizer in (base, merged))
    print(
        f"{merged.vocab_size - base.vocab_size} pieces added, {merged.vocab_size} in {args.output}\n"
        f"characters a token in {len(found[::HELD_OUT])} texts left out: {before:.3f} before, {after:.3f} now"
    )


def _train_tokenizer(args: argparse.Namespace) -> int:
    from ...data.tally import Tally
    from ...data.tokenizer_training import train_sentencepiece
    from ..corpus import texts
    from ..outputs import check_writable

    check_writable(args.output, "--output")
    tally = Tally()
    tokenizer = train_sentencepiece(
        texts([source_of(args, each) for each in args.source], args.max_records, tally),
        vocab_size=args.vocab_size,
        output_dir=args.output,
        special_tokens=args.special,
        character_coverage=args.character_coverage,
    )
    print_skipped(tally)
    print(f"{tokenizer.vocab_size} pieces in {args.output}")
    return 0


def add_data(commands) -> None:
    """Adds `camelid data show`, `camelid data prepare` and `camelid data collect`."""
    group = command(commands, "data", None, "Show, prepare and collect training data.")
    actions = group.add_subparsers(dest="action", required=True, metavar="action", parser_class=Parser)
    parser = command(
        actions,
        "show",
        _show_data,
        "Print rows of a training batch: its tokens, with segments in colour and trained tokens marked.",
        "camelid data show --config=configs/sft/primer.py --step=7 --rows=2",
    )
    add_config(parser)
    parser.add_argument("--phase", metavar="NAME", help="phase of a config that has phases (default: the first)")
    parser.add_argument("--step", type=int, default=0, metavar="N", help="training step of the batch (default: 0)")
    parser.add_argument(
        "--rows", type=int, default=2, metavar="N", help="number of rows of the batch to print (default: 2)"
    )
    parser = command(
        actions,
        "prepare",
        _prepare_data,
        "Write a source as a TFDS dataset (--source), or build the token caches of a config (--config).",
        "camelid data prepare --source='books/*.jsonl.gz' --output=datasets --name=books\n"
        "camelid data prepare --config=configs/sft/primer.py",
    )
    add_config(parser, required=False)
    parser.add_argument("--source", metavar="SOURCE", help=f"records of the dataset: {SOURCE}")
    add_reading(parser)
    parser.add_argument(
        "--heldout",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of the records that becomes the split heldout (default: 0.01)",
    )
    parser.add_argument("--name", metavar="NAME", help="name of the dataset")
    parser.add_argument("--output", metavar="DIR", help="folder in which the dataset's folder is created")
    _add_collect(actions)


def _add_collect(actions) -> None:
    """Adds `camelid data collect`."""
    parser = command(
        actions,
        "collect",
        _collect,
        "Let a model answer prompts several times, score the answers, and write preference pairs or the best answers.",
        "camelid data collect runs/sft --source=primer:chat --reward=primer --output=pairs.jsonl",
    )
    parser.add_argument("path", help=f"the model that answers: {MODEL}")
    parser.add_argument(
        "--source", required=True, metavar="SOURCE", help=f"the prompts, of which the training part is read: {SOURCE}"
    )
    add_reading(parser)
    parser.add_argument(
        "--reward",
        required=True,
        metavar="R",
        help="scorer of the answers: a task such as primer, a function file.py:name or package.module:name, or the run "
        "of a reward model",
    )
    parser.add_argument(
        "--keep",
        default="pairs",
        choices=("pairs", "best"),
        help="write preference pairs, or the best answer to each prompt (default: pairs)",
    )
    parser.add_argument(
        "--prompts", type=int, default=2000, metavar="N", help="largest number of prompts to answer (default: 2000)"
    )
    parser.add_argument("--n", type=int, default=4, metavar="N", help="number of answers to each prompt (default: 4)")
    parser.add_argument(
        "--per_prompt", type=int, default=1, metavar="N", help="largest number of pairs for each prompt (default: 1)"
    )
    parser.add_argument(
        "--others",
        type=int,
        default=0,
        metavar="N",
        help="number of further answers in a pair, worse than its chosen one (default: 0)",
    )
    parser.add_argument(
        "--max_tokens", type=int, default=128, metavar="N", help="largest number of tokens in an answer (default: 128)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="temperature of sampling; 0 is greedy decoding (default: 1)",
    )
    add_stop(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling (default: 0)")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .jsonl file to write")


def _collect(args: argparse.Namespace) -> None:
    from ...checkpoints.language_model import load
    from ...data.samples import read_samples
    from ...data.tally import SKIPPED
    from ...rlhf.collect import DrawSettings, best_of, pairs_of, prompt_encoder, sample_answers, write
    from ...train.batches import COUNTS
    from ..outputs import check_new_file

    check_sampling(args)
    if args.keep == "best":
        refuse_unread(args, ("per_prompt", "others"), "--keep=pairs")
    check_least(args, prompts=1, per_prompt=1, others=0, n=2 if args.keep == "pairs" else 1)
    check_new_file(args.output)
    model = load(args.path)
    prompts = read_samples(source_of(args), "train", prompt_encoder(model, args.max_tokens), args.prompts)
    print_skipped(prompts.tally)
    drawing = DrawSettings(args.n, args.max_tokens, args.temperature, args.stop, args.seed)
    answers = sample_answers(model, prompts, args.reward, drawing)
    pairs = pairs_of(answers, seed=args.seed, per_prompt=args.per_prompt, others=args.others)
    records = best_of(answers) if args.keep == "best" else pairs
    hint = "raise --temperature, --n or --prompts"
    written = write(records, args.output, hint)
    print(f"{written:,} {'record' if written == 1 else 'records'} of {len(answers):,} prompts in {args.output}")
    for why, count in prompts.tally.left_out.items():
        if count and why != SKIPPED:  # which `print_skipped` has told
            print(f"{COUNTS[why]}, left out: {count:,}")
    even = sum(len(set(found.scores)) == 1 for found in answers) if args.keep == "pairs" else 0
    if even:
        print(f"prompts without a pair, because their answers have equal scores: {even:,}")


def _phases(args: argparse.Namespace) -> dict:
    """The phases of `--config`, checked as in `camelid train`, except for the devices that they need."""
    from ...evals.registry import Evaluations
    from ...settings.config_files import load_phases
    from ..checks import check_phases

    phases = load_phases(args.config, args.overrides)
    check_phases(phases, Evaluations(), here=False)
    return phases


def _config_data(config):
    """The tokenizer, the training batches and the held-out rows of one phase, without loading a model."""
    from ...train.batches import data_of
    from ...train.run import Run
    from ...train.run_config import SupervisedConfig
    from ..recipes import read_config

    settings = read_config(config)
    if not isinstance(settings, SupervisedConfig):
        raise UserError(f"config.recipe is {config.recipe}: `data show` and `data prepare` need pretrain or sft")
    run = Run(settings, ".", mesh=None)
    template = run.need_template() if settings.recipe == "sft" else run.template
    batches, heldout = data_of(settings.data, run.tokenizer, template, settings.seed)
    return run.tokenizer, batches, heldout


def _show_data(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ...data.show import render_rows

    require_output()
    phases = _phases(args)
    chosen = next(iter(phases)) if args.phase is None else args.phase
    if chosen not in phases:
        raise UserError(f"--phase={chosen}: the config has {', '.join(filter(None, phases)) or 'no phases'}")
    tokenizer, batches, _ = _config_data(phases[chosen])
    if not 0 < args.rows <= batches.batch_size or args.step < 0:
        raise UserError(
            f"--rows={args.rows} --step={args.step}: give --rows of 1 to {batches.batch_size}, --step of 0 or more"
        )
    Console().print(render_rows(batches.rows(args.step, slice(0, args.rows)), tokenizer))
    _tell_left_out(batches)


def _prepare_data(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    if (args.config is None) == (args.source is None):
        raise UserError("give either --config, to build its token caches, or --source with --name and --output")
    if args.config is None:
        if args.name is None or args.output is None:
            raise UserError("--source needs --name and --output: give the dataset's name and the folder to put it in")
        from tensorflow_datasets import builder_from_directory

        from ...data.sources import SPLITS
        from ...data.tally import Tally
        from ...data.tfds_builder import build_dataset

        tally = Tally()
        where = build_dataset(source_of(args, heldout=args.heldout), args.name, args.output, tally)
        print_skipped(tally)
        splits = builder_from_directory(where).info.splits
        names = " and ".join(f"tfds:{where}:{split}" for split in SPLITS if split in splits)
        print(f"{where}: read it as {names}")
        return
    refuse_unread(args, (*READING, "heldout", "name", "output"), "--source")
    from ...train.batches import report_data

    for phase, config in _phases(args).items():
        _, batches, heldout = _config_data(config)
        rows = report_data(batches, heldout)
        table = Table(*rows[0], title=phase)
        for row in rows:
            table.add_row(*row.values())
        Console().print(table)
        _tell_left_out(batches)


def _tell_left_out(batches) -> None:
    """Prints the place and the fault of the first records that were left out of each source."""
    for name, problems in batches.skipped().items():
        print(f"left out of {name}:", *problems, sep="\n  ")
