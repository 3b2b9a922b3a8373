"""Questions of a teacher: read from its answers, checked against their passage, and the same after an interruption."""

import json

import pytest

from camelid.curate.documents.grounding import Grounded, missing_names, missing_numbers, support_of
from camelid.curate.documents.questions import ANSWER, GROUNDED, REPEATED, Questions, ask_questions, parse_questions
from camelid.curate.documents.rows import Reading, read_documents
from camelid.curate.rows import Rejected, Row
from camelid.serve.journal import Journal, Reply, key_of

PASSAGE = (
    "# Returns\n\nGoods bought from Acme Store can be returned within thirty-two days. "
    "A repair costs 1,200.50 dollars. The manager is Ann Lee."
)
CHINESE = "# 退货\n\n在骆驼商店买的商品可以在三十天内退回，请保留收据。修理一次需要二百五十元，经理是李安（Ann）。"


class Teacher:
    """An asker with an answer to each passage; it may be killed after some requests."""

    name = "teacher"

    def __init__(self, answers, journal, dies_after=None):
        self.answers, self.journal, self.dies_after, self.asked = answers, journal, dies_after, []

    def key(self, request):
        return key_of(self.name, request)

    def ask(self, requests):
        for request in requests:
            key = self.key(request)
            if self.journal.reply(key) is None:
                if len(self.asked) == self.dies_after:
                    raise KeyboardInterrupt
                self.journal.ask({key: request.body(self.name)})
                self.asked.append(request)
                words = request.messages[-1]["content"]
                text = next((answer for part, answer in self.answers.items() if part in words), "NONE")
                reply = text if isinstance(text, Reply) else Reply(text, "stop", 10, 5)
                self.journal.answer({key: reply})
        return [self.journal.reply(self.key(request)) for request in requests]


@pytest.mark.parametrize(
    "text,expected",
    [
        ("Question: a?\nAnswer: b.\n\nQuestion: c?\nAnswer: d\ne.", [("a?", "b."), ("c?", "d\ne.")]),
        ("**Question 1:** a?\n**Answer 1:** b.", [("a?", "b.")]),
        ("1. Q: a?\nA: b.\n2. Q: c?\nA: d.", [("a?", "b."), ("c?", "d.")]),
        ("问题：甲？\n答案：乙。\n问题 2：丙？\n回答：丁。", [("甲？", "乙。"), ("丙？", "丁。")]),
        ("Here they are.\n\nQ1: a?\nA1: b.", [("a?", "b.")]),
    ],
)
def test_questions_are_read_in_the_forms_that_teachers_use(text, expected):
    assert [(raw["question"], raw["answer"]) for raw, _ in parse_questions(Reply(text))] == expected


@pytest.mark.parametrize(
    "reply,reasons",
    [
        (Reply("Question: a?\nAnswer: b.\nQuestion: c?\nAnswer: d", "length"), [None, "cut"]),
        (Reply("Question: a?\nQuestion: c?\nAnswer: d."), ["malformed", None]),
        (Reply("Question:\nAnswer: d."), ["malformed"]),
        (Reply("I cannot."), ["malformed"]),
        (Reply("NONE."), ["no_questions"]),
        (Reply("无"), ["no_questions"]),
        (Reply("", "length"), ["cut"]),
    ],
)
def test_what_cannot_be_read_is_rejected_with_its_reason(reply, reasons):
    assert [rejected and rejected.reason for _, rejected in parse_questions(reply)] == reasons


@pytest.mark.parametrize(
    "passage,answer,numbers,names",
    [
        (PASSAGE, "Within 32 days for 1200.5 dollars.", [], []),
        (PASSAGE, "1. Within 30 days.\n2. Ask Ann Lee's friend Bob.", ["30"], ["Bob"]),
        (PASSAGE, "Goods of Acme Store. Repairs cost $1,200.50.", [], []),
        (CHINESE, "可以在30天内退回，修理需要250元，请找Ann。", [], []),
        (CHINESE, "可以在３１天内退回，请找Bob或者《服务指南》。", ["31"], ["Bob", "服务指南"]),
        ("Open in 2024 at 9:30.", "In 2024 at 9:30, not at 10:30.", ["10:30"], []),
    ],
)
def test_numbers_and_names_have_to_stand_in_the_passage(passage, answer, numbers, names):
    assert (missing_numbers(answer, passage), missing_names(answer, passage)) == (numbers, names)


def test_the_words_of_an_answer_have_to_stand_in_the_passage():
    assert support_of("The goods are returned within thirty days.", PASSAGE, "en") == 1.0
    assert support_of("Elephants never forget anything important.", PASSAGE, "en") == 0.0
    assert support_of("商品可以在三十天内退回。", CHINESE, "zh") == 1.0
    assert support_of("Yes.", PASSAGE, "en") == 1.0


