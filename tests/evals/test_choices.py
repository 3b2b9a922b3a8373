"""Questions with choices, and their files, against likelihoods computed one at a time."""

import csv
import json

import numpy as np
import pytest

import camelid
from camelid.errors import UserError
from camelid.evals.choices import choices
from camelid.evals.exams import read_questions
from camelid.evals.lm import LocalLM, encode_pair


@pytest.fixture(scope="module")
def model(tuned):
    return camelid.load(tuned)


QUESTIONS = [
    {"question": "What sees the red fox?", "choices": ["red fox", "the blue whale sees", "owl"], "answer": 0},
    {
        "question": "What colour?",
        "choices": ["It is red.", "blue"],
        "answer": "B",
        "group": "colours",
        "context": "the",
    },
    {"question": "狐狸?", "choices": ["是", "红色"], "answer": "红色", "id": "zh"},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)))
    return str(path)


def logp(model, prompt, choice):
    """The log-probability of a choice after a prompt, from the logits."""
    tokenizer = model.tokenizer
    begin = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    whole = [tokenizer.bos_id, *tokenizer.encode(prompt + choice)]
    logits = np.asarray(model.logits(np.array([whole])), np.float64)[0]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return sum(logits[i - 1, whole[i]] for i in range(len(begin), len(whole)))


def test_each_choice_has_the_likelihood_of_its_text_after_the_question(model, file):
    items = choices(model, file=file)
    for item, asked in zip(items, QUESTIONS, strict=True):
        words = ("问题：", "答案：", "") if item.id == "zh" else ("Question: ", "Answer:", " ")
        text = f"{asked['context']}\n{asked['question']}" if "context" in asked else asked["question"]
        prompt = f"{words[0]}{text}\n{words[1]}"
        expected = [logp(model, prompt, words[2] + choice) for choice in asked["choices"]]
        assert item.shown["logp"] == pytest.approx(expected, abs=2e-4)
        place = asked["choices"].index(asked["answer"]) if item.id == "zh" else {0: 0, "B": 1}[asked["answer"]]
        per_character = np.array(expected) / [len(choice) for choice in asked["choices"]]
        alone = [logp(model, words[1], words[2] + choice) for choice in asked["choices"]]
        assert item.scores == {
            "acc": float(np.argmax(expected) == place),
            "acc_norm": float(np.argmax(per_character) == place),
            "acc_answer_only": float(np.argmax(np.subtract(expected, alone)) == place),
        }
    assert items[1].groups == ("", "colours") and items[1].cluster == "the"


def test_no_score_depends_on_the_batch_or_the_mesh(model, file):
    plain = [item.shown["logp"] for item in choices(model, file=file)]
    for size in (1, 2, 8):
        found = [item.shown["logp"] for item in choices(model, file=file, batch_size=size)]
        assert np.concatenate(found) == pytest.approx(np.concatenate(plain), abs=1e-4)
    spread = camelid.load(model.checkpoint.path, mesh=camelid.model.sharding.make_mesh({"data": 2, "fsdp": 4}))
    found = [item.shown["logp"] for item in choices(spread, file=file)]
    assert np.concatenate(found) == pytest.approx(np.concatenate(plain), abs=1e-4)


def test_an_example_stands_before_the_question_until_the_context_is_full(model, file, tmp_path):
    (item, *_) = choices(model, file=file, shots=1, shots_file=file, limit=1)
    assert item.shown["shots"] == 1
    assert item.shown["prompt"].startswith("Question: the\nWhat colour?\nAnswer: blue\n\nQuestion: What sees")
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"question": "owl " * 200, "choices": ["a", "b"], "answer": 0}))
    (item, *_) = choices(model, file=file, shots=1, shots_file=str(long), limit=1)
    assert item.shown["shots"] == 0
    with pytest.raises(UserError, match=r"shots is 4: .* comes with 2 examples; give fewer"):
        choices(model, file=file, shots=4, shots_file=file)


