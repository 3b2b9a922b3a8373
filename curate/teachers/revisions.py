"""Preference pairs of answers and their revisions: a teacher criticises its answer by a principle and revises it.

    made = Revisions()(asker, rows, read_principles(), made)

The revision is preferred to the answer (Constitutional AI, arXiv:2212.08073, sections 3.1 and 4). The paper trains on
revisions alone first, and lets a model choose between answers later; a pair of both serves either. Principles are drawn
by the seed.

Each row is a candidate, which is kept or rejected by one of these steps:

    read        nothing can be made of the record, or it is a text without a question
    answer      the answer is of no use
    critique    the first criticism is of no use, or finds no fault
    revision    the first revision is of no use, or has the words of the answer or of the criticism

With several rounds, a later reply of no use ends the revisions, and the last revision counts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from ...serve.journal import Asker, Request
from ...settings.leaves import Count, NotNegative, Unset, Whole
from ..rows import LANGUAGE, Rejected, Row
from .candidates import (
    READ,
    READ_REASONS,
    REPLY_REASONS,
    Made,
    Messages,
    draw,
    problem_of,
    question_of,
    request_settings,
)
from .instruct_prompts import Prompts
from .preference_pairs import conversation_of, preference_of, questions, said, same_words
from .principles import Principle

STEPS = {
    READ: (*READ_REASONS, "text"),
    "answer": REPLY_REASONS,
    "critique": (*REPLY_REASONS, "no_fault"),
    "revision": (*REPLY_REASONS, "equal", "echo"),
}
"""Reasons of each step that rejects candidates."""

OK = "[[OK]]"
"""What a teacher writes if it finds no fault."""

_OK = re.compile(r"\[\[\s*OK\s*\]\]|【{1,2}\s*OK\s*】{1,2}|^\W*\[\s*OK\s*\]\W*$", re.IGNORECASE)
_PREAMBLE = re.compile(
    r"^[*_# ]*(?:(?:sure|okay|certainly|of course)\b[^\n]{0,80}"
    r"|here(?:'s| is)\b[^\n]{0,80}\b(?:revis|answer|rewrit|version)[^\n]{0,80}"
    r"|(?:the )?(?:revised|new|rewritten) (?:answer|response|version)[^\n]{0,20}"
    r"|(?:好的|以下是|修改后的|修订后的|新的回答)[^\n]{0,30})[:：][*_ ]*(?:\n+|$)",
    re.IGNORECASE,
)
"""A line before a revision that announces it."""


@dataclass(frozen=True)
class Revisions:
    """How answers are criticised and revised."""

    rounds: Count = 1
    """The most revisions of an answer, each by another draw of a principle; 4 in the paper."""

    temperature: NotNegative = 0.7
    """Temperature of the answers."""

    revision_temperature: NotNegative = 0.7
    """Temperature of criticisms and revisions."""

    max_tokens: Count = 1024
    """The most tokens of an answer, a criticism or a revision."""

    prompts: Annotated[str | None, Unset("the project's own prompts")] = None
    """Folder with prompts of one's own, critique and revision, each in .en.toml and .zh.toml."""

    seed: Annotated[Whole | None, Unset("0 and no seed in requests")] = None
    """Seed by which principles are drawn, and of the sampling."""

    def __call__(
        self,
        asker: Asker,
        rows: Sequence[Row],
        principles: Mapping[str, Sequence[Principle]],
        made: Made,
        more: Mapping[str, Any] = {},
    ) -> Made:
        """Makes a pair of each row, and adds it to `made`.

        Args:
          asker: the teacher.
          rows: the rows whose questions are answered (`candidates.start_rows`).
          principles: the principles by language (`principles.read_principles`).
          made: what the pairs are added to.
          more: further settings of all requests, such as top_p; None takes one out.

        Raises:
          UserError: a prompt is missing or wrong, or some requests could not be answered.
        """
        run = _Run(self, asker, more)
        drafts = [_Draft(row) for row in questions(rows, made)]
        run.answer(drafts)
        for number in range(self.rounds):
            open_ = [draft for draft in drafts if draft.why is None]
            for draft in open_:
                draft.draw(principles, self.seed or 0, number)
            run.criticise(open_)
            run.revise([draft for draft in open_ if draft.why is None])
        for draft in drafts:
            draft.finish(made, asker.name)
        return made


