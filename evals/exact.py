"""Questions with known answers: a model writes its answer, and a metric compares it with the references."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ..checkpoints.language_model import LanguageModel
from ..data.files import file_rows, find_files
from ..data.json_values import kind_of
from ..errors import UserError
from ..settings import functions
from ..settings.leaves import Count, NotNegative, Path, Unset, Whole
from . import answer_metrics
from .items import Item
from .lm import LM, as_lm


@dataclass(frozen=True)
class Asked:
    """A question and its references."""

    id: str
    """Names the question: its own id, or file and line."""

    messages: tuple[Mapping[str, str], ...]
    """The conversation up to the question."""

    references: tuple[str, ...]
    """Right answers."""

    group: str = ""
    """A group of the user's, whose scores are given apart."""

    cluster: str = ""
    """What it shares with questions that are not independent of it."""


def read_asked(path: str) -> list[Asked]:
    """The questions of JSON lines: {"question" or "messages", "answer": one text or several, "id", "group", "cluster"}.

    Raises UserError for another record, with its file and line.
    """
    found = []
    for where, record in file_rows(find_files(path)):
        if isinstance(record, ValueError):
            raise UserError(f"{where}: {record}")
        found.append(_asked(record, where))
    if not found:
        raise UserError(f"{path} has no questions")
    return found


def _asked(record: object, where: str) -> Asked:
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: {kind_of(record)} is no question: give an object")
    question, messages, answer = (record.get(name) for name in ("question", "messages", "answer"))
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
    named = {name: str(record.get(name, "")) for name in ("group", "cluster")}
    return Asked(str(record.get("id", where)), said, tuple(numbers), **named)


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
    stop: tuple[str, ...] = (),
    seed: Whole = 0,
    limit: Annotated[Count | None, Unset("all questions")] = None,
    batch_size: Annotated[Count | None, Unset("64")] = None,
) -> list[Item]:
    """Asks questions and compares the answers with references.

    Args:
      model: the model.
      file: the questions, see `read_asked`.
      metric: exact, starts, contains, number, f1, or a function "package.module:name" (`evals.answer_metrics`).
      shots: number of examples before each question.
      shots_file: questions with answers that serve as examples.
      chat: whether the chat template is used. Without it questions stand after "Question:", and an answer ends before
        the next "Question:".
      max_tokens: the most tokens in an answer.
      temperature: of sampling; 0 takes the likeliest token.
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
    prompts = [_prompt(lm, each, examples, chat) for each in asked]
    stops = [*stop, *(() if chat else ("\nQuestion:", "\n问题："))]
    how = dict(max_tokens=max_tokens, temperature=temperature, n=n, seed=seed, stop=stops)
    name = metric.rpartition(":")[2]
    return [
        _item(each, [text.strip() for text in texts], score, name)
        for each, texts in zip(asked, lm.generate(prompts, **how), strict=True)
    ]


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
    if chat:
        told = [({**each.messages[-1]}, {"role": "assistant", "content": each.references[0]}) for each in examples]
        return lm.chat_ids([*(message for pair in told for message in pair), *asked.messages])
    if len(asked.messages) > 1:
        raise UserError(f"{asked.id}: a conversation needs the chat template: set chat")
    told = [f"Question: {each.messages[-1]['content']}\nAnswer: {each.references[0]}" for each in examples]
    text = "\n\n".join([*told, f"Question: {asked.messages[-1]['content']}\nAnswer:"])
    return [*lm.begin, *lm.encode(text)]


def _item(asked: Asked, answers: Sequence[str], score: answer_metrics.Metric, name: str) -> Item:
    scores = [_checked(asked, answer, score, name) for answer in answers]
    found: dict[str, float] = {name: sum(scores) / len(scores)}
    if len(answers) > 1:
        found[f"maj@{len(answers)}"] = scores[_most_common(answers, name)]
    shown: dict[str, Any] = {"prompt": asked.messages[-1]["content"], "answer": answers[0]}
    shown |= {"reference": asked.references[0]} | ({"answers": list(answers)} if len(answers) > 1 else {})
    groups = ("", asked.group) if asked.group else ("",)
    return Item(asked.id, found, cluster=asked.cluster, groups=groups, shown=shown)


def _checked(asked: Asked, answer: str, score: answer_metrics.Metric, name: str) -> float:
    try:
        found = float(score(answer, asked.references))
    except Exception as error:
        raise UserError(f"metric {name}: {functions.raised(error)} for the answer to {asked.id}") from error
    if not math.isfinite(found):
        raise UserError(f"metric {name} gave {found} for the answer to {asked.id}: give a finite number")
    return found


def _most_common(answers: Sequence[str], name: str) -> int:
    """The place of the first answer that agrees with most others: by its last number, or by its normalised text."""
    keys = [
        answer_metrics.last_number(each) if name == "number" else answer_metrics.normalised(each) for each in answers
    ]
    counts = Counter(key for key in keys if key is not None)
    return keys.index(max(counts, key=counts.get)) if counts else 0
