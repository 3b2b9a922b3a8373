"""Who answers a conversation: a model in memory, or a server of OpenAI's protocol. The chat knows only `Speaker`."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import TooLong, UserError, did_you_mean, shown

if TYPE_CHECKING:  # a chat with a server does not wait for the imports of a model
    from ..checkpoints.language_model import LanguageModel

Messages = Sequence[Mapping[str, str]]

KEY = "CAMELID_API_KEY"
"""The environment variable with the key that a server asks for."""

SECONDS = 600
"""A server that sends nothing for so long is given up: its first answer may wait for a compilation."""

MOST_TOKENS = 10**7
"""A usage of more tokens than an answer can have is not believed."""


class Speaker(Protocol):
    """Answers conversations.

    Attributes:
      waiting: what the next text waits for, for a status line.
      tokens: number of tokens in the last answer, or so far in the one that is streamed.
    """

    waiting: str
    tokens: int

    def stream(self, messages: Messages, **settings: Any) -> Iterator[str]:
        """Yields the assistant's next turn in pieces.

        Args:
          messages: the conversation, {"role", "content"} dicts.
          **settings: fields of `model.sampling.Sampling`, `seed` and `stop`.

        Raises:
          TooLong: the conversation fills the context.
          WrongSetting: a setting is at fault.
          UserError: the conversation cannot be answered for another reason.
          Unreachable: nothing in the conversation is at fault.
        """
        ...


class Unreachable(UserError):
    """A server cannot be reached, or does not answer as OpenAI's protocol says."""


class WrongSetting(UserError):
    """A server refuses the value of a setting.

    Attributes:
      setting: the setting's name.
      is_full: whether a shorter conversation would leave room for the value.
    """

    def __init__(self, problem: str, setting: str, is_full: bool):
        super().__init__(problem)
        self.setting, self.is_full = setting, is_full


class ModelSpeaker:
    """Answers with a model in memory."""

    def __init__(self, model: "LanguageModel"):
        self.model, self.waiting, self.tokens = model, "compiling, once", 0

    def stream(self, messages: Messages, **settings: Any) -> Iterator[str]:
        self.tokens = 0
        with closing(self.model.stream_chat(messages, **settings)) as pieces:
            for self.tokens, piece in enumerate(pieces):  # a piece for each token, and one for held-back text
                if self.tokens:  # one program reads the prompt, another makes each further token
                    self.waiting = "the next token"
                yield piece
        if self.tokens:
            self.waiting = "reading the conversation"


