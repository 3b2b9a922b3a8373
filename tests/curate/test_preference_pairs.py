"""Ranked answers become pairs where both orders agree; every pair of answers is kept or rejected with its reason."""

import contextlib
import itertools

import pytest

from camelid.curate.teachers.candidates import Made, start_rows
from camelid.curate.teachers.preference_pairs import STEPS, RankedPairs, Verdict
from camelid.data.formats import parse
from camelid.errors import UserError
from camelid.serve.journal import Reply
from camelid.settings.sections import read
from camelid.tests.curate.asking import Teacher, bytes_of, check_made, reasons

RAW = [{"instruction": f"Name {n} rivers.", "input": "in Asia", "output": f"{n}."} for n in range(3)]
RAW += [{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "你好"}]}]


def write(request):
    return f"Answer {request.sample} to {request.messages[-1]['content']}"


def by_length(comparisons):
    """Prefers the longer answer, as a judge without faults of its own."""
    verdicts = []
    for _, _, (a, b) in comparisons:
        winner = "tie" if len(a) == len(b) else "a" if len(a) > len(b) else "b"
        verdicts.append(Verdict(winner, (float(len(a)), float(len(b)))))
    return verdicts


def made_of(teachers, judge=by_length, raw=RAW, **settings):
    made = Made()
    rows = start_rows("s", [(f"s:{n}", each) for n, each in enumerate(raw, 1)], made)
    return read(settings, RankedPairs)(teachers, judge, "judge", rows, made)


def longer_with_sample(request):
    return f"{request.messages[-1]['content']} is answered{' at length' * request.sample}."


def test_the_better_answer_is_chosen_with_the_question_its_scores_and_where_it_comes_from():
    teacher = Teacher(longer_with_sample)
    made = made_of([teacher], temperatures=[0.5, 1.5])
    assert len(made.rows) == 4 and not made.rejected
    for row in made.rows:
        record = dict(row.record)
        assert parse(record) == record and record["kind"] == "preference"
        assert len(record["chosen"][0]["content"]) > len(record["rejected"][0]["content"])
        assert row.columns["scores"] == [float(len(record[side][0]["content"])) for side in ("chosen", "rejected")]
        assert row.columns["temperatures"] == [1.5, 0.5] and row.columns["judge"] == "judge"
        replies = [teacher.replies[key].text for key in row.columns["requests"]]
        assert replies == [record[side][0]["content"] for side in ("chosen", "rejected")]
    assert made.rows[0].record["messages"] == [{"role": "user", "content": "Name 0 rivers.", "input": "in Asia"}]
    assert made.rows[3].record["messages"] == RAW[3]["messages"]
    assert {len(request.messages) for request in teacher.asked} == {1, 2}
    assert all(request.messages[-1]["role"] == "user" for request in teacher.asked)


def test_all_pairs_of_several_answers_are_compared_in_both_orders_and_teachers_take_turns():
    seen = []

    def judge(comparisons):
        seen.extend(comparisons)
        return by_length(comparisons)

    teachers = [Teacher(longer_with_sample, "x"), Teacher(longer_with_sample, "y")]
    made = made_of(teachers, judge, RAW[:1], answers=4, temperatures=[1.0])
    assert len(made.rows) == 6 and len(seen) == 12
    shown = {comparison.answers for comparison in seen}
    assert {(b, a) for a, b in shown} == shown and len(shown) == 12
    assert [row.id.rsplit("-", 1)[1] for row in made.rows] == list("123456")
    assert [sorted(request.sample for request in teacher.asked) for teacher in teachers] == [[0, 2], [1, 3]]
    for row in made.rows:
        lengths = [row.record[side][0]["content"].count(" at length") for side in ("chosen", "rejected")]
        assert row.columns["teachers"] == [["x", "y"][length % 2] for length in lengths]


@pytest.mark.parametrize("first, second", list(itertools.product(("a", "b", "tie", None), repeat=2)))
def test_verdicts_count_where_both_orders_agree(first, second):
    """The second verdict is of the answers the other way round, so that a then b is the first answer twice."""
    made = made_of([Teacher(write)], lambda shown: [Verdict(first), Verdict(second)], RAW[:1])
    if {first, second} == {"a", "b"}:
        chosen = made.rows[0].record["chosen"][0]["content"]
        assert chosen.startswith("Answer 0" if first == "a" else "Answer 1") and not made.rejected
    else:
        reason = "unreadable" if None in (first, second) else "tie" if first == second == "tie" else "contradiction"
        assert not made.rows and reasons(made) == {("comparison", reason): 1}
        assert [m["content"] for m in made.rejected[0].row.record["answers"]] == [
            f"Answer {n} to Name 0 rivers.\n\nin Asia" for n in (0, 1)
        ]


def test_answers_of_no_use_reject_their_pairs_and_the_counts_add_up():
    def bad(request):
        if "0 rivers" in request.messages[-1]["content"] and request.sample == 1:
            return Reply("The Yang", "length", 3, 1024)
        if "1 rivers" in request.messages[-1]["content"]:
            return "Ob,  Lena" if request.sample else "Ob, Lena"
        return longer_with_sample(request)

    raw = [*RAW, RAW[0], {"text": "A text."}]
    made = made_of([Teacher(bad)], raw=raw, answers=3)
    assert reasons(made) == {
        ("answer", "cut"): 2,
        ("answer", "equal"): 3,
        ("read", "repeated"): 1,
        ("read", "text"): 1,
    }
    assert len(made.rows) == 1 + 2 * 3
    check_made(made, STEPS, 4 * 3 + 2)


def test_settings_that_do_not_fit_are_one_line():
    for settings, message in (({"answers": 1}, "answers = 1"), ({"temperatures": []}, "temperatures is empty")):
        with pytest.raises(UserError, match=message):
            read(settings, RankedPairs, "pairs")


def test_a_run_that_ends_anywhere_asks_nothing_twice():
    whole = Teacher(longer_with_sample)
    expected = bytes_of(made_of([whole], answers=3))
    for first in range(len(whole.asked)):
        journal, asked = {}, 0
        for most in (first, 10**9):
            teacher = Teacher(longer_with_sample, replies=journal, most=most)
            with contextlib.suppress(KeyboardInterrupt):
                made = made_of([teacher], answers=3)
            asked += len(teacher.asked)
        assert bytes_of(made) == expected and asked == len(whole.asked)
