"""Who answers a conversation: a model in memory, or a server of OpenAI's protocol. The chat knows only `Speaker`."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UserError, shown

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
          UserError: the conversation cannot be answered, for example because it fills the context.
          Unreachable: nothing in the conversation is at fault.
        """
        ...


class Unreachable(UserError):
    """A server cannot be reached, or does not answer as OpenAI's protocol says."""


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
      name: the model to talk to; None takes the first that the server lists.
      key: the key that the server asks for, or None.

    Raises:
      Unreachable: the server does not answer, or lists no model.
    """

    def __init__(self, address: str, name: str | None = None, key: str | None = None):
        self.address = address.rstrip("/").removesuffix("/v1")
        self.waiting, self.tokens = f"waiting for {self.address}", 0
        self._key, self._opener = key, urllib.request.build_opener(_NoRedirect)
        self.name = self._first_model() if name is None else name

    def stream(self, messages: Messages, **settings: Any) -> Iterator[str]:
        self.tokens, ended = 0, False
        body = {"model": self.name, "messages": list(messages), "stream": True} | settings
        with self._open("/v1/chat/completions", body | {"stream_options": {"include_usage": True}}) as response:
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
        with self._open("/v1/models") as response, _told(self.address):
            text = response.read()
        models = _list_of(self._json(text), "data")
        if not models or not isinstance(models[0].get("id"), str):
            raise Unreachable(f"{self.address}/v1/models lists no model: give its name by --model")
        return models[0]["id"]

    def _open(self, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        """Sends a request: GET, or POST with a body. Raises UserError for an answer other than 200."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        try:
            with _told(self.address):
                request = urllib.request.Request(self.address + path, data, headers)
                return self._opener.open(request, timeout=SECONDS)
        except urllib.error.HTTPError as error:
            with error, _told(self.address):
                raise self._refusal(error) from None

    def _refusal(self, error: urllib.error.HTTPError) -> UserError:
        """The error of a status other than 200, with the reason that the server gives."""
        said = error.read(2**16).decode(errors="replace")
        try:
            found = json.loads(said)
            found = found.get("error", found)
            reason = found["message"] if isinstance(found, dict) else found
        except (ValueError, RecursionError, AttributeError, KeyError):
            reason = said or str(error.reason)
        reason = _one_line(reason)
        if error.code == 401:
            reason = f"{reason}; set the environment variable {KEY}"
        if moved := error.headers.get("Location"):
            reason = f"it has moved to {_one_line(moved)}: give that address"
        kind = UserError if error.code in (400, 413, 422) else Unreachable
        return kind(f"{self.address} refused ({error.code}): {reason}")

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
