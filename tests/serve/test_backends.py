"""Which server gets a request: by its model, the beginning of its prompt, and how much the servers have to do."""

import json

import pytest

from camelid.serve.backends import SLACK, Asked, Backend, asked_of, choose, with_model


@pytest.fixture
def three():
    backends = [Backend(name) for name in "abc"]
    for backend in backends:
        backend.well = True
    return backends


def head(**body):
    return asked_of("/v1/chat/completions", "", json.dumps(body).encode()).head


def test_a_server_with_more_to_do_than_others_gets_no_more(three):
    asked = Asked(None, b"the same beginning")
    first = choose(three, asked)
    first.active = SLACK
    assert choose(three, asked) is first
    first.active = SLACK + 1
    second = choose(three, asked)
    assert second is not first and choose(three, asked, [second]) not in (first, second)
    assert choose(three, asked, [each for each in three if each is not first]) is first
    first.active, first.well = 0, False
    assert choose(three, asked) is second
    assert choose(three, asked, three) is None


def test_beginnings_are_spread_evenly_and_stay_where_they_are_when_another_server_leaves(three):
    asked = [Asked(None, str(i).encode()) for i in range(900)]
    before = [choose(three, each) for each in asked]
    assert all(250 < before.count(backend) < 350 for backend in three)
    three[0].well = False
    after = [choose(three, each) for each in asked]
    assert all(old is new for old, new in zip(before, after, strict=True) if old is not three[0])
    moved = [new for old, new in zip(before, after, strict=True) if old is three[0]]
    assert min(moved.count(three[1]), moved.count(three[2])) > 100


def test_turns_of_a_conversation_go_to_one_server_and_conversations_with_one_system_prompt_to_several():
    system = {"role": "system", "content": "You are a helpful assistant. " * 50}

    def turns(i):
        first = [system, {"role": "user", "content": f"question {i}"}]
        more = [{"role": "assistant", "content": "answer"}, {"role": "user", "content": "and then?"}]
        return head(messages=first), head(messages=first + more)

    heads = [turns(i) for i in range(9)]
    assert all(one == other for one, other in heads) and len({one for one, _ in heads}) == 9
    assert head(prompt="x" * 300 + "a") == head(prompt="x" * 300 + "b") != head(prompt="y")
    assert head(input=[system]) == head(messages=[system]) != head(input="a text")
    assert head(prompt=[[1, 2], [3]]) != head(prompt=[[1, 2], [4]])


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1]", b"7", b'{"model": 3}', b"[" * 100_000, b'{"messages": "x"}'])
def test_a_body_that_is_no_request_goes_to_some_server_which_says_so(body, three):
    asked = asked_of("/v1/completions", "", body)
    assert asked.model is None and choose(three, asked) in three


def test_requests_go_to_servers_that_have_their_model(three):
    a, b, c = three
    a.models, b.models = ("base", "x"), ("base", "y")
    assert with_model(three, "x") == [a, c]  # c does not tell what it has
    c.models = ("other", "base")
    assert with_model(three, "x") == [a] and with_model(three, "base") == three
    assert with_model(three, None) == [a, b]  # the default of the first
    assert with_model(three, "nowhere") == three  # each of them says that it is not there
    a.well = False
    assert choose(three, Asked("x", b"")) is None and choose(three, Asked(None, b"")) is b
    assert asked_of("/v1/models/x", "", b"").model == "x"
    assert asked_of("/tokenizer_info", "model=x", b"").model == "x"
    assert asked_of("/v1/completions", "", b'{"model": "y", "prompt": "a"}').model == "y"
