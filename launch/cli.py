"""The command line: `camelid <command>`, one function a command.

A user's mistake is one line on standard error and exit code 2; a run that cannot go on is one line and exit code 1.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..data.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command of `argv` (default: that of the process) and returns its exit code."""
    try:
        args, rest = _parser().parse_known_args(argv)
        overrides = [word for word in rest if word.startswith("--config.")]
        if stray := [word for word in rest if word not in overrides]:
            raise UserError(f"unknown argument {stray[0]} (see `camelid {args.command} --help`)")
        if overrides and getattr(args, "config", None) is None:
            raise UserError(f"{overrides[0]}: there is no --config=FILE that it could change")
        args.overrides = overrides
        return args.run(args) or 0
    except UserError as error:
        print(f"camelid: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        from ..train.loop import TrainingStopped

        if not isinstance(error, TrainingStopped):
            raise
        print(f"camelid: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="camelid", description="From raw text to a model that answers.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    _add_train(commands)
    _add_tokenizer(commands)
    _add_data(commands)
    _add_eval(commands)
    _add_generate(commands)
    _add_chat(commands)
    _add_quickstart(commands)
    return parser


def _command(commands, name: str, run, help: str, epilog: str = "") -> argparse.ArgumentParser:
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


def _add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE[:key=value,...]",
        help="a file with get_config(); any leaf is changed by --config.<name>=<value>",
    )


def _add_train(commands) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        "Pretrain or tune as a config file says; the same command goes on where a run was cut off.",
        "camelid train --config=configs/sft/primer.py:steps=300 --config.optim.lr=1e-3 --workdir=runs/sft",
    )
    _add_config(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where checkpoints and metrics go")
    parser.add_argument(
        "--distributed", action="store_true", help="join the other processes of a cluster (found by JAX)"
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="with --distributed, where JAX cannot find it")
    parser.add_argument("--num_processes", type=int, metavar="N", help="with --coordinator")
    parser.add_argument("--process_id", type=int, metavar="I", help="with --coordinator")


def _train(args: argparse.Namespace) -> int:
    import jax
    from etils import epath

    if args.distributed:
        if jax.config.jax_platforms == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)

    from ..evals.gold import gold
    from ..train.settings import Settings, load_config
    from .recipes import RECIPES

    settings = Settings(load_config(args.config, args.overrides))
    if settings.recipe not in RECIPES:
        raise UserError(f"config.recipe: {settings.recipe!r} is none of {', '.join(RECIPES)}")
    model = RECIPES[settings.recipe](settings, epath.Path(args.workdir), {"gold": gold})
    if jax.process_index() == 0:
        print(f"step {model.step}: checkpoints, metrics and samples are in {args.workdir}")
    return 0


def _add_tokenizer(commands) -> None:
    group = _command(commands, "tokenizer", None, "Train a tokenizer.")
    actions = group.add_subparsers(dest="action", required=True, metavar="action", parser_class=_Parser)
    parser = _command(
        actions, "train", _train_tokenizer, "Train a SentencePiece BPE model with LLaMA's settings on any sources."
    )
    _add_sources(parser)
    parser.add_argument("--vocab_size", type=int, default=32_000, metavar="N", help="pieces in all (default: 32000)")
    parser.add_argument("--special", action="append", default=[], metavar="TOKEN", help="a control token; repeatable")
    parser.add_argument("--max_records", type=int, metavar="N", help="read at most N records of each source")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for tokenizer.model")


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="SOURCE",
        help="a glob of files, tfds:name/config:split, or generated records, as primer:chat; repeatable",
    )
    parser.add_argument("--format", default="auto", metavar="NAME", help="of the records; auto goes by their fields")
    parser.add_argument("--on_error", default="raise", choices=("raise", "skip"), help="what to do with bad records")


def _train_tokenizer(args: argparse.Namespace) -> int:
    from ..data.sources import Report
    from ..data.tokenizer_training import train_sentencepiece
    from .corpus import texts

    report = Report()
    tokenizer = train_sentencepiece(
        texts(args.source, args.format, args.on_error, args.max_records, report),
        vocab_size=args.vocab_size,
        output_dir=args.output,
        special_tokens=args.special,
    )
    _tell_skipped(report)
    print(f"{tokenizer.vocab_size} pieces in {args.output}")
    return 0


