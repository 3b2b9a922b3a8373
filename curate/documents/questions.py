"""Questions about one's own documents, written by a teacher, with the passage, file and page that each rests on.

    asked = ask_questions(passages, asker, Questions(per_passage=3))      # rows and rejected rows

Each passage is a request of its own in the passage's language. With the replies in a journal, a run that was killed
anywhere comes to the same end. Every pair in an answer is kept, or rejected by one of these steps:

    answer       it cannot be read, was cut, or there is none
    grounded     its answer does not rest on the passage (`grounding.py`)
    repeated     a question of an earlier passage has the same words
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from ...data.formats import parse
from ...serve.journal import Asker, Reply, Request
from ...settings.leaves import Count, NotNegative, Share, Unset, Whole
from ..rows import LANGUAGE, Rejected, Row, id_of
from ..teachers.candidates import Counting, Made
from ..teachers.instruct_prompts import Prompts
from .grounding import RESTS_ON, Grounded
from .passages import size_of

ANSWER, GROUNDED, REPEATED = "answer", "grounded", "repeated"
"""Names of the steps that reject questions."""

REASONS = {ANSWER: ("malformed", "cut", "no_questions"), GROUNDED: Grounded.reasons, REPEATED: ("repeated",)}
"""The reasons of each step."""

SOURCE = "document-questions"
"""Name of the source of the questions, which is part of their ids."""

KEPT = ("file", "file_hash", "sheet", "passage", "heading", "page", "last_page", LANGUAGE)
"""Columns of the passage that its questions have too."""

_QUESTION = re.compile(
    r"^[\s*#>-]*(?:\d+[.)、]\s*)?(?:question|q|问题|提问|问)\s*\d*\s*(?:\*\*)?\s*[:：](?:\*\*)?", re.I | re.M
)
_ANSWER = re.compile(r"^[\s*#>-]*(?:answer|a|答案|回答|答)\s*\d*\s*(?:\*\*)?\s*[:：](?:\*\*)?", re.I | re.M)
_NONE = re.compile(r"\W*(?:none|无|没有)\W*", re.I)


@dataclass(frozen=True)
class Questions:
    """How questions are asked for."""

    per_passage: Count = 3
    """Questions that are asked for with each passage."""

    context: bool = False
    """Whether the passage is the input of the question, for a model that answers from what it is shown."""

    smallest: Whole = 100
    """Size of the smallest passage that questions are asked about; a Chinese character counts as three."""

    support: Share = 0.5
    """Smallest share of an answer's content words that have to stand in its passage (`grounding.Grounded`)."""

    temperature: NotNegative = 0.7
    """Temperature of the teacher's answers."""

    max_tokens: Count = 1024
    """The most tokens of an answer."""

    prompts: Annotated[str | None, Unset("the project's own prompts")] = None
    """Folder with questions.en.toml and questions.zh.toml of one's own (`instruct_prompts.Prompts`)."""


@dataclass
class Asked(Made):
    """The questions that a teacher wrote, with their answers."""

    teacher: Counting = field(kw_only=True, compare=False)
    """The teacher, with its replies."""


def ask_questions(
    passages: Sequence[Row], asker: Asker, settings: Questions, more: Mapping[str, Any] | None = None
) -> Asked:
    """Lets a teacher write questions about passages.

    Args:
      passages: rows of text, in order (`document_rows.Documents.passages`).
      asker: the teacher.
      settings: how.
      more: further settings of each request. One that is None takes a setting out.

    Raises:
      UserError: a prompt is wrong, or some requests could not be answered.
    """
    how = {"temperature": settings.temperature, "max_tokens": settings.max_tokens} | dict(more or {})
    how = {name: value for name, value in how.items() if value is not None}
    prompts, times, asked, seen = Prompts(settings.prompts), Counter(), Asked(teacher=Counting(asker)), {}
    chosen = [row for row in passages if size_of(row.record["text"]) >= settings.smallest]
    requests = [_request(row, prompts, settings, how, times) for row in chosen]
    for passage, request, reply in zip(chosen, requests, asked.teacher.ask(requests), strict=True):
        about = {name: passage.columns[name] for name in KEPT if name in passage.columns}
        about |= {"passage_id": passage.id, RESTS_ON: passage.record["text"], "teacher": asker.name}
        about |= {"version": reply.model} if reply.model else {}
        about |= {"request": asker.key(request)}
        for number, (raw, dropped) in enumerate(parse_questions(reply), 1):
            raw = raw | ({"context": passage.record["text"]} if settings.context and not dropped else {})
            id = id_of(SOURCE, raw | {"request": about["request"], "number": number})
            _take(asked, Row(id, raw, SOURCE, passage.place, about), dropped, Grounded(settings.support), seen)
    return asked


def parse_questions(reply: Reply) -> list[tuple[dict[str, str], Rejected | None]]:
    """The questions with their answers in a reply, as raw records, each with why it is rejected or None."""
    text, cut = reply.text.strip(), reply.finish_reason != "stop"
    parts = _QUESTION.split(text)[1:]
    if not parts:
        reason = "no_questions" if _NONE.fullmatch(text) else "cut" if cut else "malformed"
        return [({"reply": text}, Rejected(reason, f"{reply.finish_reason}: {text[:200]}"))]
    found = []
    for number, part in enumerate(parts, 1):
        question, *answers = (words.strip().strip("*").strip() for words in _ANSWER.split(part, maxsplit=1))
        last = number == len(parts)
        if cut and last:
            found.append(({"reply": part.strip()}, Rejected("cut", reply.finish_reason)))
        elif not question or not answers or not answers[0]:
            missing = "no question" if not question else "no answer"
            found.append(({"reply": part.strip()}, Rejected("malformed", missing)))
        else:
            found.append(({"question": question, "answer": answers[0]}, None))
    return found


def _request(row: Row, prompts: Prompts, settings: Questions, how: Mapping[str, Any], times: Counter) -> Request:
    """The request for questions about a passage. Its sample tells it from those of passages with the same words."""
    language = "zh" if row.columns.get(LANGUAGE) == "zh" else "en"
    variables = {"passage": row.record["text"], "headings": row.columns.get("heading", []), "file": row.columns["file"]}
    messages = prompts.messages("questions", language, count=settings.per_passage, **variables)
    content = json.dumps(messages, ensure_ascii=False)
    times[content] += 1
    return Request(messages, how, times[content] - 1)


def _take(asked: Asked, row: Row, dropped: Rejected | None, grounded: Grounded, seen: dict[str, str]) -> None:
    """Keeps a question, or rejects it."""
    step = ANSWER
    if dropped is None:
        row, step = row.with_(parse(dict(row.record), "qa")), GROUNDED
        found = grounded(row)
        row, dropped = (row, found) if isinstance(found, Rejected) else (found, None)
    if dropped is None:
        words = re.sub(r"[\W_]+", "", row.record["messages"][-2]["content"].casefold())
        first = seen.setdefault(words, row.id)
        step, dropped = (REPEATED, Rejected("repeated", first)) if first != row.id else (step, None)
    if dropped is None:
        asked.rows.append(row)
    else:
        asked.drop(row, step, dropped)
