"""An endpoint that misbehaves is asked until it answers, at the allowed rate, and never twice for the same answer."""

import asyncio
import json
import math
import os
import random
import re
import signal
import threading
import time
import tracemalloc

import pytest

from camelid.errors import UserError
from camelid.serve.endpoint import Endpoint, Limits, _Rate, key_for, reply_of, url_of
from camelid.serve.journal import Journal, Reply, Request, key_of
from camelid.tests.serve.misbehaving import misbehaving

QUICK = dict(backoff=0.002, seconds=0.4)
TEXTS = [f"question {i} 问" for i in range(12)]


def requests(texts=TEXTS, **settings):
    return [Request([{"role": "user", "content": text}], settings) for text in texts]


def ask(server, journal, texts=TEXTS, key=None, **limits):
    with Journal(journal) as opened:
        endpoint = Endpoint(server.url, "m", journal=opened, key=key, limits=Limits(**QUICK | limits))
        try:
            return endpoint.ask(requests(texts)), opened.ledger
        except UserError as error:
            return str(error), opened.ledger


def texts_of(replies):
    return [reply.text for reply in replies]


BACKWARDS = [text[::-1] for text in TEXTS]
UNPAID = ["429", "503"]
PERHAPS_PAID = ["cut", "reset", "silence", "garbage", "list", "no choice", "no message", "hidden error", "500"]
PERHAPS_PAID += ["not packed", "other packing"]


@pytest.mark.parametrize("kind", UNPAID + PERHAPS_PAID)
def test_a_temporary_failure_is_waited_out_and_counted(kind, tmp_path):
    with misbehaving(lambda text, before: kind if text == TEXTS[3] and before < 2 else "answer") as server:
        replies, ledger = ask(server, tmp_path / "j")
    assert texts_of(replies) == BACKWARDS
    assert server.asked.count(TEXTS[3]) == 3 and len(server.asked) == 14
    assert (ledger.failures, ledger.perhaps_paid) == ((2, 0) if kind in UNPAID else (0, 2))
    assert ledger.prompt_tokens == ledger.completion_tokens == sum(map(len, TEXTS))


@pytest.mark.parametrize("kind", ["bomb", "flood"])
def test_a_body_that_is_too_large_is_a_temporary_failure_and_takes_little_memory(kind, tmp_path, monkeypatch):
    limit = 2**20
    monkeypatch.setattr("camelid.serve.endpoint.LARGEST_BODY", limit)
    with misbehaving(lambda text, before: "answer" if before else kind) as server:
        tracemalloc.start()
        replies, ledger = ask(server, tmp_path / "j", TEXTS[:1], seconds=5.0)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert texts_of(replies) == BACKWARDS[:1] and ledger.perhaps_paid == 1
    assert most < 16 * limit
    with misbehaving(lambda text, before: kind) as server:
        said, _ = ask(server, tmp_path / "k", TEXTS[:1], retries=0, seconds=5.0)
    assert "it sent a body of more than 1,048,576 bytes" in said


@pytest.mark.parametrize("kind", ["201", "packed"])
def test_any_successful_status_and_a_packed_body_bring_a_reply(kind, tmp_path):
    with misbehaving(lambda text, before: kind) as server:
        replies, ledger = ask(server, tmp_path / "j")
    assert texts_of(replies) == BACKWARDS and len(server.asked) == 12
    assert (ledger.failures, ledger.perhaps_paid) == (0, 0)


def test_a_finish_reason_is_one_line_without_control_characters(tmp_path):
    with misbehaving(lambda text, before: "coloured") as server:
        replies, _ = ask(server, tmp_path / "j", TEXTS[:1])
    assert replies[0].finish_reason == "x �[31m"


def test_usage_beyond_reason_is_not_told():
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10**400, "completion_tokens": 10**13}
    assert reply_of(json.dumps({"choices": [choice], "usage": usage}).encode()) == Reply("x")


def test_an_error_code_of_many_digits_is_no_status(tmp_path):
    with pytest.raises(Exception, match=r"refused \(200\): gone"):
        reply_of(json.dumps({"error": {"code": "9" * 5000, "message": "gone"}}).encode())


