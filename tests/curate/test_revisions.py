"""Answers are criticised and revised by principles; each row is kept or rejected with its reason."""

import contextlib

import pytest

from camelid.curate.teachers.candidates import Made, start_rows
from camelid.curate.teachers.principles import FILE, read_principles
from camelid.curate.teachers.revisions import STEPS, Revisions
from camelid.data.formats import parse
from camelid.errors import UserError
from camelid.serve.journal import Reply
from camelid.settings.sections import read
from camelid.tests.curate.asking import Teacher, bytes_of, check_made, reasons

RAW = [{"instruction": f"Name {n} rivers.", "output": f"{n}."} for n in range(40)]
RAW += [{"messages": [{"role": "system", "content": "要友善。"}, {"role": "user", "content": "你好"}]}]
PRINCIPLES = read_principles()


def stage(request):
    """What a request asks for, "answer", "critique" or "revision", and for which version of the answer."""
    last = request.messages[-1]["content"]
    if "critically" in last or "批判" in last:
        return "critique", request.messages[-2]["content"]
    if "answer anew" in last or "重新写" in last:
        return "revision", request.messages[-4]["content"]
    return "answer", last


def write(request):
    kind, about = stage(request)
    return {"answer": f"A0 of {about}", "critique": f"Fault of {about}", "revision": f"Better {about}"}[kind]


def made_of(teacher, raw=RAW, principles=PRINCIPLES, **settings):
    made = Made()
    rows = start_rows("s", [(f"s:{n}", each) for n, each in enumerate(raw, 1)], made)
    return read(settings, Revisions)(teacher, rows, principles, made)


def test_the_revision_is_chosen_over_the_answer_and_the_principle_is_told():
    teacher = Teacher(write)
    made = made_of(teacher, seed=3)
    assert len(made.rows) == len(RAW) and not made.rejected
    for row in made.rows:
        record = dict(row.record)
        assert parse(record) == record
        question = record["messages"][-1]["content"]
        assert record["rejected"] == [{"role": "assistant", "content": f"A0 of {question}"}]
        assert record["chosen"] == [{"role": "assistant", "content": f"Better A0 of {question}"}]
        texts = [teacher.replies[key].text for key in row.columns["requests"]]
        assert texts == [f"A0 of {question}", *row.columns["critiques"], f"Better A0 of {question}"]
    used = {row.columns["principles"][0] for row in made.rows}
    assert used == {principle.name for principle in PRINCIPLES["en"]}
    assert made.rows[-1].record["messages"] == RAW[-1]["messages"]


def test_the_teacher_sees_conversation_answer_and_criticism_and_the_drawn_principle_in_the_language():
    teacher = Teacher(write)
    (row,) = made_of(teacher, RAW[-1:]).rows
    answer, critique, revision = teacher.asked
    name = row.columns["principles"][0]
    principle = next(each for each in PRINCIPLES["zh"] if each.name == name)
    assert answer.messages == RAW[-1]["messages"]
    assert critique.messages[:2] == answer.messages and critique.messages[2]["content"] == "A0 of 你好"
    assert principle.critique in critique.messages[3]["content"] and "[[OK]]" in critique.messages[3]["content"]
    assert revision.messages[:4] == critique.messages
    assert [message["role"] for message in revision.messages[4:]] == ["assistant", "user"]
    assert revision.messages[4]["content"] == "Fault of A0 of 你好"
    assert principle.revision in revision.messages[5]["content"]


def test_principles_are_drawn_by_row_round_and_seed_and_none_twice_for_an_answer():
    def drawn(seed):
        return [row.columns["principles"] for row in made_of(Teacher(write), RAW[:10], seed=seed, rounds=4).rows]

    assert drawn(0) == drawn(0) != drawn(1)
    assert all(len(set(names)) == 4 for names in drawn(0))
    (row,) = made_of(Teacher(write), RAW[:1], rounds=2).rows
    assert row.record["chosen"][0]["content"] == "Better Better A0 of Name 0 rivers."
    assert row.record["rejected"][0]["content"] == "A0 of Name 0 rivers."


