"""Lets a judge grade answers, each alone or pairs in both orders, with controls that show what a grade is worth.

What a judge is shown is a `Case`. `cases_of` makes the cases of a grading, the controls among them, and a judge turns
each into a `Judgment`: a language model that is asked (`AskingJudge`), or a reward model that scores (`ScoringJudge`).

The controls go through the same judge in the same way. Their authors are

    control:null              a model that gives one constant answer, without content, to everything
    control:verbose:MODEL     MODEL's answers, with sentences without content added until they are about twice as long
    control:identical:MODEL   MODEL's answers once more: alone as another request, in pairs beside themselves

A null model won 77% of its comparisons with GPT-4-turbo on AlpacaEval 2 by an answer that was made for the judge (Zheng
et al., "Cheating Automatic LLM Benchmarks", arXiv:2410.07137).
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle
from typing import Any

from ..errors import UserError
from ..serve.journal import Asker, Request
from . import verdicts
from .answers import Answer, conversation
from .judge_templates import JudgePrompts, control_texts
from .judgments import ROUNDING, Judgment
from .questions import Question

CONTROL = "control:"
"""How the names of the controls begin."""

REFERENCES = ("math", "reasoning", "coding", "code")
"""Categories whose questions are graded with their references, as in MT-bench (arXiv:2306.05685, section 3.4)."""

Score = Callable[[Sequence[Sequence[Mapping[str, str]]], Sequence[str]], Sequence[float]]
"""score(conversations, answers) -> a score for each answer, as `camelid.load_reward(path).score`."""


@dataclass(frozen=True)
class Case:
    """What a judge is shown: an answer, or two answers in one order, to a turn of a question."""

    question: Question
    """The question."""

    turn: int
    """The turn whose answers are graded, from 1."""

    authors: tuple[str, ...]
    """The authors in the order in which the judge sees them, one or two."""

    answers: tuple[tuple[str, ...], ...]
    """Of each author the answers in all turns up to the one that is graded."""

    sample: int = 0
    """Tells apart cases that show the judge the same texts, and are to be judged one by one."""

    def judgment(self, judge: str, **verdict: Any) -> Judgment:
        """The judgment of this case. verdict: further fields of `Judgment`."""
        lengths = tuple(len(said[-1]) for said in self.answers)
        about = dict(category=self.question.category, turn=self.turn, lengths=lengths)
        return Judgment(self.question.id, self.authors, judge, **about, **verdict)


class AskingJudge:
    """A language model that writes its verdicts.

    Args:
      asker: the model.
      prompts: the prompts.
      name: the judge's name in its judgments; None: that of `asker`.
      references: categories whose references the judge is shown; None: those of all questions.
      settings: settings of the requests, such as temperature and max_tokens.
    """

    def __init__(
        self,
        asker: Asker,
        prompts: JudgePrompts,
        *,
        name: str | None = None,
        references: Collection[str] | None = REFERENCES,
        settings: Mapping[str, Any],
    ):
        self.name = name or asker.name
        self._asker, self._prompts, self._references, self._settings = asker, prompts, references, dict(settings)

    def judge(self, cases: Sequence[Case]) -> list[Judgment]:
        """The judgments in the order of the cases. A verdict that cannot be read is missing, and its text is kept.

        Warns of replies that did not end by themselves. Raises UserError if some cases could not be judged.
        """
        requests = [Request(self._messages(case), self._settings, case.sample) for case in cases]
        replies = self._asker.ask(requests)
        for reason, count in Counter(reply.finish_reason for reply in replies if reply.finish_reason != "stop").items():
            advice = ": raise max_tokens, or take a judge with a longer context" if reason == "length" else ""
            told = (
                f"{count} of {len(replies)} replies of {self.name} ended by {reason or 'nothing that it says'}{advice}"
            )
            warnings.warn(told, stacklevel=2)
        return [
            case.judgment(self.name, text=reply.text, **_verdict(case, reply.text))
            for case, reply in zip(cases, replies, strict=True)
        ]

    def _messages(self, case: Case) -> list[dict[str, str]]:
        shows = self._references is None or case.question.category in self._references
        return self._prompts.messages(case.question, case.answers, shows)


class ScoringJudge:
    """A reward model. It scores each answer by itself; of a pair the higher score wins.

    The weight of a pair is the sigmoid of the difference, the probability by Bradley and Terry's model, in which reward
    models are trained. Scores that differ by less than `ROUNDING` are a tie.

    Args:
      score: the function that scores answers to conversations.
      name: the judge's name.
    """

    def __init__(self, score: Score, name: str):
        self._score, self.name = score, name

    def judge(self, cases: Sequence[Case]) -> list[Judgment]:
        """The judgments in the order of the cases. An answer that stands in several cases is scored in each of them.

        A verdict is missing where a score is no number. Warns of such scores.
        """
        prompts = [conversation(case.question.turns[: case.turn], said[:-1]) for case in cases for said in case.answers]
        scores = list(map(float, self._score(prompts, [said[-1] for case in cases for said in case.answers])))
        if missing := sum(not math.isfinite(score) for score in scores):
            why = "they exceed its context together with their prompts, or their scores are no numbers"
            warnings.warn(f"{missing} of {len(scores)} answers have no score of {self.name}: {why}", stacklevel=2)
        left = iter(scores)
        return [case.judgment(self.name, **_by_scores([next(left) for _ in case.answers])) for case in cases]


def cases_of(
    questions: Sequence[Question],
    answers: Mapping[str, Mapping[str, Answer]],
    *,
    pairs: bool,
    baseline: str | None = None,
    controls: bool = True,
) -> list[Case]:
    """The cases of a grading, in the order of the questions, then of turns, authors and orders.

    Args:
      questions: the questions.
      answers: {model: {id of the question: its answer}}.
      pairs: whether answers are compared, each two models in both orders, rather than graded alone.
      baseline: in pairs, the model that every other one is compared with; None compares all with each other.
      controls: whether the controls are added.

    Raises:
      UserError: a model has no answer to a turn of a question or the name of a control, or there is no pair.
    """
    _check(questions, answers, pairs, baseline, controls)
    found = []
    for question in questions:
        said = {model: each[question.id].turns for model, each in answers.items()}
        shown = _pairs(question, said, baseline, controls) if pairs else _singles(question, said, controls)
        shown = list(shown)
        for turn in range(1, len(question.turns) + 1):
            for authors, texts, sample in shown:
                found.append(Case(question, turn, authors, tuple(each[:turn] for each in texts), sample))
    return found


Shown = tuple[tuple[str, ...], tuple[tuple[str, ...], ...], int]
"""(authors, the answers of each in all turns, sample)."""


def _singles(question: Question, said: Mapping[str, tuple[str, ...]], controls: bool) -> Iterator[Shown]:
    for model, turns in said.items():
        yield (model,), (turns,), 0
    if controls:
        yield (f"{CONTROL}null",), (_null(question),), 0
        for model, turns in said.items():
            yield (f"{CONTROL}verbose:{model}",), (_verbose(question, turns),), 0
            yield (f"{CONTROL}identical:{model}",), (turns,), 1


def _pairs(
    question: Question, said: Mapping[str, tuple[str, ...]], baseline: str | None, controls: bool
) -> Iterator[Shown]:
    def both(a: str, b: str, texts: Mapping[str, tuple[str, ...]]) -> Iterator[Shown]:
        yield (a, b), (texts[a], texts[b]), 0
        yield (b, a), (texts[b], texts[a]), 1  # equal answers show the judge the same in both orders

    others = [model for model in said if model != baseline]
    for a, b in combinations(said, 2) if baseline is None else [(model, baseline) for model in others]:
        yield from both(a, b, said)
    if controls:
        for model in said if baseline is None else [baseline]:
            yield from both(f"{CONTROL}null", model, {f"{CONTROL}null": _null(question), model: said[model]})
        for model, turns in said.items():
            for name, control in (("verbose", _verbose(question, turns)), ("identical", turns)):
                author = f"{CONTROL}{name}:{model}"
                yield from both(author, model, {author: control, model: turns})


def _null(question: Question) -> tuple[str, ...]:
    return (control_texts(question.language)["null"],) * len(question.turns)


def _verbose(question: Question, turns: Sequence[str]) -> tuple[str, ...]:
    """Answers, each followed by sentences without content: one at least, and until it is twice as long."""
    between = "" if question.language == "zh" else " "
    found = []
    for text in turns:
        added, length = [], -len(between)
        for sentence in cycle(control_texts(question.language)["padding"]):
            added.append(sentence)
            length += len(between) + len(sentence)
            if length >= len(text):
                break
        found.append(f"{text}\n\n{between.join(added)}")
    return tuple(found)


def _verdict(case: Case, text: str) -> dict[str, Any]:
    """The fields of a verdict that a judge wrote; none where it cannot be read."""
    if len(case.authors) == 2:
        return {"winner": verdicts.winner(text)}
    return {"scores": verdicts.parse(text)}


def _by_scores(scores: Sequence[float]) -> dict[str, Any]:
    """The fields of a verdict by scores; none where a score is no number."""
    if not all(map(math.isfinite, scores)):
        return {}
    if len(scores) == 1:
        return {"scores": tuple(scores)}
    ahead = scores[1] - scores[0]
    winner = "tie" if abs(ahead) < ROUNDING else "b" if ahead > 0 else "a"
    weight = 1 / (1 + math.exp(-min(max(ahead, -700), 700)))
    return {"scores": tuple(scores), "winner": winner, "weight": weight}


def _check(
    questions: Sequence[Question],
    answers: Mapping[str, Mapping[str, Answer]],
    pairs: bool,
    baseline: str | None,
    controls: bool,
) -> None:
    """Raises UserError unless all models have answered all questions, and there is something to grade."""
    for model, said in answers.items():
        if model.startswith(CONTROL):
            raise UserError(f"a model is called {model!r}, as the controls are: give it another name")
        for question in questions:
            turns = said[question.id].turns if question.id in said else ()
            if len(turns) < len(question.turns):
                raise UserError(
                    f"{model} has no answer to question {question.id}, turn {len(turns) + 1}: let it answer all "
                    "questions (`camelid judge answers`), or take the question out"
                )
    if baseline is not None and baseline not in answers:
        raise UserError(f"there are no answers of the baseline {baseline!r}, only of {', '.join(answers)}")
    if pairs and len(answers) < 2 and not controls:
        raise UserError("pairs need answers of two models: give another file, or leave the controls on")
