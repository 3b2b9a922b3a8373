"""The router: where requests go, and what happens to them when a server is lost."""

import ast
import asyncio
import contextlib
import json
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from camelid.serve import backends
from camelid.serve.api import Server, make_app
from camelid.serve.backends import Backend, asked_of, choose
from camelid.serve.completions import Served
from camelid.serve.engine import Engine
from camelid.serve.router import MOST_TRIES, Router, make_router

KEY = {"Authorization": "Bearer secret"}


class Fake:
    """A server that says its name, after a while.

    `dies` is the part of an answer before which its connection breaks off: "headers", "text", "rest" or None for none.
    """

    def __init__(self, name):
        self.name, self.asked, self.status, self.wait, self.retry_after = name, [], 200, 0.0, "7"
        self.dies, self.hangs, self.error, self.models, self.listed = None, False, None, ["base"], None
        self.checks = 0
        self.metrics = f'# HELP tokens_total said\n# TYPE tokens_total counter\ntokens_total{{model="{name}"}} 3.0\n'
        self.app = FastAPI()
        self.app.get("/health")(self.health)
        self.app.get("/v1/models")(self.list_models)
        self.app.post("/v1/chat/completions")(self.chat)
        self.app.get("/echo/{path:path}")(self.echo)
        self.app.get("/metrics")(lambda: PlainTextResponse(self.metrics))
        self.app.get("/page/{name}")(lambda name: PlainTextResponse(f"{name} of {self.name}"))

    async def health(self):
        self.checks += 1
        if self.hangs:
            await asyncio.sleep(3600)
        return JSONResponse({}, self.status if self.status == 503 else 200)

    async def list_models(self, request: Request):
        if request.headers.get("authorization") != KEY["Authorization"]:
            return JSONResponse({"error": {"code": "invalid_api_key"}}, 401)
        if self.listed is not None:
            return Response(self.listed, media_type="application/json")
        return {"object": "list", "data": [{"id": name} for name in self.models]}

    async def echo(self, request: Request):
        """What has come of a request, with a header that is no Latin-1."""
        found = [request.scope["raw_path"], request.scope["query_string"], request.headers.raw]
        response = PlainTextResponse(repr(found))
        response.raw_headers += [(b"x-name", "狐".encode()), (b"x-twice", b"1"), (b"x-twice", b"2")]
        return response

    def _die(self, part):
        if self.dies == part:
            raise RuntimeError("dead")

    async def chat(self, body: dict):
        self.asked.append(body["messages"][0]["content"].split()[0])
        await asyncio.sleep(3600 if self.hangs else self.wait)
        if self.status != 200:
            return JSONResponse({"error": {"message": "busy"}}, self.status, {"Retry-After": self.retry_after})
        if not body.get("stream"):
            return StreamingResponse(self.whole(), media_type="application/json")
        return StreamingResponse(self.events(), media_type="text/event-stream")

    async def whole(self):
        self._die("headers")
        yield b'{"from": '
        await asyncio.sleep(0.02)
        self._die("rest")
        yield f'"{self.name}"}}'.encode()

    async def events(self):
        def event(**delta):
            return f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n"

        self._die("headers")
        yield event(role="assistant", content="")
        await asyncio.sleep(0.02)
        self._die("text")
        if self.error is not None:
            yield f"data: {json.dumps({'error': {'message': self.error, 'type': 'server_error'}})}\n\n"
            return
        yield event(content=self.name)
        await asyncio.sleep(0.02 + self.wait)
        await asyncio.sleep(3600 if self.hangs else 0)
        if self.dies == "rest":
            yield 'data: {"choices": [{"del'
            await asyncio.sleep(0.02)
        self._die("rest")
        yield event(content="!")
        yield "data: [DONE]\n\n"


