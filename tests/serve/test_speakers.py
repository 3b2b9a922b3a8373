"""Speakers: a server of OpenAI's protocol on this machine that says what it is told to, and a model."""

import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from camelid.errors import TooLong, UserError
from camelid.launch.cli import main
from camelid.serve.speakers import ModelSpeaker, ServerSpeaker, Unreachable, WrongSetting

USER = [{"role": "user", "content": "你好"}]
DEEP = "[" * 200_000


def event(text=None, reason=None, **more):
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]} | more


def lines(*events, end="data: [DONE]\n\n"):
    return "".join(f"data: {json.dumps(each, ensure_ascii=False)}\n\n" for each in events) + end


def refusal(message, param, code):
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}})


@pytest.fixture
def serve():
    """serve(body, status, headers): the address of a server that answers every POST so, and the requests it got."""
    servers = []

    def start(body="", status=200, headers=(), models=({"id": "tiny"}, {"id": "other"}), listed=None):
        requests = []

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def send(self, status, text, headers=()):
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def do_GET(self):
                requests.append((self.path, None, self.headers))
                self.send(200, listed or json.dumps({"object": "list", "data": models}))

            def do_POST(self):
                text = self.rfile.read(int(self.headers["Content-Length"]))
                requests.append((self.path, json.loads(text), self.headers))
                self.send(status, body, headers)

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_server_gets_the_conversation_with_what_is_set_and_its_events_become_text(serve):
    said = lines(event(""), event("天"), event("气 "), event(reason="stop"), {"choices": [], "usage": {}})
    address, requests = serve(": a comment\n\n" + said)
    speaker = ServerSpeaker(f"{address}/v1/", key="secret")
    assert list(speaker.stream(USER, seed=3, temperature=0.5, stop=["x"])) == ["天", "气 "]
    assert [path for path, _, _ in requests] == ["/v1/models", "/v1/chat/completions"]
    assert requests[1][1] == {
        "model": "tiny",
        "messages": USER,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 3,
        "temperature": 0.5,
        "stop": ["x"],
    }
    assert requests[1][2]["Authorization"] == "Bearer secret"


def test_tokens_are_counted_by_pieces_and_then_by_the_usage(serve):
    address, _ = serve(lines(event("a b"), event("c", "length"), {"choices": [], "usage": {"completion_tokens": 5}}))
    speaker = ServerSpeaker(address, "other")
    assert [speaker.tokens for _ in speaker.stream(USER)] == [1, 2] and speaker.tokens == 5


@pytest.mark.parametrize("count", [-(10**30), 10**30, True, "5", None, -1])
def test_a_usage_that_no_answer_can_have_is_not_believed(count, serve):
    address, _ = serve(lines(event("a"), event("b", "stop"), {"choices": [], "usage": {"completion_tokens": count}}))
    speaker = ServerSpeaker(address)
    assert list(speaker.stream(USER)) == ["a", "b"] and speaker.tokens == 2


def test_a_list_of_models_that_is_nested_without_end_is_told(serve):
    address, _ = serve(listed=DEEP)
    with pytest.raises(Unreachable, match="which is not OpenAI's protocol"):
        ServerSpeaker(address)


def test_a_given_name_is_asked_for_and_no_key_is_sent_without_one(serve):
    address, requests = serve(lines(event("a", "stop")))
    assert list(ServerSpeaker(address, "other").stream(USER)) == ["a"]
    _, (_, body, headers) = requests
    assert body["model"] == "other" and "Authorization" not in headers


def test_an_answer_that_is_whole_needs_no_further_event(serve):
    address, _ = serve(lines(event("a", "stop"), end=""))
    assert list(ServerSpeaker(address, "other").stream(USER)) == ["a"]


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "says"),
    [
        (400, (), '{"error": {"message": "too\\nlong"}}', UserError, "refused (400): too long"),
        (422, (), '{"detail": "top_k"}', UserError, 'refused (422): {"detail": "top_k"}'),
        (
            401,
            (),
            '{"error": {"message": "who?"}}',
            Unreachable,
            "(401): who?; set the environment variable CAMELID_AP",
        ),
        (404, (), '{"object": "error", "message": "no mine"}', Unreachable, "refused (404): no mine"),
        (502, (), "", Unreachable, "refused (502): Bad Gateway"),
        (500, (), "[1]", Unreachable, "refused (500): [1]"),
        (301, (("Location", "https://x/"),), "", Unreachable, "(301): it has moved to https://x/: give that address"),
        (200, (), lines(event("a"), end=""), Unreachable, "ended the connection before the answer"),
        (200, (), '{"choices": []}', Unreachable, "ended the connection before the answer"),
        (200, (), "data: <html>\n\n", Unreachable, "sent b'<html>', which is not OpenAI's protocol"),
        (
            200,
            (),
            lines({"error": {"message": "out of\nmemory\x1b[2J"}}),
            Unreachable,
            "failed: out of memory\N{REPLACEMENT CHARACTER}[2J",
        ),
        (400, (), refusal("no room", "messages", "context_length_exceeded"), TooLong, "refused (400): no room"),
        (400, (), refusal("hot", "top_k", None), WrongSetting, "refused (400): hot"),
        (400, (), refusal("roles", "messages", None), UserError, "refused (400): roles"),
        (400, (), refusal("odd", ["top_k"], ["x"]), UserError, "refused (400): odd"),
        (404, (), refusal("gone", "model", "x"), Unreachable, "refused (404): gone"),
        (400, (), DEEP, UserError, "refused (400): [[["),
        (400, (), f'{{"error": {{"message": {"[" * 900}{"]" * 900}}}}}', UserError, "refused (400): [[["),
        (200, (), f"data: {DEEP}\n\n", Unreachable, "which is not OpenAI's protocol"),
        (200, (), f'data: {{"error": {"[" * 900}{"]" * 900}}}\n\n', Unreachable, "failed: [[["),
        (200, (("Content-Length", "9999"),), lines(event("a"), end=""), Unreachable, "before the answer"),
    ],
)
def test_each_error_of_a_server_is_one_line(status, headers, body, kind, says, serve):
    address, requests = serve(body, status, headers)
    with pytest.raises(UserError, match=re.escape(says)) as told:
        list(ServerSpeaker(address, "other").stream(USER, top_k=0))
    assert type(told.value) is kind and address in str(told.value) and "\n" not in str(told.value)
    assert len(requests) == 2


