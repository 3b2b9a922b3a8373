"""Reads raw conversations of any export, and mends roles and the order of turns where `data/formats.py` refuses them.

A record that `data/formats.py` accepts is taken as it stands. In others, turns without text are left out, an exact
repetition of the turn before it is left out, further turns of one role in a row are joined, and turns of the assistant
before the first turn of a user, which answer nothing, are left out. A conversation ends with an answer: turns behind
the last one are left out, unless `prompts` asks for conversations that end with a user turn.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...data import formats
from ...data.conversation_fields import from_json, with_calls
from ...data.json_values import kind_of, present
from ...data.messages import LMFLOW, OPENAI, Message, read_messages
from ...errors import shown
from ..rows import Rejected, Row, answers_of

TURN_FIELDS = ("conversations", "conversation", "messages", "items", "turns", "dialogue", "dialog", "chat")
"""Fields of a raw record in which its turns are looked for; "items" is that of ShareGPT's own export."""

ROLE_FIELDS = ("from", "role", "speaker", "author", "sender")
CONTENT_FIELDS = ("value", "content", "text", "message")

MORE_ROLES = {
    **dict.fromkeys(("you", "me", "prompt", "question", "instruction", "usuario", "用户", "人类", "你"), "user"),
    **dict.fromkeys(
        ("ai", "bot", "chatbot", "model", "answer", "response", "gpt-3", "gpt-3.5", "gpt3", "gpt-4", "gpt4", "gpt-4o"),
        "assistant",
    ),
    **dict.fromkeys(("claude", "gemini", "copilot", "palm", "vicuna", "助手", "机器人", "模型"), "assistant"),
}
"""Names of roles in exports that `data/messages.py` does not know."""


REPAIRS = {
    "turns_empty": "turns without text, left out",
    "turns_repeated": "turns equal to the one before, left out",
    "turns_merged": "turns joined to the one before, of the same role",
    "turns_leading": "answers before the first question, left out",
    "turns_trailing": "turns behind the last answer, left out",
    "html_turns": "turns of HTML that became Markdown",
    "residue_lines": "lines that pages leave in turns, removed",
}
"""Columns that count repairs of a conversation, and what each counts."""


@dataclass(frozen=True)
class Conversation:
    """Parses raw records into conversations, and repairs the order of their turns.

    Columns, in rows that were repaired: `turns_empty`, `turns_repeated`, `turns_merged`, `turns_leading` and
    `turns_trailing`, each a number of turns that were left out or joined to the turn before.
    """

    reasons: ClassVar[tuple[str, ...]] = ("malformed", "unknown_role", "no_turns", "no_question", "no_answer")

    prompts: bool = False
    """Whether a conversation that ends with a user turn stays as it is, a record of kind "prompt". Otherwise it is
    cut behind its last answer."""

    def __call__(self, row: Row) -> Row | Rejected:
        """The row with the parsed record, or why it is rejected: "malformed" with what `data/formats.py` says."""
        try:
            record = formats.parse(dict(row.record))
        except ValueError as error:
            return self._repaired(row, error)
        if record["kind"] != "prompt" or self.prompts:
            return row.with_(record)
        messages, repairs = in_order(record["messages"])
        if problem := problem_of(messages, repairs):
            return problem
        return row.with_({**record, "kind": "chat", "messages": messages}, **repairs)

    def _repaired(self, row: Row, error: ValueError) -> Row | Rejected:
        """The row with its turns repaired, or why it is rejected. error: why `data/formats.py` refuses the record."""
        raw = present(row.record)
        field = _field_of_turns(raw)
        if field is None:
            return Rejected("malformed", str(error))
        messages = _messages(raw, field)
        if isinstance(messages, Rejected):
            return messages
        known = field if field in ("conversations", "conversation", "messages") else "conversations"
        others = {name: value for name, value in raw.items() if name != field}
        try:
            messages, repairs = in_order(with_calls(raw, messages), trailing=not self.prompts)
            if problem := problem_of(messages, repairs, answer=not self.prompts):
                return problem
            return row.with_(formats.parse({**others, known: messages}), **repairs)
        except ValueError as remaining:
            return Rejected("malformed", str(remaining))


def turns_of(raw: Mapping[str, Any]) -> list[Message]:
    """The turns of a raw record in the order in which they stand there, for people to read; [] if none are found."""
    raw = present(dict(raw))
    field = _field_of_turns(raw)
    messages = _messages(raw, field) if field else []
    return [] if isinstance(messages, Rejected) else messages


def _field_of_turns(raw: Mapping[str, Any]) -> str | None:
    """The field with the turns of a raw record that is no preference."""
    if "chosen" in raw or "rejected" in raw:
        return None
    return next((name for name in TURN_FIELDS if name in raw), None)


def _messages(raw: Mapping[str, Any], field: str) -> list[Message] | Rejected:
    """The turns of a raw record as messages, in whatever order; turns of the system without text are left out."""
    turns = from_json(raw[field])
    if isinstance(turns, dict):
        columns = {name: column for name, column in turns.items() if isinstance(column, list)}
        if len({len(column) for column in columns.values()}) > 1:
            return Rejected("malformed", f"{field} has columns of different lengths")
        turns = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)] or [turns]
    if not isinstance(turns, list):
        return Rejected("malformed", f"{field} is {kind_of(turns)}, not a list of turns")
    roles = (LMFLOW if raw.get("type") == "conversation" else OPENAI).roles
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        message = _message(turn, f"{field}[{i}]", roles)
        if isinstance(message, Rejected):
            return message
        messages += message
    return messages


