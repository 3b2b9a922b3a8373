"""Servers as child processes: real ones under load, killed and drained, and small ones that end as they are told."""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import httpx
import jax
import pytest

from camelid.checkpoints.interop.tokenizer_export import save_for_transformers
from camelid.data.templates import load_template
from camelid.data.tokenizer import Tokenizer
from camelid.model import llama
from camelid.model.config import LlamaConfig
from camelid.serve import backends, replicas
from camelid.serve.backends import Backend
from camelid.tests.checkpoints.interop import folders

SYSTEM = {"role": "system", "content": "the red fox sees 3 red foxs. " * 4}


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """A model with random weights, in Hugging Face's format."""
    tokenizer = Tokenizer.load(corpus / "tokenizer")
    config = LlamaConfig.preset("nano-test", vocab_size=tokenizer.vocab_size, max_len=256)
    params = jax.jit(llama.build(config).init)(jax.random.key(0))
    path = folders.write_folder(tmp_path_factory.mktemp("served") / "nano", config, params)
    save_for_transformers(tokenizer, load_template("chatml"), path)
    return path


class Command:
    """A running `camelid serve`."""

    def __init__(self, process):
        self.process, self.lines = process, []
        self._reader = threading.Thread(
            target=lambda: self.lines.extend(iter(process.stdout.readline, "")), daemon=True
        )
        self._reader.start()

    def until(self, word, seconds=300):
        """The first line with a word."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in self.lines:
                if word in line:
                    return line
            assert self.process.poll() is None, self.lines
            time.sleep(0.02)
        raise AssertionError(f"{word} did not come: {self.lines}")

    def children(self):
        """The process ids of the servers."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]

    def end(self, seconds=300):
        """The exit code, once the process and all that write to its output have ended."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        assert not self._reader.is_alive()
        return code


@pytest.fixture
def serve(start, folder):
    """serve(*options): the command, once it is ready, and a client of it."""
    with contextlib.ExitStack() as stack:

        def run(*options):
            command = Command(start(["serve", str(folder), "--port=0", "--replicas=2", *options], devices=1))
            stack.callback(command.process.kill)
            url = command.until("ready: ").split()[-1]
            return command, stack.enter_context(httpx.Client(base_url=url, timeout=120))

        yield run


def body(i, tokens, stream):
    """A request for an answer of a number of tokens."""
    return {"prompt": f"the {i} red foxs", "max_tokens": tokens, "logit_bias": {2: -100}, "stream": stream, "seed": i}


def ask(client, i, tokens, stream, told=None):
    """The status, the number of pieces or tokens, and the code of an error of a request."""
    with client.stream("POST", "/v1/completions", json=body(i, tokens, stream)) as response:
        if not stream:
            found = json.loads(response.read())
            return response.status_code, found.get("usage", {}).get("completion_tokens", 0), found.get("error")
        pieces, error = 0, None
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                error = chunk.get("error")
                pieces += "choices" in chunk
                if told is not None:
                    told.set()
            elif line == "data: [DONE]":
                return response.status_code, tokens, error
        return response.status_code, pieces, error


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)
    return found


def alive(process):
    """Whether a process runs; one that has ended and was not waited for does not."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_no_request_is_lost_with_a_killed_server_and_turns_find_what_was_kept_and_streams_end_before_the_server(serve):
    command, client = serve("--slots=2", "--chunk=16", "--drain_seconds=60")
    first_children = command.children()
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        begun = threading.Event()
        asked = [pool.submit(ask, client, i, 120, i % 2 == 1, begun) for i in range(40)]
        assert begun.wait(60)
        os.kill(first_children[0], signal.SIGKILL)
        found = [future.result() for future in asked]
    assert all(each == (200, 120, None) for each in found[::2]), found
    lost = [(pieces, error["code"]) for _, pieces, error in found[1::2] if error is not None]
    assert len(lost) <= 4  # it had two slots, and the last events of two answers may not have been sent
    assert all(pieces > 0 and code == "backend_lost" for pieces, code in lost)
    assert sum(each == (200, 120, None) for each in found[1::2]) == 20 - len(lost), found
    assert "SIGKILL: it is started again in 1 s" in command.until("replica 0 ended by")
    until(lambda: all(state["well"] for state in client.get("/health").json().values()))
    check_turns(client)
    check_a_client_that_leaves(client)

    begun, streams = threading.Event(), 6
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
        asked = [pool.submit(ask, client, i, 200, True, begun) for i in range(streams)]
        assert begun.wait(60)
        children = command.children()
        until(lambda: sum(state["active"] for state in client.get("/health").json().values()) == streams)
        command.process.send_signal(signal.SIGTERM)
        command.until("ending after the answers that have begun")
        refused = httpx.post(f"{client.base_url}/v1/completions", json=body(0, 1, False))
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
        assert client.get("/health").status_code == 503
        assert [future.result() for future in asked] == [(200, 200, None)] * streams
    assert command.end() == 0 and len(children) == 2 and not any(map(alive, children))
    printed = "".join(command.lines)
    assert printed.count("compiled draw") == printed.count("ready: ") == printed.count("ending after") == 1, printed


