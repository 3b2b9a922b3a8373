"""The commands `camelid eval` and `camelid results`."""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ... import tasks
from ...errors import UserError, did_you_mean
from ...serve.status import StatusLine
from .arguments import (
    MODEL_OPTIONS,
    SOURCE,
    add_draft,
    add_model,
    add_reading,
    add_stop,
    command,
    load_with_draft,
    require_output,
)

SETTINGS = {
    "shots": (
        int,
        "N",
        "number of examples before each question (default: 0; of lm-evaluation-harness: its own)",
    ),
    "shots_file": (str, "FILE", "questions with answers that serve as examples (default: an exam's own, or the last)"),
    "limit": (int, "N", "number of questions, from the beginning (default: all)"),
    "answer_by": (str, "KIND", "with --choices: compare each text, or each letter (default: letter for exams' CSV)"),
    "metric": (str, "NAME", "with --exact: exact, starts, contains, number, f1 or file.py:function (default: exact)"),
    "max_tokens": (int, "N", "the most tokens in an answer (default: 48 in built-in tasks, else 256)"),
    "temperature": (float, "T", "temperature of sampling; 0 is greedy decoding (default: 0)"),
    "n": (int, "N", "with --exact: number of answers to each question; more than one also give maj@n (default: 1)"),
    "seed": (int, "N", "seed of the sampling (default: 0)"),
    "per_group": (int, "N", "with a built-in task: number of held-out prompts in each group (default: 20)"),
    "heldout": (float, "SHARE", "with --split: share of the source that is held out (default: 0.01)"),
    "seq_len": (int, "N", "with --source: the most tokens that predict a token (default: 512, or the context if less)"),
    "cache_dir": (str, "DIR", "folder in which tokenised texts are cached (default: ~/.cache/camelid)"),
    "batch_size": (
        int,
        "N",
        "rows or prompts computed at a time; scores do not depend on it (default: by the devices)",
    ),
}
"""{setting of an evaluation: type, placeholder, help}. Evaluations have their own defaults."""


def positions(text: str) -> list[int]:
    """The numbers of a text such as "2048,4096"."""
    return [int(position) for position in text.split(",")]


def add_eval(commands) -> None:
    """Adds `camelid eval`."""
    parser = command(
        commands,
        "eval",
        _eval,
        "Evaluate a model, on disk or behind a server: tasks, questions with choices or answers, perplexity.",
        "camelid eval runs/sft --tasks=primer\n"
        "camelid eval runs/base --choices=mmlu/data --shots=5 --output=base.json\n"
        "camelid eval runs/sft --exact=gsm8k_test.jsonl --metric=number --chat --output=sft.json\n"
        "camelid eval runs/sft --source='mytext/*.txt' --against=earlier.json\n"
        "camelid eval http://localhost:8000 --tasks=arc_easy,hellaswag",
    )
    add_model(parser, or_else=", or http://HOST:PORT of a server")
    add_draft(parser)
    parser.add_argument("--model", metavar="NAME", help="with a server: the model's name (default: the first it lists)")
    parser.add_argument(
        "--tasks",
        metavar="NAME,NAME",
        help=f"built-in tasks ({', '.join(tasks.NAMES)}), and tasks of lm-evaluation-harness by name or YAML file",
    )
    parser.add_argument(
        "--include", metavar="DIR", help="folder with further tasks of lm-evaluation-harness as YAML (default: none)"
    )
    again = "give the option again for further ones"
    for option, placeholder, said in (
        ("choices", "FILE", "questions with choices: JSON lines, or the folder or a CSV file of an exam such as MMLU"),
        ("exact", "FILE", "questions with answers: JSON lines, whose answers are compared by --metric"),
        ("source", "SOURCE", f"texts for the perplexity: {SOURCE}"),
    ):
        parser.add_argument(f"--{option}", action="append", metavar=placeholder, help=f"{said}; {again}")
    parser.add_argument(
        "--evaluation",
        action="append",
        metavar="NAME|JSON",
        help="function file.py:name or module:name that returns items, or a section of config.evals as JSON with that "
        "name under use",
    )
    for name, (kind, placeholder, said) in SETTINGS.items():
        parser.add_argument(f"--{name}", type=kind, metavar=placeholder, help=said)
    parser.add_argument("--chat", action="store_true", default=None, help="ask questions through the chat template")
    add_stop(parser)
    add_reading(parser)
    parser.add_argument("--split", choices=("train", "heldout"), help="part of the source (default: all records)")
    parser.add_argument(
        "--borders",
        type=positions,
        metavar="N,N",
        help="token positions that divide a row: the perplexity of each part is measured too (default: none)",
    )
    parser.add_argument(
        "--allow_code",
        action="store_true",
        default=None,
        help="with tasks of lm-evaluation-harness: run programs that the model writes, each locked in",
    )
    parser.add_argument(
        "--keep_answers",
        metavar="FILE",
        help="keep answers and likelihoods in FILE as they come: the same command goes on from it (default: no file)",
    )
    parser.add_argument("--output", metavar="FILE", help="write results, with every item, as JSON (default: no file)")
    add_report(parser)
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="FILE",
        help="earlier results to compare with; differences are to the first (default: none)",
    )
    parser.set_defaults(format=None, on_error=None, max_record_bytes=None, columns=None, stop=None)