@pytest.mark.parametrize(
    "question,answer,reason",
    [
        ("When can goods be returned?", "The goods can be returned within 32 days.", None),
        ("When can goods be returned?", "The goods can be returned within 14 days.", "not_in_passage"),
        ("Who leads it?", "Elephants never forget anything important here.", "not_in_passage"),
        ("What is the phone number?", "The passage does not mention a phone number.", "unanswerable"),
        ("According to the passage, who is the manager?", "The manager is Ann Lee.", "refers_to_passage"),
        ("文中的经理是谁？", "The manager is Ann Lee.", "refers_to_passage"),
    ],
)
def test_an_answer_that_does_not_rest_on_its_passage_is_rejected(question, answer, reason):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    row = Row("a", {"kind": "chat", "messages": messages}, "s", "p", {"rests_on": PASSAGE, "language": "en"})
    found = Grounded()(row)
    assert (found.reason if isinstance(found, Rejected) else None) == reason
    if reason == "refers_to_passage":
        seen = [messages[0] | {"input": PASSAGE}, messages[1]]
        assert isinstance(Grounded()(row.with_({"kind": "chat", "messages": seen})), Row)


@pytest.fixture
def passages(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(PASSAGE)
    (tmp_path / "docs" / "b.md").write_text(CHINESE)
    (tmp_path / "docs" / "c.md").write_text("Short.")
    (tmp_path / "docs" / "d.md").write_text(
        "Opening hours of the other shop that stands behind the railway station are " * 3
    )
    return read_documents(tmp_path / "docs", Reading()).passages


ANSWERS = {
    "Acme Store": "Question: When?\nAnswer: Goods can be returned within 32 days.\nQuestion: Who?\nAnswer: It is Bob.",
    "骆驼商店": "问题：修理多少钱？\n答案：修理一次需要250元。\n问题：when\n答案：请保留收据。",
}


def test_questions_are_kept_with_their_passage_file_and_heading(passages):
    with Journal(None) as journal:
        teacher = Teacher(ANSWERS, journal)
        asked = ask_questions(passages, teacher, Questions(), {"seed": 3})
        shown = ask_questions(passages, teacher, Questions(context=True))
    assert [request.messages[0]["content"][:3] for request in teacher.asked[:3]] == ["You", "你根据", "You"]
    assert teacher.asked[0].settings == {"temperature": 0.7, "max_tokens": 1024, "seed": 3}
    assert [[m["content"] for m in row.record["messages"]] for row in asked.rows] == [
        ["When?", "Goods can be returned within 32 days."],
        ["修理多少钱？", "修理一次需要250元。"],
    ]
    columns = asked.rows[0].columns
    assert columns["rests_on"] == PASSAGE and columns["file"] == "a.md" and columns["heading"] == ["Returns"]
    assert columns["passage_id"] == passages[0].id and columns["teacher"] == "teacher" and columns["support"] == 1.0
    why = sorted((each.step, each.reason, each.row.columns["file"]) for each in asked.rejected)
    assert why == [
        (ANSWER, "no_questions", "d.md"),
        (GROUNDED, "not_in_passage", "a.md"),
        (REPEATED, "repeated", "b.md"),
    ]
    assert (len(asked.teacher.replies), asked.teacher.prompt_tokens, asked.teacher.completion_tokens) == (3, 30, 15)
    assert shown.rows[0].record["messages"][0]["input"] == PASSAGE


@pytest.mark.parametrize("dies_after", [0, 1, 2])
def test_a_killed_run_comes_to_the_same_end_and_asks_nothing_twice(passages, tmp_path, dies_after):
    with Journal(None) as journal:
        expected = ask_questions(passages, Teacher(ANSWERS, journal), Questions())
    with Journal(tmp_path / "journal") as journal, pytest.raises(KeyboardInterrupt):
        ask_questions(passages, Teacher(ANSWERS, journal, dies_after), Questions())
    with Journal(tmp_path / "journal") as journal:
        teacher = Teacher(ANSWERS, journal)
        assert ask_questions(passages, teacher, Questions()) == expected
    assert len(teacher.asked) == 3 - dies_after


def test_prompts_of_ones_own_are_used(passages, tmp_path):
    for language in ("en", "zh"):
        (tmp_path / f"questions.{language}.toml").write_text(
            'system = ""\nuser = "{{ file }}|{{ headings | join(\'/\') }}|{{ count }}|{{ passage | length }}"'
        )
    with Journal(None) as journal:
        teacher = Teacher({}, journal)
        ask_questions(passages, teacher, Questions(per_passage=5, prompts=str(tmp_path)))
    assert teacher.asked[0].messages == [{"role": "user", "content": f"a.md|Returns|5|{len(PASSAGE)}"}]
    json.dumps([request.body("m") for request in teacher.asked])
