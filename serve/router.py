"""A router in front of several servers: it sends each request to one that is well, and again if that one fails.

Requests that begin alike go to the same server, which has kept their beginning, unless it has more to do than others. A
request whose answer has not begun is sent to another server when its own does not answer; afterwards the client gets
what came. Servers that end (503) or do not answer `/health` get no new requests until they are well again.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import httpx
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .protocol import ApiError

SLACK = 2
"""Requests that a server may have more than the least loaded one and still get those that begin like its own."""
CHECK_SECONDS = 1.0
HEAD = 256
"""Characters of a prompt that decide which server has kept its beginning."""
_OWN_HEADERS = {"host", "content-length", "connection", "transfer-encoding", "keep-alive"}


class Backend:
    """A server behind the router.

    Attributes:
      url: its address.
      well: whether it takes requests.
      active: number of requests that it answers for this router.
    """

    def __init__(self, url: str):
        self.url, self.well, self.active = url.rstrip("/"), False, 0

    def rank(self, head: bytes) -> bytes:
        """The server's place for prompts with this beginning: the highest is asked first (rendezvous hashing)."""
        return hashlib.sha256(self.url.encode() + b"\0" + head).digest()


class Router:
    """The servers, and which of them gets a request."""

    def __init__(self, urls: Sequence[str]):
        self.backends = [Backend(url) for url in urls]
        self.client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=5), limits=httpx.Limits(max_connections=None)
        )

    async def check(self) -> None:
        """Asks all servers whether they are well."""

        async def one(backend: Backend) -> None:
            try:
                backend.well = (await self.client.get(f"{backend.url}/health", timeout=5)).status_code == 200
            except httpx.HTTPError:
                backend.well = False

        await asyncio.gather(*map(one, self.backends))

    async def watch(self) -> None:
        """Checks all servers again and again."""
        while True:
            await self.check()
            await asyncio.sleep(CHECK_SECONDS)

    def order(self, body: bytes) -> list[Backend]:
        """The servers that are well, in the order in which a request is sent to them."""
        well = [backend for backend in self.backends if backend.well]
        least = min((backend.active for backend in well), default=0)
        head = _head(body)
        return sorted(
            well, key=lambda b: (b.active > least + SLACK, b.rank(head) if b.active <= least + SLACK else b"")
        )

    async def forward(self, request: HttpRequest) -> Response:
        """The response of a server to a request. Raises ApiError if none answers."""
        body = await request.body()
        headers = {name: value for name, value in request.headers.items() if name not in _OWN_HEADERS}
        busy = None
        for backend in self.order(body):
            backend.active += 1
            try:
                sent = self.client.build_request(
                    request.method, f"{backend.url}{request.url.path}", params=request.query_params, headers=headers,
                    content=body,
                )  # fmt: skip
                response = await self.client.send(sent, stream=True)
                if response.status_code in (429, 503):
                    busy = await response.aread(), response
                    backend.active -= 1
                    continue
                pieces = response.aiter_raw()
                first = await anext(pieces, b"")  # until here nothing was said, and another server may be asked
            except httpx.HTTPError:
                backend.active -= 1
                backend.well = False
                continue
            except BaseException:
                backend.active -= 1
                raise
            return self._pass_on(backend, response, first, pieces)
        if busy is not None:
            content, response = busy
            return Response(content, response.status_code, _passed(response), response.headers.get("content-type"))
        raise ApiError(503, "no server is well: try again", code="no_backend")

    def _pass_on(
        self, backend: Backend, response: httpx.Response, first: bytes, pieces: AsyncIterator[bytes]
    ) -> StreamingResponse:
        async def rest() -> AsyncIterator[bytes]:
            try:
                yield first
                async for piece in pieces:
                    yield piece
            except httpx.HTTPError:
                error = ApiError(502, "the server was lost in the middle of its answer", code="backend_lost")
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    yield f"data: {json.dumps(error.body())}\n\n".encode()
            finally:
                backend.active -= 1
                await response.aclose()

        return StreamingResponse(rest(), response.status_code, _passed(response), response.headers.get("content-type"))


def _passed(response: httpx.Response) -> dict[str, str]:
    """The headers that the client gets."""
    return {
        n: x
        for n, x in response.headers.items()
        if n not in _OWN_HEADERS and n not in ("content-type", "date", "server")
    }


def _head(body: bytes) -> bytes:
    """The beginning of a request's prompt."""
    with suppress(ValueError, AttributeError):
        given = json.loads(body)
        told = given.get("messages") or given.get("prompt") or given.get("input")
        return json.dumps(told)[:HEAD].encode()
    return b""


def make_router(urls: Sequence[str]) -> FastAPI:
    """The application of a router in front of servers at these addresses."""
    router = Router(urls)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await router.check()
        watching = asyncio.ensure_future(router.watch())
        yield
        watching.cancel()
        await router.client.aclose()

    app = FastAPI(title="camelid router", docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.exception_handler(ApiError)
    async def known(_: HttpRequest, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, {"Retry-After": "1"})

    @app.get("/health")
    async def health() -> Response:
        states = {backend.url: {"well": backend.well, "active": backend.active} for backend in router.backends}
        return JSONResponse(states, 200 if any(backend.well for backend in router.backends) else 503)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def forward(path: str, request: HttpRequest) -> Response:
        return await router.forward(request)

    return app