def add_report(parser: argparse.ArgumentParser) -> None:
    """Adds the options for what is made of results."""
    parser.add_argument("--report", metavar="FILE", help="write the comparison as Markdown (default: no file)")
    parser.add_argument("--plot", metavar="FILE", help="draw the comparison, as .svg, .png or .pdf (default: no file)")


READ = (
    *SETTINGS,
    "chat",
    "stop",
    "format",
    "on_error",
    "max_record_bytes",
    "columns",
    "split",
    "borders",
    "include",
    "allow_code",
)
"""The options that are settings of evaluations."""

ASKING = ("choices", "exact", "harness", *tasks.NAMES)
"""Evaluations that ask an `LM`; others get the loaded model."""

Planned = tuple[str, str, dict[str, Any]]
"""The name of an evaluation's results, the name of the evaluation, and its settings."""


def _eval(args: argparse.Namespace) -> None:
    require_output()
    from ...evals import results
    from ...evals.items import run_checked
    from ...evals.kept import AnswerFile, KeptLM
    from ...evals.lm import as_lm

    check_free(args.output, args.report, args.plot)
    _check_plot(args.plot)
    planned = list(_planned(args))
    if not planned:
        raise UserError("nothing to measure: give --tasks, --choices, --exact, --source or --evaluation")
    if len({label for label, _, _ in planned}) < len(planned):
        raise UserError(f"two evaluations have one name ({', '.join(label for label, _, _ in planned)}): rename a file")
    chosen = _settings(args, planned)
    if (args.cache or args.draft) and {name for _, name, _ in planned} <= {"perplexity", "choices"}:
        raise UserError("--cache and --draft do nothing here, where nothing is decoded: leave them out")
    earlier = [results.read(path) for path in args.against]
    model = _model(args)
    file = AnswerFile(args.keep_answers) if args.keep_answers else None
    evaluated = {}
    for label, (name, evaluate, settings) in chosen.items():
        question = results.asked_of(name, evaluate, settings, model)
        begin, doing = time.perf_counter(), f"evaluating {label}"
        with StatusLine(doing) as status:
            asked = model
            if name in ASKING:
                tell = functools.partial(_tell_progress, status, doing)
                asked = KeptLM(as_lm(model, args.batch_size), file, tell)
            items = run_checked(evaluate, name, asked, settings)
        evaluated[label] = results.Evaluated(question, items, time.perf_counter() - begin)
    content = results.result_of(as_lm(model), evaluated, ["camelid", *args.argv])
    if args.output:
        results.write(args.output, content)
    _show(evaluated)
    if earlier or args.report or args.plot:
        own = Path(args.path).name
        own = "now" if own in {each.name for each in earlier} else own
        show_results([*earlier, results.Result(args.output or f"{own}.json", content)], args, print_table=bool(earlier))


def _tell_progress(status: StatusLine, doing: str, kind: str, done: int, every: int) -> None:
    status.say(f"{doing}: {done:,} of {every:,} {kind}")


def _planned(args: argparse.Namespace) -> Iterator[Planned]:
    """What the options ask for."""
    named = [name for name in (args.tasks or "").split(",") if name]
    for name in named:
        if name in tasks.NAMES:
            yield name, name, {}
    if others := [name for name in named if name not in tasks.NAMES]:
        yield "tasks", "harness", {"tasks": ",".join(others)}
    for option in ("choices", "exact"):
        for file in getattr(args, option) or ():
            yield Path(file).stem, option, {"file": file}
    for source in args.source or ():
        yield source, "perplexity", {"source": source}
    for text in args.evaluation or ():
        yield _own(text)