def test_a_server_that_is_not_there_and_an_address_that_is_none_are_one_line():
    with pytest.raises(Unreachable, match=r"^http://127\.0\.0\.1:9: Connection refused$"):
        ServerSpeaker("http://127.0.0.1:9")
    with pytest.raises(Unreachable, match=r"^http://127\.0\.0\.1:x: "):
        ServerSpeaker("http://127.0.0.1:x", "mine").stream(USER).send(None)


def test_a_name_that_the_server_does_not_list_is_told_with_those_that_it_lists(serve):
    address, requests = serve()
    with pytest.raises(UserError, match=r"has no model 'othre', only tiny, other; did you mean other[?]$") as told:
        ServerSpeaker(address, "othre")
    assert type(told.value) is UserError and len(requests) == 1
    assert ServerSpeaker(serve(models=[{"id": "llama3:latest"}])[0], "llama3").name == "llama3"


@pytest.mark.parametrize("listed", ["<html>", DEEP, '{"data": 5}', '{"data": [{"id": 5}]}'])
def test_a_name_is_taken_as_it_is_where_no_list_can_be_read(listed, serve):
    assert ServerSpeaker(serve(listed=listed)[0], "mine").name == "mine"
    assert ServerSpeaker("http://127.0.0.1:9", "mine").name == "mine"


def test_a_maximum_beyond_a_full_context_is_told_as_both(serve):
    address, _ = serve(refusal("9 of 5", "max_tokens", "context_length_exceeded"), 400)
    with pytest.raises(WrongSetting) as told:
        list(ServerSpeaker(address).stream(USER, max_tokens=9))
    assert (told.value.setting, told.value.is_full) == ("max_tokens", True)


def test_a_server_without_a_model_is_told(serve):
    address, _ = serve(models=())
    with pytest.raises(Unreachable, match="lists no model: give its name by --model"):
        ServerSpeaker(address)


def test_the_command_line_reaches_the_server_which_decides_on_the_rest(serve, monkeypatch, capsys):
    address, requests = serve(lines(event("天"), event("气", "stop")))
    monkeypatch.setenv("CAMELID_API_KEY", "secret")
    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n/set\n"))
    assert main(["chat", address, "--top_k=3", "--seed=5", "--stop=x", "--model=other", "--system=Be brief."]) == 0
    _, (_, body, headers) = requests
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, *USER] and body["model"] == "other"
    settings = body.keys() - {"model", "messages", "stream", "stream_options"}
    assert {name: body[name] for name in settings} == {"top_k": 3, "seed": 5, "stop": ["x"]}
    assert headers["Authorization"] == "Bearer secret"
    shown = capsys.readouterr()
    assert shown.out == "天气\n" and shown.err == "top_k=3 seed=6 stop='x'\n"


def test_without_a_terminal_standard_output_has_the_answers_alone(serve, monkeypatch, capsys):
    address, _ = serve(refusal("roles", "messages", None), 400)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n/sett\n"))
    assert main(["chat", address]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    said = re.sub(r"\x1b\[\d*m", "", shown.err)
    assert re.match(r".* refused \(400\): roles\s+there is no command /sett; ", said)


def test_a_model_compiles_once_and_counts_its_tokens():
    class Model:
        def stream_chat(self, messages, **settings):
            assert messages == USER and settings == {"seed": 1, "top_k": 2}
            yield from ["a", "", "b", ""]  # three tokens, and the text that was held back

    speaker = ModelSpeaker(Model())
    told = [speaker.waiting]
    for _ in range(2):
        assert [speaker.waiting for _ in speaker.stream(USER, seed=1, top_k=2)] == [told[-1], *["the next token"] * 3]
        told.append(speaker.waiting)
    assert speaker.tokens == 3 and told == ["compiling, once", *["reading the conversation"] * 2]
