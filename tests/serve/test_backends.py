"""Which server gets a request: by its model, the beginning of its prompt, and how much the servers have to do."""

import json

import pytest

from camelid.serve.backends import BLOCK, MOST_BLOCKS, MOST_REMEMBERED, SLACK, Backend, asked_of, choose, with_model


@pytest.fixture
def three():
    backends = [Backend(name) for name in "abc"]
    for backend in backends:
        backend.well = True
    return backends


def asked(**body):
    return asked_of("/v1/chat/completions", "", json.dumps(body).encode())


def send(backends, request):
    """The server that gets a request, which remembers it."""
    found = choose(backends, request)
    found.remember(request)
    return found


def test_a_server_with_more_to_do_than_others_gets_no_more(three):
    request = asked(prompt="the same beginning " * 10)
    first = send(three, request)
    first.active = SLACK
    assert choose(three, request) is first
    first.active = SLACK + 1
    second = choose(three, request)
    assert second is not first and choose(three, request, [second]) not in (first, second)
    assert choose(three, request, [each for each in three if each is not first]) is first
    first.active, first.well = 0, False
    assert choose(three, request) is second
    assert choose(three, request, three) is None


def test_new_prompts_are_spread_evenly_and_go_to_the_server_with_the_least_to_do(three):
    found = [choose(three, asked(prompt=str(i))) for i in range(900)]
    assert all(250 < found.count(backend) < 350 for backend in three)
    three[0].active = three[2].active = 1
    assert all(choose(three, asked(prompt=str(i))) is three[1] for i in range(20))


def test_turns_of_a_conversation_go_to_the_server_that_has_most_of_it(three):
    system = {"role": "system", "content": "You are a helpful assistant. " * 20}

    def conversation(i, turns):
        said = [{"role": role, "content": f"{role} {i} says {j} " * 9} for j in range(turns) for role in ("user", "a")]
        return asked(messages=[system, *said[:-1]])

    servers = {}
    for i in range(30):
        servers[i] = send(three, conversation(i, 1))
        servers[i].active += 1
    assert all(8 <= backend.active <= 12 for backend in three)  # although all have the system prompt in common
    for backend in three:
        backend.active = 0
    for turns in (2, 3, 4):
        assert all(send(three, conversation(i, turns)) is servers[i] for i in range(30))
    one = next(i for i in servers if servers[i] is three[0])
    three[0].well = False
    moved = send(three, conversation(one, 5))
    three[0].well = True
    assert moved is not three[0] and send(three, conversation(one, 6)) is moved  # it stays where it has gone
    three[0].leave()
    assert three[0].matched(conversation(one, 1)) == 0  # what a process had kept has ended with it


def test_prompts_of_all_forms_have_beginnings_and_only_so_much_is_remembered(three):
    long = "x" * (BLOCK * MOST_BLOCKS)
    for one, more in (("a" * 200, "a" * 250 + "b"), ([*range(200)], [*range(250)]), (long + "a", long + "b")):
        short, other = asked(prompt=one), asked(prompt=more)
        three[0].remember(short)
        assert 0 < len(short.blocks) <= MOST_BLOCKS and short.whole != other.whole
        assert three[0].matched(other) == len(short.blocks) and three[1].matched(other) == 0
    text = "".join(f"{i:08}" for i in range(BLOCK * MOST_BLOCKS // 8))
    for i in range(MOST_REMEMBERED // MOST_BLOCKS + 5):
        three[2].remember(asked(prompt=f"{i:064}" + text))
    assert three[2].matched(asked(prompt=f"{0:064}" + text)) == 0
    assert three[2].matched(asked(prompt=f"{i:064}" + text)) == MOST_BLOCKS


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1]", b"7", b'{"model": 3}', b"[" * 100_000, b'{"messages": "x"}'])
def test_a_body_that_is_no_request_goes_to_some_server_which_says_so(body, three):
    request = asked_of("/v1/completions", "", body)
    assert request.model is None and choose(three, request) in three


def test_requests_go_to_servers_that_have_their_model(three):
    a, b, c = three
    a.models, b.models = ("base", "x"), ("base", "y")
    assert with_model(three, "x") == [a, c]  # c does not tell what it has
    c.models = ("other", "base")
    assert with_model(three, "x") == [a] and with_model(three, "base") == three
    assert with_model(three, None) == [a, b]  # the default of the first
    assert with_model(three, "nowhere") == three  # each of them says that it is not there
    a.well = False
    assert choose(three, asked(model="x")) is None and choose(three, asked()) is b
    assert asked_of("/v1/models/x", "", b"").model == "x"
    assert asked_of("/tokenizer_info", "model=x", b"").model == "x"
    assert asked_of("/v1/completions", "", b'{"model": "y", "prompt": "a"}').model == "y"
