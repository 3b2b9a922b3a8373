"""Questions with known answers: a model writes its answer, and a metric compares it with the references."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from ..checkpoints.language_model import LanguageModel
from ..data.columns import ANSWER, QUESTION, qa_columns
from ..data.console import tell
from ..data.files import file_rows, find_files
from ..data.json_values import kind_of
from ..errors import UserError
from ..settings import functions
from ..settings.leaves import Count, NotNegative, Path, Unset, Whole
from . import answer_metrics
from .exams import check_encodable, check_fields, check_ids, name_of
from .items import Item
from .lm import LM, as_lm


@dataclass(frozen=True)
class Asked:
    """A question and its references."""

    id: str
    """Names the question: its own id, or its number."""

    messages: tuple[Mapping[str, str], ...]
    """The conversation up to the question."""

    references: tuple[str, ...]
    """Right answers."""

    group: str = ""
    """A group of the user's, whose scores are given apart."""

    cluster: str = ""
    """What it shares with questions that are not independent of it."""

    where: str = ""
    """Its file and line, for messages."""


def read_asked(path: str) -> list[Asked]:
    """The questions of a file: {"question" or "messages", "answer": one text or several, "id", "group", "cluster"}.

    The file has JSON lines, or is a table; `data.columns` has further names of question and answer.

    Raises UserError for another record, with its file and line.
    """
    found = []
    for where, record in file_rows(find_files(path)):
        if isinstance(record, ValueError):
            raise UserError(f"{where}: {record}")
        found.append(_asked(record, where))
    if not found:
        raise UserError(f"{path} has no questions")
    found = [each if each.id else replace(each, id=str(number)) for number, each in enumerate(found, 1)]
    check_ids((each.id, each.where) for each in found)
    return found


def _asked(record: object, where: str) -> Asked:
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: {kind_of(record)} is no question: give an object")
    check_fields(record, FIELDS, where)
    if "choices" in record:
        raise UserError(f'{where}: a question with "choices": ask it by --choices, or take the field out')
    asked, answered, _ = qa_columns(record)
    question, messages, answer = record.get(asked), record.get("messages"), record.get(answered)
    if messages is None:
        messages = [{"role": "user", "content": question}]
        if not isinstance(question, str) or not question.strip():
            raise UserError(f'{where}: "question" is {kind_of(question)}: give a text, or "messages"')
    fits = isinstance(messages, list) and messages and all(
        isinstance(each, Mapping) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
        for each in messages
    )  # fmt: skip
    if not fits or messages[-1]["role"] != "user":
        raise UserError(f'{where}: "messages" needs objects with the texts "role" and "content", the last of the user')
    references = answer if isinstance(answer, list) else [answer]
    numbers = [str(each) if type(each) in (int, float) else each for each in references]
    if not numbers or not all(isinstance(each, str) and each.strip() for each in numbers):
        raise UserError(f'{where}: "answer" is {kind_of(answer)}: give a text, or a list of texts')
    said = tuple({"role": each["role"], "content": each["content"]} for each in messages)
    for text in (*numbers, *(value for each in said for value in each.values())):
        check_encodable(text, where)
    named = {name: name_of(record, name, where) for name in ("id", "group", "cluster")}
    return Asked(messages=said, references=tuple(numbers), where=where, **named)


FIELDS = (*QUESTION, "messages", *ANSWER, "id", "group", "cluster")
"""The fields of a question. Others may be there, and are not read."""


def exact(
    model: LanguageModel | LM,
    *,
    file: Path,
    metric: str = "exact",
    shots: Whole = 0,
    shots_file: Annotated[Path | None, Unset("the last questions of `file`")] = None,
    chat: bool = False,
    max_tokens: Count = 256,
    temperature: NotNegative = 0.0,
    n: Count = 1,
    stop: list[str] = (),
    seed: Whole = 0,
    limit: Annotated[Count | None, Unset("all questions")] = None,
    batch_size: Annotated[Count | None, Unset("64")] = None,
) -> list[Item]:
    """Asks questions and compares the answers with references.

    Args:
      model: the model.
      file: the questions, see `read_asked`.
      metric: exact, starts, contains, number, f1, or a function such as "file.py:name" (`evals.answer_metrics`).
      shots: number of examples before each question.
      shots_file: questions with answers that serve as examples.
      chat: whether the chat template is used. Without it questions stand after "Question:", and an answer ends before
        the next "Question:".
      max_tokens: the most tokens in an answer.
      temperature: temperature of sampling; 0 takes the likeliest token.
      n: number of answers to each question. With more than one, the score is their mean, and "maj@n" is the score of
        the answer that most of them give.
      stop: strings before which an answer ends.
      seed: seed of the sampling.
      limit: number of questions, from the beginning.
      batch_size: number of prompts that are answered together.

    Raises:
      UserError: a file that cannot be read, a metric that fails, or several answers at temperature 0, which are equal.
    """
    lm, score = as_lm(model, batch_size), answer_metrics.find(metric, "metric")
    if n > 1 and not temperature:
        raise UserError(f"n is {n} at temperature 0, where all answers are equal: set temperature, or n = 1")
    asked = read_asked(file)
    examples, asked = _examples(asked, shots, shots_file)
    asked = asked[:limit]
    if metric == "number":
        _check_numbers(asked)
    prompts = [_prompt(lm, each, examples, chat) for each in asked]
    full = [each for each, prompt in zip(asked, prompts, strict=True) if len(prompt) >= lm.max_len]
    if full:
        tell(f"{len(full):,} questions fill the context of {lm.max_len:,} tokens and get no answer: {full[0].where}")
    stops = [*stop, *(() if chat else ("\nQuestion:", "\n问题："))]
    how = dict(max_tokens=max_tokens, temperature=temperature, n=n, seed=seed, stop=stops)
    name = metric.rpartition(":")[2]
    answers = iter(lm.generate([prompt for prompt in prompts if len(prompt) < lm.max_len], **how))
    found = [next(answers) if len(prompt) < lm.max_len else [""] * n for prompt in prompts]
    whole = [lm.decode(prompt) for prompt in prompts] if shots else [each.messages[-1]["content"] for each in asked]
    return [
        _item(each, prompt, [text.strip() for text in texts], score, name)
        for each, prompt, texts in zip(asked, whole, found, strict=True)
    ]