@contextlib.contextmanager
def listening(app):
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def four(monkeypatch):
    monkeypatch.setattr(backends, "CHECK_SECONDS", 0.1)
    fakes = [Fake(name) for name in "abcd"]
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(listening(fake.app)) for fake in fakes]
        router = Router([Backend(*each) for each in zip("abcd", urls, strict=True)], key="secret", most_bytes=9_000)
        url = stack.enter_context(listening(make_router(router)))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=30, headers=KEY))
        until(lambda: all(backend.well for backend in router.backends))
        yield fakes, client, router


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)


def body(prompt, **more):
    """A request that begins with a word, and is long enough that its server is remembered."""
    return {"messages": [{"role": "user", "content": f"{prompt} {'.' * 100}"}]} | more


def ask(client, prompt, **more):
    """A streamed chat: its status and the data of its events."""
    response = client.post("/v1/chat/completions", json=body(prompt, stream=True, **more))
    return response.status_code, [line[6:] for line in response.text.split("\n\n") if line]


def ask_whole(client, prompt, **more):
    return client.post("/v1/chat/completions", json=body(prompt, **more))


def text(events):
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def counter(client, name, **labels):
    """The value of a counter of the router."""
    told = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    line = f"camelid_router:{name}{{{told}}} "
    return sum(float(each[len(line) :]) for each in client.get("/metrics").text.splitlines() if each.startswith(line))


def test_requests_that_begin_alike_go_to_one_server_and_others_to_others(four):
    fakes, client, _ = four
    for i in range(40):
        status, events = ask(client, str(i % 20))
        assert status == 200 and text(events) in ("a!", "b!", "c!", "d!") and events[-1] == "[DONE]"
    assert all(fake.asked for fake in fakes)  # twenty beginnings over four servers
    for i in range(20):
        assert sum(str(i) in fake.asked for fake in fakes) == 1
    assert sum(counter(client, "requests_total", server=name, status=200) for name in "abcd") == 40


@pytest.fixture
def impatient(monkeypatch):
    """Servers that hang are lost soon; so are slow ones, for which other tests wait as long as users do."""
    monkeypatch.setattr(backends, "CHECK_TIMEOUT", 1.0)


def favourite(client, fakes, prompt="x"):
    """The server that gets a prompt first."""
    ask(client, prompt)
    return next(fake for fake in fakes if fake.asked)


@pytest.mark.parametrize("part", ["headers", "text"])
def test_a_stream_without_text_yet_is_sent_to_another_server(four, part):
    fakes, client, _ = four
    first = favourite(client, fakes)
    first.dies = part
    status, events = ask(client, "x")
    assert status == 200 and text(events) != f"{first.name}!" and len(events) == 4  # the role once, two texts, the end
    assert counter(client, "retries_total", server=first.name, reason="lost") == 1


def test_a_stream_that_has_text_ends_with_an_error_and_no_half_event(four):
    fakes, client, _ = four
    first = favourite(client, fakes)
    first.dies = "rest"
    status, events = ask(client, "x")
    assert status == 200 and text(events[:2]) == first.name and len(events) == 3
    assert json.loads(events[2])["error"]["code"] == "backend_lost"
    assert counter(client, "lost_answers_total", server=first.name) == 1


@pytest.mark.parametrize("part", ["headers", "rest"])
def test_a_whole_answer_is_asked_of_another_server_until_its_last_byte(four, part):
    fakes, client, _ = four
    first = favourite(client, fakes)
    first.dies = part
    response = ask_whole(client, "x")
    assert response.status_code == 200 and response.json()["from"] != first.name


def test_a_request_that_ends_servers_ends_no_more_than_two(four):
    fakes, client, router = four
    for fake in fakes:
        fake.dies = "headers"
    for prompt in "xy":
        answer = ask_whole(client, prompt)
        assert answer.status_code == 502 and answer.json()["error"]["code"] == "request_given_up"
        assert answer.headers["X-Should-Retry"] == "false"
        until(lambda: all(backend.well for backend in router.backends))
    assert sum(fake.asked.count("x") for fake in fakes) == sum(fake.asked.count("y") for fake in fakes) == MOST_TRIES


