"""The command `camelid curate documents`."""

import argparse
import contextlib
import sys
from pathlib import Path

from ...errors import UserError
from .arguments import check_least, columns, command, refuse_unread
from .asking import ENDPOINT, add_teacher, asking, check_asking, tell_shortfall

TEACHER = ("questions", "context", "prompts", "model", "settings", "seed", "journal", "batch_size")
"""The options that only a teacher reads, beside those of endpoints."""


def add_documents(actions) -> None:
    """Adds `camelid curate documents`."""
    parser = command(
        actions,
        "documents",
        _documents,
        "Make datasets of your own documents: passages of PDF, Word, HTML, Markdown and text files, the records of "
        "CSV, TSV and Excel tables, and questions that a teacher writes about the passages. OUTPUT/documents has the "
        "passages, OUTPUT/questions the questions with their answers.",
        "camelid curate documents handbook --output=datasets/handbook\n"
        'camelid curate documents faq.xlsx --columns=\'{"instruction": "Ask", "output": "Tell"}\' --output=faq\n'
        "camelid curate documents handbook --teacher=http://localhost:8000 --questions=5 --output=datasets/handbook",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of documents, or one file")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the datasets documents and questions"
    )
    parser.add_argument(
        "--columns",
        type=columns,
        default={},
        metavar="JSON",
        help='the columns of tables that hold the fields of a format, as in \'{"instruction": "Ask", "output": '
        '"Tell"}\' (default: found by names such as question and answer, 问题 and 答案)',
    )
    parser.add_argument(
        "--passage",
        type=int,
        default=1200,
        metavar="N",
        help="largest passage in characters; a Chinese character counts as three (default: 1200)",
    )
    parser.add_argument(
        "--encoding", metavar="NAME", help="encoding of text, HTML, CSV and TSV files, such as gb18030 (default: utf-8)"
    )
    parser.add_argument(
        "--on_error",
        default="raise",
        choices=("raise", "skip"),
        help="stop at a file or row that cannot be read, or leave it out and list it (default: raise)",
    )
    parser.add_argument("--licence", metavar="NAME", help="licence of the documents, for the cards of the datasets")
    parser.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer whose tokens the tables count (default: characters are counted)"
    )
    add_teacher(parser, required=False)
    parser.add_argument(
        "--questions", type=int, metavar="N", help="with a teacher: questions for each passage (default: 3)"
    )
    parser.add_argument(
        "--context",
        action="store_true",
        help="with a teacher: put the passage into the question, for a model that answers from what it is shown",
    )
    parser.add_argument(
        "--prompts",
        metavar="DIR",
        help="with a teacher: folder with questions.en.toml and questions.zh.toml of your own (default: camelid's)",
    )


def _documents(args: argparse.Namespace) -> None:
    from rich.console import Console

    from ...curate.dataset import write_dataset
    from ...curate.documents.questions import Questions, ask_questions
    from ...curate.documents.report import about_documents, about_questions, files_table, ledger_of, split_rejected
    from ...curate.documents.rows import Reading, read_documents
    from ...curate.outputs import check_replaceable
    from ...curate.run_table import to_rich
    from ...settings.sections import read
    from ..outputs import check_writable

    check_least(args, passage=1, questions=1)
    folder = Path(args.folder).expanduser()
    if args.teacher is None:
        refuse_unread(args, (*TEACHER, *ENDPOINT), "--teacher")
        check_writable(args.output, "--output")
        args.output = Path(args.output).expanduser()
    else:
        check_asking(args, [str(folder)], folder=True)
    reading = {name: getattr(args, name) for name in ("passage", "columns", "encoding", "on_error")}
    settings = read(reading, Reading, "documents")
    places = {name: args.output / name for name in ("documents", "questions")}
    for place in places.values():
        check_replaceable(place, [str(folder)])
    console = Console()
    per_passage = {} if args.questions is None else {"per_passage": args.questions}
    how = Questions(**per_passage, context=args.context, prompts=args.prompts)
    more = ({} if args.seed is None else {"seed": args.seed}) | args.settings
    asked, about = None, {}
    with contextlib.ExitStack() as stack:  # a teacher that cannot be asked is told before anything is read
        asker = None if args.teacher is None else stack.enter_context(asking(args, args.teacher))
        found = read_documents(folder, settings, tell=lambda line: print(f"camelid: {line}", file=sys.stderr))
        console.print(to_rich(iter([files_table(found)])))
        files, rows = split_rejected(found.rejected)
        if asker is not None:
            asked = ask_questions(found.passages, asker, how, more)
            about = {"asked": asked, "questions": how, "teacher": asker.name, "more": more}
            print(ledger_of(asked))
    questions = [*found.records, *(asked.rows if asked else ())]
    dropped = [*rows, *(asked.rejected if asked else ())]
    given = {}  # rows and rejected rows of each dataset; one that is not written leaves its rejected rows to the other
    if questions or asked:
        given["questions"] = questions, dropped if found.passages else [*files, *dropped]
    if found.passages:
        given["documents"] = found.passages, files if questions or asked else [*files, *dropped]
    for name, place in places.items():
        if name not in given and place.exists():
            raise UserError(f"{place} is there from before, and this command makes no {name}: delete it")
    for name in (name for name in places if name in given):
        kept, rejected = given[name]
        said = (
            about_documents(folder, found, settings, rejected, args.licence)
            if name == "documents"
            else about_questions(folder, found, settings, rejected, args.licence, **about)
        )
        card, table = write_dataset(places[name], kept, rejected, said, tokenizer=args.tokenizer)
        console.print(to_rich(table.tables(card.steps)))
        print(f"{len(kept):,} {'passages' if name == 'documents' else 'questions'} in {places[name]}")
    if notes := sum(bool(each.notes) for each in found.files):
        files = "1 file has a note" if notes == 1 else f"{notes} files have notes"
        print(f"camelid: {files}: see the column notes of the table of files, also in report.md", file=sys.stderr)
    if asked is not None and not asked.teacher.replies:
        print(f"camelid: no passage has {how.smallest} characters, so nothing was asked", file=sys.stderr)
    elif asked is not None:
        advice = "questions/rejected holds what the teacher wrote; another --teacher or --prompts may help"
        tell_shortfall(
            len(asked.rows), len(asked.teacher.replies) * how.per_passage, "questions", asked.rejected, advice
        )
