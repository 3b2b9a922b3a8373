"""The servers behind a router: which of them are well, which models they have, and which one gets a request."""

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import httpx

from ..errors import shown
from .listen import say

SLACK = 2
"""Requests that a server may have more than the least loaded one and still get those that begin like earlier ones."""
CHECK_SECONDS = 1.0
"""Time between two health checks of a server."""
CHECK_TIMEOUT = 5.0
"""Time in which a server must answer a health check."""
MOST_MISSED = 2
"""Health checks in a row without an answer after which a server is lost, with all that it was to answer."""
FAILURES = (httpx.HTTPError, AttributeError, RuntimeError)
"""What httpx raises where a server is lost. For a connection that is reset just after it was made, anyio raises
AttributeError, and uvloop RuntimeError."""
BLOCK = 64
"""Characters of a prompt that are remembered together."""
MOST_BLOCKS = 1024
"""Blocks of a prompt that decide where it goes; what comes behind them does not."""
MOST_REMEMBERED = 1 << 15
"""Blocks that are remembered of each server."""


class Asked(NamedTuple):
    """What the choice of a server depends on.

    Attributes:
      model: the name of the model; None for the default.
      blocks: a hash for each block of the prompt, of all text to its end: equal ones are equal beginnings.
      whole: a hash of the prompt.
    """

    model: str | None
    blocks: tuple[bytes, ...]
    whole: bytes


def asked_of(path: str, query: str, body: bytes) -> Asked:
    """What a request asks for."""
    if path.startswith("/v1/models/"):
        return Asked(path.removeprefix("/v1/models/"), (), b"")
    given, text = {}, b""
    with suppress(ValueError, RecursionError):
        found = json.loads(body)
        given = found if isinstance(found, dict) else {}
        prompt = _text(given.get("messages") or given.get("prompt") or given.get("input"))
        text = prompt.encode("utf-8", "surrogatepass")  # JSON may have halves of a pair
    model = given.get("model") or parse_qs(query).get("model", [None])[0]
    blocks, told = [], hashlib.blake2b(digest_size=8)
    for end in range(BLOCK, min(len(text), BLOCK * MOST_BLOCKS) + 1, BLOCK):
        told.update(text[end - BLOCK : end])
        blocks.append(told.digest())
    told.update(text[BLOCK * len(blocks) :])
    return Asked(model if isinstance(model, str) else None, tuple(blocks), told.digest())


def _text(prompt: object) -> str:
    """A prompt as text of which a longer prompt's is a continuation."""
    if isinstance(prompt, str):
        return prompt
    return "".join(map(json.dumps, prompt)) if isinstance(prompt, list) else json.dumps(prompt)


def models_in(content: bytes) -> list[dict[str, Any]] | None:
    """The models in a server's reply to `/v1/models`, those with a name; None if the reply is no list of models."""
    try:
        models = json.loads(content)["data"]
        return [model for model in models if isinstance(model, dict) and isinstance(model.get("id"), str)]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


