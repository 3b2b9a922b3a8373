"""The commands `camelid judge answers` and `camelid judge grade`; `report` is in `judge_report.py`."""

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from .arguments import Parser, add_model, check_least, command, refuse_unread
from .asking import ANOTHER_OUTPUT, ENDPOINT, add_asking, asking, check_asking, check_not_negative, is_url
from .judge_report import add_judge_report


def add_judge(commands) -> None:
    """Adds `camelid judge` with its actions."""
    help = "Let models answer open questions and a judge grade the answers, and report what the grades are worth."
    parser = command(commands, "judge", None, help)
    actions = parser.add_subparsers(dest="action", required=True, metavar="action", parser_class=Parser)
    _add_answers(actions)
    _add_grade(actions)
    add_judge_report(actions)


def _add_answers(actions) -> None:
    """Adds `camelid judge answers`."""
    parser = command(
        actions,
        "answers",
        _answers,
        "Let a model answer a set of questions, turn by turn. The same command resumes after an interruption.",
        "camelid judge answers runs/sft --questions=mt_bench.jsonl --output=answers/sft.jsonl\n"
        "camelid judge answers https://api.openai.com/v1 --model=gpt-4o --questions=mt_bench.jsonl \\\n"
        "    --output=answers/gpt-4o.jsonl\n\n"
        "The key of an endpoint is read from the environment variable CAMELID_API_KEY, that of api.openai.com also\n"
        "from OPENAI_API_KEY.",
    )
    add_model(parser, or_else=", or the address of an endpoint of OpenAI's protocol, as in http://localhost:8000")
    parser.add_argument(
        "--questions", required=True, metavar="FILE", help="JSON lines of questions with turns, category and reference"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the .jsonl file of answers to write")
    parser.add_argument(
        "--name",
        metavar="NAME",
        help="the model's name in the answers (default: the endpoint's, or the path's last part)",
    )
    parser.add_argument("--system", metavar="TEXT", help="system message before each conversation (default: none)")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="temperature of all answers (default: by category as in MT-bench, from 0 for math to 0.7 for writing)",
    )
    parser.add_argument(
        "--max_tokens", type=int, default=1024, metavar="N", help="most tokens of an answer in a turn (default: 1024)"
    )
    add_asking(parser)


def _answers(args: argparse.Namespace) -> None:
    from ...evals.answers import ask_questions
    from ...evals.questions import read_questions

    _check(args, [args.questions])
    questions = read_questions(args.questions)
    with asking(args, args.path) as asker:
        answers = ask_questions(
            questions,
            asker,
            name=args.name,
            temperature=args.temperature,
            max_tokens=args.max_tokens,
            seed=args.seed,
            system=args.system,
            more=args.settings,
        )
        _write(answers, args.output)
    others = Counter(reason for answer in answers for reason in answer.finish_reasons if reason != "stop")
    told = "".join(f", {count} turns ended by {reason or 'nothing'}" for reason, count in others.items())
    if empty := sum(not text for answer in answers for text in answer.turns):
        told += f", {empty} turns have no text"
    print(f"{len(answers)} answers of {answers[0].model}{told} in {args.output}")


def _add_grade(actions) -> None:
    """Adds `camelid judge grade`."""
    parser = command(
        actions,
        "grade",
        _grade,
        "Let a judge grade answers, each alone or in pairs, with controls. The same command resumes.",
        "camelid judge grade answers/*.jsonl --questions=own.jsonl --judge=runs/reward --output=judgments.jsonl\n"
        "camelid judge grade answers/*.jsonl --questions=mt_bench.jsonl --judge=https://api.openai.com/v1 \\\n"
        "    --model=gpt-4o --pairs --baseline=sft --output=pairs.jsonl",
    )
    parser.add_argument("answers", nargs="+", metavar="ANSWERS", help="files of `camelid judge answers` or FastChat")
    parser.add_argument("--questions", required=True, metavar="FILE", help="the questions that were answered")
    parser.add_argument(
        "--judge",
        required=True,
        metavar="URL|PATH",
        help="who grades: an endpoint of OpenAI's protocol, a language model, or a reward model of the recipe `reward`",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="the .jsonl file of judgments to write")
    parser.add_argument(
        "--pairs", action="store_true", help="compare the answers of two models at a time, in both orders"
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="with --pairs: the model that each other one is compared with (default: all)"
    )
    parser.add_argument(
        "--controls",
        choices=("on", "off"),
        default="on",
        help="also grade a null model, padded and identical answers, which show what a grade is worth (default: on)",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="the judge's name (default: the endpoint's, or the path's last part)"
    )
    parser.add_argument(
        "--prompts",
        metavar="DIR",
        help="folder of own prompts: single.en.toml, single.zh.toml, pair.en.toml, pair.zh.toml (default: camelid's)",
    )
    parser.add_argument(
        "--language", choices=("en", "zh"), help="language of the prompts (default: that of each question)"
    )
    parser.add_argument(
        "--references",
        default="math,reasoning,coding,code",
        metavar="NAMES",
        help="categories whose references the judge is shown, all or none (default: math,reasoning,coding,code)",
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="temperature of the judge (default: 0)"
    )
    parser.add_argument(
        "--max_tokens",
        type=int,
        default=1024,
        metavar="N",
        help="most tokens of a verdict and its reasons (default: 1024)",
    )
    add_asking(parser)


