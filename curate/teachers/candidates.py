"""What becomes of the rows that a teacher makes: each is kept, or rejected with a reason."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...data.formats import parse
from ...data.json_values import plain
from ...data.sources import Source
from ...errors import bad_record
from ...serve.journal import Asker, Reply, Request
from ..applying import RejectedRow
from ..rows import LANGUAGE, Rejected, Row, fraction_of, id_of, text_of
from .seeds import language_of

READ = "read"
"""The step that takes the records to start from."""

READ_REASONS = ("repeated", "tools", "malformed")

REPLY_REASONS = ("empty", "cut", "withheld")
"""Why the reply of a teacher is of no use (`problem_of`)."""

CUT, WITHHELD = {"length", "max_tokens"}, {"content_filter", "safety"}
"""Finish reasons of replies that a limit of tokens cut, and of replies that an endpoint held back."""

ROLES = {"system", "user", "assistant"}

Messages = list[dict[str, str]]


@dataclass
class Made:
    """The rows that were made. Their ids differ from each other and from those of the rejected ones."""

    rows: list[Row] = field(default_factory=list)
    """The rows that are kept."""

    rejected: list[RejectedRow] = field(default_factory=list)
    """The others, each with the step that rejected it and the reason."""

    def drop(self, row: Row, step: str, why: Rejected) -> None:
        """Adds a rejected row."""
        self.rejected.append(RejectedRow(row, step, why.reason, why.detail))


class Counting:
    """An asker that counts the replies which are read, each once, wherever they come from.

    Attributes:
      replies: the replies by the key of their requests.
    """

    def __init__(self, asker: Asker):
        self.name, self._asker, self.replies = asker.name, asker, dict[str, Reply]()

    def key(self, request: Request) -> str:
        """The key of a request in the journal."""
        return self._asker.key(request)

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies to requests, in their order."""
        found = self._asker.ask(requests)
        self.replies.update(zip(map(self.key, requests), found, strict=True))
        return found

    @property
    def prompt_tokens(self) -> int:
        """Tokens in the prompts of the replies, as far as they say."""
        return sum(reply.prompt_tokens or 0 for reply in self.replies.values())

    @property
    def completion_tokens(self) -> int:
        """Tokens in the answers of the replies, as far as they say."""
        return sum(reply.completion_tokens or 0 for reply in self.replies.values())

    def __str__(self) -> str:
        """The number of replies and of their tokens. It depends on no failures and interruptions."""
        tokens = f"{self.prompt_tokens:,} tokens of prompts and {self.completion_tokens:,} of answers"
        return f"{len(self.replies):,} replies of {self.name}, {tokens}"


def problem_of(reply: Reply) -> Rejected | None:
    """Why a reply is of no use: it was held back, cut by a limit of tokens, or is empty. None for a good one."""
    if reply.finish_reason in WITHHELD:
        return Rejected("withheld", reply.finish_reason)
    if reply.finish_reason in CUT:
        return Rejected("cut", f"at {reply.completion_tokens} tokens")
    return None if reply.text.strip() else Rejected("empty", f"it ended by {reply.finish_reason or 'nothing'}")


def request_settings(more: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """The settings of a request.

    Args:
      more: what the user wants besides; None takes a setting out.
      **settings: the settings otherwise; None leaves one out.
    """
    return {name: value for name, value in (settings | dict(more)).items() if value is not None}


def draw(seed: int, purpose: str, *what: Any) -> int:
    """A whole number from 0 to 2**31 - 1 that follows from a seed, a purpose, and what it is drawn for."""
    return int(fraction_of("\0".join(map(str, (seed, *what))), purpose) * 2**31)


def start_rows(name: str, raws: Iterable[tuple[str, Any]], made: Made, source: Source | None = None) -> list[Row]:
    """Rows to start from, in the order of their records. Their column language is "en" or "zh".

    Args:
      name: name of the source.
      raws: place and raw record, or a ValueError for one that cannot be read, as `data.sources.raw_rows` gives them.
      made: gets the rows from which nothing can be made: repeated ones, conversations with tools, and malformed ones.
      source: says the format of the records and what to do about a malformed one; None detects formats, and raises.

    Raises:
      UserError: a record is malformed, unless `source.on_error` is "skip".
    """
    found: dict[str, Row | None] = {}
    for number, (place, raw) in enumerate(raws, 1):
        content = plain(raw) if isinstance(raw, Mapping) else {"unreadable": str(raw), "record": number}
        row = Row(id_of(name, content), content, name, place)
        if row.id in found:
            repeated = replace(row, id=id_of(name, {"repeated": number, "record": content}))
            made.drop(repeated, READ, Rejected("repeated", "the same record stands before"))
            continue
        found[row.id] = None
        try:
            if isinstance(raw, ValueError):
                raise raw
            record = parse(raw, source.format if source else "auto")
        except ValueError as problem:
            if source is None or source.on_error == "raise":
                raise bad_record(f"{place}: {problem}") from problem
            made.drop(row, READ, Rejected("malformed", str(problem)))
            continue
        if _has_tools(record):
            made.drop(row, READ, Rejected("tools"))
        else:
            found[row.id] = row.with_(record, **{LANGUAGE: language_of(text_of(record)) or "en"})
    return [row for row in found.values() if row is not None]


def _has_tools(record: Mapping[str, Any]) -> bool:
    """Whether a conversation has turns that a teacher cannot be asked about by role and content alone."""
    messages = record.get("messages", ())
    return bool(record.get("tools")) or any(m["role"] not in ROLES or m.get("tool_calls") for m in messages)


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> Messages:
    """Messages as a teacher is shown them: role and content, with an Alpaca input below the instruction."""
    return [
        {"role": message["role"], "content": "\n\n".join(filter(None, (message["content"], message.get("input"))))}
        for message in messages
    ]


def question_of(row: Row) -> Messages | None:
    """The messages of a row up to its last user turn, which a teacher is to answer; None for a text."""
    if row.record["kind"] == "text":
        return None
    messages = plain_messages(row.record["messages"])
    last = max(place for place, message in enumerate(messages) if message["role"] == "user")
    return messages[: last + 1]