class _Run:
    """The asking for answers, criticisms and revisions."""

    def __init__(self, settings: Revisions, asker: Asker, more: Mapping[str, Any]):
        self._settings, self._asker, self._more = settings, asker, more
        self._prompts = Prompts(settings.prompts)

    def answer(self, drafts: Sequence["_Draft"]) -> None:
        for draft, text in self._ask("answer", [(each, question_of(each.row)) for each in drafts]):
            draft.texts.append(text)

    def criticise(self, drafts: Sequence["_Draft"]) -> None:
        for draft, text in self._ask("critique", [(each, each.messages(self._prompts, "critique")) for each in drafts]):
            if _OK.search(text):
                draft.end("critique", Rejected("no_fault", draft.principle.name))
            else:
                draft.critiques.append(text)

    def revise(self, drafts: Sequence["_Draft"]) -> None:
        for draft, text in self._ask("revision", [(each, each.messages(self._prompts, "revision")) for each in drafts]):
            draft.revise(_PREAMBLE.sub("", text, count=1).strip())

    def _ask(self, step: str, asked: Sequence[tuple["_Draft", Messages]]) -> list[tuple["_Draft", str]]:
        """The drafts whose replies are of use, with these. The others end."""
        settings = self._settings
        temperature = settings.temperature if step == "answer" else settings.revision_temperature
        how = request_settings(self._more, temperature=temperature, max_tokens=settings.max_tokens, seed=settings.seed)
        requests, found = [Request(messages, how) for _, messages in asked], []
        for (draft, _), request, reply in zip(asked, requests, self._asker.ask(requests), strict=True):
            draft.requests.append(self._asker.key(request))
            if why := problem_of(reply):
                draft.end(step, why)
            else:
                found.append((draft, reply.text.strip()))
        return found


@dataclass
class _Draft:
    """An answer on its way through revisions."""

    row: Row
    texts: list[str] = field(default_factory=list)  # the answer and its revisions
    critiques: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the principles of the revisions
    requests: list[str] = field(default_factory=list)
    principle: Principle | None = None  # the latest one that was drawn
    why: tuple[str, Rejected] | None = None  # the step at which it ended before the last round, and the reason

    def draw(self, principles: Mapping[str, Sequence[Principle]], seed: int, number: int) -> None:
        """Draws a principle, another one than in the rounds before as long as there are any."""
        every = principles[self.row.columns[LANGUAGE]]
        left = [each for each in every if each.name not in self.names] or list(every)
        self.principle = left[draw(seed, "principle", self.row.id, number) % len(left)]

    def messages(self, prompts: Prompts, kind: str) -> Messages:
        """What asks for a criticism or a revision of the latest text."""
        language, about = self.row.columns[LANGUAGE], dict(principle=self.principle, done=OK)
        *system, request = prompts.messages(kind, language, **about)
        talk = [*question_of(self.row), said(self.texts[-1])]
        if kind == "revision":
            talk += [prompts.messages("critique", language, **about)[-1], said(self.critiques[-1])]
        if system:
            talk = [*system, *(message for message in talk if message["role"] != "system")]
        return [*talk, request]

    def revise(self, text: str) -> None:
        """Takes a revision."""
        if not text or same_words(text, self.texts[-1]):
            self.end("revision", Rejected("equal" if text else "empty"))
        elif same_words(text, self.critiques[-1]):
            self.end("revision", Rejected("echo", "it repeats the criticism"))
        else:
            self.texts.append(text)
            self.names.append(self.principle.name)

    def end(self, step: str, why: Rejected) -> None:
        """Ends the revisions."""
        self.why = step, why

    def finish(self, made: Made, teacher: str) -> None:
        """Adds the pair, or what there is of it, to what was made."""
        columns = {"teacher": teacher, "principles": self.names, "requests": self.requests}
        columns |= {"critiques": self.critiques}
        if len(self.texts) > 1 and same_words(self.texts[0], self.texts[-1]):
            self.end("revision", Rejected("equal", "the last revision has come back to the answer"))
        if len(self.texts) < 2 or same_words(self.texts[0], self.texts[-1]):
            record = {**conversation_of(self.row), "answers": [said(text) for text in self.texts]}
            made.drop(self.row.with_(record, **columns), *self.why)
        else:
            record = preference_of(self.row, self.texts[-1], self.texts[0])
            made.rows.append(self.row.with_(record, **columns))
