"""The HTTP server: OpenAI's protocol over an engine (FastAPI)."""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import UserError
from .completions import Chat, Completion, Job, Served, chat_requests, completion_requests, lines_of, tokens_of
from .embeddings import Embeddings, EmbeddingsRequest, Pooling, embeddings_requests
from .listen import Noted, until_left
from .metrics import Metrics
from .protocol import (
    UNSUPPORTED,
    ApiError,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Failure,
    TokenizeRequest,
)
from .responses import Answered, ResponsesRequest, response_requests

Found = TypeVar("Found")
log = logging.getLogger("camelid.serve")
PAGE = Path(__file__).with_name("page")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of all answers: what the page may load and do."""
ERRORS = {
    "4XX": {
        "model": Failure,
        "description": "400: a wrong field, or too long a prompt. 401: a wrong key. 404: no such model or path. 405: "
        "another method. 411: no Content-Length. 413: too large a body. 429, with Retry-After: too many answers wait.",
    },
    "5XX": {"model": Failure, "description": "500: the server failed. 503, with Retry-After: it is about to end."},
}
"""The errors of all paths, for `/openapi.json`."""
STREAMED = {200: {"content": {"text/event-stream": {}}}}
"""The other form of an answer, for `/openapi.json`."""


RETRY = {"Retry-After": "1"}


class Server:
    """What the routes share.

    Attributes:
      served: the models by name; the first is the default.
      draining: whether new requests are refused, since the server is about to end.
      metrics: the counters of `/metrics`.
      most_bytes: the largest body of a request.
      log_text: whether the log has prompts and answers.
      pooling: how embeddings are made of the states of a text's tokens.
    """

    def __init__(
        self,
        served: Mapping[str, Served],
        *,
        api_key: str | None = None,
        most_bytes: int = 8 << 20,
        log_text: bool = False,
        pooling: Pooling = "mean",
    ):
        self.served, self._api_key, self.most_bytes, self.log_text = dict(served), api_key, most_bytes, log_text
        self.pooling = pooling
        self.metrics, self.draining, self.created = Metrics(self.served), False, int(time.time())
        self._preparing, self._prepared_now = ThreadPoolExecutor(1, "prepare"), 0

    @property
    def busy(self) -> bool:
        """Whether answers are being written, or requests wait for theirs."""
        engines = [served.engine for served in self.served.values()]
        return self._prepared_now > 0 or any(engine.running or engine.waiting for engine in engines)

    def find(self, name: str | None) -> Served:
        """The model of a request."""
        if name is None:
            return next(iter(self.served.values()))
        if name not in self.served:
            there = ", ".join(self.served)
            raise ApiError(404, f"there is no model {name!r}, only {there}", param="model", code="model_not_found")
        return self.served[name]

    async def prepare(self, function: Callable[..., Found], *arguments: Any) -> Found:
        """The result of a function that may take long, of one request after the other, while answers are passed on."""
        self._prepared_now += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._preparing, function, *arguments)
        finally:
            self._prepared_now -= 1

    def check(self, request: HttpRequest) -> None:
        """Raises ApiError for a request without the key, or with too large a body."""
        path = request.url.path
        if self._api_key is not None and (path.startswith("/v1") or path.strip("/") in ("tokenize", "detokenize")):
            given = dict(request.headers.raw).get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(given, self._api_key.encode()):
                raise ApiError(
                    401, "give the API key as the header `Authorization: Bearer KEY`", code="invalid_api_key"
                )
        size = request.headers.get("content-length", "")
        if request.method == "POST" and not size.isdecimal():
            raise ApiError(411, "give the header Content-Length")
        if size.isdecimal() and int(size) > self.most_bytes:
            raise ApiError(413, f"the body has {int(size):,} bytes, more than {self.most_bytes:,}")
        if self.draining and request.method == "POST":
            raise ApiError(503, "the server is about to end: ask another one", code="draining")


def make_app(server: Server) -> FastAPI:
    """The application of a server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for served in server.served.values():
            served.engine.close()

    app = FastAPI(title="camelid", docs_url=None, redoc_url=None, lifespan=lifespan, responses=ERRORS)
    app.add_middleware(_Checked, server=server)
    _add_errors(app, server)
    _add_openai(app, server)
    _add_others(app, server)
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _add_errors(app: FastAPI, server: Server) -> None:
    """Errors as OpenAI's objects."""

    def fail(request: HttpRequest, error: ApiError) -> Response:
        return _failure(server, request, error)

    @app.exception_handler(ApiError)
    async def known(request: HttpRequest, error: ApiError) -> Response:
        return fail(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: HttpRequest, error: RequestValidationError) -> Response:
        return fail(request, _invalid(request, error))

    @app.exception_handler(UserError)
    async def refused(request: HttpRequest, error: UserError) -> Response:
        return fail(request, ApiError(400, str(error)))

    @app.exception_handler(HTTPException)
    async def unknown(request: HttpRequest, error: HTTPException) -> Response:
        said = f"{request.method} {request.url.path}: {error.detail}"
        response = fail(request, ApiError(error.status_code, said))
        response.headers.update(error.headers or {})
        return response


