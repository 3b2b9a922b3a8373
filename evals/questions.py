"""Sets of open questions, of one or more turns, whose answers a judge grades.

A set is a file of JSON lines. Vicuna's 80 questions, MT-bench and Arena-Hard are read as they are published:

    {"question_id": 81, "category": "writing", "turns": ["Compose ...", "Rewrite ..."], "reference": ["...", "..."]}

`turns` are the user's messages, one after the other; `text` or `prompt` holds one message instead. `question_id` (or
`uid`), `category`, `reference` (an answer to each turn) and `language` ("en" or "zh") may be left out; a question
without an id is called by its number.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.files import file_rows, find_files
from ..data.samples import CJK
from ..errors import UserError, did_you_mean, shown

LANGUAGES = ("en", "zh")
"""Languages in which judges are asked."""

CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")

WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Question:
    """A question of one or more turns."""

    id: str
    """Names the question in its set."""

    turns: tuple[str, ...]
    """The user's messages, one or more."""

    category: str = ""
    """Category, such as "math"."""

    reference: tuple[str, ...] = ()
    """A right answer to each turn, "" where there is none; () without any."""

    language: str = "en"
    """One of LANGUAGES: that of the record, else "zh" where a question is mostly in Chinese characters."""


def read_questions(path: str | os.PathLike) -> list[Question]:
    """Reads a set of questions.

    Args:
      path: a file of JSON lines, as the module describes them.

    Raises:
      UserError: the file cannot be read or is empty, a line is no question, or two have the same id.
    """
    found: dict[str, Question] = {}
    places: dict[str, str] = {}
    for number, (place, record) in enumerate(records_of(path), 1):
        question = _question(record, place, str(number))
        if question.id in found:
            raise UserError(f"{place}: question {question.id} stands at {places[question.id]} too: take one out")
        found[question.id], places[question.id] = question, place
    if not found:
        raise UserError(f"{path} has no questions: give a file of JSON lines")
    return list(found.values())


def records_of(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, object) for each record of a file; the place is for messages, such as "answers.jsonl:7".

    Raises:
      UserError: the file cannot be read, or a record is no JSON object in UTF-8.
    """
    for place, record in file_rows(find_files(str(path))):
        if isinstance(record, Exception):
            raise UserError(f"{place}: {record}")
        if not isinstance(record, dict):
            raise UserError(f"{place}: {shown(record)} is no JSON object: mend the line")
        try:
            json.dumps(record, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise UserError(f"{place}: a text has half of a surrogate pair, which is no character: mend it") from None
        yield place, record


def language_of(text: str) -> str:
    """The language of a text: "zh" if it has more Chinese characters than words of other scripts, else "en"."""
    return "zh" if len(CJK.findall(text)) > len(WORD.findall(CJK.sub(" ", text))) else "en"


def texts_in(record: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    """The texts in a field of a record: one text, a list of texts, or a list of {"content": text}; null is "".

    Raises UserError for anything else. where: file and line for the message.
    """
    found = record[field]
    found = [each.get("content") if isinstance(each, dict) else each for each in _listed(found)]
    texts = tuple("" if each is None else each for each in found)
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: {field} is {shown(record[field])}: give a text or a list of texts")
    return texts


def name_in(record: Mapping[str, Any], fields: Sequence[str], where: str) -> str | None:
    """The text or whole number in the first of some fields that a record has; None if all are missing or null.

    Raises UserError for anything else, such as "" or a text with control characters. where: file and line for the
    message.
    """
    field, found = next(((name, record[name]) for name in fields if record.get(name) is not None), ("", None))
    if found is None:
        return None
    if not isinstance(found, str | int) or isinstance(found, bool) or found == "":
        raise UserError(f"{where}: {field} is {shown(found)}: give a text or a whole number")
    if CONTROL_CHARACTER.search(str(found)):
        raise UserError(f"{where}: {field} is {shown(found)}, which has a control character: take it out")
    return str(found)


def _listed(found: Any) -> list:
    return found if isinstance(found, list) else [found]


def _question(record: Mapping[str, Any], where: str, default_id: str) -> Question:
    """The question in a record. Raises UserError if there is none."""
    asked = [field for field in ("turns", "text", "prompt") if field in record]
    if not asked:
        near = did_you_mean(next(iter(record), ""), ("turns", "text", "prompt"))
        raise UserError(f"{where}: the record has no turns: give the user's messages as a list of texts{near}")
    turns = texts_in(record, asked[0], where)
    if not turns or not all(turn.strip() for turn in turns):
        raise UserError(f"{where}: {asked[0]} is {shown(record[asked[0]])}: each turn needs a text")
    reference = texts_in(record, "reference", where) if record.get("reference") else ()
    if len(reference) > len(turns):
        raise UserError(
            f"{where}: there are {len(reference)} references for {len(turns)} turns: give one for each turn"
        )
    language = record.get("language") or language_of("\n".join(turns))
    if language not in LANGUAGES:
        raise UserError(f"{where}: language is {shown(language)}: give en or zh, or leave it out")
    id = name_in(record, ("question_id", "uid", "id"), where) or default_id
    category = record.get("category") or ""
    if not isinstance(category, str):
        raise UserError(f"{where}: category is {shown(category)}: give a text")
    reference += ("",) * (len(turns) - len(reference)) if reference else ()
    return Question(id, turns, category, reference if any(reference) else (), language)