def _add_data(commands) -> None:
    group = _command(commands, "data", None, "Look at data, and prepare it.")
    actions = group.add_subparsers(dest="action", required=True, metavar="action", parser_class=_Parser)
    parser = _command(
        actions,
        "show",
        _show_data,
        "Print rows of a training batch: tokens, segments in colour, what is trained on.",
        "camelid data show --config=configs/sft/primer.py --step=7 --rows=2",
    )
    _add_config(parser)
    parser.add_argument("--step", type=int, default=0, metavar="N", help="whose batch (default: 0)")
    parser.add_argument("--rows", type=int, default=2, metavar="N", help="how many rows of it (default: 2)")
    parser = _command(
        actions,
        "prepare",
        _prepare_data,
        "Turn sources into TFDS datasets (--output), or fill a config's token caches (--config).",
        "camelid data prepare --source='books/*.jsonl.gz' --output=datasets --name=books\n"
        "camelid data prepare --config=configs/sft/primer.py",
    )
    _add_config(parser, required=False)
    parser.add_argument("--source", metavar="SOURCE", help="a glob of files or tfds:name/config:split")
    parser.add_argument("--format", default="auto", metavar="NAME", help="of the records; auto goes by their fields")
    parser.add_argument("--on_error", default="raise", choices=("raise", "skip"), help="what to do with bad records")
    parser.add_argument("--heldout", type=float, default=0.01, metavar="SHARE", help="held-out share (default: 0.01)")
    parser.add_argument("--name", metavar="NAME", help="of the dataset")
    parser.add_argument("--output", metavar="DIR", help="folder of datasets")
    _add_collect(actions)


def _add_collect(actions) -> None:
    parser = _command(
        actions,
        "collect",
        _collect,
        "Answer prompts several times, score the answers, and write preference pairs or the best answers.",
        "camelid data collect runs/sft --source=primer:chat --reward=camelid.data.primer:reward --output=pairs.jsonl",
    )
    parser.add_argument("path", help="whose answers: a run directory or one checkpoint")
    parser.add_argument("--source", required=True, metavar="SOURCE", help="of the prompts; its training part is read")
    parser.add_argument("--format", default="auto", metavar="NAME", help="of the records; auto goes by their fields")
    parser.add_argument("--reward", required=True, metavar="R", help="package.module:function, or a reward model's run")
    parser.add_argument("--keep", default="pairs", choices=("pairs", "best"), help="what is written (default: pairs)")
    parser.add_argument("--prompts", type=int, default=2000, metavar="N", help="default: 2000")
    parser.add_argument("--n", type=int, default=4, metavar="N", help="answers to each prompt (default: 4)")
    parser.add_argument("--per_prompt", type=int, default=1, metavar="N", help="pairs of each prompt (default: 1)")
    parser.add_argument(
        "--others", type=int, default=0, metavar="N", help="further, worse answers in a pair (default: 0)"
    )
    parser.add_argument("--max_tokens", type=int, default=128, metavar="N", help="of an answer (default: 128)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default: 1")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--output", required=True, metavar="FILE", help="a .jsonl file")


def _collect(args: argparse.Namespace) -> None:
    from ..rlhf.collect import best_of, pairs_of, sample_answers, write
    from ..train.bundle import load

    llama = load(args.path)
    answers = sample_answers(
        llama,
        args.source,
        args.reward,
        prompts=args.prompts,
        format=args.format,
        n=args.n,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
    )
    pairs = pairs_of(answers, seed=args.seed, per_prompt=args.per_prompt, others=args.others)
    records = best_of(answers) if args.keep == "best" else pairs
    print(f"{write(records, args.output)} records in {args.output}")


def _config_data(args: argparse.Namespace):
    """Tokenizer and batches of a config, for the commands that look at data only."""
    from ..train import setup
    from ..train.settings import Settings, load_config

    settings = Settings(load_config(args.config, args.overrides))
    tokenizer = setup.tokenizer_of(settings)
    needs_template = settings.recipe == "sft" or settings.template is not None
    template = setup.template_of(settings) if needs_template else None
    batches, heldout = setup.data_of(settings, tokenizer, template)
    return tokenizer, batches, heldout


