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


@pytest.mark.parametrize("line", ['{"key": "a", "repl', "[1]", '{"key": "a", "reply": {"words": "x"}}', '{"asked": 1}'])
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
