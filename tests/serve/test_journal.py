"""A journal keeps each request before it is sent and each reply, whenever the process that writes it is killed."""

import errno
import json
import os

import pytest

from camelid.errors import UserError
from camelid.serve.journal import Journal, Reply, Request, key_of

HELLO = Request([{"role": "user", "content": "hello 你好"}], {"temperature": 0.0, "max_tokens": 5})
KEY = key_of("m", HELLO)
REPLY = Reply("你好\n[[7]]", "stop", 12, 3, "m-0613")


def ask(journal, *keys):
    journal.ask({key: HELLO.body("m") for key in keys})


def test_a_reply_is_there_when_the_journal_is_opened_again(tmp_path):
    with Journal(tmp_path / "j") as journal:
        ask(journal, KEY)
        assert journal.reply(KEY) is None
        journal.answer({KEY: REPLY})
    with Journal(tmp_path / "j") as journal:
        assert journal.reply(KEY) == REPLY
        assert (journal.ledger.replies, journal.ledger.prompt_tokens, journal.ledger.completion_tokens) == (1, 12, 3)
        assert journal.ledger.perhaps_paid == journal.ledger.failures == 0


def test_requests_differ_by_model_messages_settings_and_sample_and_not_by_the_order_of_fields():
    others = [
        key_of("n", HELLO),
        key_of("m", Request([{"role": "user", "content": "hello"}], HELLO.settings)),
        key_of("m", Request(HELLO.messages, {"temperature": 0.5, "max_tokens": 5})),
        key_of("m", Request(HELLO.messages, HELLO.settings, sample=1)),
    ]
    assert len({KEY, *others}) == 5
    turned = [dict(reversed(message.items())) for message in HELLO.messages]
    assert key_of("m", Request(turned, dict(reversed(HELLO.settings.items())))) == KEY


def test_a_seed_is_another_one_for_each_sample():
    seeds = [Request(HELLO.messages, {"seed": 5}, sample).body("m")["seed"] for sample in (0, 1)]
    assert seeds == [5, 6]


def test_a_last_line_that_is_torn_anywhere_is_mended_and_nothing_else_is_lost(tmp_path):
    path = tmp_path / "j"
    with Journal(path) as journal:
        for key in ("a", "b"):
            ask(journal, key)
            journal.answer({key: REPLY})
    whole = path.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for length in range(last, len(whole) + 1):
        path.write_bytes(whole[:length])
        with Journal(path) as journal:
            assert journal.reply("a") == REPLY
            is_there = length >= len(whole) - 1  # all but the end of the line
            assert (journal.reply("b") == REPLY) == is_there
            assert journal.ledger.perhaps_paid == (not is_there)
            ask(journal, "c")
        lines = path.read_bytes().split(b"\n")
        assert lines.pop() == b"" and all(isinstance(json.loads(line), dict) for line in lines)
        assert len(lines) == (5 if is_there else 4)


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "a", "repl',
        "[1]",
        '{"key": "a", "reply": {"words": "x"}}',
        '{"key": "a", "reply": {"text": 5}}',
        '{"key": "a", "reply": {"text": null}}',
        '{"key": "a", "reply": {"text": "x", "finish_reason": ["stop"]}}',
        '{"key": "a", "asked": 1e999}',
        '{"asked": 1}',
    ],
)
def test_a_damaged_line_before_the_last_one_is_an_error_with_its_place(line, tmp_path):
    with Journal(tmp_path / "j") as journal:
        ask(journal, "a", "b")
    lines = (tmp_path / "j").read_text().splitlines(keepends=True)
    (tmp_path / "j").write_text(lines[0] + line + "\n" + lines[1])
    with pytest.raises(UserError, match=r"j, line 2: no line of a journal.*--journal"), Journal(tmp_path / "j"):
        pass
    with pytest.raises(UserError, match="line 2"), Journal(tmp_path / "j"):  # the lock was let go
        pass


def test_a_second_process_is_refused(tmp_path):
    refused = pytest.raises(UserError, match=rf"in use by process {os.getpid()}")
    with Journal(tmp_path / "j"), refused, Journal(tmp_path / "j"):
        pass
    with Journal(tmp_path / "j"):
        pass


