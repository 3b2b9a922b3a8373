"""Conversations of several turns, in which a teacher plays the assistant and, asked apart, the user too.

    made = Dialogues(turns=3)(asker, rows)

A row to start from holds a conversation, which is gone on with (answered first, if it ends with the user's turn), or a
text, about which the user asks first. Before each further question, the teacher is shown the conversation so far and
writes what the user says next, or that the user is content. So it is done in UltraChat (arXiv:2305.14233), and in one
request for the whole conversation in Baize (arXiv:2304.01196). The answers are asked for as usual.

Each row is a candidate, which is kept or rejected by one of these steps:

    read        nothing can be made of the record (`candidates.READ_REASONS`)
    question    the first question about a text is of no use
    answer      the first answer is of no use

Later, a question or an answer that is of no use ends the conversation before it; the column `ended` says so.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from ...data.json_values import lone_surrogate
from ...errors import UserError
from ...serve.journal import Asker, Reply, Request
from ...settings.leaves import Count, NotNegative, Unset, Whole
from ..rows import LANGUAGE, Rejected, Row
from .candidates import (
    READ,
    READ_REASONS,
    REPLY_REASONS,
    Made,
    Messages,
    draw,
    plain_messages,
    problem_of,
    request_settings,
)
from .instruct_prompts import Prompts

STEPS = {READ: READ_REASONS, "question": (*REPLY_REASONS, "done"), "answer": REPLY_REASONS}
"""Reasons of each step that rejects candidates."""

DONE = "[[END]]"
"""What the simulated user says to end a conversation."""

_DONE = re.compile(r"[\[【]{1,2}\s*END\s*[\]】]{1,2}", re.IGNORECASE)
_USER = re.compile(r"^[\s*_#>-]*(?:the )?(?:user|human|用户|提问者)[*_ ]*[:：][*_]*\s*", re.IGNORECASE)
_ASSISTANT = re.compile(r"\n[\s*_#>-]*(?:the )?(?:assistant|ai|助手|助理)[*_ ]*[:：]", re.IGNORECASE)
_QUOTES = {'"': '"', "“": "”", "「": "」", "'": "'"}


@dataclass(frozen=True)
class Dialogues:
    """How conversations are made."""

    turns: Count = 3
    """The most turns of the user in a conversation."""

    temperature: NotNegative = 0.7
    """Temperature of the answers."""

    max_tokens: Count = 1024
    """The most tokens of an answer."""

    question_temperature: NotNegative = 1.0
    """Temperature of the user's questions."""

    question_tokens: Count = 256
    """The most tokens of a question."""

    system: Annotated[str | None, Unset("none")] = None
    """System message under which the teacher answers, where a record has none. It is part of the rows."""

    prompts: Annotated[str | None, Unset("the project's own prompts")] = None
    """Folder with prompts of one's own for the simulated user, dialogue.en.toml and dialogue.zh.toml."""

    seed: Annotated[Whole | None, Unset("0 and no seed in requests")] = None
    """Seed by which is drawn what kind of question comes next, and of the sampling."""

    def check(self, where: str) -> None:
        """Raises UserError for a system message that is not UTF-8."""
        if self.system and lone_surrogate(self.system):
            raise UserError(f"{where}.system is not UTF-8 ({self.system!r:.80}): type it in a terminal of UTF-8")

    def __call__(self, asker: Asker, rows: Sequence[Row], made: Made, more: Mapping[str, Any] = {}) -> Made:
        """Makes a conversation of each row, and adds it to `made`.

        Args:
          asker: the teacher.
          rows: the rows to start from (`candidates.start_rows`).
          made: what the rows are added to.
          more: further settings of all requests, such as top_p; None takes one out.

        Raises:
          UserError: a prompt is missing or wrong, or some requests could not be answered.
        """
        run = _Run(self, asker, made, more)
        every = open_ = [_dialogue(row, self.system) for row in rows]
        while open_:
            open_ = run.answered(run.questioned(open_))
        for each in every:
            run.keep(each)
        return made


@dataclass
class _Dialogue:
    """A conversation that is being made."""

    row: Row
    given: list[Mapping[str, Any]]  # the messages that it starts with, as they stand in the record
    messages: Messages  # all messages, as the teacher sees them
    requests: list[str] = field(default_factory=list)
    ended: str = ""  # why there are no further turns
    dropped: bool = False

    @property
    def turns(self) -> int:
        return sum(message["role"] == "user" for message in self.messages)


def _dialogue(row: Row, system: str | None) -> _Dialogue:
    """The beginning of a conversation."""
    given = list(row.record.get("messages", ()))
    if system is not None and not any(message["role"] == "system" for message in given):
        given.insert(0, {"role": "system", "content": system})
    return _Dialogue(row, given, plain_messages(given))


