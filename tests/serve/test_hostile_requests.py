"""Requests that no client should send, and far more of them than there is room for."""

import asyncio
import json
import socket

import httpx
import pytest
from fastapi import Request as HttpRequest

from camelid.model.sampling import Sampling
from camelid.serve.api import Server
from camelid.serve.protocol import ApiError
from camelid.serve.requests import Request
from camelid.tests.serve.plain_requests import ASKED, ask, counters, wait_until_free

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HEAD = "POST {} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def nothing_breaks(url):
    """After each test no answer has a row, the server has failed on no request, and a plain request is answered."""

    def failures():
        return {name: count for name, count in counters(url).items() if 'failure_total{status="5' in name}

    before = failures()
    yield
    wait_until_free(url)
    assert failures() == before
    assert ask(url, TEXT, {"prompt": "the red fox", "max_tokens": 1})[0] == 200


def say(url, head, *parts):
    """The first line of the answer to bytes that are sent as they are; "" if the server hangs up."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode())
        for part in parts:
            connection.sendall(part)
        return connection.makefile("rb").readline().decode().strip()


@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe{}",
        b"[" * 9_000,
        b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
        b"null",
        b"[1, 2]",
        b'{"prompt": ' + b"9" * 6_000 + b"}",
        b'{"prompt": "x", "prompt": 1}',
        b'{"model": "nano", "messages": [{}], "prompt": [[[1]]], "input": [[]], "tokens": [null]}',
        b'{"messages": {}, "prompt": {}, "input": {}, "tokens": {}}',
    ],
    ids=lambda body: repr(body[:16]),
)
def test_bodies_that_are_no_request_get_400(url, path, body):
    status, _, found = ask(url, path, body)
    assert status == 400 and found["error"]["type"] == "invalid_request_error" and found["error"]["message"]


@pytest.mark.parametrize(
    "field",
    [
        '"temperature": NaN',
        '"temperature": 1e999',
        '"presence_penalty": NaN',
        '"frequency_penalty": -Infinity',
        '"repetition_penalty": NaN',
        '"logit_bias": {"5": NaN}',
        '"logit_bias": {"-1": 1}',
        '"logit_bias": {"5.0": 1}',
        '"top_p": NaN',
        '"min_p": 2',
        '"n": 17',
        '"n": true',
        '"n": "1"',
        '"max_tokens": 1.5',
        '"seed": 1e30',
        '"echo": 1',
        '"stop": ["", "a"]',
        '"stop": [1]',
        '"logprobs": 21',
        '"stream": "yes"',
        '"prompt": []',
        '"prompt": [[]]',
        '"prompt": [352]',
        '"prompt": [-1]',
        '"prompt": [1.5]',
        '"prompt": [true]',
        '"prompt": ["a", 1]',
        '"prompt": "\\ud800"',
        '"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nothing"}}}',
        '"response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "(", "type": "string"}}}',
        '"response_format": {"type": "json_schema"}',
    ],
)
def test_values_that_no_answer_could_follow_get_400(url, field):
    status, _, found = ask(url, TEXT, f'{{"prompt": "a", "max_tokens": 1, {field}}}'.encode())
    assert status == 400 and found["error"]["message"], found


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "\ud800"}),
        ("/detokenize", {"tokens": [352]}),
        ("/detokenize", {"tokens": [-1]}),
        (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}),
        ("/v1/responses", {"input": "\ud800"}),
        ("/v1/embeddings", {"input": "\ud800"}),
        ("/v1/embeddings", {"input": [1, "a"]}),
        ("/v1/embeddings", {"input": [[1], []]}),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}),
        ("/v1/responses", {"input": [{"role": "", "content": "x"}]}),
        ("/v1/responses", {"input": "x", "store": True}),
        ("/v1/responses", {"input": "x", "store": 0}),
    ],
    ids=str,
)
def test_what_cannot_be_read_or_kept_gets_400(url, path, body):
    assert ask(url, path, body)[0] == 400


def test_whole_numbers_may_be_written_as_floats(url):
    body = {"prompt": "the red fox", "max_tokens": 3.0, "temperature": 0, "seed": 1.0}
    assert ask(url, TEXT, body)[2]["usage"]["completion_tokens"] == 3


def test_lengths_that_are_missing_or_wrong_are_told_at_once(url):
    head = HEAD.format(CHAT)
    chunk = b'5\r\n{"a":\r\n'
    assert say(url, head + "Transfer-Encoding: chunked\r\n\r\n", chunk).startswith("HTTP/1.1 411 ")
    assert say(url, head + "Content-Length: 20001\r\n\r\n").startswith("HTTP/1.1 413 ")
    assert say(url, head + "Content-Length: -1\r\n\r\n").startswith("HTTP/1.1 400 ")
    assert say(url, head + "Content-Length: 1e3\r\n\r\n").startswith("HTTP/1.1 400 ")
    both = head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert say(url, both, b"5\r\n{}   \r\n0\r\n\r\n").split(" ")[1] in ("400", "411")
    body = json.dumps({"messages": ASKED}).encode()
    assert say(url, f"{head}Content-Length: {len(body) - 2}\r\n\r\n", body).startswith("HTTP/1.1 400 ")


def test_clients_that_hang_up_in_the_middle_leave_nothing_behind(url):
    body = json.dumps({"messages": ASKED, "max_tokens": 90, "stream": True, "temperature": 1.0}).encode()
    host, _, port = url.removeprefix("http://").partition(":")
    for sent in (body[:20], body, body):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{HEAD.format(CHAT)}Content-Length: {len(body)}\r\n\r\n".encode() + sent)
            if sent == body:
                connection.recv(10)


def test_other_methods_are_told_which_there_are(url):
    found = httpx.put(f"{url}{CHAT}", json={}, headers={"Authorization": "Bearer secret"})
    assert (found.status_code, found.headers["Allow"]) == (405, "POST")
    assert found.json()["error"]["type"] == "invalid_request_error"


def test_ten_times_more_requests_than_there_is_room_for_are_answered_or_told_to_wait(url, served):
    """Each answer belongs to its own prompt, whole or streamed."""
    room = served.engine.rows + served.engine.most_waiting
    tokenizer = served.model.tokenizer
    texts = [f"the {colour} fox sees {i} owls" for i in range(5 * room) for colour in ("red", "blue")]
    encoded = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in texts]
    sampling = Sampling(max_tokens=8, temperature=0, stop_ids=(tokenizer.eos_id,))
    expected = [served.engine.generate([Request(prompt, sampling)])[0][0].tokens for prompt in encoded]

    async def one(client, i):
        how = {"prompt": texts[i], "max_tokens": 8, "temperature": 0, "logprobs": 0, "stream": i % 2 == 0}
        response = await client.post(TEXT, json=how)
        if response.status_code != 200:
            assert response.headers["Retry-After"] == "1"
            return response.status_code
        lines = response.text.split("\n\n")[:-2] if how["stream"] else [f"data: {response.text}"]
        choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
        found = [x for choice in choices for x in choice["logprobs"]["token_logprobs"]]
        assert found == [token.logprob for token in expected[i]], texts[i]
        return 200

    async def everyone():
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": "Bearer secret"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits) as client:
            return await asyncio.gather(*[one(client, i) for i in range(len(texts))])

    statuses = asyncio.run(everyone())
    assert set(statuses) == {200, 429} and statuses.count(200) >= served.engine.most_waiting


def test_keys_are_compared_byte_by_byte():
    server = Server({}, api_key="sécret")
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "server": ("x", 80), "query_string": b""}
    for key in (b"", b"s\xe9cret", b"\xff", "sécret".encode()[:-1]):
        with pytest.raises(ApiError, match="give the API key"):
            server.check(HttpRequest(scope | {"headers": [(b"authorization", b"Bearer " + key)]}))
    server.check(HttpRequest(scope | {"headers": [(b"authorization", "Bearer sécret".encode())]}))