def test_attempts_without_a_reply_at_a_kill_were_perhaps_paid_and_stay_counted(tmp_path):
    with Journal(tmp_path / "j") as journal:
        ask(journal, "a", "b", "c")
        journal.answer({"a": REPLY})
        journal.fail("b", "full", paid=False)
    for _ in range(2):  # c was asked, and the process ended
        with Journal(tmp_path / "j") as journal:
            assert (journal.ledger.perhaps_paid, journal.ledger.failures) == (1, 1)
    with Journal(tmp_path / "j") as journal:
        ask(journal, "b", "c")
        journal.answer({"b": REPLY})
        assert journal.ledger.perhaps_paid == 1
    with Journal(tmp_path / "j") as journal:
        assert (journal.ledger.replies, journal.ledger.perhaps_paid) == (2, 2)
        ask(journal, "c")
        journal.answer({"c": REPLY})
    with Journal(tmp_path / "j") as journal:
        assert (journal.ledger.replies, journal.ledger.perhaps_paid) == (3, 2)


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    write = os.write

    def full(file, data):
        write(file, bytes(data)[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(tmp_path / "j") as journal:
        ask(journal, "a")
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="j'"):
            journal.answer({"a": REPLY})
        monkeypatch.undo()
        assert journal.reply("a") is None
        journal.answer({"a": REPLY})
    with Journal(tmp_path / "j") as journal:
        assert journal.reply("a") == REPLY


def test_half_of_a_surrogate_pair_in_a_reply_is_replaced_before_it_is_used(tmp_path):
    with Journal(tmp_path / "j") as journal:
        ask(journal, "a")
        journal.answer({"a": Reply("cut \ud83d")})
        first = journal.reply("a")
    with Journal(tmp_path / "j") as journal:
        assert journal.reply("a") == first == Reply("cut �")


def test_half_of_a_surrogate_pair_in_a_journal_is_replaced_too(tmp_path):
    (tmp_path / "j").write_text(r'{"key": "a", "reply": {"text": "cut \ud83d", "completion_tokens": 1}}' + "\n")
    with Journal(tmp_path / "j") as journal:
        assert journal.reply("a") == Reply("cut �", completion_tokens=1)


def test_a_number_of_tokens_beyond_reason_is_taken_for_none(tmp_path):
    reply = {"text": "x", "prompt_tokens": 10**400, "completion_tokens": -3}
    (tmp_path / "j").write_text(json.dumps({"key": "a", "reply": reply}) + "\n")
    with Journal(tmp_path / "j") as journal:
        assert journal.reply("a") == Reply("x")
        assert (journal.ledger.cost(1.0, 1.0), journal.ledger.without_usage) == (0, 1)


def test_a_link_to_a_journal_is_the_journal(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "j")
    for first, second in (("j", "link"), ("link", "j")):
        refused = pytest.raises(UserError, match=f"{second} is in use by process")
        with Journal(tmp_path / first), refused, Journal(tmp_path / second):
            pass


def test_the_first_of_two_replies_stays_when_the_journal_is_opened_again(tmp_path):
    lines = [{"key": "a", "reply": {"text": text, "completion_tokens": 2}} for text in ("first", "second")]
    (tmp_path / "j").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Journal(tmp_path / "j") as journal:
        journal.answer({"a": Reply("third")})
        assert journal.reply("a").text == "first"
        assert (journal.ledger.replies, journal.ledger.completion_tokens) == (2, 4)  # both were paid


@pytest.mark.parametrize("content", [b'{"question_id": 1, "turns": ["a"]}', b"a text without an end", b"\0\0"])
def test_another_file_is_no_journal_and_stays_as_it_is(content, tmp_path):
    (tmp_path / "q").write_bytes(content)
    with pytest.raises(UserError, match="q, line 1: no line of a journal"), Journal(tmp_path / "q"):
        pass
    assert (tmp_path / "q").read_bytes() == content


def test_a_sealed_journal_has_its_replies_and_takes_no_request(tmp_path):
    with Journal(tmp_path / "j") as journal:
        ask(journal, "a")
        journal.answer({"a": REPLY})
    before = (tmp_path / "j").read_bytes()
    with Journal(tmp_path / "j", sealed="the output exists") as journal:
        assert journal.reply("a") == REPLY
        with pytest.raises(UserError, match="the output exists"):
            ask(journal, "b")
    assert (tmp_path / "j").read_bytes() == before


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"messages": [{"role": "user", "content": "another"}]}, "'messages', which is no setting"),
        ({"model": "another"}, "'model', which is no setting"),
        ({"n": 2}, "'n', which is no setting"),
        ({"stream": True}, "'stream', which is no setting"),
        ({"seed": "a"}, "seed 'a': give a whole number"),
        ({"seed": 1.5}, "seed 1.5: give a whole number"),
        ({"seed": -1}, "seed -1: give a whole number"),
        ({"top_p": float("nan")}, "cannot be sent as JSON"),
    ],
)
def test_settings_change_no_question_and_can_be_sent(settings, message):
    with pytest.raises(UserError, match=message):
        Request(HELLO.messages, settings)
    Request(HELLO.messages, {"seed": None, "top_p": 0.9, "stop": ["x"]})