def test_replies_of_no_use_reject_a_row_or_end_its_revisions_and_the_counts_add_up():
    def bad(request):
        kind, about = stage(request)
        number = next((n for n in range(40) if f"Name {n} " in request.messages[0]["content"]), None)
        planned = {
            (0, "answer"): Reply("The Don", "length"),
            (1, "answer"): "  ",
            (2, "critique"): "[[OK]]",
            (3, "critique"): Reply("It does", "length"),
            (4, "revision"): Reply("", "content_filter"),
            (5, "revision"): "A0  of Name 5\nrivers.",
            (6, "revision"): "Sure! Here is the revised answer:\n\nOb and Lena.",
            (7, "revision"): "**Revised answer:**\n",
            (11, "revision"): "Fault of A0 of Name 11 rivers.",
        }
        if number == 8 and kind == "critique" and about.startswith("Better"):
            return "没有问题。【OK】"
        if number == 9 and kind == "revision" and about.startswith("Better"):
            return "A0 of Name 9 rivers."
        return planned.get((number, kind), write(request))

    made = made_of(Teacher(bad), [*RAW[:12], RAW[0], {"text": "A text."}], rounds=2)
    assert reasons(made) == {
        ("answer", "cut"): 1,
        ("answer", "empty"): 1,
        ("critique", "no_fault"): 1,
        ("critique", "cut"): 1,
        ("revision", "withheld"): 1,
        ("revision", "equal"): 2,
        ("revision", "empty"): 1,
        ("revision", "echo"): 1,
        ("read", "repeated"): 1,
        ("read", "text"): 1,
    }
    check_made(made, STEPS, 14)
    chosen = {row.place: row.record["chosen"][0]["content"] for row in made.rows}
    assert chosen["s:7"] == "Ob and Lena." and chosen["s:9"] == "Better A0 of Name 8 rivers."
    assert chosen["s:11"] == "Better Better A0 of Name 10 rivers."


def test_a_run_that_ends_anywhere_asks_nothing_twice():
    whole = Teacher(write)
    expected = bytes_of(made_of(whole, RAW[:5], rounds=2))
    for first in range(len(whole.asked)):
        journal, asked = {}, 0
        for most in (first, 10**9):
            teacher = Teacher(write, replies=journal, most=most)
            with contextlib.suppress(KeyboardInterrupt):
                made = made_of(teacher, RAW[:5], rounds=2)
            asked += len(teacher.asked)
        assert bytes_of(made) == expected and asked == len(whole.asked)


def test_a_users_own_principles_take_the_place_of_the_projects(tmp_path):
    own = '[[principle]]\nname = "rhyme"\n'
    own += "".join(f'{each} = {{critique = "What does not rhyme?", revision = "Rhyme."}}\n' for each in ("en", "zh"))
    (tmp_path / "own.toml").write_text(own)
    teacher = Teacher(write)
    (row,) = made_of(teacher, RAW[:1], read_principles(tmp_path / "own.toml")).rows
    assert row.columns["principles"] == ["rhyme"] and "What does not rhyme?" in teacher.asked[1].messages[-1]["content"]
    assert {each.name for each in read_principles()["zh"]} == {each.name for each in read_principles(FILE)["en"]}


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "has no ..principle"),
        ("principle = 3", "has no ..principle"),
        ("[[principle]]\n", "principle 1 has no name"),
        ('[[principle]]\nname = "a"\nen = {critique = "b", revision = "c"}\n', "a.: zh has no texts"),
        ("[[principle", "no TOML"),
    ],
)
def test_a_file_that_holds_no_principles_is_one_line(content, message, tmp_path):
    (tmp_path / "p.toml").write_text(content)
    with pytest.raises(UserError, match=rf"p\.toml.*{message}"):
        read_principles(tmp_path / "p.toml")
    with pytest.raises(UserError, match="No such file"):
        read_principles(tmp_path / "none.toml")