def _grade(args: argparse.Namespace) -> None:
    from ...evals.grading import cases_of
    from ...evals.questions import read_questions

    _check(args, [args.questions, *args.answers])
    if not args.pairs:
        refuse_unread(args, ["baseline"], "--pairs")
    questions = read_questions(args.questions)
    answers = _read_answers(args.answers, {question.id for question in questions})
    cases = cases_of(questions, answers, pairs=args.pairs, baseline=args.baseline, controls=args.controls == "on")
    with _judge(args) as judge:
        judgments = judge.judge(cases)
        _write(judgments, args.output)
    failed = sum(judgment.failed for judgment in judgments)
    missing = f", {failed} without a verdict that can be read" if failed else ""
    print(f"{len(judgments)} judgments of {judge.name}{missing} in {args.output}")


def _read_answers(paths: list[str], ids: set[str]) -> dict[str, dict[str, Any]]:
    """{model: {id of the question: its answer}} of files. Answers to other questions are left out, and that is said."""
    from ...evals.answers import read_answers

    found: dict[str, dict[str, Any]] = {}
    others = 0
    for path in paths:
        for answer in read_answers(path):
            said = found.setdefault(answer.model, {})
            if answer.question_id in said:
                raise UserError(
                    f"{path}: {answer.model} has another answer to question {answer.question_id} in a file before: "
                    "give one of them, or another --name in `camelid judge answers`"
                )
            if answer.question_id in ids:
                said[answer.question_id] = answer
            else:
                others += 1
    if others:
        print(f"camelid: {others} answers to other questions are left out", file=sys.stderr)
    return found


@contextlib.contextmanager
def _judge(args: argparse.Namespace) -> Iterator[Any]:
    """The judge that `--judge` names."""
    from ...evals.grading import AskingJudge, ScoringJudge
    from ...evals.judge_templates import JudgePrompts

    if is_reward_model(args.judge):
        from ...rlhf.reward_model import load_reward

        writing = ("prompts", "language", "references", "temperature", "max_tokens", "settings", "seed", "journal")
        refuse_unread(args, (*writing, "batch_size", *ENDPOINT), "a judge that writes its verdicts")
        yield ScoringJudge(score_of(load_reward(args.judge)), args.name or Path(args.judge).absolute().name)
        return
    names = args.references.split(",")
    references = {"all": None, "none": ()}.get(args.references, [name.strip() for name in names])
    prompts = JudgePrompts(args.prompts, args.language)
    settings = {"temperature": args.temperature, "max_tokens": args.max_tokens, "seed": args.seed} | args.settings
    settings = {name: value for name, value in settings.items() if value is not None}
    with asking(args, args.judge) as asker:
        yield AskingJudge(asker, prompts, name=args.name, references=references, settings=settings)


def score_of(reward) -> Callable[..., Any]:
    """The function that scores answers by a reward model; nan where prompt and answer exceed its context."""
    import numpy as np

    def score(prompts, answers):
        rows = reward.encode(prompts, answers)
        places = [i for i, row in enumerate(rows) if len(row) <= reward.model.config.max_len]
        scores_N = np.full(len(rows), np.nan)
        scores_N[places] = reward.score_tokens([rows[i] for i in places])
        return scores_N

    return score


def is_reward_model(path: str) -> bool:
    """Whether a judge is a reward model. Raises UserError for a cost model, whose better answers have lower scores."""
    if is_url(path):
        return False
    from ...checkpoints import open as open_checkpoint

    found = open_checkpoint(path)
    if found.kind == "scalar" and found.manifest["config"].get("objective", {}).get("kind") == "cost":
        raise UserError(f"--judge={path} is a cost model, which says how unsafe an answer is: give a reward model")
    return found.kind == "scalar"


def _write(records: Sequence[Any], path: Path) -> None:
    """Writes the output. Raises UserError if the file is there with other content."""
    from ...evals.answers import lines_of, write_records

    if not path.exists():
        write_records(records, path)
    elif path.read_bytes() != lines_of(records).encode():
        raise UserError(f"{path} exists with other content: {ANOTHER_OUTPUT}")


def _check(args: argparse.Namespace, inputs: list[str]) -> None:
    """Checks the options that both actions have, before anything is read."""
    check_asking(args, inputs)
    if args.name == "":
        raise UserError("--name is empty: give a name, or leave --name out")
    check_least(args, max_tokens=1)
    check_not_negative(args, "temperature")
