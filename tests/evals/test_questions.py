"""Sets of questions are read as they are published, and a bad line is named."""

import json
from pathlib import Path

import pytest

from camelid.errors import UserError
from camelid.evals.questions import Question, language_of, read_questions

SHARED = Path(__file__).parents[3] / "shared" / "data"


def write(path, *records):
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_turns_categories_references_and_languages_are_read(tmp_path):
    path = write(
        tmp_path / "q.jsonl",
        {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Shorter."]},
        {"question_id": "z1", "category": "math", "turns": ["三加五等于几？", "再加一呢？"], "reference": ["8", "9"]},
        {"text": "Who is it?", "reference": "The fox."},
        {"uid": "a", "turns": [{"content": "用 Python 写一个函数 add"}], "language": "en"},
        {"question_id": 5, "prompt": "Two turns", "reference": [None]},
        {"question_id": 6, "turns": ["one", "two"], "reference": ["first"]},
    )
    assert read_questions(path) == [
        Question("81", ("Write a poem.", "Shorter."), "writing"),
        Question("z1", ("三加五等于几？", "再加一呢？"), "math", ("8", "9"), "zh"),
        Question("3", ("Who is it?",), "", ("The fox.",)),
        Question("a", ("用 Python 写一个函数 add",), language="en"),
        Question("5", ("Two turns",)),
        Question("6", ("one", "two"), "", ("first", "")),
    ]


@pytest.mark.parametrize(
    "text, language",
    {
        "用 Python 写一个函数，返回 list 中最大的数": "zh",
        "What does 狐狸 mean?": "en",
        "Translate 你好 into English, in plain words please": "en",
        "12 + 5 = ?": "en",
        "": "en",
    }.items(),
)
def test_a_question_that_is_mostly_chinese_is_chinese(text, language):
    assert language_of(text) == language


@pytest.mark.parametrize(
    "line, message",
    {
        "{": "q.jsonl:2",
        "[1]": "q.jsonl:2.*no JSON object",
        '{"turn": ["a"]}': "q.jsonl:2.*no turns.*did you mean turns",
        '{"turns": []}': r"q.jsonl:2.*each turn needs a text",
        '{"turns": ["a", " "]}': "q.jsonl:2.*each turn needs a text",
        '{"turns": ["a", 3]}': "q.jsonl:2.*give a text or a list of texts",
        '{"turns": ["a"], "reference": ["x", "y"]}': "q.jsonl:2.*2 references for 1 turns",
        '{"turns": ["a"], "language": "de"}': "q.jsonl:2.*give en or zh",
        '{"turns": ["a"], "question_id": 1}': "q.jsonl:2.*question 1 stands at .*q.jsonl:1 too",
        '{"turns": ["a"], "question_id": [1]}': "q.jsonl:2.*give a text or a whole number",
        '{"turns": ["a"], "question_id": ""}': "q.jsonl:2.*give a text or a whole number",
        r'{"turns": ["a"], "question_id": "\u001b[31m"}': "q.jsonl:2.*control character",
        '{"turns": ["a"], "category": 3}': "q.jsonl:2.*category is 3",
        r'{"turns": ["a \ud83d"]}': "q.jsonl:2.*surrogate",
    }.items(),
)
def test_a_bad_line_is_one_line_with_its_place(line, message, tmp_path):
    path = write(tmp_path / "q.jsonl", {"question_id": 1, "turns": ["a"]}, line)
    with pytest.raises(UserError, match=message) as error:
        read_questions(path)
    assert "\n" not in str(error.value)


def test_a_missing_or_empty_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no questions"):
        read_questions(write(tmp_path / "q.jsonl", ""))


@pytest.mark.parametrize(
    "name, turns, categories, references",
    [("vicuna_questions", 80, 9, 0), ("mt_bench_questions", 160, 8, 39)],
)
def test_published_sets_are_read_as_they_are(name, turns, categories, references):
    path = SHARED / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    questions = read_questions(path)
    assert len(questions) == 80 and sum(len(question.turns) for question in questions) == turns
    assert len({question.category for question in questions}) == categories
    assert sum(bool(question.reference) for question in questions) == references
    assert {question.language for question in questions} == {"en"}
