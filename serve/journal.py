"""Requests to language models and a journal of them on disk, from which an interrupted command resumes.

Every request is written to the journal before it is sent, and its reply as soon as it is there. A request with a reply
in the journal is never sent again. The file has one JSON object a line:

    {"key": K, "asked": 1, "request": {...}}    an attempt, before it is sent; the request stands at the first one
    {"key": K, "reply": {...}}                  the reply
    {"key": K, "failed": "...", "paid": true}   the end of an attempt without a reply; paid: the model may have answered

A key is the hash of the request, with the number of the sample: the same request with another number has another reply.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..data.checksums import writing
from ..data.json_values import plain
from ..data.locks import locked
from ..errors import UserError, shown

RESERVED = ("messages", "prompt", "model", "n", "stream", "stream_options")
"""Fields of OpenAI's protocol that no settings may have: what is asked of whom, and more or other than one reply."""

MOST_TOKENS = 10**12
"""A larger number of tokens is taken for none."""

LINE_BEGIN = b'{"key": "'
"""How each line of a journal begins."""


@dataclass(frozen=True)
class Request:
    """One conversation that is to be answered, or a prompt of tokens that is to be continued.

    Raises UserError for settings that cannot be sent (`check_settings`), and unless it has either messages or a prompt.
    """

    messages: Sequence[Mapping[str, str]] = ()
    """The conversation, {"role", "content"} objects; () where there is a prompt."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of OpenAI's protocol, such as temperature, max_tokens and seed; none of RESERVED."""

    sample: int = 0
    """Tells apart requests with equal content that are to have replies of their own. It is added to a seed."""

    prompt: Sequence[int] | None = None
    """Ids of the tokens that the model continues, without a chat template; None where there are messages. Control
    tokens may be among them."""

    def __post_init__(self):
        check_settings(self.settings)
        if bool(self.messages) == bool(self.prompt):
            raise UserError("a request has either messages or a prompt with tokens: give one of the two")

    def body(self, model: Any) -> dict[str, Any]:
        """The content of the request as `POST /v1/chat/completions` takes it, or `POST /v1/completions` a prompt."""
        settings = dict(self.settings)
        if settings.get("seed") is not None:
            settings["seed"] += self.sample
        if self.prompt is not None:
            return {"model": model, "prompt": list(self.prompt), **settings}
        return {"model": model, "messages": [dict(message) for message in self.messages], **settings}


@dataclass(frozen=True)
class Reply:
    """The answer to a request."""

    text: str
    """What the model wrote."""

    finish_reason: str = "stop"
    """Why it ended: "stop", or "length" where the limit of tokens cut it; endpoints have further reasons."""

    prompt_tokens: int | None = None
    """Number of tokens in the prompt; None: the endpoint did not say."""

    completion_tokens: int | None = None
    """Number of tokens in the answer; None: the endpoint did not say."""

    model: str = ""
    """The version of the model that answered, where the endpoint names it."""


class Asker(Protocol):
    """Answers requests: an endpoint (`endpoint.Endpoint`) or a model in memory (`local.Local`).

    Attributes:
      name: the name of the model.
    """

    name: str

    def key(self, request: Request) -> str:
        """The key of a request in the journal."""
        ...

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies in the order of the requests. Raises UserError if some cannot be had; the others are kept."""
        ...


@dataclass
class Ledger:
    """What the requests of a journal took, of all commands that wrote to it."""

    replies: int = 0
    """Number of replies."""

    prompt_tokens: int = 0
    """Tokens in the prompts of replies."""

    completion_tokens: int = 0
    """Tokens in the answers of replies."""

    without_usage: int = 0
    """Number of replies whose tokens the endpoint did not tell."""

    failures: int = 0
    """Number of attempts that ended without a reply, and were not paid."""

    perhaps_paid: int = 0
    """Number of attempts without a reply that may have been paid: the process was killed, the connection was cut, or
    what came was no answer."""

    def cost(self, prompt_price: float, completion_price: float) -> float:
        """The cost of the replies, from prices for a million tokens of prompts and of answers."""
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} tokens of prompts and {self.completion_tokens:,} of answers"
        told = f"{self.replies:,} replies, {tokens}"
        if self.without_usage:
            told += f" ({self.without_usage:,} replies do not say)"
        if self.failures:
            told += f"; attempts that failed: {self.failures:,}"
        if self.perhaps_paid:
            told += f"; perhaps paid without a reply: {self.perhaps_paid:,}"
        return told


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises UserError if settings of requests have a field of RESERVED, a wrong seed, or what JSON cannot hold."""
    if taken := [name for name in RESERVED if name in settings]:
        raise UserError(f"settings have {taken[0]!r}, which is no setting of an answer: leave it out")
    seed = settings.get("seed")
    if seed is not None and not (type(seed) is int and 0 <= seed < 2**31):
        raise UserError(f"settings have the seed {shown(seed)}: give a whole number from 0 to {2**31 - 1}")
    try:
        json.dumps(dict(settings), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"settings {shown(dict(settings))} cannot be sent as JSON ({shown(str(error))})") from None


def tokens_of(found: Any) -> int | None:
    """A number of tokens; None for anything but a whole number from 0 to MOST_TOKENS."""
    return found if type(found) is int and 0 <= found <= MOST_TOKENS else None


def key_of(model: Any, request: Request) -> str:
    """The key of a request to a model in a journal. model: what tells it from others, as JSON can hold it."""
    content = json.dumps(request.body(model), sort_keys=True, ensure_ascii=True)
    return f"{hashlib.sha256(content.encode()).hexdigest()[:40]}-{request.sample}"