class _Run:
    """The asking for questions and answers."""

    def __init__(self, settings: Dialogues, asker: Asker, made: Made, more: Mapping[str, Any]):
        self._settings, self._asker, self._made, self._more = settings, asker, made, more
        self._prompts = Prompts(settings.prompts)

    def questioned(self, dialogues: Sequence[_Dialogue]) -> list[_Dialogue]:
        """The conversations that end with a question: some do already, others get one."""
        asked = []
        for each in dialogues:
            if each.messages and each.messages[-1]["role"] == "user":
                continue
            if each.turns >= self._settings.turns:
                each.ended = "turns"
            else:
                asked.append(each)
        settings = self._settings
        how = self._how(settings.question_temperature, settings.question_tokens)
        for each, reply in self._ask(asked, [Request(self._prompt(each), how) for each in asked]):
            text, why = parse_question(reply)
            said = [message["content"] for message in each.messages]
            if why is None and text not in said:
                each.messages.append({"role": "user", "content": text})
            else:
                self._end(each, "question", why or Rejected("repeated"))
        return [each for each in dialogues if not each.ended and not each.dropped]

    def answered(self, dialogues: Sequence[_Dialogue]) -> list[_Dialogue]:
        """The conversations whose last question has an answer."""
        how = self._how(self._settings.temperature, self._settings.max_tokens)
        for each, reply in self._ask(dialogues, [Request(list(each.messages), how) for each in dialogues]):
            if why := problem_of(reply):
                each.messages.pop()
                self._end(each, "answer", why)
            else:
                each.messages.append({"role": "assistant", "content": reply.text.strip()})
        return [each for each in dialogues if not each.ended and not each.dropped]

    def keep(self, dialogue: _Dialogue) -> None:
        """Adds a conversation to the rows, unless it was rejected."""
        if dialogue.dropped:
            return
        meta, count = dialogue.row.record.get("meta"), len(dialogue.messages)
        messages = [*dialogue.given[:count], *dialogue.messages[len(dialogue.given) :]]
        record = {"kind": "chat", "messages": messages} | ({"meta": meta} if meta else {})
        self._made.rows.append(self._row(dialogue, record, turns=dialogue.turns, ended=dialogue.ended))

    def _how(self, temperature: float, max_tokens: int) -> dict[str, Any]:
        return request_settings(self._more, temperature=temperature, max_tokens=max_tokens, seed=self._settings.seed)

    def _ask(self, dialogues: Sequence[_Dialogue], requests: Sequence[Request]) -> list[tuple[_Dialogue, Reply]]:
        for each, request in zip(dialogues, requests, strict=True):
            each.requests.append(self._asker.key(request))
        return list(zip(dialogues, self._asker.ask(requests), strict=True))

    def _prompt(self, dialogue: _Dialogue) -> Messages:
        """What asks the teacher for the user's next words."""
        record = dialogue.row.record
        return self._prompts.messages(
            "dialogue",
            dialogue.row.columns[LANGUAGE],
            turns=[message for message in dialogue.messages if message["role"] != "system"],
            text=record["text"] if record["kind"] == "text" else "",
            draw=draw(self._settings.seed or 0, "question", dialogue.row.id, dialogue.turns),
            done=DONE,
        )

    def _end(self, dialogue: _Dialogue, step: str, why: Rejected) -> None:
        """Ends a conversation before a question or an answer of no use; rejects it if nothing has been answered."""
        if dialogue.messages and dialogue.messages[-1]["role"] == "assistant":
            dialogue.ended = "done" if why.reason == "done" else f"{step} {why.reason}"
        else:
            dialogue.dropped = True
            self._made.drop(self._row(dialogue, dialogue.row.record), step, why)

    def _row(self, dialogue: _Dialogue, record: Mapping[str, Any], **columns: Any) -> Row:
        return dialogue.row.with_(record, teacher=self._asker.name, requests=dialogue.requests, **columns)


def parse_question(reply: Reply) -> tuple[str, Rejected | None]:
    """What a simulated user says, and why it is of no use; the reason "done" says that the user is content.

    A label such as "User:", quotation marks around the whole, and an answer that the teacher wrote behind the question
    are taken away.
    """
    if why := problem_of(reply):
        return "", why
    if _DONE.search(reply.text):
        return "", Rejected("done")
    text = _ASSISTANT.split(_USER.sub("", reply.text.strip(), count=1), maxsplit=1)[0].strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text, None if text else Rejected("empty", "nothing but a label")
