"""Conversations are gone on with by a simulated user and an assistant; each row is kept or rejected with its reason."""

import contextlib
import itertools

import pytest

from camelid.curate.teachers.candidates import Made, start_rows
from camelid.curate.teachers.dialogues import STEPS, Dialogues, parse_question
from camelid.data.formats import parse
from camelid.errors import UserError
from camelid.serve.endpoint import Endpoint, Limits
from camelid.serve.journal import Journal, Reply
from camelid.settings.sections import read
from camelid.tests.curate.asking import Teacher, bytes_of, check_made, reasons
from camelid.tests.serve.misbehaving import digest_of, misbehaving

NUMBERS = range(6)
RAW = [{"instruction": f"Name {n} rivers.", "input": "in Europe" if n == 1 else "", "output": f"{n}."} for n in NUMBERS]
RAW += [{"prompt": "你好，请介绍一下黄山。"}, {"text": "The violin has four strings."}]


def is_asked_for_a_question(messages):
    return (
        "next message" in messages[-1]["content"]
        or "first message" in messages[-1]["content"]
        or ("下一句话" in messages[-1]["content"])
    )


def write(request):
    if is_asked_for_a_question(request.messages):
        said = request.messages[-1]["content"]
        return f"User: {'为什么' if '用户' in said else 'Why'} {digest_of(said) % 1000}?"
    return f"Since {len(request.messages)} {request.messages[-1]['content']}"


def rows_of(raw, made):
    return start_rows("s", [(f"s:{n}", each) for n, each in enumerate(raw, 1)], made)


def made_of(teacher, raw=RAW, **settings):
    made = Made()
    return read(settings, Dialogues)(teacher, rows_of(raw, made), made)


def texts(row):
    return [message["content"] for message in row.record["messages"]]


def test_conversations_questions_and_texts_become_dialogues_of_so_many_turns():
    teacher = Teacher(write)
    made = made_of(teacher, turns=3)
    assert not made.rejected
    for row, raw in zip(made.rows, RAW, strict=True):
        roles = [message["role"] for message in row.record["messages"]]
        assert roles == ["user", "assistant"] * 3
        assert parse(dict(row.record)) == row.record
        assert row.columns["ended"] == "turns" and row.columns["turns"] == 3
        said = texts(row)
        assert all(s.startswith(("Why", "为什么")) for s in said[2::2]) and len(set(said)) == 6
        start = raw.get("instruction") or raw.get("prompt")
        assert start is None or said[0] == start
        assert [teacher.replies[key].text for key in row.columns["requests"]][-1] == said[-1]
    assert made.rows[0].record["messages"][1]["content"] == "0."  # a given answer stays
    assert made.rows[1].record["messages"][0] == {
        "role": "user",
        "content": RAW[1]["instruction"],
        "input": "in Europe",
    }
    assert texts(made.rows[6])[2].startswith("为什么")


def test_the_user_sees_the_conversation_and_the_assistant_no_prompt_of_the_users():
    teacher = Teacher(write)
    (row,) = made_of(teacher, [RAW[1]], turns=2, system="Be brief.").rows
    question, answer = teacher.asked
    shown = question.messages[-1]["content"]
    assert "User: Name 1 rivers.\n\nin Europe" in shown and "Assistant: 1." in shown and "Be brief" not in shown
    roles = ["system", "user", "assistant", "user"]
    assert [message["role"] for message in answer.messages] == roles
    assert answer.messages[0]["content"] == texts(row)[0] == "Be brief."
    assert (question.settings["max_tokens"], answer.settings["max_tokens"]) == (256, 1024)


def test_kinds_of_questions_vary_with_the_row_the_turn_and_the_seed_alone():
    def kinds(seed):
        teacher = Teacher(write)
        made_of(teacher, turns=4, seed=seed)
        asked = [
            r.messages[-1]["content"] for r in teacher.asked if "This time the person" in r.messages[-1]["content"]
        ]
        return [text.split("This time the person ")[1].split(". The message")[0] for text in asked]

    assert kinds(1) == kinds(1) != kinds(2)
    assert len(set(kinds(1))) > 4