class _Checked:
    """The application behind the checks that all requests share, with the headers that all its answers have.

    What is raised before an answer begins is an answer too, and the connection stays open. It is no `app.middleware`,
    under which no request learns that its client has left.
    """

    def __init__(self, app: ASGIApp, server: Server):
        self._app, self._server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        noted = Noted(send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await noted(message)

        request = HttpRequest(scope)
        try:
            self._server.check(request)
            await self._app(scope, receive, with_headers)
        except Exception as error:
            if noted.begun:
                raise
            if not isinstance(error, ApiError):
                log.exception("%s %s", request.method, request.url.path)
                error = ApiError(500, "the server failed on this request; its log has the reason")
            await _failure(self._server, request, error)(scope, receive, with_headers)


_BRANCHES = re.compile(r"(str|int|float|bool|list|dict|literal|function|Text|[A-Z]\w*)(\W.*)?$")
"""What pydantic puts into places where a field may have one of several types."""


def _invalid(request: HttpRequest, error: RequestValidationError) -> ApiError:
    """The error for a body that is none of its type: the first one."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    if len(first["loc"]) == 1 and "json" not in request.headers.get("content-type", ""):
        return ApiError(400, "give a JSON object, with the header `Content-Type: application/json`")
    found = _likeliest([each for each in error.errors() if each["loc"][:2] == first["loc"][:2]])
    place = [str(part) for part in found["loc"][1:] if not _is_branch(part)]
    where = ".".join(part for part in place if part != "[key]")
    said = found["msg"].removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        said = "this field is not supported" if place[-1] in UNSUPPORTED else "there is no such field"
    return ApiError(400, f"{where or 'body'}: {said}", param=where or None)


def _is_branch(part: str | int) -> bool:
    return isinstance(part, str) and _BRANCHES.fullmatch(part) is not None


def _likeliest(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The error of a field that may have one of several types: of the type that fits best, the first."""
    branches: dict[tuple, list[Mapping[str, Any]]] = {}
    for each in errors:
        begin = next((i for i, part in enumerate(each["loc"]) if i > 1 and _is_branch(part)), len(each["loc"]))
        branches.setdefault(each["loc"][: begin + 1], []).append(each)
    inside = [found for branch, found in branches.items() if all(each["loc"] != branch for each in found)]
    return min(inside or branches.values(), key=len)[0]


def _failure(server: Server, request: HttpRequest, error: ApiError) -> Response:
    """The response for an error, which is counted and has a line in the log."""
    server.metrics.failed(error.status)
    log.info("%s %s %d %s", request.method, request.url.path, error.status, error.message)
    return JSONResponse(error.body(), error.status, RETRY if error.status in (429, 503) else None)


def _add_openai(app: FastAPI, server: Server) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_described(server, served) for served in server.served.values()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return _described(server, server.find(name))

    @app.post("/v1/chat/completions", responses=STREAMED)
    async def chat(body: ChatRequest, request: HttpRequest) -> Response:
        served = server.find(body.model)
        job = Job(served, await server.prepare(chat_requests, served, body), continues=body.goes_on)
        return await _answer(server, request, job, Chat(job, body), stream=body.stream)

    @app.post("/v1/completions", responses=STREAMED)
    async def complete(body: CompletionRequest, request: HttpRequest) -> Response:
        served = server.find(body.model)
        job = Job(served, await server.prepare(completion_requests, served, body), continues=True)
        return await _answer(server, request, job, Completion(job, body), stream=body.stream)

    @app.post("/v1/responses", responses=STREAMED)
    async def respond(body: ResponsesRequest, request: HttpRequest) -> Response:
        served = server.find(body.model)
        job = Job(served, await server.prepare(response_requests, served, body), continues=body.chat().goes_on)
        return await _answer(server, request, job, Answered(job, body), stream=body.stream)

    @app.post("/v1/embeddings")
    async def embed(body: EmbeddingsRequest, request: HttpRequest) -> Response:
        served = server.find(body.model)
        job = Job(served, await server.prepare(embeddings_requests, served, body), continues=False)
        return await _answer(server, request, job, Embeddings(job, body, server.pooling), stream=False)


def _described(server: Server, served: Served) -> dict[str, Any]:
    """A model as an object of OpenAI's list."""
    about = {"id": served.name, "object": "model", "created": server.created, "owned_by": "camelid"}
    return about | {"max_model_len": served.engine.max_len, "parent": served.parent}


async def _answer(
    server: Server,
    request: HttpRequest,
    job: Job,
    completion: Chat | Completion | Answered | Embeddings,
    *,
    stream: bool,
) -> Response:
    """The response to a request whose answers have begun."""
    begin = time.monotonic()

    def done(status: int) -> None:
        server.metrics.count(job)
        usage = job.usage()
        log.info(
            "%s %s %d prompt=%d cached=%d completion=%d seconds=%.2f",
            request.method, request.url.path, status, usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"], time.monotonic() - begin,
        )  # fmt: skip
        if server.log_text:
            decode = job.served.model.tokenizer.decode
            for answer in job.answers:
                said = decode([token.id for token in answer.tokens])
                log.info("prompt %r answer %r", decode(answer.request.prompt), said)

    if stream:

        async def events() -> AsyncIterator[str]:
            try:
                async for line in lines_of(completion.events()):
                    yield line
            finally:  # also when the client is gone
                job.cancel()
                done(200)

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    whole, leaving = asyncio.ensure_future(completion.whole()), asyncio.ensure_future(until_left(request))
    try:
        await asyncio.wait([whole, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            done(499)
            return Response(status_code=499)
        found = whole.result()
    except ApiError as error:
        done(error.status)
        raise
    finally:
        whole.cancel()
        leaving.cancel()
        job.cancel()
    done(200)
    return JSONResponse(found)


def _add_others(app: FastAPI, server: Server) -> None:
    @app.get("/health")
    async def health() -> Response:
        failed = [served.name for served in server.served.values() if served.engine.failed is not None]
        if server.draining or failed:
            error = ApiError(503, f"{', '.join(failed)} failed" if failed else "the server is about to end")
            return JSONResponse(error.body(), 503, RETRY)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        return Response(server.metrics.page(), media_type="text/plain; version=0.0.4")

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        served = server.find(body.model)
        tokens = await server.prepare(tokens_of, served, body)
        return {"tokens": tokens, "count": len(tokens), "max_model_len": served.engine.max_len}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        model = server.find(body.model).model
        if wrong := [i for i in body.tokens if not 0 <= i < model.config.vocab_size]:
            raise ApiError(400, f"token id {wrong[0]}: give 0 to {model.config.vocab_size - 1}", param="tokens")
        return {"prompt": await server.prepare(model.tokenizer.decode, body.tokens)}

    @app.get("/tokenizer_info")
    async def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        served = server.find(model)
        tokenizer = served.model.tokenizer
        names = ("eos_token", "bos_token", "pad_token", "unk_token")
        of_template = () if served.model.template is None else served.model.template.stop_ids(tokenizer)
        stops = sorted({tokenizer.eos_id, *served.model.generation.stop_ids, *of_template})
        about = {"vocab_size": tokenizer.vocab_size, "stop_token_ids": stops}
        return {name: tokenizer.named.get(name) for name in names} | about
