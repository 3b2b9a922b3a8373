"""A server of the chat page with an API whose answers are known: canned, slow, failing, hostile.

The last message says what the answer is. `python fake_server.py PORT` serves the page to a browser of one's own.
"""

import json
import math
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).parents[3] / "serve" / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'"

MARKDOWN = """# How a camel stores water

It does **not** keep water in its hump. The hump holds *fat*, see [an article](https://example.org/camel) or `hump.md`.

1. Blood cells are oval:
   - they flow when blood is thick
   - they swell without bursting
2. Kidneys are thrifty

| Animal | Litres | Notes |
|:-------|-------:|-------|
| Camel  |    114 | in 13 minutes |
| Cow    |     95 | a day |

> A camel drinks when there is water.

```python
def litres(minutes: int) -> float:
    return 114 / 13 * minutes  # <b>not bold</b>
```

---
**重点：**骆驼的驼峰储存的是脂肪，而不是水。
"""


def tokens_of(text: str) -> list[str]:
    """A text in pieces of up to four characters."""
    return [text[i : i + 4] for i in range(0, len(text), 4)]


class Handler(BaseHTTPRequestHandler):
    """Serves files of the page and the API."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def respond(self, status: int, body: bytes, kind: str) -> None:
        """Sends a whole response."""
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def json(self, value: object, status: int = 200) -> None:
        """Sends a JSON object."""
        self.respond(status, json.dumps(value).encode(), "application/json")

    def fail(self, status: int, message: str, kind: str, code: str | None = None) -> None:
        """Sends an error object."""
        self.json({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)

    def is_refused(self) -> bool:
        """Whether a key is missing, which is answered then."""
        key = self.server.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self.fail(401, "give the API key", "authentication_error", "invalid_api_key")
        return True

    def do_GET(self):
        """The page and the list of models."""
        path = self.path.split("?")[0]
        if path == "/v1/models":
            if not self.is_refused():
                models = [{"id": id, "object": "model", "parent": base} for id, base in self.server.models.items()]
                self.json({"object": "list", "data": models})
            return
        file = PAGE / ("index.html" if path == "/" else path.removeprefix("/page/"))
        if file.parent != PAGE or not file.is_file():
            self.respond(404, b"not found", "text/plain")
            return
        self.respond(200, file.read_bytes(), TYPES[file.suffix])

    def do_POST(self):
        """A chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.is_refused():
            return
        self.server.requests.append(body)
        said = body["messages"][-1]["content"]
        if body["messages"][-1]["role"] == "assistant":
            said = "more"
        model = body.get("model", "camel-1b")  # the page asks without one until it has read the list
        if model not in self.server.models:
            self.fail(404, f"there is no model {model!r}", "not_found_error", "model_not_found")
        elif said == "fail once" and not self.server.failed:
            self.server.failed = True
            self.fail(429, "<b>the queue is full</b>", "rate_limit_error", "queue_full")
        elif said == "too long":
            self.fail(400, "The prompt has 300 tokens", "invalid_request_error", "context_length_exceeded")
        elif said == "bad gateway":
            self.respond(502, b"<html><script>alert(1)</script></html>", "text/html")
        else:
            self.stream(body, said)

    def stream(self, body: dict, said: str) -> None:
        """Sends the events of an answer."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        aborted = self.server.aborted  # the next test has another one
        try:
            self.events(body, said)
        except (BrokenPipeError, ConnectionResetError):
            aborted.set()

    def event(self, value: dict) -> None:
        """Sends a chunk, cut in the middle of its bytes."""
        line = f"data: {json.dumps(value, ensure_ascii=False)}\r\n\r\n".encode()
        for part in (line[: len(line) // 2], line[len(line) // 2 :]):
            self.wfile.write(part)
            self.wfile.flush()

    def events(self, body: dict, said: str) -> None:
        """The chunks of an answer: role, text, end, usage."""
        answers = {"empty": "", "markdown": MARKDOWN, "slow": "word " * 400, "long": f"{MARKDOWN}\n\n" * 20}
        text = (answers | self.server.answers).get(said, f"You said: {said}")
        model = body.get("model", "camel-1b")
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
        pieces = tokens_of(text)

        def chunk(delta: dict, reason: str | None = None, logprobs: dict | None = None) -> dict:
            choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            return head | {"choices": [choice], "usage": None}

        self.wfile.write(b": a comment\n\n")
        self.event(chunk({"role": "assistant", "content": ""}))
        for k, piece in enumerate(pieces):
            if "held" in said and k == 2:
                self.server.go_on.wait(60)
            self.event(chunk({"content": piece}, logprobs=self.logprobs(piece, k) if body.get("logprobs") else None))
            if said == "slow":
                time.sleep(0.05)
            if "break" in said and k == 2:
                return
            if said == "error inside" and k == 2:
                self.event({"error": {"message": "the engine failed", "type": "server_error", "code": None}})
                return
        self.event(chunk({}, "length" if said == "cut" else "stop"))
        count = {"prompt_tokens": 1234, "completion_tokens": len(pieces), "total_tokens": 1234 + len(pieces)}
        usage = count | {"prompt_tokens_details": {"cached_tokens": 1024}}
        self.event(head | {"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    @staticmethod
    def logprobs(piece: str, k: int) -> dict:
        """The probabilities of a piece, which is the second of its alternatives where they are low."""
        p = (0.97, 0.75, 0.55, 0.35, 0.15, 0.04)[k % 6]

        def entry(text: str, chance: float) -> dict:
            return {"token": text, "logprob": math.log(chance), "bytes": list(text.encode())}

        others = [(piece, p), *((f" other{i}", (1 - p) / 2**i) for i in range(1, 5))]
        top = [entry(text, chance) for text, chance in sorted(others, key=lambda each: -each[1])]
        return {"content": [entry(piece, p) | {"top_logprobs": top}], "refusal": None}


class FakeServer(ThreadingHTTPServer):
    """The server, with what it was asked (`requests`) and how it shall answer.

    That is `key`, `answers` and `models` (name -> base); an answer to what has "held" in it stands still after two
    tokens until `go_on`.
    """

    daemon_threads = True

    def __init__(self, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.reset()

    def reset(self) -> None:
        """Forgets what was asked and how to answer."""
        self.models = {"camel-1b": None, "camel-poet": "camel-1b", "tiny": None}
        self.requests, self.answers, self.key, self.failed = [], {}, None, False
        self.aborted, self.go_on = threading.Event(), threading.Event()


if __name__ == "__main__":
    server = FakeServer(int(sys.argv[1]))
    print(server.url)
    server.serve_forever()
