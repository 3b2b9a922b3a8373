"""Answers of models to sets of questions: asking for them, and the files that hold them."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..data.checksums import write_whole
from ..errors import UserError, shown
from ..serve.journal import Asker, Reply, Request
from .questions import Question, name_in, records_of, texts_in

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""Temperatures of answers by category, as in MT-bench (Zheng et al., "Judging LLM-as-a-Judge", arXiv:2306.05685)."""

OTHER_TEMPERATURE = 0.7
"""Temperature of answers in further categories, as in MT-bench."""


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question, in every turn."""

    question_id: str
    """Id of the question."""

    model: str
    """Name of the model."""

    turns: tuple[str, ...]
    """The answer in each turn."""

    category: str = ""
    """Category of the question."""

    language: str = ""
    """Language of the question."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the model was asked with, such as temperature."""

    finish_reasons: tuple[str, ...] = ()
    """Why each answer ended, such as "stop" or "length"."""

    tokens: tuple[int | None, ...] = ()
    """Number of tokens in each answer; None where it is unknown."""

    characters: tuple[int, ...] = ()
    """Number of characters in each answer."""

    versions: tuple[str, ...] = ()
    """The version of the model that answered in each turn, where an endpoint names it."""


def ask_questions(
    questions: Sequence[Question],
    asker: Asker,
    *,
    name: str | None = None,
    temperature: float | None = None,
    max_tokens: int = 1024,
    seed: int | None = None,
    system: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> list[Answer]:
    """Asks a model all questions, turn by turn. In later turns the model's own earlier answers stand before.

    Args:
      questions: the questions.
      asker: who answers.
      name: the model's name in the answers; None: that of `asker`.
      temperature: of all answers; None: by the category of the question, `TEMPERATURES`.
      max_tokens: the most tokens of an answer in one turn.
      seed: seed of the sampling; None sends none.
      system: system message before each conversation.
      more: further settings of the requests; none of `journal.RESERVED`. One that is None takes a setting out.

    Returns:
      The answers in the order of the questions.

    Raises:
      UserError: some questions could not be answered.
    """
    begin = [] if system is None else [{"role": "system", "content": system}]
    replies: list[list[Reply]] = [[] for _ in questions]
    settings = [_settings(question, temperature, max_tokens, seed, more or {}) for question in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        places = [i for i, question in enumerate(questions) if turn < len(question.turns)]
        requests = []
        for i in places:
            messages = conversation(questions[i].turns[: turn + 1], [reply.text for reply in replies[i]])
            requests.append(Request([*begin, *messages], settings[i]))
        for i, reply in zip(places, asker.ask(requests), strict=True):
            replies[i].append(reply)
    return [
        Answer(
            question.id,
            name or asker.name,
            tuple(reply.text for reply in said),
            question.category,
            question.language,
            how | ({} if system is None else {"system": system}),
            tuple(reply.finish_reason for reply in said),
            tuple(reply.completion_tokens for reply in said),
            tuple(len(reply.text) for reply in said),
            tuple(reply.model for reply in said),
        )
        for question, said, how in zip(questions, replies, settings, strict=True)
    ]


def conversation(asked: Sequence[str], said: Sequence[str]) -> list[dict[str, str]]:
    """The messages of a conversation in which the assistant is to speak. said: its answers to all but the last turn."""
    messages = []
    for place, text in enumerate(asked):
        messages.append({"role": "user", "content": text})
        if place < len(asked) - 1:
            messages.append({"role": "assistant", "content": said[place]})
    return messages


def write_records(records: Sequence[Any], path: str | os.PathLike) -> None:
    """Writes dataclasses as JSON lines. The file is there whole or not at all."""
    write_whole(Path(path).expanduser(), lines_of(records))


def lines_of(records: Sequence[Any]) -> str:
    """Dataclasses as JSON lines."""
    return "".join(f"{json.dumps(asdict(record), ensure_ascii=False)}\n" for record in records)


def read_answers(path: str | os.PathLike) -> list[Answer]:
    """Reads answers to questions, as `camelid judge answers` writes them or FastChat does.

    FastChat's files have {"question_id", "model_id", "choices": [{"turns": [...]}]}, of which the first choice is
    read, or {"question_id", "model_id", "text"}.

    Raises:
      UserError: the file cannot be read or is empty, a line is no answer, or one model has two answers to a question.
    """
    found: dict[tuple[str, str], Answer] = {}
    for place, record in records_of(path):
        answer = _answer(record, place)
        if (answer.model, answer.question_id) in found:
            raise UserError(
                f"{place}: {answer.model} has an answer to question {answer.question_id} in a line before: take one out"
            )
        found[answer.model, answer.question_id] = answer
    if not found:
        raise UserError(f"{path} has no answers: give a file that `camelid judge answers` has written")
    return list(found.values())


def _answer(record: Mapping[str, Any], where: str) -> Answer:
    """The answer in a record. Raises UserError if there is none."""
    model, question_id = name_in(record, ("model", "model_id"), where), name_in(record, ("question_id",), where)
    choices = record.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        record = {**record, "turns": choices[0].get("turns")}
    turns = next((texts_in(record, name, where) for name in ("turns", "text") if record.get(name) is not None), ())
    if model is None or question_id is None or not turns:
        raise UserError(f"{where}: {shown(record)} has no question_id, model and turns: it is no answer to a question")
    known = {name: record[name] for name in ("category", "language", "settings") if name in record}
    lists = ("finish_reasons", "tokens", "characters", "versions")
    lists = {name: tuple(record[name]) for name in lists if isinstance(record.get(name), list)}
    return Answer(question_id, model, turns, **known, **lists)


def _settings(
    question: Question, temperature: float | None, max_tokens: int, seed: int | None, more: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of the requests for the answer to a question."""
    if temperature is None:
        temperature = TEMPERATURES.get(question.category, OTHER_TEMPERATURE)
    settings = {"temperature": temperature, "max_tokens": max_tokens} | ({} if seed is None else {"seed": seed})
    return {name: value for name, value in (settings | dict(more)).items() if value is not None}