def _show_data(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ..data.show import render_rows

    tokenizer, batches, _ = _config_data(args)
    if not 0 < args.rows <= batches.batch_size or args.step < 0:
        raise UserError(f"--rows is 1 to {batches.batch_size}, --step 0 or more")
    Console().print(render_rows(batches.rows(args.step, slice(0, args.rows)), tokenizer))


def _prepare_data(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    if (args.config is None) == (args.source is None):
        raise UserError("data prepare takes --config, to fill its token caches, or --source with --name and --output")
    if args.config is None:
        if args.name is None or args.output is None:
            raise UserError("--source needs --name and --output: what to call the dataset, and where to put it")
        from ..data.builder import build_dataset
        from ..data.sources import Report

        report = Report()
        where = build_dataset(
            args.source,
            name=args.name,
            data_dir=args.output,
            format=args.format,
            heldout=args.heldout,
            on_error=args.on_error,
            report=report,
        )
        _tell_skipped(report)
        print(f"{where}: read it as tfds:{where}:train and tfds:{where}:heldout")
        return
    from ..train import setup

    _, batches, heldout = _config_data(args)
    rows = setup.report_data(batches, heldout)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
    for name, problems in batches.skipped().items():
        print(f"left out of {name}:", *problems, sep="\n  ")


def _tell_skipped(report) -> None:
    """Lists the records that `--on_error=skip` left out, the first of them by place and fault."""
    if report.skipped:
        print(f"{report.read:,} records read, {report.skipped:,} left out:", *report.problems, sep="\n  ")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a run directory or one checkpoint")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as trained")
    parser.add_argument("--weights", default="params", choices=("params", "ema"), help="default: params")
    parser.add_argument("--template", metavar="NAME", help="chat template or jinja file; default: as trained")


def _add_sampling(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    parser.add_argument("--max_tokens", type=int, default=max_tokens, metavar="N", help=f"default: {max_tokens}")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="0 is greedy (default: 0.7)")
    parser.add_argument("--top_p", type=float, default=1.0, metavar="P", help="default: 1, all of the distribution")
    parser.add_argument("--top_k", type=int, default=0, metavar="K", help="default: 0, the whole vocabulary")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")


def _load(args: argparse.Namespace):
    from ..data.templates import load_template
    from ..train.bundle import load

    llama = load(args.path, dtype=args.dtype, weights=args.weights)
    if args.template is not None:
        llama.template = load_template(args.template)
    return llama


def _sampling(args: argparse.Namespace) -> dict:
    return {name: getattr(args, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}


def _add_eval(commands) -> None:
    parser = _command(
        commands,
        "eval",
        _eval,
        "Measure a model: the gold score on the primer, or loss and perplexity on held-out text.",
        "camelid eval runs/sft --gold\ncamelid eval runs/sft --source='mytext/*.txt'",
    )
    _add_model(parser)
    parser.add_argument("--gold", action="store_true", help="gold score on held-out prompts of the primer")
    parser.add_argument("--per_skill", type=int, default=20, metavar="N", help="prompts of each skill and language")
    parser.add_argument("--source", metavar="SOURCE", help="text or conversations to measure the perplexity of")
    parser.add_argument("--split", choices=("train", "heldout"), help="of the source; default: all of it")
    parser.add_argument("--heldout", type=float, default=0.01, metavar="SHARE", help="share that the split holds out")
    parser.add_argument("--seq_len", type=int, default=512, metavar="N", help="tokens in a row (default: 512)")
    parser.add_argument("--cache_dir", default="~/.cache/camelid", metavar="DIR", help="of tokenised text")


def _eval(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    if not args.gold and args.source is None:
        raise UserError("say what to measure: --gold, --source=..., or both")
    llama = _load(args)
    metrics = {}
    if args.gold:
        from ..evals.gold import gold

        metrics |= {f"gold/{name}": value for name, value in gold(llama, per_skill=args.per_skill)[0].items()}
    if args.source is not None:
        from ..evals.perplexity import perplexity

        where = dict(split=args.split, heldout=args.heldout, seq_len=args.seq_len, cache_dir=args.cache_dir)
        metrics |= perplexity(llama, args.source, **where)
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)


def _add_generate(commands) -> None:
    parser = _command(
        commands,
        "generate",
        _generate,
        "Continue texts, or answer questions with --chat.",
        "camelid generate runs/sft 'Once upon a time' --max_tokens=50",
    )
    _add_model(parser)
    parser.add_argument("prompts", nargs="+", metavar="prompt")
    parser.add_argument("--chat", action="store_true", help="take each prompt for a user's message")
    parser.add_argument("--n", type=int, default=1, metavar="N", help="samples of each prompt (default: 1)")
    _add_sampling(parser, max_tokens=128)


def _generate(args: argparse.Namespace) -> None:
    llama = _load(args)
    answer = llama.chat_batch if args.chat else llama.generate
    for text in answer(args.prompts, seed=args.seed, n=args.n, **_sampling(args)):
        print(text)


def _add_chat(commands) -> None:
    parser = _command(commands, "chat", _chat, "Talk to a tuned model in the terminal.", "camelid chat runs/sft")
    _add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    _add_sampling(parser, max_tokens=512)


def _chat(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ..serve.terminal import chat

    chat(_load(args), system=args.system, console=Console(), **_sampling(args))


def _add_quickstart(commands) -> None:
    parser = _command(
        commands,
        "quickstart",
        _quickstart,
        "Raise a small bilingual assistant from nothing on the embedded data: tokenizer, pretraining, tuning, reward "
        "model, PPO, scores.",
    )
    parser.add_argument("--workdir", default="runs/quickstart", metavar="DIR", help="default: runs/quickstart")
    for stage in ("pretrain", "sft", "reward", "ppo"):
        parser.add_argument(f"--{stage}_steps", type=int, metavar="N", help="default: what its config says")
    parser.add_argument("--pair_prompts", type=int, metavar="N", help="prompts answered for preference pairs")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of PPO (default: 0)")


def _quickstart(args: argparse.Namespace) -> None:
    from etils import epath

    from .quickstart import PAIR_PROMPTS, Steps, quickstart

    steps = Steps(args.pretrain_steps, args.sft_steps, args.reward_steps, args.ppo_steps)
    steps = steps._replace(prompts=args.pair_prompts or PAIR_PROMPTS)
    quickstart(epath.Path(args.workdir), steps, seed=args.seed)
