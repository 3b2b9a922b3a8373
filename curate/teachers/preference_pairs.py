"""Preference pairs of ranked answers: a teacher answers a question several times, and a judge compares the answers.

    made = RankedPairs(answers=2)([asker], judge, "judge's name", rows, made)

Every two answers to a question are compared in both orders; all pairs are used, as for InstructGPT (arXiv:2203.02155,
section 3.5). A pair is kept if both orders have the same winner, since judges favour places (arXiv:2306.05685, section
3.3). The judge is handed in: a language model that is asked, or a reward model.

Each pair of answers is a candidate, which is kept or rejected by one of these steps:

    read          nothing can be made of the record, or it is a text without a question
    answer        one of the two answers is of no use, or they are equal
    comparison    a tie in both orders, a contradiction between them, or a verdict that cannot be read
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

from ...errors import UserError
from ...serve.journal import Asker, Reply, Request
from ...settings.leaves import Count, NotNegative, Range, Unset, Whole
from ..rows import LANGUAGE, Rejected, Row
from .candidates import (
    READ,
    READ_REASONS,
    REPLY_REASONS,
    Made,
    Messages,
    problem_of,
    question_of,
    request_settings,
)

STEPS = {
    READ: (*READ_REASONS, "text"),
    "answer": (*REPLY_REASONS, "equal"),
    "comparison": ("tie", "contradiction", "unreadable"),
}
"""Reasons of each step that rejects candidates."""


class Comparison(NamedTuple):
    """Two answers to a question, in the order in which a judge sees them."""

    messages: Messages
    """The conversation up to the user's last turn."""

    language: str
    """Language of the conversation, "en" or "zh"."""

    answers: tuple[str, str]
    """The answers."""


class Verdict(NamedTuple):
    """What a judge says of a comparison."""

    winner: str | None
    """ "a" for the first answer, "b" for the second, "tie", or None if the verdict cannot be read."""

    scores: tuple[float, float] | None = None
    """A score of each answer; None if the judge gives none."""


Judge = Callable[[Sequence[Comparison]], Sequence[Verdict]]
"""judge(comparisons) -> a verdict on each."""


@dataclass(frozen=True)
class RankedPairs:
    """How answers are made and compared."""

    answers: Annotated[int, Range(least=2)] = 2
    """Number of answers to each question."""

    temperatures: list[NotNegative] = field(default_factory=lambda: [0.7, 1.0])
    """Temperatures of the answers, by turns."""

    max_tokens: Count = 1024
    """The most tokens of an answer."""

    seed: Annotated[Whole | None, Unset("no seed")] = None
    """Seed of the sampling; the number of the answer is added to it."""

    def check(self, where: str) -> None:
        """Raises UserError if there is no temperature."""
        if not self.temperatures:
            raise UserError(f"{where}.temperatures is empty: give one or more")

    def __call__(
        self,
        askers: Sequence[Asker],
        judge: Judge,
        judge_name: str,
        rows: Sequence[Row],
        made: Made,
        more: Mapping[str, Any] = {},
    ) -> Made:
        """Makes the pairs of each row, and adds them to `made`.

        Args:
          askers: the teachers, which answer by turns.
          judge: compares answers.
          judge_name: its name.
          rows: the rows whose questions are answered (`candidates.start_rows`).
          made: what the pairs are added to.
          more: further settings of all requests, such as top_p; None takes one out.

        Raises:
          UserError: some requests could not be answered.
        """
        rows = questions(rows, made)
        answers = self._answers(askers, rows, more)
        pairs = []
        for row, given in zip(rows, answers, strict=True):
            for number, (a, b) in enumerate(itertools.combinations(given, 2), 1):
                pair = _Pair(replace(row, id=f"{row.id}-{number}"), a, b)
                if why := pair.problem():
                    made.drop(pair.as_row(judge_name), "answer", why)
                else:
                    pairs.append(pair)
        verdicts = judge([shown for pair in pairs for shown in pair.both_orders()])
        for pair, first, second in zip(pairs, verdicts[::2], verdicts[1::2], strict=True):
            if why := _disagreement(first, second):
                made.drop(pair.as_row(judge_name), "comparison", why)
            else:
                made.rows.append(pair.as_row(judge_name, first))
        return made

    def _answers(self, askers: Sequence[Asker], rows: Sequence[Row], more: Mapping[str, Any]) -> list[list["_Answer"]]:
        """The answers to each question, those of one teacher after the other."""
        found: list[list[_Answer]] = [[] for _ in rows]
        for place, asker in enumerate(askers):
            asked = []
            for number in range(place, self.answers, len(askers)):
                temperature = self.temperatures[number % len(self.temperatures)]
                how = request_settings(more, temperature=temperature, max_tokens=self.max_tokens, seed=self.seed)
                asked += [(i, temperature, Request(question_of(row), how, number)) for i, row in enumerate(rows)]
            replies = asker.ask([request for _, _, request in asked])
            for (i, temperature, request), reply in zip(asked, replies, strict=True):
                found[i].append(_Answer(asker.name, temperature, asker.key(request), reply))
        return found