def test_replies_of_no_use_end_a_conversation_or_reject_it_and_the_counts_add_up():
    def bad(request):
        shown, question = request.messages[-1]["content"], is_asked_for_a_question(request.messages)
        if question and "Name 0" in shown:
            return "Thanks a lot! [[end]]"
        if question and "Name 1" in shown:
            return Reply("How about", "length", 3, 256)
        if question and "Name 2" in shown:
            return "User: Name 2 rivers."
        if question and "violin" in shown:
            return Reply("", "content_filter")
        if not question and "黄山" in shown:
            return Reply("黄山位于", "length")
        if not question and "Name 3" in request.messages[0]["content"] and len(request.messages) > 3:
            return Reply(" ")
        return write(request)

    tools = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "tools": [{"a": 1}]}
    raw = [*RAW, RAW[0], tools]
    made = made_of(Teacher(bad), raw, turns=3)
    ended = {row.place: (row.columns["ended"], row.columns["turns"]) for row in made.rows}
    assert ended == {
        "s:1": ("done", 1),
        "s:2": ("question cut", 1),
        "s:3": ("question repeated", 1),
        "s:4": ("answer empty", 2),
        "s:5": ("turns", 3),
        "s:6": ("turns", 3),
    }
    assert reasons(made) == {
        ("read", "repeated"): 1,
        ("read", "tools"): 1,
        ("question", "withheld"): 1,
        ("answer", "cut"): 1,
    }
    check_made(made, STEPS, len(raw))


@pytest.mark.parametrize(
    "said, text, reason",
    [
        ("Why is that?", "Why is that?", None),
        ("**User:** Why?", "Why?", None),
        ("用户：为什么？", "为什么？", None),
        ('"Why is that?"', "Why is that?", None),
        ("“为什么？”", "为什么？", None),
        ('"Yes" or "no"?', '"Yes" or "no"?', None),
        ("Why?\n\nAssistant: Because.", "Why?", None),
        ("为什么？\n助手：因为。", "为什么？", None),
        ("The user: interface is slow, why?", "interface is slow, why?", None),
        ("Users: who are they?", "Users: who are they?", None),
        ("[[END]]", "", "done"),
        ("好的，谢谢。【END】", "", "done"),
        ("User:", "", "empty"),
        ("", "", "empty"),
    ],
)
def test_what_a_user_says_is_read(said, text, reason):
    found, why = parse_question(Reply(said))
    assert (found, why and why.reason) == (text, reason)


def test_a_system_message_that_rows_cannot_hold_is_refused_before_anything_is_asked():
    teacher = Teacher(write)
    with pytest.raises(UserError, match=r"system is not UTF-8 \('Be kind\\udcff'\)"):
        made_of(teacher, RAW, system="Be kind\udcff")
    assert not teacher.asked


def test_a_run_over_http_with_a_teacher_that_fails_and_is_cut_off_ends_in_the_same_bytes(tmp_path):
    def answer(messages):
        return write(type("Request", (), {"messages": messages}))

    failures = itertools.cycle(["answer", "429", "500", "answer", "garbage", "cut", "hidden error", "answer"])

    def plan(text, before):
        return "answer" if before > 1 else next(failures)

    def run(server, path):
        with Journal(path) as journal:
            limits = Limits(concurrency=2, retries=5, backoff=0.01, seconds=5)
            return made_of(Endpoint(server.url, "m", journal=journal, limits=limits), RAW[:4], turns=3), journal.ledger

    with misbehaving(write=answer) as server:
        whole, _ = run(server, tmp_path / "calm")
    with misbehaving(plan, answer) as server:
        first, ledger = run(server, tmp_path / "stormy")
        assert ledger.failures + ledger.perhaps_paid > 5
        lines = (tmp_path / "stormy").read_bytes().splitlines(keepends=True)
        for kept in (5, len(lines) - 4):
            (tmp_path / "cut").write_bytes(b"".join(lines[:kept]) + lines[kept][:7])
            assert bytes_of(run(server, tmp_path / "cut")[0]) == bytes_of(whole)
    assert bytes_of(first) == bytes_of(whole)


def test_a_run_that_ends_anywhere_asks_nothing_twice():
    whole = Teacher(write)
    expected = bytes_of(made_of(whole, turns=2))
    for first in range(len(whole.asked)):
        journal, asked = {}, 0
        for most in (first, 10**9):
            teacher = Teacher(write, replies=journal, most=most)
            with contextlib.suppress(KeyboardInterrupt):
                made = made_of(teacher, turns=2)
            asked += len(teacher.asked)
        assert bytes_of(made) == expected and asked == len(whole.asked)
