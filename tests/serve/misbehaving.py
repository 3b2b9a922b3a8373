"""A small endpoint of OpenAI's protocol that misbehaves as a test plans it, and notes what it was asked."""

import gzip
import hashlib
import http.server
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager

Plan = Callable[[str, int], str]
"""plan(last message, how many times it was asked before) -> how the endpoint behaves: a key of BEHAVIOURS."""


def digest_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


class Endpoint(http.server.ThreadingHTTPServer):
    """Answers by `write(messages)` unless the plan says otherwise.

    Attributes:
      asked: the last message of each request, in their order.
      times: when each request came.
      answered: number of whole answers that were sent, by last message.
      most_at_once: the most requests that waited at a time.
      headers: the headers of the last request.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, plan: Plan, write: Callable[[list], str]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan, self.write = plan, write
        self.asked, self.times, self.answered, self.bodies = [], [], Counter(), []
        self.headers, self.at_once, self.most_at_once, self.lock = {}, 0, 0, threading.Lock()
        self.gate = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # clients that are killed


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.send(200, {"object": "list", "data": [{"id": "first"}, {"id": "second"}]})

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with server.lock:
            before = server.asked.count(text)
            server.asked.append(text)
            server.times.append(time.monotonic())
            server.bodies.append(body)
            server.headers = dict(self.headers)
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            BEHAVIOURS[server.plan(text, before)](self, body)
        finally:
            with server.lock:
                server.at_once -= 1

    def send(self, status, content, cut=0, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) - cut])
        self.close_connection = True

    def answer(self, body, reason="stop", cut=0, status=200, pack=None):
        text = self.server.write(body["messages"])
        usage = {"prompt_tokens": len(body["messages"][-1]["content"]), "completion_tokens": len(text or "")}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        content = {"model": "first-0613", "choices": [choice], "usage": usage}
        if pack:
            self.send(status, pack(json.dumps(content).encode()), Content_Encoding="gzip")
        else:
            self.send(status, content, cut)
        if not cut:
            with self.server.lock:
                self.server.answered[body["messages"][-1]["content"]] += 1

    def slowly(self, body):
        time.sleep(0.02)
        self.answer(body)

    def reset(self, body):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def flood(self, body):
        """Sends a body without an end, in chunks."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:  # until the client closes the connection
            self.wfile.write(b"100000\r\n" + b" " * 2**20 + b"\r\n")

    def gated(self, body):
        self.server.gate.wait(10)
        self.answer(body)


def _error(status: int, message: str, **more):
    headers = more.pop("headers", {})
    return lambda handler, body: handler.send(status, {"error": {"message": message} | more}, **headers)


BOMB = gzip.compress(bytes(2**26), 1)
"""A body of 300 kB that unpacks to 64 MB."""

BEHAVIOURS = {
    "answer": _Handler.answer,
    "slow": _Handler.slowly,
    "gated": _Handler.gated,
    "cut_off": lambda handler, body: handler.answer(body, "length"),
    "coloured": lambda handler, body: handler.answer(body, "x\n\x1b[31m"),
    "201": lambda handler, body: handler.answer(body, status=201),
    "packed": lambda handler, body: handler.answer(body, pack=gzip.compress),
    "bomb": lambda handler, body: handler.send(200, BOMB, Content_Encoding="gzip"),
    "not packed": lambda handler, body: handler.send(200, b"\x1f\x8b no", Content_Encoding="gzip"),
    "other packing": lambda handler, body: handler.send(200, b"x", Content_Encoding="gzip, gzip"),
    "flood": _Handler.flood,
    "cut": lambda handler, body: handler.answer(body, cut=20),
    "reset": _Handler.reset,
    "silence": lambda handler, body: time.sleep(1),
    "garbage": lambda handler, body: handler.send(200, b"<html>all is well</html>"),
    "list": lambda handler, body: handler.send(200, []),
    "no choice": lambda handler, body: handler.send(200, {"choices": []}),
    "no message": lambda handler, body: handler.send(200, {"choices": [{"finish_reason": "stop"}]}),
    "hidden error": _error(200, "upstream is gone", code=502),
    "hidden refusal": _error(200, "the prompt is too long", code=400),
    "429": _error(429, "slow down", headers={"Retry_After": "0.2"}),
    "429 for a day": _error(429, "see you tomorrow", headers={"Retry_After": "86400"}),
    "no money": _error(429, "you exceeded your quota", code="insufficient_quota"),
    "500": _error(500, "it broke"),
    "503": _error(503, "too busy"),
    "400": _error(400, "max_tokens is too large"),
    "too long": _error(400, "the prompt has 5000 tokens", code="context_length_exceeded"),
    "filtered": _error(400, "the content is not allowed", code="content_filter"),
    "401": _error(401, "wrong key"),
    "404": _error(404, "no such model"),
    "moved": lambda handler, body: handler.send(301, {}, Location="http://elsewhere.example/v1"),
}


@contextmanager
def misbehaving(plan: Plan = lambda text, before: "answer", write: Callable[[list], str] | None = None):
    """The endpoint, which listens in a thread. By default it answers with the last message backwards."""
    with Endpoint(plan, write or (lambda messages: messages[-1]["content"][::-1])) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.gate.set()
            server.shutdown()
            thread.join()
