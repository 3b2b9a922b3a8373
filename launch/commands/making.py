"""The commands `camelid curate magpie`, `dialogues`, `pairs` and `revisions`: rows that a teacher makes."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from .arguments import SOURCE, check_least, command, refuse_unread
from .asking import add_teacher, asking, asking_several, check_asking, is_url, tell_shortfall
from .judging import is_reward_model, score_of


def add_making(actions) -> None:
    """Adds `magpie`, `dialogues`, `pairs` and `revisions` to the actions of `camelid curate`."""
    _add_magpie(actions)
    _add_dialogues(actions)
    _add_pairs(actions)
    _add_revisions(actions)


def _add_output(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the dataset to write")
    parser.add_argument("--name", default=name, metavar="NAME", help=f"name on the dataset's card (default: {name})")
    parser.add_argument(
        "--write_as",
        choices=("camelid", "alpaca", "sharegpt", "openai"),
        default="camelid",
        help="format of the rows (default: camelid, which keeps everything that is known of a row)",
    )
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer whose tokens the tables count (default: characters are counted)"
    )


def _add_sources(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        metavar="SOURCE",
        help=f"{what}: {SOURCE}; give the option again for further sources",
    )
    parser.add_argument(
        "--format",
        default="auto",
        metavar="NAME",
        help="format of the records, such as alpaca, sharegpt or openai (default: auto, found by their fields)",
    )
    parser.add_argument("--licence", metavar="NAME", help="licence of each --source, for the dataset's card")
    parser.add_argument(
        "--on_error",
        default="raise",
        choices=("raise", "skip"),
        help="stop at a record that cannot be read, or reject it as malformed (default: raise)",
    )


def _add_settings(parser: argparse.ArgumentParser, **options: tuple[Any, ...]) -> None:
    """Adds options for fields of the dataclass that makes the rows: (type, metavar, help) by name."""
    for name, (kind, metavar, what) in options.items():
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=what)
    parser.set_defaults(fields=[*options, "seed"])


def _add_magpie(actions) -> None:
    """Adds `camelid curate magpie`."""
    parser = command(
        actions,
        "magpie",
        _magpie,
        "Sample instructions from a chat model that writes the user's turns too, without seeds (Magpie), and its "
        "answers. The same command resumes after an interruption.",
        "camelid curate magpie --teacher=runs/chat --rows=1000 --output=datasets/magpie\n"
        "camelid curate magpie --teacher=http://localhost:8000 --of=models/Qwen2.5-7B-Instruct --rows=100000 \\\n"
        "    --languages=en,zh --topics=general,maths,code --temperatures=1.0,1.1 --turns=2 --output=datasets/magpie",
    )
    _add_output(parser, "magpie")
    _add_settings(
        parser,
        rows=(int, "N", "conversations to keep (default: 1000)"),
        samples=(int, "N", "most instructions that are sampled, kept or not (default: 10 for each row)"),
        languages=(_names, "NAMES", "languages of the instructions by turns, en and zh (default: en)"),
        topics=(
            _names,
            "NAMES",
            "topics of the instructions by turns, set by system prompts: general, maths, code, or those of --prompts "
            "(default: general)",
        ),
        temperatures=(_numbers, "T,T", "temperatures of the instructions by turns (default: 1)"),
        top_p=(float, "P", "share of the probability that instructions are sampled from (default: 1)"),
        turns=(int, "N", "most turns of the user in a conversation (default: 1)"),
        answer_temperature=(float, "T", "temperature of the answers (default: 0)"),
        instruction_tokens=(int, "N", "most tokens of an instruction (default: 512)"),
        max_tokens=(int, "N", "most tokens of an answer (default: 2048)"),
        threshold=(float, "X", "highest ROUGE-L of two instructions (default: 0.7)"),
        prompts=(str, "DIR", "folder of own system prompts, files magpie.TOPIC.LANGUAGE.toml (default: camelid's)"),
    )
    parser.add_argument(
        "--of",
        metavar="PATH",
        help="with an endpoint: folder with tokenizer.json and tokenizer_config.json of its model, or a tokenizer",
    )
    parser.add_argument(
        "--template", metavar="NAME", help="with an endpoint: chat template of its model (default: that of --of)"
    )
    add_teacher(parser)


def _magpie(args: argparse.Namespace) -> None:
    from ...curate.teachers.made_report import source_of_model
    from ...curate.teachers.magpie import SOURCE as NAME
    from ...curate.teachers.magpie import STEPS, Magpie

    settings = _settings(args, Magpie)
    template, tokenizer = _template_of(args)
    with asking(args, args.teacher) as asker:
        teacher = _counted(asker)
        made = settings(teacher, template, tokenizer, args.settings)
        sources = {NAME: source_of_model(made, teacher.name, settings)}
        about = {"template": template.fingerprint, "request": args.settings}
        _write(args, settings, made, STEPS, sources, [teacher], about)
    advice = "raise --samples, or give another --teacher, more --topics or --temperatures"
    tell_shortfall(len(made.rows), settings.rows, "conversations", made.rejected, advice)


def _template_of(args: argparse.Namespace):
    """The chat template and the tokenizer of the teacher."""
    from ...checkpoints import open as open_checkpoint
    from ...checkpoints import open_tokenizer
    from ...data.templates import ChatTemplate, load_template

    if is_url(args.teacher) and args.of is None:
        raise UserError("an endpoint does not tell its chat template: give --of=PATH, a folder with its tokenizer")
    if not is_url(args.teacher):
        refuse_unread(args, ["of", "template"], "an endpoint")
        found = open_checkpoint(args.teacher)
        tokenizer, template = found.tokenizer, found.template
    else:
        tokenizer = open_tokenizer(args.of)
        own = tokenizer.chat_template
        template = None if own is None else ChatTemplate(Path(args.of).name, own)
        template = template if args.template is None else load_template(args.template)
    if tokenizer is None or template is None:
        raise UserError(f"{args.of or args.teacher} has no tokenizer or no chat template: give another model")
    return template, tokenizer


def _add_dialogues(actions) -> None:
    """Adds `camelid curate dialogues`."""
    parser = command(
        actions,
        "dialogues",
        _dialogues,
        "Make conversations of several turns: a teacher answers, and plays the user who asks further. The same command "
        "resumes after an interruption.",
        "camelid curate dialogues --source=datasets/magpie --teacher=http://localhost:8000 --turns=4 \\\n"
        "    --output=datasets/dialogues",
    )
    _add_sources(parser, "questions and conversations to go on with, or texts that the user asks about")
    _add_output(parser, "dialogues")
    _add_settings(
        parser,
        turns=(int, "N", "most turns of the user in a conversation (default: 3)"),
        temperature=(float, "T", "temperature of the answers (default: 0.7)"),
        max_tokens=(int, "N", "most tokens of an answer (default: 1024)"),
        question_temperature=(float, "T", "temperature of the user's questions (default: 1)"),
        question_tokens=(int, "N", "most tokens of a question (default: 256)"),
        system=(str, "TEXT", "system message of conversations that have none, kept in the rows (default: none)"),
        prompts=(str, "DIR", "folder with dialogue.en.toml and dialogue.zh.toml of your own (default: camelid's)"),
    )
    add_teacher(parser)


def _dialogues(args: argparse.Namespace) -> None:
    from ...curate.teachers.dialogues import STEPS, Dialogues

    settings = _settings(args, Dialogues)
    starts = _Starts(args)
    with asking(args, args.teacher) as asker:
        teacher = _counted(asker)
        made = settings(teacher, starts.rows, starts.made, args.settings)
        _write(args, settings, made, STEPS, starts.sources(teacher.name), [teacher], {"request": args.settings})
    starts.tell_shortfall("conversations")


def _add_pairs(actions) -> None:
    """Adds `camelid curate pairs`."""
    parser = command(
        actions,
        "pairs",
        _pairs,
        "Make preference pairs: a teacher answers each question several times, and a judge compares the answers in "
        "both orders. The same command resumes after an interruption.",
        "camelid curate pairs --source=questions.jsonl --teacher=runs/sft --answers=4 --judge=runs/reward \\\n"
        "    --output=datasets/pairs\n"
        "camelid curate pairs --source=questions.jsonl --teacher=small=https://api.example.com/v1 \\\n"
        "    --also=large=https://api.example.com/v1 --judge=large=https://api.example.com/v1 --output=datasets/pairs",
    )
    _add_sources(parser, "questions, of which the last turn of the user is answered")
    _add_output(parser, "pairs")
    _add_settings(
        parser,
        answers=(int, "N", "answers to each question; all pairs of them are compared (default: 2)"),
        temperatures=(_numbers, "T,T", "temperatures of the answers by turns (default: 0.7,1)"),
        max_tokens=(int, "N", "most tokens of an answer (default: 1024)"),
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="URL|PATH",
        help="a further model that answers by turns with the teacher; give the option again for more. The name of the "
        "model at an endpoint may stand before its address, as in large=https://api.example.com/v1",
    )
    parser.add_argument(
        "--judge",
        metavar="URL|PATH",
        help="who compares: an endpoint, a language model, or a reward model of the recipe `reward` (default: the "
        "teacher)",
    )
    parser.add_argument(
        "--prompts",
        metavar="DIR",
        help="own prompts for the judge, as for `camelid judge grade` (default: camelid's)",
    )
    parser.add_argument(
        "--verdict_tokens", type=int, default=1024, metavar="N", help="most tokens of a verdict (default: 1024)"
    )
    add_teacher(parser)


def _pairs(args: argparse.Namespace) -> None:
    from ...curate.teachers.preference_pairs import STEPS, RankedPairs

    settings = _settings(args, RankedPairs)
    check_least(args, verdict_tokens=1)
    scores = args.judge is not None and is_reward_model(args.judge)
    if scores:
        refuse_unread(args, ["prompts", "verdict_tokens"], "a judge that writes its verdicts")
    starts, teachers = _Starts(args), [args.teacher, *args.also]
    asked = [*teachers, *([args.judge] if args.judge is not None and not scores else [])]
    with asking_several(args, asked) as askers:
        counted = [_counted(asker) for asker in askers]
        judge = _judge(args, settings, counted[len(teachers)] if len(asked) > len(teachers) else counted[0], scores)
        answering = counted[: len(teachers)]
        made = settings(answering, comparing(judge), judge.name, starts.rows, starts.made, args.settings)
        sources = starts.sources(", ".join(dict.fromkeys(each.name for each in answering)))
        _write(args, settings, made, STEPS, sources, counted, {"judge": judge.name, "request": args.settings})
    starts.tell_shortfall("pairs")


def _judge(args: argparse.Namespace, settings, asker, scores: bool):
    """The judge of pairs."""
    from ...evals.grading import AskingJudge, ScoringJudge
    from ...evals.judge_templates import JudgePrompts

    if scores:
        from ...rlhf.reward_model import load_reward

        return ScoringJudge(score_of(load_reward(args.judge)), Path(args.judge).absolute().name)
    how = {"temperature": 0.0, "max_tokens": args.verdict_tokens}
    how |= {} if settings.seed is None else {"seed": settings.seed}
    return AskingJudge(asker, JudgePrompts(args.prompts), settings=how)


def comparing(judge) -> Callable[[Sequence[Any]], list[Any]]:
    """A judge of evaluations (`evals/grading.py`) as what compares the answers of pairs (`preference_pairs.Judge`).

    A system message stands before the first question, since judges are shown questions and answers.
    """
    from ...curate.teachers.preference_pairs import Verdict
    from ...evals.grading import Case
    from ...evals.questions import Question

    def case(number: int, comparison) -> Case:
        asked, answered = [""], []
        for message in comparison.messages:
            if message["role"] == "assistant":
                answered.append(message["content"])
                asked.append("")
            else:
                asked[-1] = f"{asked[-1]}\n\n{message['content']}".strip()
        question = Question(str(number), tuple(asked), language=comparison.language)
        said = tuple((*answered, answer) for answer in comparison.answers)
        return Case(question, len(asked), ("first", "second"), said)

    def compare(comparisons: Sequence[Any]) -> list[Verdict]:
        judgments = judge.judge([case(number, each) for number, each in enumerate(comparisons)])
        return [Verdict(each.winner, each.scores) for each in judgments]

    return compare


def _add_revisions(actions) -> None:
    """Adds `camelid curate revisions`."""
    parser = command(
        actions,
        "revisions",
        _revisions,
        "Make preference pairs: a teacher answers, criticises its answer by a principle, and revises it; the revision "
        "is preferred. The same command resumes after an interruption.",
        "camelid curate revisions --source=questions.jsonl --teacher=http://localhost:8000 --output=datasets/revised\n"
        "camelid curate revisions --source=questions.jsonl --teacher=runs/sft --principles=ours.toml --rounds=2 \\\n"
        "    --output=datasets/revised",
    )
    _add_sources(parser, "questions, of which the last turn of the user is answered")
    _add_output(parser, "revisions")
    _add_settings(
        parser,
        rounds=(int, "N", "most revisions of an answer, each by another principle (default: 1)"),
        temperature=(float, "T", "temperature of the answers (default: 0.7)"),
        revision_temperature=(float, "T", "temperature of criticisms and revisions (default: 0.7)"),
        max_tokens=(int, "N", "most tokens of an answer, a criticism or a revision (default: 1024)"),
        prompts=(
            str,
            "DIR",
            "own prompts, critique and revision, each in .en.toml and .zh.toml (default: camelid's)",
        ),
    )
    parser.add_argument(
        "--principles",
        metavar="FILE",
        help="TOML file of own principles (default: camelid's, curate/principles.toml)",
    )
    add_teacher(parser)


def _revisions(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from ...curate.teachers.principles import read_principles
    from ...curate.teachers.revisions import STEPS, Revisions

    settings, principles = _settings(args, Revisions), read_principles(args.principles)
    starts = _Starts(args)
    with asking(args, args.teacher) as asker:
        teacher = _counted(asker)
        made = settings(teacher, starts.rows, principles, starts.made, args.settings)
        said = {language: [asdict(each) for each in every] for language, every in principles.items()}
        about = {"principles": said, "request": args.settings}
        _write(args, settings, made, STEPS, starts.sources(teacher.name), [teacher], about)
    starts.tell_shortfall("pairs")


class _Starts:
    """The rows to start from.

    Attributes:
      rows: the rows.
      made: holds the records from which nothing can be made.
    """

    def __init__(self, args: argparse.Namespace):
        from ...curate.settings import sources_at
        from ...curate.teachers.candidates import Made, start_rows
        from ...data.sources import Source, raw_rows

        self.rows, self.made, self._licence = [], Made(), args.licence
        self._sources = {
            name: Source(location, format=args.format, on_error=args.on_error)
            for name, location in zip(sources_at(args.source), args.source, strict=True)
        }
        for name, source in self._sources.items():
            self.rows += start_rows(name, raw_rows(source), self.made, source)
        if not self.rows:
            raise UserError(f"{', '.join(args.source)}: there is no record to start from: give another --source")

    def sources(self, teacher: str) -> dict[str, Any]:
        """The sources on the card, once the rows are made."""
        from ...curate.teachers.made_report import source_of_files

        return {
            name: source_of_files(source, self.made, name, self._licence, teacher)
            for name, source in self._sources.items()
        }

    def tell_shortfall(self, what: str) -> None:
        """Says that fewer rows were made than there are to start from, once they are made."""
        from ...curate.settings import READ

        rejected = [each for each in self.made.rejected if each.step != READ]
        advice = "rejected/ holds what the teacher wrote; another --teacher, --prompts or more --max_tokens may help"
        tell_shortfall(len(self.made.rows), len(self.rows), what, rejected, advice)


def _settings(args: argparse.Namespace, kind: type):
    """The dataclass that makes the rows, with what the options say. Also checks the other options."""
    from ...curate.outputs import check_replaceable
    from ...data.licences import check_name
    from ...settings.sections import read

    check_name(getattr(args, "licence", None), "--licence")
    sources = getattr(args, "source", [])
    check_asking(args, sources, folder=True)
    check_replaceable(args.output, sources)
    given = {name: value for name in args.fields if (value := getattr(args, name)) is not None}
    try:
        return read(given, kind, "-")
    except UserError as error:
        raise UserError(str(error).replace("-.", "--")) from None


def _counted(asker):
    from ...curate.teachers.candidates import Counting

    return Counting(asker)


def _write(args: argparse.Namespace, settings, made, steps, sources, teachers, more: dict[str, Any]) -> None:
    """Writes the dataset, and prints its tables."""
    from rich.console import Console

    from ...curate.dataset import Layout, write_dataset
    from ...curate.run_table import to_rich
    from ...curate.teachers.made_report import about

    said = about(args.name, settings, made, steps, sources, teachers, more)
    layout = Layout(write_as=args.write_as)
    card, table = write_dataset(args.output, made.rows, made.rejected, said, tokenizer=args.tokenizer, layout=layout)
    Console().print(to_rich(table.tables(card.steps)))
    print(*teachers, sep="\n")
    print(f"{len(made.rows):,} rows kept and {len(made.rejected):,} rejected in {args.output}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list of numbers, as in 0.7,1") from None
