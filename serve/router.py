"""A router in front of several servers: it sends each request to one that is well, and again if that one fails.

A request whose answer has not begun is sent to another server when its own is lost, busy (429) or about to end (503).
A whole answer begins with its last byte, and a streamed one with its first text: events before it are held back. A
request that was lost with `MOST_TRIES` servers gets an error instead, since it may be what ends them.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import shown
from .backends import CHECK_TIMEOUT, FAILURES, Asked, Backend, asked_of, choose, models_in
from .listen import Noted, until_left
from .protocol import ApiError
from .router_metrics import RouterMetrics

MOST_TRIES = 2
"""Servers that may be lost with one request."""
MOST_HELD = 1 << 16
"""Bytes of a stream that are held back at most until its first text."""
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_OWN_HEADERS = {b"host", b"content-length", b"connection", b"transfer-encoding", b"keep-alive", b"expect", b"te"}
_OWN_HEADERS |= {b"trailer", b"upgrade", b"date", b"server"}
"""Headers that each of the two connections has of its own."""
_PREPARING = {
    f"response.{each}" for each in ("queued", "created", "in_progress", "output_item.added", "content_part.added")
}
"""Events of responses that come before the first text."""
_T = TypeVar("_T")
log = logging.getLogger("camelid.router")


class _Gone(Exception):
    """The client has left."""


class _Unreachable(Exception):
    """A server did not take the request."""


class _Lost(Exception):
    """A server was lost after it took the request."""


class Reply:
    """What a server answers to a request.

    Args:
      backend: the server.

    Attributes:
      status: its status.
      content: the body, as far as it was read.
      more: the rest of a stream; None if the body is complete.
      failed: whether the server failed to answer, although it is there.
    """

    def __init__(self, backend: Backend):
        self.backend, self.status, self.content, self.failed = backend, 0, b"", False
        self.more: AsyncIterator[bytes] | None = None
        self._response: httpx.Response | None = None
        self._open = True
        backend.active += 1

    async def close(self) -> None:
        """Ends the request; a server whose answer is not complete sees that its client has left."""
        if self._open:
            self._open = False
            self.backend.active -= 1
            if self._response is not None:
                await self._response.aclose()

    async def begin(self, client: httpx.AsyncClient, sent: httpx.Request) -> None:
        """Sends the request, and reads the response up to the first text of a stream, or else the whole.

        Raises _Unreachable if the server did not take the request, and _Lost if it is lost before its answer begins.
        """
        try:
            response = self._response = await client.send(sent, stream=True)
            self.status = response.status_code
            self.failed = self.status in (500, 502, 504)
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                await self._hold(response.aiter_raw())
            else:
                self.content = b"".join([piece async for piece in response.aiter_raw()])
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Unreachable from error
        except httpx.LocalProtocolError:  # no server is lost by what cannot be sent
            raise
        except FAILURES as error:
            raise _Lost from error

    async def _hold(self, pieces: AsyncIterator[bytes]) -> None:
        """Reads a stream up to its first text."""
        async for piece in pieces:
            self.content += piece
            *events, _ = _EVENT_END.split(self.content)
            said = [found for event in events if (found := _said(event)) is not None]
            if said[:1] == ["error"]:
                self.failed = True
                return
            if said or len(self.content) > MOST_HELD:
                self.more = pieces
                return

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that the client gets, with names in lower case."""
        return _forwarded(self._response.headers.raw)

    def whole(self) -> Response:
        """The response, if its body is complete."""
        response = Response(self.content, self.status)
        response.raw_headers += self.headers
        return response