def test_a_request_whose_only_server_is_lost_may_be_sent_again(four):
    fakes, client, router = four
    for fake in fakes[1:]:
        fake.status = 503
    until(lambda: sum(backend.well for backend in router.backends) == 1)
    fakes[0].dies = "headers"
    answer = ask_whole(client, "x")
    assert answer.status_code == 502 and answer.json()["error"]["code"] == "backend_lost"
    assert "X-Should-Retry" not in answer.headers and len(fakes[0].asked) == 1


def test_a_server_that_fails_to_answer_is_passed_over_and_what_it_says_is_told_when_another_fails_too(four):
    fakes, client, _ = four
    first = favourite(client, fakes)
    first.error = "the engine failed"
    assert text(ask(client, "x")[1]) not in ("", f"{first.name}!")
    first.error, first.status = None, 500
    assert ask_whole(client, "x").json()["from"] != first.name
    for fake in fakes:
        fake.error, fake.status = "the engine failed", 200
    status, events = ask(client, "x")
    assert status == 200 and json.loads(events[-1])["error"]["message"] == "the engine failed"


def test_servers_that_are_busy_or_end_are_passed_over_and_the_longest_wait_is_told_when_all_are(four):
    fakes, client, router = four
    for fake, status in zip(fakes, (429, 503, 429, 200), strict=True):
        fake.status = status
    for i in range(9):
        assert text(ask(client, str(i))[1]) == "d!"
    fakes[0].retry_after, fakes[2].retry_after, fakes[3].status = "3", "20", 429
    response = ask_whole(client, "x")
    assert response.status_code == 429 and response.headers["Retry-After"] == "20"
    for fake in fakes:
        fake.status = 503
    until(lambda: not any(backend.well for backend in router.backends))
    response = ask_whole(client, "x")
    assert response.status_code == 503 and response.headers["Retry-After"] == "1"


def test_a_server_that_hangs_gets_nothing_more_and_what_it_has_not_begun_goes_to_another(four, impatient):
    fakes, client, router = four
    first = favourite(client, fakes)
    first.hangs = True
    begin = time.monotonic()
    assert ask_whole(client, "x").json()["from"] != first.name
    assert 1.9 < time.monotonic() - begin < 10  # two checks of 1 s
    assert counter(client, "retries_total", server=first.name, reason="lost") == 1
    count = len(first.asked)
    assert ask_whole(client, "x").status_code == 200 and len(first.asked) == count
    first.hangs = False
    until(lambda: all(backend.well for backend in router.backends))
    assert ask_whole(client, "x").json()["from"] == first.name


def test_an_answer_that_has_begun_ends_with_an_error_when_its_server_hangs(four, impatient):
    fakes, client, _ = four
    first = favourite(client, fakes)
    first.wait = 0.5
    with client.stream("POST", "/v1/chat/completions", json=body("x", stream=True)) as response:
        lines = response.iter_lines()
        while first.name not in next(lines):
            pass
        first.hangs = True
        assert "backend_lost" in "".join(lines)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request_at_once(four, stream):
    fakes, client, router = four
    first = favourite(client, fakes)
    first.wait = 30
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", timeout=0.3, json=body("x", stream=stream))
    until(lambda: router.active == 0 and not any(backend.active for backend in router.backends))


def test_a_client_that_leaves_before_its_body_is_there_is_no_error():
    sent, router = [], Router([])
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b""}

    async def receive():
        assert router.busy
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(make_router(router)(scope | {"headers": [(b"content-length", b"9")]}, receive, send))
    assert sent[0]["status"] == 499 and not router.busy


def test_what_no_server_could_answer_is_refused_by_the_router_or_told_by_the_server(four):
    fakes, client, _ = four
    assert ask_whole(client, "x" * 9_000).status_code == 413
    chunked = client.post("/v1/chat/completions", content=iter([b"{}"]))
    assert chunked.status_code == 411 and not any(fake.asked for fake in fakes)
    assert client.get("/v1/models", headers={"Authorization": "Bearer x"}).json()["error"]["code"] == "invalid_api_key"
    assert client.get("/nowhere").status_code == 404
    assert client.get("/page/chat.js").text.startswith("chat.js of ")


