"""Questions with choices: JSON lines of one's own, and the files of MMLU, C-Eval and CMMLU as they are published.

    mine.jsonl          {"question", "choices": [...], "answer", "context"?, "id"?, "subject"?, "group"?, "cluster"?};
                        the answer is a choice, its place from 0, or its letter
    MMLU                test/anatomy_test.csv and dev/anatomy_dev.csv: question, four choices, letter; no header
    C-Eval              val/law_val.csv and dev/law_dev.csv: id, question, A, B, C, D, answer, explanation in dev
    CMMLU               test/anatomy.csv and dev/anatomy.csv: number, Question, A, B, C, D, Answer

A folder is read with all its subjects. The questions of a subject's `dev` file are its examples ("shots").
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data.files import file_rows, find_files
from ..data.json_values import kind_of
from ..errors import UserError, did_you_mean, shown
from .items import MACRO

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Question:
    """A question with choices."""

    id: str
    """Names the question: its own id, or its number."""

    text: str
    """The question."""

    choices: tuple[str, ...]
    """The possible answers."""

    answer: int
    """The place of the right one, from 0."""

    subject: str = ""
    """The subject of an exam, such as "high_school_physics"."""

    group: str = ""
    """A group of the user's, whose accuracy is given apart."""

    cluster: str = ""
    """What it shares with other questions, such as the text that they are about."""

    exam: bool = False
    """Whether the question is from an exam's CSV, which is asked by letters."""

    where: str = ""
    """Its file and line, for messages."""


def read_questions(path: str) -> tuple[list[Question], dict[str, list[Question]]]:
    """The questions of a file, or of a folder of an exam. Without ids of their own they are numbered.

    Args:
      path: a .jsonl or .csv file, a glob of several, or the folder of an exam with `dev` and `test` or `val`.

    Returns:
      The questions, and the examples of each subject; {} where there are none.

    Raises:
      UserError: a record that is no question with choices, with its file and line.
    """
    folder = Path(path)
    if not (folder / "dev").is_dir():
        return _numbered(path, [each for file in _files(path) for each in _read(file)]), {}
    part = "test" if any(_answered(file) for file in sorted((folder / "test").glob("*.csv"))[:1]) else "val"
    questions = [question for file in sorted((folder / part).glob("*.csv")) for question in _read(file)]
    if not questions:
        raise UserError(f"{path}: neither test/*.csv nor val/*.csv has questions with answers")
    shots: dict[str, list[Question]] = {}
    for file in sorted((folder / "dev").glob("*.csv")):
        for question in _read(file):
            shots.setdefault(question.subject, []).append(question)
    return _numbered(path, questions), shots


def _numbered(path: str, questions: Sequence[Question]) -> list[Question]:
    """Questions, each with an id of its own. Raises UserError for one that stands twice, or if there are none."""
    if not questions:
        raise UserError(f"{path} has no questions")
    named = [each if each.id else replace(each, id=str(number)) for number, each in enumerate(questions, 1)]
    check_ids((each.id, each.where) for each in named)
    return named


def check_ids(found: Iterable[tuple[str, str]]) -> None:
    """Raises UserError, with both places, for an id that stands twice. found: (id, place) of each question."""
    places: dict[str, str] = {}
    for name, where in found:
        if name in places:
            raise UserError(f"{where}: the id {name!r} stands in {places[name]} too: give each question its own")
        places[name] = where


def _files(path: str) -> list[Path]:
    if Path(path).suffix == ".csv" or Path(path).is_file():
        if not Path(path).exists():
            raise UserError(f"{path}: there is no such file")
        return [Path(path)]
    return [Path(str(file)) for file in find_files(path)]