class Journal:
    """A journal that is open, and locked against other processes.

        with Journal("answers.jsonl.journal") as journal:
            ...

    An incomplete last line, which a killed process leaves, is taken away at opening, and its request is asked again.

    Args:
      path: the file; None keeps replies in memory alone. A link stands for the file that it leads to.
      sealed: why no request may be added, which `ask` then raises as a UserError; None lets requests be added.

    Attributes:
      path: the file, or None.
      ledger: what the requests of the journal took.

    Raises:
      UserError: on entering, if another process has opened it, or a line is no journal's.
    """

    def __init__(self, path: str | os.PathLike | None, *, sealed: str | None = None):
        self.path, self.ledger = (None if path is None else Path(path)), Ledger()
        self._sealed = sealed
        self._replies: dict[str, Reply] = {}
        self._asked: dict[str, int] = {}
        self._pending: set[str] = set()
        self._held = contextlib.ExitStack()
        self._file: int | None = None

    def __enter__(self) -> "Journal":
        if self.path is None:
            return self
        with contextlib.ExitStack() as held:
            held.enter_context(locked(Path(f"{os.path.realpath(self.path)}.lock"), self._refuse))
            self._is_new = not self.path.exists()
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            held.callback(os.close, self._file)
            self._read()
            self._held = held.pop_all()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None and self._file is not None and self._is_new and not os.fstat(self._file).st_size:
            self.path.unlink(missing_ok=True)  # nothing was asked before the error
        self._held.close()
        self._file = None

    def reply(self, key: str) -> Reply | None:
        """The reply to the request with a key, or None."""
        return self._replies.get(key)

    def ask(self, bodies: Mapping[str, Mapping[str, Any]]) -> None:
        """Notes that requests are about to be sent. bodies: the content of each request by its key."""
        if self._sealed is not None:
            raise UserError(self._sealed)
        lines = []
        for key, body in bodies.items():
            count = self._asked.get(key, 0) + 1
            lines.append({"key": key, "asked": count} | ({"request": body} if count == 1 else {}))
        self._append(lines)
        for line in lines:
            self._take(line)

    def fail(self, key: str, why: str, *, paid: bool) -> None:
        """Notes that an attempt ended without a reply. paid: whether the model may have answered."""
        line = {"key": key, "failed": why, "paid": paid}
        self._append([line])
        self._take(line)

    def answer(self, replies: Mapping[str, Reply]) -> None:
        """Keeps the replies to requests by their keys. The first reply to a request stays."""
        new = {key: plain(asdict(reply)) for key, reply in replies.items() if key not in self._replies}
        lines = [{"key": key, "reply": reply} for key, reply in new.items()]
        self._append(lines)
        for line in lines:
            self._take(line)

    def _take(self, line: Mapping[str, Any]) -> None:
        """Takes what a line says. Raises ValueError, KeyError or TypeError if it is none of a journal."""
        key, ledger = line["key"], self.ledger
        if "asked" in line:
            if type(count := line["asked"]) is not int:
                raise TypeError("asked is no whole number")
            ledger.perhaps_paid += key in self._pending  # the attempt before it never ended
            self._asked[key] = count
            self._pending.add(key)
        elif "failed" in line:
            self._pending.discard(key)
            ledger.perhaps_paid += bool(line["paid"])
            ledger.failures += not line["paid"]
        else:
            reply = _reply_in(line["reply"])
            self._pending.discard(key)
            self._replies.setdefault(key, reply)
            ledger.replies += 1
            ledger.prompt_tokens += reply.prompt_tokens or 0
            ledger.completion_tokens += reply.completion_tokens or 0
            ledger.without_usage += reply.completion_tokens is None

    def _read(self) -> None:
        """Reads the file, and mends its last line."""
        end, line = 0, b"\n"
        for number, line in enumerate(self._lines(), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                if not line.endswith(b"\n") and LINE_BEGIN.startswith(line[: len(LINE_BEGIN)]):
                    break
                raise UserError(
                    f"{self.path}, line {number}: no line of a journal ({shown(str(error))}): restore the file, take "
                    "the line out, which asks its request again, or give another --journal"
                ) from None
            end += len(line)
        os.ftruncate(self._file, end)
        if end and not line.endswith(b"\n") and os.pread(self._file, 1, end - 1) != b"\n":
            self._write(b"\n")  # all but the end of the line was written
        self.ledger.perhaps_paid += len(self._pending)  # a process was killed while it waited for them
        self._pending.clear()

    def _lines(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            yield from file

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Writes lines to the disk: all of them, or none after an error."""
        if self.path is None or not lines:
            return
        if self._file is None:
            raise ValueError(f"{self.path}: the journal is not open")
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        self._write(text.encode(errors="surrogatepass"))  # which json.loads reads

    def _write(self, content: bytes) -> None:
        before, rest = os.fstat(self._file).st_size, memoryview(content)
        try:
            with writing(self.path):
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                os.fsync(self._file)
        except BaseException:
            if rest:  # a full disk, a signal: half a line must not stand before the next one
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, before)
            raise

    def _refuse(self, holder: str) -> None:
        raise UserError(f"{self.path} is in use by {holder}: wait for it or end it, or give another --journal")


def _reply_in(found: Mapping[str, Any]) -> Reply:
    """The reply in a line of a journal. Raises TypeError if there is none."""
    reply = Reply(**plain(found))
    if not all(isinstance(text, str) for text in (reply.text, reply.finish_reason, reply.model)):
        raise TypeError("text, finish_reason or model of the reply is no text")
    return replace(
        reply, prompt_tokens=tokens_of(reply.prompt_tokens), completion_tokens=tokens_of(reply.completion_tokens)
    )