def test_a_chat_model_is_asked_through_its_template(model, file):
    (item, *_) = choices(model, file=file, chat=True, limit=1)
    lm = LocalLM(model)
    conversation = [{"role": "user", "content": "Question: What sees the red fox?"}]
    context, end = lm.chat_pair(conversation, "red fox")
    assert context == model.prompt(conversation) and model.tokenizer.decode(end).strip() == "red fox"
    assert item.shown["logp"][0] == pytest.approx(lm.loglikelihoods([(context, end)])[0].logp, abs=1e-5)


def test_spaces_at_the_end_of_a_context_belong_to_what_follows(model):
    lm = LocalLM(model)
    assert encode_pair(lm, "the red ", "fox") == encode_pair(lm, "the red", " fox")
    assert encode_pair(lm, "", "fox")[0] == [model.tokenizer.bos_id]


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def test_mmlu_is_read_and_asked_as_it_is_published(model, tmp_path):
    write_csv(
        tmp_path / "dev/high_school_art_dev.csv", [["Who?", "a", "b", "c", "d", "D"], ["Why?", "a", "b", "c", "d", "A"]]
    )
    write_csv(tmp_path / "test/high_school_art_test.csv", [['Which, "is" it?', "red", "blue", "owl", "fox", "C"]])
    (item,) = choices(model, file=str(tmp_path), shots=1)
    assert item.shown["prompt"] == (
        "The following are multiple choice questions (with answers) about high school art.\n\n"
        "Who?\nA. a\nB. b\nC. c\nD. d\nAnswer: D\n\n"
        'Which, "is" it?\nA. red\nB. blue\nC. owl\nD. fox\nAnswer:'
    )
    assert (item.subject, item.shown["answer"], list(item.scores)) == ("high_school_art", "C", ["acc"])
    assert item.shown["logp"][0] == pytest.approx(logp(model, item.shown["prompt"], " A"), abs=2e-4)


@pytest.mark.parametrize(
    ("part", "header", "row", "name"),
    [
        (
            "val",
            ["id", "question", "A", "B", "C", "D", "answer"],
            ["7", "狐狸是?", "红", "蓝", "黑", "白", "B"],
            "law_val.csv",
        ),
        (
            "test",
            ["", "Question", "A", "B", "C", "D", "Answer"],
            ["7", "狐狸是?", "红", "蓝", "黑", "白", "B"],
            "law.csv",
        ),
    ],
)
def test_ceval_and_cmmlu_are_read_as_they_are_published(tmp_path, part, header, row, name):
    write_csv(tmp_path / part / name, [header, row])
    write_csv(tmp_path / "dev" / name.replace("val", "dev"), [[*header, "explanation"], [*row, "因为"]])
    if part == "val":  # C-Eval's tests have no answers
        write_csv(tmp_path / "test/law_test.csv", [header[:-1], row[:-1]])
    (question,), shots = read_questions(str(tmp_path))
    assert (question.text, question.choices, question.answer) == ("狐狸是?", ("红", "蓝", "黑", "白"), 1)
    assert question.subject == "law" and [each.text for each in shots["law"]] == ["狐狸是?"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "own.jsonl:1: "),
        ("[[3]]", "own.jsonl, record 1: a list is no question"),
        ('{"choices": ["a", "b"], "answer": 0}', 'own.jsonl:1: "question" is null'),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "two or more texts"),
        (
            '{"question": "q", "choices": ["a", "b"], "answer": 2}',
            '"answer" is 2: give a choice, its place from 0 to 1',
        ),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', '"answer" is True'),
        ("", "has no questions"),
    ],
)
def test_a_line_that_is_no_question_is_told_with_its_place(tmp_path, line, message):
    path = tmp_path / "own.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=message):
        read_questions(str(path))


def test_a_row_that_is_no_question_is_told_with_its_place(tmp_path):
    write_csv(tmp_path / "exam.csv", [["q", "a", "b", "c", "d", "A"], ["q", "a", "b", "c", "d", "E"]])
    with pytest.raises(UserError, match=r"exam.csv:2: the answer is 'E': give a letter from A to D"):
        read_questions(str(tmp_path / "exam.csv"))