def _answered(file: Path) -> bool:
    """Whether the questions of a file come with answers; those of C-Eval's tests do not."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            columns = _columns(next(csv.reader(lines), []))
    except (UnicodeDecodeError, csv.Error):
        return True  # reading it tells what is wrong
    return not columns or "answer" in columns


def _read(file: Path) -> Iterator[Question]:
    if file.suffix == ".csv":
        yield from _csv(file)
        return
    for where, record in file_rows(find_files(str(file))):
        if isinstance(record, ValueError):
            raise UserError(f"{where}: {record}")
        yield question_of(record, where)


def question_of(record: object, where: str) -> Question:
    """The question of a record of JSON lines. Raises UserError, with the place, for a record that is none."""
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: {kind_of(record)} is no question: give an object")
    check_fields(record, FIELDS, where)
    text, choices, answer = (record.get(name) for name in ("question", "choices", "answer"))
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{where}: "question" is {kind_of(text)}: give a text')
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) and each for each in choices):
        raise UserError(f'{where}: "choices" needs a list of two or more texts')
    if isinstance(answer, str) and answer in choices:
        place = choices.index(answer)
    elif isinstance(answer, str) and len(answer) == 1 and answer in LETTERS[: len(choices)]:
        place = LETTERS.index(answer)
    elif type(answer) is int and 0 <= answer < len(choices):
        place = answer
    else:
        last = LETTERS[min(len(choices), len(LETTERS)) - 1]
        raise UserError(
            f'{where}: "answer" is {answer!r}: give a choice, its place from 0 to {len(choices) - 1}, or A to {last}'
        )
    named = {name: name_of(record, name, where) for name in ("id", "subject", "group", "cluster", "context")}
    context = named.pop("context").strip()
    whole = f"{context}\n{text}" if context else text
    for each in (whole, *choices):
        check_encodable(each, where)
    cluster = named.pop("cluster") or context
    return Question(text=whole, choices=tuple(choices), answer=place, cluster=cluster, where=where, **named)


FIELDS = ("question", "choices", "answer", "context", "id", "subject", "group", "cluster")
"""The fields of a question. Others may be there, and are not read."""


def check_fields(record: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raises UserError for a field that is spelt nearly like one that the record lacks."""
    for field in record:
        lacking = [name for name in known if name not in record]
        if field not in known and (near := did_you_mean(field, lacking)):
            raise UserError(f"{where}: nothing reads the field {field!r}{near}")


def name_of(record: Mapping[str, Any], field: str, where: str) -> str:
    """A field that names something, a text or a whole number; "" where it is missing or null."""
    value = record.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f'{where}: "{field}" is {kind_of(value)}: give a text')
    if field in ("subject", "group") and value == MACRO:
        raise UserError(f'{where}: the {field} "{MACRO}" is the name of the mean over subjects: give another')
    check_encodable(str(value), where)
    return str(value)


def check_encodable(text: str, where: str) -> None:
    """Raises UserError for a text with half of a character, which cannot be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {shown(text)} has a lone surrogate, half of a character: mend the text") from None


NAMES = {"question": "question", "answer": "answer", "id": "id"} | {letter: letter for letter in "ABCD"}
"""{column of a header: field}; Question and Answer are written with a capital in some exams."""


def _columns(header: Sequence[str]) -> dict[str, int]:
    """The place of each field in the rows of a CSV; {} if the first row is no header."""
    found = {
        NAMES[key]: place
        for place, name in enumerate(header)
        if (key := name.strip() if len(name.strip()) == 1 else name.strip().lower()) in NAMES
    }
    return found if {"question", "A", "B"} <= found.keys() else {}


def _csv(file: Path) -> Iterator[Question]:
    subject = re.sub(r"_(test|val|dev)$", "", file.stem)
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.reader(lines, strict=True)
            columns: dict[str, int] | None = None
            for row in rows:
                where = f"{file}:{rows.line_num}"
                if columns is None:
                    columns = _columns(row)
                    if columns:
                        continue
                    columns = {name: place for place, name in enumerate(("question", "A", "B", "C", "D", "answer"))}
                if row:
                    yield _exam_question(row, columns, subject, where)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: no CSV in UTF-8 ({error})") from None


def _exam_question(row: Sequence[str], columns: Mapping[str, int], subject: str, where: str) -> Question:
    if len(row) <= max(columns.values()):
        raise UserError(f"{where}: {len(row)} columns, too few for a question, its choices and the answer")
    if "answer" not in columns:
        raise UserError(f"{where}: the questions come without answers: give the folder with `val`, or another file")
    cells = {name: row[place].strip() for name, place in columns.items()}
    choices = tuple(cells[letter] for letter in "ABCD" if letter in cells)
    if cells["answer"] not in LETTERS[: len(choices)] or len(cells["answer"]) != 1:
        raise UserError(
            f"{where}: the answer is {cells['answer']!r}: give a letter from A to {LETTERS[len(choices) - 1]}"
        )
    name = f"{subject}/{cells.get('id') or where.rpartition(':')[2]}"
    answer = LETTERS.index(cells["answer"])
    return Question(name, cells["question"], choices, answer, subject=subject, exam=True, where=where)