@pytest.fixture
def interrupts():
    """Raises KeyboardInterrupt wherever SIGINT finds the main thread, as the command line does."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_the_asking_without_a_word_and_keeps_every_reply(interrupts, tmp_path, caplog, capsys):
    rng, texts, due = random.Random(0), [f"question {i}" for i in range(300)], [0]

    def plan(text, before):
        if len(server.asked) >= due[0]:
            due[0] = math.inf
            threading.Timer(rng.uniform(0, 0.02), os.kill, (os.getpid(), signal.SIGINT)).start()
        return "slow"

    with misbehaving(plan) as server:
        for _ in range(6):
            with Journal(tmp_path / "j") as journal:
                endpoint = Endpoint(server.url, "m", journal=journal, limits=Limits(concurrency=16))
                due[0] = len(server.asked) + rng.randint(1, 30)
                with pytest.raises(KeyboardInterrupt):
                    endpoint.ask(requests(texts))
                kept = journal.ledger.replies
            assert journal.ledger.replies == kept  # nothing is under way any more
        due[0] = math.inf
        said, ledger = ask(server, tmp_path / "j", texts[:40])
    assert 0 < kept <= ledger.replies < 300 and texts_of(said) == [text[::-1] for text in texts[:40]]
    assert not caplog.records and not capsys.readouterr().err


def test_a_notebook_in_which_an_event_loop_runs_may_ask_too(tmp_path):
    async def cell(server):
        return ask(server, tmp_path / "j")[0]

    with misbehaving() as server:
        assert texts_of(asyncio.run(cell(server))) == BACKWARDS


def test_a_reply_that_is_there_is_not_asked_for_again(tmp_path):
    with misbehaving() as server:
        first, _ = ask(server, tmp_path / "j", TEXTS[:5])
        again, ledger = ask(server, tmp_path / "j", TEXTS)
        assert again[:5] == first and texts_of(again) == BACKWARDS and ledger.replies == 12
        assert len(server.asked) == 12 and max(server.answered.values()) == 1
        assert texts_of(ask(server, tmp_path / "j", TEXTS[:1] * 3)[0]) == BACKWARDS[:1] * 3
        assert len(server.asked) == 12
    assert first[0] == Reply(BACKWARDS[0], "stop", len(TEXTS[0]), len(TEXTS[0]), "first-0613")


@pytest.mark.parametrize(
    "kind, message",
    {
        "400": r"refused \(400\): max_tokens is too large",
        "401": r"refused \(401\): wrong key; check the key in the environment",
        "404": r"refused \(404\): no such model",
        "hidden refusal": r"refused \(400\): the prompt is too long",
        "no money": r"refused \(429\): you exceeded your quota",
        "429 for a day": r"refused \(429\): see you tomorrow; it asks to wait 86,400 seconds",
        "moved": r"it has moved to http://elsewhere.example/v1: give that address",
    }.items(),
)
def test_a_permanent_failure_ends_with_one_line_and_what_has_been_sent_is_kept(kind, message, tmp_path):
    def plan(text, before):
        if text == TEXTS[0]:
            return "slow"
        return kind if text == TEXTS[1] else "answer"

    with misbehaving(plan) as server:
        said, ledger = ask(server, tmp_path / "j", concurrency=2)
        sent = len(server.asked)
        assert "\n" not in said and sent < len(TEXTS)
        assert re.search(message, said), said
        assert f"{ledger.replies} of 12 requests have their replies, which are kept" in said
        server.plan = lambda text, before: "answer"
        replies, _ = ask(server, tmp_path / "j")
    assert texts_of(replies) == BACKWARDS
    assert max(server.answered.values()) == 1


def test_requests_that_always_fail_are_given_up_and_the_others_answered(tmp_path):
    bad = {TEXTS[2], TEXTS[7]}
    with misbehaving(lambda text, before: "500" if text in bad else "slow") as server:
        said, _ = ask(server, tmp_path / "j", retries=3, concurrency=3)
        assert "2 requests were given up" in said and "it broke" in said and "10 of 12" in said
        assert server.asked.count(TEXTS[2]) == 4
        server.plan = lambda text, before: "answer"
        replies, _ = ask(server, tmp_path / "j")
    assert texts_of(replies) == BACKWARDS and max(server.answered.values()) == 1


def test_an_endpoint_that_is_down_is_not_asked_for_every_request(tmp_path):
    with misbehaving(lambda text, before: "500") as server:
        said, _ = ask(server, tmp_path / "j", retries=1, concurrency=2)
    assert "it broke" in said and "0 of 12" in said
    assert len(set(server.asked)) <= 4
    said, ledger = ask(server, tmp_path / "k", retries=1)  # it has ended
    assert "cannot be reached" in said and ledger.perhaps_paid == 0


def test_retry_after_holds_for_all_requests(tmp_path):
    with misbehaving(lambda text, before: "429" if text == TEXTS[0] and not before else "answer") as server:
        replies, _ = ask(server, tmp_path / "j", concurrency=1)
    assert texts_of(replies) == BACKWARDS
    assert server.times[1] - server.times[0] >= 0.2


def test_no_more_requests_wait_at_a_time_than_allowed(tmp_path):
    with misbehaving(lambda text, before: "slow") as server:
        ask(server, tmp_path / "j", concurrency=3)
    assert server.most_at_once == 3


def test_no_sixty_seconds_have_more_than_the_rate():
    rng, now, rate, taken = random.Random(0), 0.0, _Rate(100), []
    for _ in range(400):
        amount = rng.choice([1, 5, 30, 250])
        while (wait := rate.wait(now, amount)) > 0:
            assert any(abs(begun + 60 - now - wait) < 1e-9 for begun, _ in taken)  # no longer than needed
            now += wait
        rate.take(now, amount)
        taken.append((now, amount))
        now += rng.expovariate(1)
    for begun, _ in taken:
        within = [amount for time, amount in taken if begun - 60 + 1e-6 < time <= begun]
        assert sum(within) <= 100 or len(within) == 1
    assert _Rate(None).wait(0.0, 10**9) == 0


def test_a_rate_is_kept_and_replies_mend_its_estimates(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("camelid.serve.endpoint.time.monotonic", lambda: clock[0])

    async def sleep(self, seconds):
        clock[0] += seconds

    monkeypatch.setattr(Endpoint, "_sleep", sleep)
    with misbehaving() as server, Journal(tmp_path / "j") as journal:
        limits = Limits(concurrency=1, requests_per_minute=5)
        Endpoint(server.url, "m", journal=journal, limits=limits).ask(requests())
        assert clock[0] == 120.0  # 12 requests at 5 in a minute
        clock[0] = 0.0
        limits = Limits(concurrency=1, tokens_per_minute=1000)
        Endpoint(server.url, "n", journal=journal, limits=limits).ask(requests(max_tokens=900))
        assert clock[0] == 120.0  # each is estimated at 916 tokens and took 24: three and an estimate fit, 4 a minute
    assert all(body["max_tokens"] == 900 for body in server.bodies[12:])


def test_the_key_is_sent_and_not_written_down(tmp_path):
    with misbehaving() as server:
        ask(server, tmp_path / "j", key="sk-secret")
    assert server.headers["Authorization"] == "Bearer sk-secret"
    assert "secret" not in (tmp_path / "j").read_text()
    with pytest.raises(UserError, match="key has other characters than"):
        Endpoint(server.url, "m", journal=Journal(None), key="sk\n")


def test_the_key_of_openai_goes_to_openai_alone(monkeypatch):
    monkeypatch.delenv("CAMELID_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert key_for("https://api.openai.com/v1") == "theirs"
    assert key_for("https://api.openai.com.example/v1") is None
    monkeypatch.setenv("CAMELID_API_KEY", "ours")
    assert key_for("https://api.openai.com/v1") == key_for("http://localhost:8000") == "ours"


@pytest.mark.parametrize(
    "address, path",
    {
        "http://localhost:8000": "http://localhost:8000/v1/chat/completions",
        "http://localhost:8000/v1/": "http://localhost:8000/v1/chat/completions",
        "https://open.bigmodel.cn/api/paas/v4": "https://open.bigmodel.cn/api/paas/v4/chat/completions",
        "https://x.example/v1beta/openai": "https://x.example/v1beta/openai/chat/completions",
        "https://x.example/a/chat/completions": "https://x.example/a/chat/completions",
    }.items(),
)
def test_the_url_of_an_address(address, path):
    assert url_of(address) == path


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x/v1", "https://", "http://x:99999999/v1"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match="no address of an endpoint"):
        url_of(address)


def test_without_a_name_the_first_model_of_the_list_is_asked(tmp_path):
    with misbehaving() as server, Journal(tmp_path / "j") as journal:
        endpoint = Endpoint(server.url, None, journal=journal)
        endpoint.ask(requests(TEXTS[:1]))
    assert endpoint.name == server.bodies[0]["model"] == "first"
    with pytest.raises(UserError, match="cannot be reached"):
        Endpoint(server.url, None, journal=journal)
    with pytest.raises(UserError, match="empty name"):
        Endpoint(server.url, "", journal=journal)


def test_an_answer_that_the_limit_cut_says_so(tmp_path):
    with misbehaving(lambda text, before: "cut_off") as server:
        replies, _ = ask(server, tmp_path / "j", TEXTS[:1])
    assert replies[0].finish_reason == "length"


@pytest.mark.parametrize("kind, reason", [("too long", "length"), ("filtered", "content_filter")])
def test_a_request_that_cannot_be_answered_has_an_empty_reply_and_the_others_theirs(kind, reason, tmp_path):
    with misbehaving(lambda text, before: kind if text == TEXTS[4] else "answer") as server:
        replies, ledger = ask(server, tmp_path / "j")
    assert replies[4] == Reply("", reason, 0, 0) and texts_of(replies[5:]) == BACKWARDS[5:]
    assert (ledger.replies, ledger.failures, len(server.asked)) == (12, 0, 12)


def test_replies_cost_their_tokens(tmp_path):
    with misbehaving() as server:
        _, ledger = ask(server, tmp_path / "j", ["1234", "123456"])
    assert ledger.cost(2.0, 8.0) == pytest.approx((10 * 2 + 10 * 8) / 1e6)
    assert str(ledger) == "2 replies, 10 tokens of prompts and 10 of answers"


def test_a_time_out_holds_for_a_body_that_drips(tmp_path):
    def drip(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(10):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    from camelid.tests.serve import misbehaving as module

    module.BEHAVIOURS["drip"] = drip
    with misbehaving(lambda text, before: "answer" if before else "drip") as server:
        replies, ledger = ask(server, tmp_path / "j", TEXTS[:1], seconds=0.2)
    assert texts_of(replies) == BACKWARDS[:1] and ledger.perhaps_paid == 1


def test_the_journal_has_the_request_before_it_is_sent(tmp_path):
    seen = []

    def plan(text, before):
        seen.append(key_of("m", requests([text])[0]) in (tmp_path / "j").read_text())
        return "answer"

    with misbehaving(plan) as server:
        ask(server, tmp_path / "j")
    assert seen == [True] * 12