def test_the_models_of_all_servers_are_listed_once_and_requests_go_to_those_that_have_theirs(four):
    fakes, client, router = four
    models = [("base", "x"), ("base", "y"), ("base",), ("other",)]
    for fake, names in zip(fakes, models, strict=True):
        fake.models = names
    until(lambda: [backend.models for backend in router.backends] == models)
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["base", "x", "y", "other"]
    for i in range(10):
        assert ask_whole(client, str(i), model="y").json()["from"] == "b"
        assert ask_whole(client, str(i), model="other").json()["from"] == "d"
        assert ask_whole(client, str(i)).json()["from"] in "abc"
    fakes[1].status = 503
    until(lambda: not router.backends[1].well)
    assert ask_whole(client, "x", model="y").status_code == 503


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_a_stream_whose_engine_fails_before_its_first_text_goes_to_another_server(served, path):
    asked = {"/v1/completions": {"prompt": "x"}, "/v1/responses": {"input": "x", "store": False}}
    asked = asked.get(path, body("x")) | {"stream": True, "model": "nano"}
    engines = [Engine(served.model, rows=1, chunk=16) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        servers = [Server({"nano": Served("nano", served.model, engine, {})}) for engine in engines]
        urls = [stack.enter_context(listening(make_app(server))) for server in servers]
        router = Router([Backend(*each) for each in zip("ab", urls, strict=True)])
        client = stack.enter_context(httpx.Client(base_url=stack.enter_context(listening(make_router(router)))))
        until(lambda: all(backend.well for backend in router.backends))
        first = choose(router.backends, asked_of(path, "", json.dumps(asked).encode()))
        failing = engines[router.backends.index(first)]
        failing._device.draw = None  # which cannot be called
        answer = client.post(path, json=asked, timeout=60)
        assert failing.failed is not None and answer.status_code == 200 and '"error": {' not in answer.text
        assert any(end in answer.text for end in ("[DONE]", "response.incomplete", "response.completed"))
        assert counter(client, "retries_total", server=first.name, reason="failed") == 1


NO_LISTS = [b"", b"[1, 2]", b'{"data": null}', b'{"data": ["x"]}', b'{"data": [{"id": {}}]}', b"[" * 200_000, b"\xff"]


@pytest.mark.parametrize("reply", NO_LISTS, ids=lambda reply: repr(reply[:16]))
def test_a_server_whose_list_of_models_is_none_spoils_no_other_and_is_checked_again(four, reply):
    fakes, client, router = four
    fakes[1].listed, fakes[2].models = reply, ["base", "x"]
    until(lambda: router.backends[1].models == () and router.backends[2].models == ("base", "x"))
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["base", "x"]
    fakes[1].listed, fakes[1].models = None, ["back"]
    until(lambda: router.backends[1].models == ("back",))


def test_no_error_of_a_check_ends_the_watch(four, monkeypatch):
    _, _, router = four
    whole, broken = Backend.check, [True]

    async def check(backend, *how):
        if broken and backend.name == "a":
            raise ZeroDivisionError("what nobody\nthought of")
        await whole(backend, *how)

    said = []
    monkeypatch.setattr(backends, "say", said.append)
    monkeypatch.setattr(Backend, "check", check)
    until(lambda: not router.backends[0].well)
    broken.clear()
    until(lambda: router.backends[0].well)
    assert said[0].startswith("camelid: the check of a failed: ZeroDivisionError: 'what nobody")
    assert said[1:] == ["camelid: a is not well", "camelid: a is well"]  # each once


def test_changes_of_a_server_are_told_once_each_and_one_that_is_not_well_at_the_start(monkeypatch):
    said = []
    monkeypatch.setattr(backends, "say", said.append)
    monkeypatch.setattr(backends, "CHECK_SECONDS", 0.05)
    fake = Fake("a")
    fake.status = 503

    async def watch(url):
        backend = Backend("a", url)
        async with httpx.AsyncClient() as client:
            watching = asyncio.ensure_future(backend.watch(client, None))
            for i, status in enumerate((503, 200, 503), 1):
                fake.status, fake.checks = status, 0
                async with asyncio.timeout(30):
                    while fake.checks < 5 or len(said) < i:
                        await asyncio.sleep(0.01)
                assert backend.well == (status == 200)
            watching.cancel()

    with listening(fake.app) as url:
        asyncio.run(watch(url))
    assert said == [f"camelid: a is {state}" for state in ("not well", "well", "not well")]


def raw(client, target, *headers):
    """The answer to a request that is sent as it is."""
    lines = [b"GET " + target + b" HTTP/1.1", b"Host: x", b"Connection: close", *headers, b"", b""]
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        connection.sendall(b"\r\n".join(lines))
        return connection.makefile("rb").read()


def test_requests_and_responses_are_passed_on_as_they_are(four):
    _, client, _ = four
    target = b"/echo/a%00b/%2F/%e7%8b%90?x=1&x=2&y=%20+"
    found = raw(client, target, "X-Fox: 狐".encode(), b"X-Bytes: \xff", b"X-Twice: 1", b"X-Twice: 2")
    head, _, echoed = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and "\r\nx-name: 狐".encode() in head
    assert b"\r\nx-twice: 1\r\nx-twice: 2" in head and head.count(b"content-length") == 1
    path, query, headers = ast.literal_eval(echoed.decode())
    assert path + b"?" + query == target
    assert {(b"x-fox", "狐".encode()), (b"x-bytes", b"\xff"), (b"x-twice", b"1"), (b"x-twice", b"2")} <= {*headers}
    assert raw(client, b"/echo/" + b"x" * 70_000).startswith(b"HTTP/1.1 200")
    assert raw(client, b"/v1/models/%00").startswith(b"HTTP/1.1 404")


def test_half_a_pair_in_a_prompt_is_the_servers_to_refuse(four):
    fakes, client, _ = four
    sent = json.dumps(body("\ud800")).encode()
    answer = client.post("/v1/chat/completions", content=sent, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200 and sum(len(fake.asked) for fake in fakes) == 1


def test_what_the_router_fails_on_is_an_error_of_openai_and_a_line_in_the_log(four, monkeypatch, caplog):
    _, client, router = four

    async def fail(*_):
        raise ZeroDivisionError("what nobody thought of")

    monkeypatch.setattr(router, "forward", fail)
    answer = ask_whole(client, "x")
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error" and not router.busy
    assert "POST '/v1/chat/completions'" in caplog.text and "what nobody thought of" in caplog.text
    answer = client.delete("/v1/models")
    assert answer.status_code == 405 and answer.json()["error"]["message"] == "DELETE /v1/models: Method Not Allowed"


def test_metrics_of_all_servers_are_told_with_their_names(four):
    fakes, client, _ = four
    fakes[1].metrics = "<html>no metrics here</html>"
    fakes[0].metrics = fakes[0].metrics.replace("3.0", "3.0 nan")  # a time that is none
    fakes[2].status = 503
    lines = client.get("/metrics").text.splitlines()
    assert [line for line in lines if line.startswith("tokens_total")] == [
        f'tokens_total{{model="{name}",server="{name}"}} 3.0' for name in "acd"
    ]
    assert lines.count("# TYPE tokens_total counter") == 1
    assert 'camelid_router:server_well{server="b"} 1.0' in lines


def test_a_router_that_ends_refuses_new_requests_and_completes_those_it_has(four):
    fakes, client, router = four
    for fake in fakes:
        fake.wait = 0.5
    found = []
    asking = threading.Thread(target=lambda: found.append(ask(client, "x")))
    asking.start()
    until(lambda: router.busy)
    router.draining = True
    response = ask_whole(client, "y")
    assert response.status_code == 503 and response.json()["error"]["code"] == "draining"
    assert client.get("/health").status_code == 503
    asking.join()
    assert found[0][0] == 200 and found[0][1][-1] == "[DONE]"
    until(lambda: not router.busy)
    assert client.get("/page/x").status_code == 200