def _forwarded(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that are passed on, as they are, with names in lower case."""
    return [(name.lower(), value) for name, value in headers if name.lower() not in _OWN_HEADERS]


def _said(event: bytes) -> str | None:
    """What an event of a stream tells: "text" for anything of an answer, "error" for a server's failure, or None."""
    data = b"".join(line[5:] for line in event.splitlines() if line.startswith(b"data:")).strip()
    if not data:
        return None
    try:
        found = json.loads(data)
        if "error" in found:
            return "error" if found["error"]["type"] == "server_error" else "text"
        if found.get("choices"):
            return "text" if any(map(_says, found["choices"])) else None
        return None if found.get("type") in _PREPARING else "text"
    except (ValueError, KeyError, TypeError, AttributeError):  # the last event, or one of another protocol
        return "text"


def _says(choice: Mapping[str, Any]) -> bool:
    """Whether a chunk of an answer has more than its role: its end alone is no text, since an error may follow."""
    delta = {name: value for name, value in choice.get("delta", {}).items() if name != "role"}
    return bool(choice.get("text") or any(delta.values()))


class Router:
    """The servers, and the requests that they answer.

    Args:
      backends: the servers.
      key: the API key with which the servers' models are listed; None without one.
      most_bytes: the largest body of a request.

    Attributes:
      active: number of requests that are being answered.
      draining: whether new requests are refused, since the router is about to end.
    """

    def __init__(self, backends: Sequence[Backend], *, key: str | None = None, most_bytes: int = 8 << 20):
        self.backends, self._key, self._most_bytes = list(backends), key, most_bytes
        self.active, self.draining, self.metrics = 0, False, RouterMetrics(self.backends)
        # Kept connections would fail when a server closes them while a request is sent: each request has its own.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.client = httpx.AsyncClient(timeout=httpx.Timeout(None, connect=5), limits=limits, trust_env=False)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self.active > 0

    async def watch(self) -> None:
        """Checks all servers again and again."""
        await asyncio.gather(*(backend.watch(self.client, self._key) for backend in self.backends))

    async def forward(self, request: HttpRequest) -> Response:
        """The response of a server to a request. Raises ApiError if none answers."""
        self._check(request)
        try:
            body = await request.body()
        except ClientDisconnect:
            return Response(status_code=499)
        asked = asked_of(request.scope["path"], request.scope["query_string"].decode("latin-1"), body)
        gone = asyncio.ensure_future(until_left(request))
        try:
            return await self._try(request, body, asked, gone)
        except _Gone:
            return Response(status_code=499)
        finally:
            gone.cancel()

    def _check(self, request: HttpRequest) -> None:
        """Raises ApiError for a request that no server is asked."""
        size = request.headers.get("content-length", "")
        if request.method == "POST" and not size.isdecimal():
            raise ApiError(411, "give the header Content-Length")
        if size.isdecimal() and int(size) > self._most_bytes:
            raise ApiError(413, f"the body has {int(size):,} bytes, more than {self._most_bytes:,}")
        if self.draining and request.method == "POST":
            raise ApiError(503, "the server is about to end: ask another one", code="draining")

    async def _try(self, request: HttpRequest, body: bytes, asked: Asked, gone: asyncio.Future) -> Response:
        """Asks one server after the other until one answers."""
        headers, target = _forwarded(request.headers.raw), _target(request)
        tried, refused, lost, failed = [], [], 0, None
        while lost < MOST_TRIES and (backend := choose(self.backends, asked, tried)) is not None:
            tried.append(backend)
            backend.remember(asked)
            base = httpx.URL(backend.url)
            whole = {"target": base.raw_path.rstrip(b"/") + target}  # a path that httpx would encode, or refuse
            sent = self.client.build_request(request.method, base, headers=headers, content=body, extensions=whole)
            reply = Reply(backend)
            try:
                await _unless(reply.begin(self.client, sent), gone, backend.lost)
            except httpx.LocalProtocolError as error:
                await reply.close()
                raise ApiError(400, f"the request cannot be passed on: {error}") from None
            except (_Unreachable, _Lost) as error:
                await reply.close()
                backend.well, lost = False, lost + isinstance(error, _Lost)
                self.metrics.retried(backend, "lost" if isinstance(error, _Lost) else "unreachable")
                continue
            except BaseException:
                await reply.close()
                raise
            self.metrics.answered(backend, reply.status)
            if reply.more is not None:
                return _Stream(self._rest(reply), reply)
            await reply.close()
            if reply.failed:
                failed, lost = reply, lost + 1
            elif reply.status in (429, 503):
                refused.append(reply)
            else:
                return reply.whole()
            self.metrics.retried(backend, "failed" if reply.failed else "refused")
        if refused and lost < MOST_TRIES:
            return _refusal(refused)
        if failed is not None:
            return failed.whole()
        if lost:
            given_up = f"{lost} servers were lost with this request before they answered: it is not sent again"
            said = given_up if lost == MOST_TRIES else "the server was lost before it answered, and no other is well"
            raise ApiError(502, said, code="request_given_up" if lost == MOST_TRIES else "backend_lost")
        raise ApiError(503, "no server is well: try again", code="no_backend")

    async def _rest(self, reply: Reply) -> AsyncIterator[bytes]:
        """The events of a stream; an error is the last of them if the server is lost."""
        rest = reply.content
        try:
            while True:
                end = max((match.end() for match in _EVENT_END.finditer(rest)), default=0)
                if end:  # no event is passed on in halves
                    yield rest[:end]
                piece = await _unless(anext(reply.more, None), reply.backend.lost)
                if piece is None:
                    break
                rest = rest[end:] + piece
            yield rest[end:]
        except (*FAILURES, _Lost):
            self.metrics.lost(reply.backend)
            error = ApiError(502, "the server was lost in the middle of its answer", code="backend_lost")
            yield f"data: {json.dumps(error.body())}\n\n".encode()

    async def _get(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> dict[Backend, httpx.Response]:
        """What the servers that are well, and answer, give for a path."""

        async def one(backend: Backend) -> httpx.Response | None:
            with suppress(*FAILURES):
                return await self.client.get(f"{backend.url}{path}", headers=headers, timeout=CHECK_TIMEOUT)

        there = [backend for backend in self.backends if backend.well]
        found = await asyncio.gather(*map(one, there))
        return {backend: response for backend, response in zip(there, found, strict=True) if response is not None}

    async def models(self, request: HttpRequest) -> Response:
        """The models of all servers that are well, each once; replies that are no list are left out."""
        key = [(name, value) for name, value in request.headers.raw if name == b"authorization"]
        found = [*(await self._get("/v1/models", key)).values()]
        if not found:
            raise ApiError(503, "no server is well: try again", code="no_backend")
        told = [response for response in found if response.status_code == 200]
        if not told:
            return Response(found[0].content, found[0].status_code, media_type="application/json")
        models = {}
        for response in told:
            for model in models_in(response.content) or ():
                models.setdefault(model["id"], model)
        whole = json.dumps({"object": "list", "data": list(models.values())})
        return Response(whole, media_type="application/json")

    async def metrics_page(self) -> Response:
        """The counters of the router and of all servers that are well."""
        found = await self._get("/metrics", ())
        pages = {backend.name: response.text for backend, response in found.items() if response.status_code == 200}
        return Response(self.metrics.page(pages), media_type="text/plain; version=0.0.4")

    def health(self) -> Response:
        """Which servers are well, and how many requests each answers."""
        states = {backend.name: {"well": backend.well, "active": backend.active} for backend in self.backends}
        ready = not self.draining and any(backend.well for backend in self.backends)
        return JSONResponse(states, 200 if ready else 503)


class _Stream(StreamingResponse):
    """A stream whose request ends with it, also where the client leaves."""

    def __init__(self, events: AsyncIterator[bytes], reply: Reply):
        super().__init__(events, reply.status)
        self.raw_headers += reply.headers
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._reply.close()


class _Counted:
    """The application, with the number of requests that it answers; what it raises before an answer begins is one."""

    def __init__(self, app: ASGIApp, router: Router):
        self._app, self._router = app, router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        counts = scope["type"] == "http" and scope["method"] == "POST"
        self._router.active += counts
        noted = Noted(send)
        try:
            await self._app(scope, receive, noted)
        except Exception:
            if noted.begun or scope["type"] != "http":
                raise
            log.exception("%s %s", scope["method"], shown(scope["path"]))
            await _failure(ApiError(500, "the router failed on this request; its log has the reason"))(
                scope, receive, noted
            )
        finally:
            self._router.active -= counts


async def _unless(work: Coroutine[Any, Any, _T], *ends: asyncio.Future) -> _T:
    """The result of `work`. Raises _Lost or _Gone if a server (last of `ends`) or the client (first of two) ends it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise _Lost if ends[-1].done() else _Gone
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def _refusal(refused: Sequence[Reply]) -> Response:
    """The response where all servers are busy or about to end: 429 if one is busy, with the longest time to wait."""
    told = next((reply for reply in refused if reply.status == 429), refused[0])
    waits = [dict(reply.headers).get(b"retry-after", b"") for reply in refused]
    seconds = [int(wait) for wait in waits if wait.isdigit() and len(wait) < 10]
    response = told.whole()
    if seconds:
        response.headers["Retry-After"] = str(max(seconds))
    return response


def _target(request: HttpRequest) -> bytes:
    """The path of a request with its query, as the client has sent them."""
    query = request.scope["query_string"]
    return request.scope["raw_path"] + (b"?" + query if query else b"")


def _failure(error: ApiError) -> Response:
    """An error as OpenAI's object."""
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    if error.code == "request_given_up":  # OpenAI's clients would send it twice more
        headers["X-Should-Retry"] = "false"
    return JSONResponse(error.body(), error.status, headers)


def make_router(router: Router) -> FastAPI:
    """The application of a router."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.ensure_future(router.watch())
        yield
        watching.cancel()
        await router.client.aclose()

    app = FastAPI(title="camelid router", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(_Counted, router=router)

    @app.exception_handler(ApiError)
    async def known(_: HttpRequest, error: ApiError) -> Response:
        return _failure(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: HttpRequest, error: HTTPException) -> Response:
        response = _failure(ApiError(error.status_code, f"{request.method} {request.scope['path']}: {error.detail}"))
        response.headers.update(error.headers or {})
        return response

    @app.get("/health")
    async def health() -> Response:
        return router.health()

    @app.get("/metrics")
    async def metrics() -> Response:
        return await router.metrics_page()

    @app.get("/v1/models")
    async def models(request: HttpRequest) -> Response:
        return await router.models(request)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def forward(path: str, request: HttpRequest) -> Response:
        return await router.forward(request)

    return app