def _own(text: str) -> Planned:
    """The evaluation of a section in JSON, or of a name."""
    if not text.lstrip().startswith("{"):
        return text.rpartition(":")[2], text, {}
    try:
        section = json.loads(text)
    except ValueError as error:
        raise UserError(f"--evaluation is no JSON: {error}") from None
    if not isinstance(section.get("use"), str):
        raise UserError('--evaluation needs the name of an evaluation: give it as {"use": "file.py:function", ...}')
    use = section.pop("use")
    return use.rpartition(":")[2], use, section


def _settings(
    args: argparse.Namespace, planned: list[Planned]
) -> dict[str, tuple[str, Callable[..., Any], dict[str, Any]]]:
    """The evaluations with their settings, checked. Raises UserError for an option that none of them reads."""
    from ...evals import registry
    from ...settings.leaves import fields_of
    from ...settings.sections import read_arguments

    given = {name: value for name in READ if (value := getattr(args, name)) is not None}
    chosen, read = {}, set()
    for label, name, own in planned:
        try:
            evaluate = registry.find(name, "--evaluation")
        except KeyError:
            near = did_you_mean(name, registry.NAMES)
            raise UserError(f"--evaluation: there is no {name!r}, only {', '.join(registry.NAMES)}{near}") from None
        settings = {key: value for key, value in given.items() if key in fields_of(evaluate)} | own
        read |= settings.keys()
        try:
            chosen[label] = name, evaluate, read_arguments(settings, evaluate, "<option>")
        except UserError as error:
            raise UserError(str(error).replace("<option>.", "--")) from None
    if unread := [name for name in given if name not in read]:
        names = ", ".join(dict.fromkeys(name for _, name, _ in planned))
        raise UserError(f"--{unread[0]} does nothing for {names}: leave it out")
    return chosen


def _model(args: argparse.Namespace):
    """The model at the path, or behind the server."""
    if args.path.lower().startswith(("http://", "https://")):
        from ...evals.lm import ServedLM

        for name in MODEL_OPTIONS:
            if (value := getattr(args, name)) is not None:
                raise UserError(f"--{name}={value} does nothing with a server, which loads its own model: leave it out")
        if args.source:
            raise UserError("--source reads the model's own tokens: give a checkpoint instead of a server")
        with StatusLine(f"waiting for {args.path}"):
            return ServedLM(args.path, args.model)
    if args.model is not None:
        raise UserError("--model names a model of a server: leave it out")
    with StatusLine(f"loading {args.path}"):
        return load_with_draft(args)


def _show(evaluated: dict[str, Any]) -> None:
    """Prints the metrics with their intervals."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ...evals.items import metrics_of

    table = Table("metric", "value", "95% interval", "items")
    for label, each in evaluated.items():
        for name, found in metrics_of(each.items).items():
            interval = f"{found.low:.4g} to {found.high:.4g}" if found.low == found.low else ""
            table.add_row(Text(f"{label}/{name}"), f"{found.value:.4g}", interval, str(found.n))
    Console().print(table)


def add_results(commands) -> None:
    """Adds `camelid results`."""
    parser = command(
        commands,
        "results",
        _results,
        "Compare files that `camelid eval --output` wrote: values with intervals, paired differences to the first.",
        "camelid results base.json sft.json ppo.json --report=report.md --plot=report.svg",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="results, the one to compare with first")
    add_report(parser)


def _results(args: argparse.Namespace) -> None:
    require_output()
    from ...evals import results

    check_free(args.report, args.plot)
    _check_plot(args.plot)
    show_results([results.read(path) for path in args.files], args)


def _check_plot(path: str | None) -> None:
    if path is not None and Path(path).suffix not in (".svg", ".png", ".pdf"):
        raise UserError(f"--plot={path}: give a name that ends in .svg, .png or .pdf")


def check_free(*paths: str | None) -> None:
    """Raises UserError for a file that exists, or whose folder does not, before anything is measured."""
    given = list(filter(None, paths))
    if len({os.path.realpath(path) for path in given}) < len(given):
        raise UserError(f"{', '.join(given)}: two of them are one file: give each its own")
    for path in given:
        if Path(path).exists():
            raise UserError(f"{path} exists: give another name, or delete it")
        if not Path(path).absolute().parent.is_dir():
            raise UserError(f"{path}: there is no folder {Path(path).parent}: make it, or give another name")


def show_results(found: list, args: argparse.Namespace, *, print_table: bool = True) -> None:
    """Prints a comparison, and writes it as the options say."""
    from rich.console import Console

    from ...evals import results_report

    if print_table:
        Console(width=None if sys.stdout.isatty() else 200).print(results_report.table(found))
    if args.report:
        Path(args.report).write_text(results_report.markdown(found), encoding="utf-8")
    if args.plot:
        results_report.plot(found, args.plot)
