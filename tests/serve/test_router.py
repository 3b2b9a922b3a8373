"""The router: where requests go, and what happens to them when a server is lost."""

import asyncio
import contextlib
import json
import socket
import threading

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse

from camelid.serve.router import SLACK, Router, make_router


class Fake:
    """A server that says its name, after a while."""

    def __init__(self, name):
        self.name, self.asked, self.status, self.wait = name, [], 200, 0.0
        self.dies_before, self.dies_within = False, False
        self.app = FastAPI()

        @self.app.get("/health")
        async def health():
            return JSONResponse({}, self.status)

        @self.app.post("/v1/completions")
        async def complete(body: dict):
            self.asked.append(body["prompt"])
            if self.status != 200:
                return JSONResponse({"error": {"message": "busy"}}, self.status, {"Retry-After": "7"})

            async def pieces():
                await asyncio.sleep(self.wait)
                if self.dies_before:
                    raise RuntimeError("dead")
                yield f'data: {{"from": "{self.name}"}}\n\n'
                if self.dies_within:
                    await asyncio.sleep(0.05)
                    raise RuntimeError("dead")
                yield "data: [DONE]\n\n"

            return StreamingResponse(pieces(), media_type="text/event-stream")


@contextlib.contextmanager
def listening(app):
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def three():
    fakes = [Fake(name) for name in "abc"]
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(listening(fake.app)) for fake in fakes]
        url = stack.enter_context(listening(make_router(urls)))
        client = stack.enter_context(httpx.Client(base_url=url, timeout=30))
        until_well(client, 3)
        yield fakes, client


def until_well(client, count):
    for _ in range(200):
        with contextlib.suppress(httpx.HTTPError):
            if sum(state["well"] for state in client.get("/health").json().values()) == count:
                return
        threading.Event().wait(0.05)
    raise AssertionError("the router does not see its servers")


def ask(client, prompt):
    response = client.post("/v1/completions", json={"prompt": prompt})
    lines = [line[6:] for line in response.text.split("\n\n") if line]
    return response.status_code, lines


def test_requests_that_begin_alike_go_to_one_server_and_others_to_others(three):
    fakes, client = three
    for i in range(30):
        assert ask(client, f"{i % 10} " * 200 + str(i))[1][-1] == "[DONE]"
    for fake in fakes:
        assert fake.asked  # ten beginnings over three servers
    for i in range(10):
        assert sum(any(prompt.startswith(f"{i} ") for prompt in fake.asked) for fake in fakes) == 1


def test_a_request_that_has_not_begun_is_sent_to_another_server_and_one_that_has_is_not(three):
    fakes, client = three
    for fake in fakes[:2]:
        fake.dies_before = True
    for i in range(12):
        assert ask(client, str(i)) == (200, ['{"from": "c"}', "[DONE]"])
    for fake in fakes:
        fake.dies_before, fake.dies_within = False, True
    until_well(client, 3)
    for i in range(3):
        status, lines = ask(client, str(i))
        assert status == 200 and len(lines) == 2 and json.loads(lines[1])["error"]["code"] == "backend_lost"


def test_servers_that_are_busy_or_end_are_passed_over_and_told_when_all_are(three):
    fakes, client = three
    fakes[0].status, fakes[1].status = 429, 503
    for i in range(9):
        assert ask(client, str(i))[1][0] == '{"from": "c"}'
    fakes[2].status = 429
    response = client.post("/v1/completions", json={"prompt": "x"})
    assert response.status_code in (429, 503) and response.headers["Retry-After"] in ("7", "1")


def test_a_server_with_more_to_do_than_others_gets_no_more():
    router = Router([f"http://{name}" for name in "abc"])
    for backend in router.backends:
        backend.well = True
    body = json.dumps({"prompt": "the same beginning"}).encode()
    favourite = router.order(body)[-1]
    first = router.order(body)[0]
    first.active = SLACK
    assert router.order(body)[0] is first
    first.active = SLACK + 1
    assert router.order(body)[0] is not first and router.order(body)[-1] is first
    favourite.well = False
    assert favourite not in router.order(body) and len(router.order(body)) == 2