def _message(turn: Any, where: str, roles: Mapping[str, str]) -> list[Message] | Rejected:
    """One raw turn as a message; [] for a system turn without text. where: names the turn in details.

    roles: the role for each name of a role that the format of the record knows.
    """
    if not isinstance(turn, dict):
        return Rejected("malformed", f"{where} is {kind_of(turn)}, not a turn")
    turn = present(turn)
    names = {
        "role": next((name for name in ROLE_FIELDS if name in turn), "role"),
        "content": next((name for name in CONTENT_FIELDS if name in turn), "content"),
    }
    speaker = turn.get(names["role"])
    if not isinstance(speaker, str):
        return Rejected("unknown_role", f"{where} has no role")
    name = speaker.strip().rstrip(":：").lower()
    role = roles.get(name) or MORE_ROLES.get(name)
    if role is None:
        return Rejected("unknown_role", f"{where} has the role {shown(speaker)}")
    content = turn.get(names["content"], "")
    if role == "system" and isinstance(content, str) and not content.strip():
        return []
    others = {name: value for name, value in turn.items() if name not in names.values()}
    try:
        return read_messages({where: [{**others, "role": role, "content": content}]}, where, OPENAI)
    except ValueError as error:
        return Rejected("malformed", str(error).replace(f"{where}[0]", where))


def in_order(messages: Sequence[Message], *, trailing: bool = True) -> tuple[list[Message], dict[str, int]]:
    """The messages in an order that every format accepts, and the number of repairs by column.

    Args:
      messages: parsed messages in any order.
      trailing: whether turns behind the last answer are left out.

    Returns:
      The messages that are left, which may be none, and the columns described at `Conversation`.
    """
    repairs: Counter[str] = Counter()
    kept: list[Message] = []
    for message in messages:
        if is_empty(message):
            repairs["turns_empty"] += 1
        elif not kept or kept[-1]["role"] != message["role"] or message["role"] == "tool":
            kept.append(message)
        elif kept[-1] == message:
            repairs["turns_repeated"] += 1
        elif _is_plain(kept[-1]) and _is_plain(message) and kept[-1].get("train") == message.get("train"):
            kept[-1] = {**kept[-1], "content": f"{kept[-1]['content']}\n\n{message['content']}"}
            repairs["turns_merged"] += 1
        else:
            kept.append(message)
    system = list(itertools.takewhile(lambda message: message["role"] == "system", kept))
    turns = list(itertools.dropwhile(lambda message: message["role"] in ("assistant", "tool"), kept[len(system) :]))
    repairs["turns_leading"] += len(kept) - len(system) - len(turns)
    if trailing:
        last = max((i for i, message in enumerate(turns) if message["role"] == "assistant"), default=-1)
        if last >= 0:
            repairs["turns_trailing"] += len(turns) - last - 1
            turns = turns[: last + 1]
    return [*system, *turns], {name: count for name, count in repairs.items() if count}


def problem_of(messages: Sequence[Message], repairs: Mapping[str, int], *, answer: bool = True) -> Rejected | None:
    """Why messages are no conversation; None if they are one. The first two arguments are what `in_order` returns.

    answer: whether a conversation needs an answer.
    """
    roles = [message["role"] for message in messages]
    if not roles and "turns_leading" not in repairs:
        return Rejected("no_turns", "no turn has text")
    if "user" not in roles:
        return Rejected("no_question", "no turn of a user has text")
    if answer and "assistant" not in roles:
        return Rejected("no_answer", "no answer of the assistant has text")
    return None


def is_empty(message: Message) -> bool:
    """Whether a message says nothing: it has no text, and is neither a call of a tool nor a tool's result."""
    said = message["content"].strip() or message.get("input", "").strip()
    return not said and not message.get("tool_calls") and message["role"] != "tool"


def _is_plain(message: Message) -> bool:
    """Whether a message has nothing but text."""
    return message.keys() <= {"role", "content", "train"}


def with_turns(row: Row, turns: Sequence[Message], **columns: Any) -> Row | Rejected:
    """The row with other turns, from which turns that lost all their text are left out, and with further columns.

    Args:
      row: a row with a conversation.
      turns: as many turns as it has: those of its messages, then those of its compared answers.
      **columns: further columns.

    Returns:
      The row, whose columns of `Conversation` count the turns that were left out too. Or a rejection: with
      "nothing_left" if an answer of a preference, or a turn before it, lost its text; or with a reason of `problem_of`.
    """
    record, count = row.record, len(row.record["messages"])
    before = [*record["messages"], *answers_of(record)]
    lost = [is_empty(new) and not is_empty(old) for new, old in zip(turns, before, strict=True)]
    messages, answers = list(turns[:count]), list(turns[count:])
    repairs: dict[str, int] = {}
    if any(lost):
        if answers:
            return Rejected("nothing_left", "an answer, or a turn before it, has no text")
        messages, repairs = in_order(messages, trailing=record["kind"] == "chat")
        if problem := problem_of(messages, repairs, answer=record["kind"] == "chat"):
            return problem
    fields: dict[str, Any] = {"messages": messages}
    for side in ("chosen", "rejected"):
        if side in record:
            several = isinstance(record[side], list)
            taken = [answers.pop(0) for _ in range(len(record[side]) if several else 1)]
            fields[side] = taken if several else taken[0]
    repairs = {name: row.columns.get(name, 0) + number for name, number in repairs.items()}
    return row.with_({**record, **fields}, **columns, **repairs)