class _Answer(NamedTuple):
    """An answer of a teacher."""

    teacher: str
    temperature: float
    request: str
    reply: Reply

    @property
    def text(self) -> str:
        return self.reply.text.strip()


@dataclass
class _Pair:
    """Two answers to the question of a row."""

    row: Row
    a: _Answer
    b: _Answer

    def problem(self) -> Rejected | None:
        """Why the pair is of no use: one of its answers is, or they are equal."""
        why = problem_of(self.a.reply) or problem_of(self.b.reply)
        return why or (Rejected("equal") if same_words(self.a.text, self.b.text) else None)

    def both_orders(self) -> list[Comparison]:
        texts = self.a.text, self.b.text
        messages, language = question_of(self.row), self.row.columns[LANGUAGE]
        return [Comparison(messages, language, each) for each in (texts, texts[::-1])]

    def as_row(self, judge: str, verdict: Verdict | None = None) -> Row:
        """The pair as a row; without a verdict as one that is rejected."""
        better, worse = (self.b, self.a) if verdict is not None and verdict.winner == "b" else (self.a, self.b)
        scores = verdict.scores if verdict is not None else None
        columns = {
            "teacher": better.teacher,
            "teachers": [better.teacher, worse.teacher],
            "temperatures": [better.temperature, worse.temperature],
            "requests": [better.request, worse.request],
            "judge": judge,
        }
        if scores is not None:
            columns["scores"] = list(scores[::-1] if better is self.b else scores)
        if verdict is None:
            record = {**conversation_of(self.row), "answers": [said(better.text), said(worse.text)]}
        else:
            record = preference_of(self.row, better.text, worse.text)
        return self.row.with_(record, **columns)


def _disagreement(first: Verdict, second: Verdict) -> Rejected | None:
    """Why the verdicts on a pair in both orders decide nothing; None if they agree on a winner."""
    if first.winner is None or second.winner is None:
        return Rejected("unreadable", "in the first order" if first.winner is None else "in the second order")
    turned = {"a": "b", "b": "a", "tie": "tie"}[second.winner]
    if first.winner != turned:
        return Rejected("contradiction", f"{first.winner}, and {turned} in the other order")
    return Rejected("tie") if turned == "tie" else None


def questions(rows: Sequence[Row], made: Made) -> list[Row]:
    """The rows that hold a question; rows of texts are rejected."""
    for row in rows:
        if row.record["kind"] == "text":
            made.drop(row, READ, Rejected("text", "it has no question"))
    return [row for row in rows if row.record["kind"] != "text"]


def conversation_of(row: Row) -> dict[str, Any]:
    """The fields of a row's record that stay: its messages up to the user's last turn, and what was given besides."""
    count = len(question_of(row))
    kept = {name: row.record[name] for name in ("documents", "meta") if name in row.record}
    messages = [{name: x for name, x in each.items() if name != "train"} for each in row.record["messages"][:count]]
    return {"messages": messages, **kept}


def preference_of(row: Row, chosen: str, rejected: str) -> dict[str, Any]:
    """The preference record of two answers to the question of a row."""
    return {"kind": "preference", **conversation_of(row), "chosen": [said(chosen)], "rejected": [said(rejected)]}


def said(text: str) -> dict[str, str]:
    """A text as a message of the assistant."""
    return {"role": "assistant", "content": text}


def same_words(one: str, other: str) -> bool:
    """Whether two texts have the same words, whatever is between them."""
    return one.split() == other.split()