class ServerSpeaker:
    """Answers through `POST /v1/chat/completions` of a server, as server-sent events.

    Args:
      address: http:// or https://, host and port; the ending /v1 may be there.
      name: the model to talk to; None takes the first that the server lists. A name is not checked if the list cannot
        be read.
      key: the key that the server asks for, or None.

    Raises:
      UserError: the server lists other models than `name`.
      Unreachable: no name is given, and the server does not answer, or lists no model.
    """

    def __init__(self, address: str, name: str | None = None, key: str | None = None):
        self.address = address.rstrip("/").removesuffix("/v1")
        self.waiting, self.tokens = f"waiting for {self.address}", 0
        self._key, self._opener = key, urllib.request.build_opener(_NoRedirect)
        self.name = self._first_model() if name is None else self._checked(name)

    def stream(self, messages: Messages, **settings: Any) -> Iterator[str]:
        self.tokens, ended = 0, False
        body = {"model": self.name, "messages": list(messages), "stream": True} | settings
        body["stream_options"] = {"include_usage": True}
        with self._open("/v1/chat/completions", body, settings) as response:
            for event in self._events(response):
                for choice in _list_of(event, "choices")[:1]:
                    ended = ended or choice.get("finish_reason") is not None
                    delta = choice.get("delta")
                    text = delta.get("content") if isinstance(delta, dict) else None
                    if isinstance(text, str) and text:
                        self.tokens += 1  # about one token a piece, until the usage says how many
                        yield text
                usage = event.get("usage")
                tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
                if type(tokens) is int and 0 <= tokens <= MOST_TOKENS:
                    self.tokens = tokens
        if not ended:
            raise Unreachable(f"{self.address} ended the connection before the answer: see the server's log")

    def _first_model(self) -> str:
        """The first model that the server lists."""
        names = self._models()
        if not names:
            raise Unreachable(f"{self.address}/v1/models lists no model: give its name by --model")
        return names[0]

    def _checked(self, name: str) -> str:
        """The name of a model. Raises UserError if the server lists others; a list that cannot be read is let be."""
        try:
            names = self._models()
        except Unreachable:
            return name
        if (
            names and name not in names and f"{name}:latest" not in names
        ):  # Ollama's names end so, and are given without
            there = _one_line(", ".join(names))
            raise UserError(f"{self.address} has no model {shown(name)}, only {there}{did_you_mean(name, names)}")
        return name

    def _models(self) -> list[str]:
        """The names of the models that the server lists."""
        with self._open("/v1/models") as response, _told(self.address):
            text = response.read()
        return [each["id"] for each in _list_of(self._json(text), "data") if isinstance(each.get("id"), str)]

    def _open(
        self, path: str, body: dict[str, Any] | None = None, settings: Collection[str] = ()
    ) -> http.client.HTTPResponse:
        """Sends a request: GET, or POST with a body, in which `settings` may be at fault.

        Raises UserError for an answer other than 200.
        """
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        try:
            with _told(self.address):
                request = urllib.request.Request(self.address + path, data, headers)
                return self._opener.open(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            with error, _told(self.address):
                raise self._refusal(error, settings) from None

    def _refusal(self, error: urllib.error.HTTPError, settings: Collection[str]) -> UserError:
        """The error of a status other than 200, with the reason that the server gives."""
        said, setting, is_full = error.read(2**16).decode(errors="replace"), None, False
        try:
            found = json.loads(said)
            found = found.get("error", found)
            reason = found["message"] if isinstance(found, dict) else found
            if isinstance(found, dict):
                setting, is_full = found.get("param"), found.get("code") == "context_length_exceeded"
        except (ValueError, RecursionError, AttributeError, KeyError):
            reason = said or str(error.reason)
        reason = _one_line(reason)
        if error.code == 401:
            reason = f"{reason}; set the environment variable {KEY}"
        if moved := error.headers.get("Location"):
            reason = f"it has moved to {_one_line(moved)}: give that address"
        told = f"{self.address} refused ({error.code}): {reason}"
        if error.code not in (400, 413, 422):
            return Unreachable(told)
        if isinstance(setting, str) and setting in settings:
            return WrongSetting(told, setting, is_full)
        return TooLong(told) if is_full else UserError(told)

    def _events(self, response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        """The objects of a stream of server-sent events, up to its end."""
        data: list[bytes] = []
        while True:
            with _told(self.address):
                line = response.readline()
            field, _, value = line.rstrip(b"\r\n").partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif not field and not value and data:  # a blank line ends an event
                text, data = b"\n".join(data), []
                if text == b"[DONE]":
                    return
                event = self._json(text)
                if event.get("error"):
                    error = event["error"]
                    reason = error.get("message", "") if isinstance(error, dict) else error
                    raise Unreachable(f"{self.address} failed: {_one_line(reason)}")
                yield event
            if not line:
                return

    def _json(self, text: bytes) -> dict[str, Any]:
        """An object in JSON. Raises Unreachable for anything else."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):  # lists in lists in lists, without end
            found = None
        if not isinstance(found, dict):
            raise Unreachable(f"{self.address} sent {shown(text)}, which is not OpenAI's protocol: is it the address?")
        return found


def _list_of(event: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """The objects in a field that holds a list; [] if it holds anything else."""
    found = event.get(field)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turns an error of the connection into one line. An HTTPError passes: it is an answer."""
    try:
        yield
    except (UserError, urllib.error.HTTPError):
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        reason = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise Unreachable(f"{address}: {_one_line(reason)}") from None


def _one_line(found: object) -> str:
    """The beginning of what a server sent as a text, on one line and without control characters."""
    line = " ".join((found if isinstance(found, str) else shown(found)).split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)[:300]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would turn a POST into a GET, and take the key to another host."""

    def redirect_request(self, *request):
        return None