class Backend:
    """A server behind the router.

    Attributes:
      name: what `/health`, metrics and messages call it.
      url: its address; None while it has none.
      well: whether it takes requests.
      active: number of requests that it answers for this router.
      models: the names of its models, the default first; empty if it does not tell.
      lost: is done once the server is lost; None before it was well.
    """

    def __init__(self, name: str, url: str | None = None):
        self.name, self.url, self.well, self.active = name, url, False, 0
        self.models: tuple[str, ...] = ()
        self.lost: asyncio.Future[None] | None = None
        self._missed = 0
        self._sent: OrderedDict[bytes, None] = OrderedDict()

    def rank(self, asked: Asked) -> bytes:
        """The server's place for a prompt, a pseudo-random number (rendezvous hashing)."""
        return hashlib.blake2b(self.name.encode() + b"\0" + asked.whole).digest()

    def matched(self, asked: Asked) -> int:
        """How many blocks of a prompt the server was sent before."""
        return next((i for i, block in enumerate(asked.blocks) if block not in self._sent), len(asked.blocks))

    def remember(self, asked: Asked) -> None:
        """Notes that the server is sent a prompt; the blocks that were sent the longest ago are forgotten."""
        for block in reversed(asked.blocks):  # of a prompt, the end is forgotten first
            self._sent[block] = None
            self._sent.move_to_end(block)
        while len(self._sent) > MOST_REMEMBERED:
            self._sent.popitem(last=False)

    async def watch(self, client: httpx.AsyncClient, key: str | None) -> None:
        """Checks the server again and again, and says when it becomes well or stops being so."""
        told = None
        while True:
            url = self.url
            try:
                await self.check(client, key)
            except Exception as error:  # whatever a server replies, it is checked again
                if told is not False:
                    say(f"camelid: the check of {self.name} failed: {type(error).__name__}: {shown(str(error))}")
                self._miss(url)
            if url is None or url != self.url:
                told = None
            elif self.well != told:
                say(f"camelid: {self.name} is {'well' if self.well else 'not well'}")
                told = self.well
            await asyncio.sleep(CHECK_SECONDS)

    async def check(self, client: httpx.AsyncClient, key: str | None) -> None:
        """Asks the server whether it is well, and for its models.

        Args:
          client: the client.
          key: the API key for the list of models; None without one.
        """
        url = self.url
        if url is None:
            return
        try:
            status = (await client.get(f"{url}/health", timeout=CHECK_TIMEOUT)).status_code
        except FAILURES:
            return self._miss(url)
        models = await self._list(client, key) if status == 200 else self.models
        if self.url != url:  # it has ended meanwhile
            return
        self._missed, self.well, self.models = 0, status == 200, models
        if self.well and (self.lost is None or self.lost.done()):
            self.lost = asyncio.get_running_loop().create_future()

    def _miss(self, url: str) -> None:
        if self.url != url:
            return
        self.well = False
        self._missed += 1
        if self._missed >= MOST_MISSED and self.lost is not None and not self.lost.done():
            self.lost.set_result(None)

    async def _list(self, client: httpx.AsyncClient, key: str | None) -> tuple[str, ...]:
        """The names of the server's models; the last ones if it does not answer, none if it does not tell them."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            found = await client.get(f"{self.url}/v1/models", headers=headers, timeout=CHECK_TIMEOUT)
        except FAILURES:
            return self.models
        models = models_in(found.content) if found.status_code == 200 else None
        return tuple(model["id"] for model in models or ())

    def leave(self) -> None:
        """Takes the server out: its process has ended."""
        self.url, self.well, self._missed, self._sent = None, False, 0, OrderedDict()


def with_model(backends: Sequence[Backend], model: str | None) -> list[Backend]:
    """The servers that may have a model: those that list it, and those that list nothing.

    None stands for the default of the first server that lists models. A model that no server lists may be anywhere:
    the servers say that it is not there.
    """
    if model is None:
        default = next((backend.models[:1] for backend in backends if backend.models), ())
        return [backend for backend in backends if backend.models[:1] in (default, ())]
    if not any(model in backend.models for backend in backends):
        return list(backends)
    return [backend for backend in backends if not backend.models or model in backend.models]


def choose(backends: Sequence[Backend], asked: Asked, tried: Collection[Backend] = ()) -> Backend | None:
    """The server that gets a request.

    Args:
      backends: all servers.
      asked: what is asked.
      tried: servers that have failed to answer the request.

    Returns:
      Of the servers that are well and have the model, the one that was sent most of the prompt before, or that has the
      least to do. Servers with more than `SLACK` requests more than another one are left out. None if none is left.
    """
    able = [each for each in with_model(backends, asked.model) if each.well and each not in tried]
    least = min((backend.active for backend in able), default=0)
    free = [backend for backend in able if backend.active <= least + SLACK]
    return max(free, key=lambda each: (each.matched(asked), -each.active, each.rank(asked)), default=None)
