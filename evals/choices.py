"""Multiple choice by likelihood: the answer of a model is the choice that it finds likeliest after the question.

Three scores differ in what they divide out (LLaMA, arXiv:2302.13971, section 3): "acc" compares log-probabilities,
"acc_norm" log-probabilities per character of a choice, and "acc_answer_only" what the question adds, the
log-probability after the question minus that after "Answer:" alone (GPT-3, arXiv:2005.14165, section 2.4).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np

from ..checkpoints.language_model import LanguageModel
from ..data.console import tell
from ..data.samples import CJK
from ..errors import UserError
from ..settings.leaves import Count, OneOf, Path, Unset, Whole
from .exams import LETTERS, Question, read_questions
from .items import Item
from .lm import LM, Likelihood, as_lm, encode_pair

WORDS = {"en": ("Question: ", "Answer:", " "), "zh": ("问题：", "答案：", "")}
"""Of a language: what stands before a question, before its answer, and between the latter and the answer."""

INTRODUCTIONS = {
    "en": "The following are multiple choice questions (with answers) about {}.",
    "zh": "以下是关于{}的单项选择题，请选出正确答案。",
}
"""What stands before an exam's questions, with the name of the subject."""


def choices(
    model: LanguageModel | LM,
    *,
    file: Path,
    shots: Whole = 0,
    shots_file: Annotated[Path | None, Unset("the examples of an exam's folder")] = None,
    answer_by: Annotated[str | None, OneOf("text", "letter")] = None,
    chat: bool = False,
    limit: Annotated[Count | None, Unset("all questions")] = None,
    batch_size: Annotated[Count | None, Unset("4,096 tokens on each device")] = None,
) -> list[Item]:
    """Asks questions with choices.

    Args:
      model: the model.
      file: the questions (`evals.exams`).
      shots: number of examples before each question. Where question and examples exceed the context, the first examples
        are left out.
      shots_file: questions that serve as examples, in the form of `file`.
      answer_by: "text": the choices themselves are compared. "letter": the question lists them, and their letters are
        compared. Default: letter for the CSV files of exams, text for others.
      chat: whether question and examples are turns of a conversation.
      limit: number of questions, from the beginning.
      batch_size: rows that are computed at a time.

    Raises:
      UserError: a file that cannot be read, or has fewer examples than `shots`.
    """
    lm = as_lm(model, batch_size)
    questions, examples = read_questions(file)
    if shots_file is not None:
        examples = {"": read_questions(shots_file)[0]}
    questions = questions[:limit]
    asked = [
        _Asked(lm, question, _examples(question, examples, shots, file), answer_by, chat) for question in questions
    ]
    if cut := sum(each.is_cut for each in asked):
        tell(f"{file}: {cut:,} questions exceed the context of {lm.max_len:,} tokens: they are cut from the left")
    found = iter(lm.loglikelihoods([pair for each in asked for pair in each.pairs]))
    return [each.item([next(found) for _ in each.pairs]) for each in asked]


def _examples(
    question: Question, examples: Mapping[str, Sequence[Question]], shots: int, file: str
) -> Sequence[Question]:
    """The examples before a question: the first of its subject, or of a file of examples."""
    if not shots:
        return ()
    there = [each for each in examples.get(question.subject, examples.get("", ())) if each.text != question.text]
    if len(there) < shots:
        of = f" of {question.subject}" if question.subject else ""
        raise UserError(
            f"shots is {shots}: {file} comes with {len(there)} examples{of}; give fewer, or a file of them (shots_file)"
        )
    return there[:shots]