def check_turns(client):
    """The second turns of conversations with one system prompt are read from what was kept of the first."""

    def answer(messages):
        asked = {"messages": messages, "max_tokens": 4, "temperature": 0, "logit_bias": {2: -100}}
        found = client.post("/v1/chat/completions", json=asked).json()
        return {"role": "assistant", "content": found["choices"][0]["message"]["content"]}, found["usage"]

    first = [[SYSTEM, {"role": "user", "content": f"{i} is which colour? {'It is red. ' * 6}"}] for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # together, so that both servers get some
        answers = list(pool.map(answer, first))
    labels = 'finished_reason="length",model_name="nano"'
    assert len(values(client, f"camelid:request_success_total{{{labels}")) == 2
    for messages, (said, usage) in zip(first, answers, strict=True):
        _, used = answer([*messages, said, {"role": "user", "content": "and the owl?"}])
        kept = usage["prompt_tokens"] - 17  # all whole chunks but that of the last token
        assert used["prompt_tokens_details"]["cached_tokens"] >= kept > 60, used


def values(client, begins):
    """The values in `/metrics` on lines that begin so."""
    lines = client.get("/metrics").text.splitlines()
    return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(begins)]


def check_a_client_that_leaves(client):
    """The servers end the answers of a client that has left."""
    for stream in (False, True):
        before = sum(values(client, "camelid:generation_tokens_total{"))
        asked = body(1, 230, stream) | {"n": 16}
        with (
            contextlib.suppress(httpx.ReadTimeout),
            client.stream("POST", "/v1/completions", json=asked, timeout=0.2) as response,
        ):
            next(response.iter_lines())
        until(lambda: values(client, "camelid:num_requests_running{") == [0, 0], seconds=10)
        assert 0 < sum(values(client, "camelid:generation_tokens_total{")) - before < 16 * 230


def test_a_second_signal_ends_all_at_once(serve):
    command, client = serve("--slots=1", "--api_key=secret")
    assert client.post("/v1/completions", json=body(0, 1, False)).status_code == 401
    client.headers["Authorization"] = "Bearer secret"
    assert len(client.get("/v1/models").json()["data"]) == 1
    children = command.children()

    def one(i):
        with contextlib.suppress(httpx.HTTPError):
            return ask(client, i, 230, True)

    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(one, i) for i in range(100)]
        until(lambda: sum(state["active"] for state in client.get("/health").json().values()) > 80)
        command.process.send_signal(signal.SIGHUP)
        command.until("ending after the answers that have begun")
        begin = time.monotonic()
        command.process.send_signal(signal.SIGTERM)
        assert command.end() == 0 and time.monotonic() - begin < 20
        assert sum(future.result() != (200, 230, None) for future in asked) > 50
    assert not any(map(alive, children))
    assert "Traceback" not in "".join(command.lines), "".join(command.lines)


def test_servers_end_with_their_parent_even_where_it_is_killed(start, folder):
    command = Command(start(["serve", str(folder), "--port=0", "--replicas=2"], devices=1))
    children = until(lambda: [each for each in command.children() if b"end_with_parent" in cmdline(each)])
    command.process.kill()
    until(lambda: not any(map(alive, children)))