def _check_numbers(asked: Sequence[Asked]) -> None:
    """Raises UserError for a question without a number among its references."""
    for each in asked:
        if not any(answer_metrics.last_number(reference) is not None for reference in each.references):
            raise UserError(f"{each.where}: the answer has no number, which the metric number compares")


def _examples(asked: list[Asked], shots: int, shots_file: str | None) -> tuple[list[Asked], list[Asked]]:
    """Examples, and the questions that are left to ask."""
    if not shots:
        return [], asked
    there = asked if shots_file is None else read_asked(shots_file)
    if len(there) < shots + (shots_file is None):
        raise UserError(f"shots is {shots}: there are {len(there)} questions with answers; give fewer, or shots_file")
    if shots_file is None:
        return asked[-shots:], asked[:-shots]
    return there[:shots], asked


def _prompt(lm: LM, asked: Asked, examples: Sequence[Asked], chat: bool) -> list[int]:
    """The tokens of a question after as many of the examples as fit the context, the last ones. The question itself is
    none of them."""
    examples = [each for each in examples if each.messages != asked.messages]
    if not chat and len(asked.messages) > 1:
        raise UserError(f"{asked.where}: a conversation needs the chat template: set chat")
    while len(tokens := _tokens(lm, asked, examples, chat)) >= lm.max_len and examples:
        examples = examples[1:]
    return tokens


def _tokens(lm: LM, asked: Asked, examples: Sequence[Asked], chat: bool) -> list[int]:
    if chat:
        told = [({**each.messages[-1]}, {"role": "assistant", "content": each.references[0]}) for each in examples]
        return lm.chat_ids([*(message for pair in told for message in pair), *asked.messages])
    told = [f"Question: {each.messages[-1]['content']}\nAnswer: {each.references[0]}" for each in examples]
    text = "\n\n".join([*told, f"Question: {asked.messages[-1]['content']}\nAnswer:"])
    return [*lm.begin, *lm.encode(text)]


def _item(asked: Asked, prompt: str, answers: Sequence[str], score: answer_metrics.Metric, name: str) -> Item:
    scores = [_checked(asked, answer, score, name) for answer in answers]
    found: dict[str, float] = {name: sum(scores) / len(scores)}
    if len(answers) > 1:
        found[f"maj@{len(answers)}"] = scores[_most_common(answers, name)]
    shown: dict[str, Any] = {"prompt": prompt, "answer": answers[0]}
    shown |= {"reference": asked.references[0]} | ({"answers": list(answers)} if len(answers) > 1 else {})
    groups = ("", asked.group) if asked.group else ("",)
    return Item(asked.id, found, cluster=asked.cluster, groups=groups, shown=shown)


def _checked(asked: Asked, answer: str, score: answer_metrics.Metric, name: str) -> float:
    try:
        found = float(score(answer, asked.references))
    except Exception as error:
        raise UserError(f"metric {name}: {functions.raised(error)} for the answer to {asked.where}") from error
    if not math.isfinite(found):
        raise UserError(f"metric {name} gave {found} for the answer to {asked.where}: give a finite number")
    return found


def _most_common(answers: Sequence[str], name: str) -> int:
    """The place of the first answer that agrees with most others: by its last number, or by its normalised text."""
    keys = [
        answer_metrics.last_number(each) if name == "number" else answer_metrics.normalised(each) for each in answers
    ]
    counts = Counter(key for key in keys if key is not None)
    return keys.index(max(counts, key=counts.get)) if counts else 0