class _Asked:
    """A question as it is put to a model.

    Attributes:
      pairs: (context, continuation) as tokens: of each choice, then, where choices are texts, of each choice after
        "Answer:" alone.
      is_cut: whether the question alone exceeds the context, and its beginning was left out.
    """

    def __init__(self, lm: LM, question: Question, examples: Sequence[Question], answer_by: str | None, chat: bool):
        self._question = question
        self._by_letter = (answer_by or ("letter" if question.exam else "text")) == "letter"
        if self._by_letter and len(question.choices) > len(LETTERS):
            raise UserError(
                f"{question.where}: {len(question.choices)} choices, more than letters: give answer_by=text"
            )
        if not self._by_letter and not all(question.choices):
            raise UserError(f"{question.where}: a choice is empty: give answer_by=letter")
        self._language = "zh" if CJK.search(question.text) else "en"
        self._options = LETTERS[: len(question.choices)] if self._by_letter else question.choices
        put = self._chat_pairs if chat else self._pairs
        while True:
            pairs = put(lm, examples)
            if not examples or max(len(context) + len(end) for context, end in pairs) <= lm.max_len + 1:
                break
            examples = examples[1:]
        self._shots = len(examples)
        longest = max(len(end) for _, end in pairs)
        if longest > lm.max_len:
            raise UserError(f"{question.where}: a choice of {longest:,} tokens exceeds the context of {lm.max_len:,}")
        self.is_cut = max(len(context) + len(end) for context, end in pairs) > lm.max_len + 1
        pairs = [(context[-max(lm.max_len + 1 - len(end), 1) :], end) for context, end in pairs]
        self._prompt = lm.decode(pairs[0][0])
        if not self._by_letter and not chat:
            _, answer, space = WORDS[self._language]
            pairs += [encode_pair(lm, answer, space + option) for option in self._options]
        self.pairs = pairs

    def _pairs(self, lm: LM, examples: Sequence[Question]) -> list[tuple[list[int], list[int]]]:
        _, answer, space = WORDS[self._language]
        told = [f"{self._text(each)}{answer}{space}{self._told(each)}" for each in examples]
        subject = self._question.subject.replace("_", " ")
        if subject and self._by_letter:
            told.insert(0, INTRODUCTIONS[self._language].format(subject))
        context = "\n\n".join([*told, f"{self._text(self._question)}{answer}"])
        return [encode_pair(lm, context, space + option) for option in self._options]

    def _chat_pairs(self, lm: LM, examples: Sequence[Question]) -> list[tuple[list[int], list[int]]]:
        messages = []
        for each in examples:
            messages += [{"role": "user", "content": self._text(each).rstrip()}]
            messages += [{"role": "assistant", "content": self._told(each)}]
        messages += [{"role": "user", "content": self._text(self._question).rstrip()}]
        return [lm.chat_pair(messages, option) for option in self._options]

    def _text(self, question: Question) -> str:
        """A question up to the line of its answer."""
        before = "" if self._by_letter else WORDS[self._language][0]
        options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
        return "\n".join([before + question.text, *(options if self._by_letter else []), ""])

    def _told(self, question: Question) -> str:
        """The answer of an example."""
        return LETTERS[question.answer] if self._by_letter else question.choices[question.answer]

    def _is_right(self, place: int) -> bool:
        """Whether a choice is the answer, or has its text."""
        return self._options[place] == self._options[self._question.answer]

    def item(self, found: Sequence[Likelihood]) -> Item:
        """The question's scores."""
        question, count = self._question, len(self._options)
        logp = np.array([each.logp for each in found[:count]])
        by_metric = {"acc": logp}
        if not self._by_letter:
            by_metric["acc_norm"] = logp / np.array([len(option) for option in self._options])
        if len(found) > count:
            by_metric["acc_answer_only"] = logp - np.array([each.logp for each in found[count:]])
        chosen = self._options[int(np.argmax(logp))]
        shown = {"prompt": self._prompt, "chosen": chosen, "answer": self._options[question.answer]}
        return Item(
            id=question.id,
            scores={name: float(self._is_right(int(np.argmax(values)))) for name, values in by_metric.items()},
            cluster=question.cluster,
            groups=("", question.group) if question.group else ("",),
            subject=question.subject,
            shown=shown | {"shots": self._shots, "logp": [round(x, 6) for x in logp.tolist()]},
        )