def cmdline(process):
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def test_what_the_first_server_refuses_is_said_once(start):
    command = Command(start(["serve", "/nowhere", "--port=0", "--replicas=3"], devices=1))
    assert command.end() == 2
    assert command.lines == ["camelid: /nowhere: no such checkpoint or run directory\n"]


SMALL = """
import http.server, json, os, sys, time
folder, number = sys.argv[1], os.environ["NUMBER"]
print(f"loading {number}", flush=True)
state = lambda name: os.path.exists(f"{folder}/{name}{number}")
if state("refuses"):
    sys.exit("camelid: there is no such file")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if state("unwell") else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": []}).encode())
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"ready: http://127.0.0.1:{server.server_port}\\nsaid by {number}", flush=True)
server.serve_forever()
"""


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Three small servers that do what files in tmp_path say, their backends, and what is called."""
    monkeypatch.setattr(replicas, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(backends, "CHECK_SECONDS", 0.05)
    found = [Backend(f"replica {i}") for i in range(3)]
    called = []
    made = replicas.Replicas(
        [sys.executable, "-c", SMALL, str(tmp_path)],
        [{"NUMBER": str(i)} for i in range(3)],
        found,
        failed=lambda: called.append("failed"),
        ready=lambda: called.append("ready"),
    )
    loop = asyncio.new_event_loop()
    client = httpx.AsyncClient()
    watching = [loop.create_task(backend.watch(client, None)) for backend in found]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield made, found, called
    made.stop(at_once=True)
    for each in watching:
        loop.call_soon_threadsafe(each.cancel)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_server_that_ends_is_started_again_ever_later_and_says_why_it_cannot(small, tmp_path, capfd):
    made, found, called = small
    printed = ""

    def said(*words):
        nonlocal printed
        printed += capfd.readouterr().err
        return all(each in printed for each in words)

    made.start()
    until(lambda: called == ["ready"])
    until(lambda: said(*(f"[{i}] said by {i}\n" for i in range(3))))  # threads pass on what the processes print
    assert printed.count("[0] loading 0") == 1 and "loading 1" not in printed
    (tmp_path / "refuses1").touch()
    before, printed = found[1].url, ""
    made.kill(1)
    until(lambda: said("in 0.2 s"))
    lines = printed.splitlines()
    assert "camelid: replica 1 ended by SIGKILL: it is started again in 0.05 s" in lines
    assert "camelid: replica 1 ended by exit code 1: it is started again in 0.1 s" in lines
    assert "[1] camelid: there is no such file" in lines and not found[1].well and found[0].well
    (tmp_path / "refuses1").unlink()
    until(lambda: found[1].well)
    assert found[1].url != before and called == ["ready"]


def test_a_server_that_is_long_not_well_is_started_again(small, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(replicas, "HANG_SECONDS", 0.5)
    made, found, called = small
    made.start()
    until(lambda: called == ["ready"])
    before = found[2].url
    (tmp_path / "unwell2").touch()
    until(lambda: found[2].url is None)
    (tmp_path / "unwell2").unlink()
    until(lambda: found[2].well)
    assert found[2].url != before and "replica 2 was not well for 0.5 s: it is ended" in capfd.readouterr().err


def test_a_server_that_cannot_be_started_ends_all(small, tmp_path, capfd):
    made, found, called = small
    (tmp_path / "refuses2").touch()
    made.start()
    until(lambda: called == ["failed"])
    assert made.failure == (1, "camelid: there is no such file")
    assert replicas.reason(made.failure) == "there is no such file"
    assert replicas.reason((-9, "")) == "a replica ended by SIGKILL before it was ready"
    made.stop(at_once=False)
    assert all(backend.url is None for backend in found)


def test_a_command_that_does_not_exist_is_told():
    failed = []
    replica = replicas.Replica(0, ["/nowhere"], {}, Backend("replica 0"), lambda *failure: failed.append(failure))
    replica.run()
    assert failed[0][0] == 1 and "no process can be started: [Errno 2] No such file" in failed[0][1]
